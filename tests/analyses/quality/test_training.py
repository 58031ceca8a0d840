"""The report of training runs: what the logs say, of several runs, finished or not."""

import json
import shutil

import pytest

from analyses.quality.training import training
from dictlab import DictlabError
from dictlab.training import TrainConfig, train
from tests.planted import sparse_data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    x, _ = sparse_data(3000)
    folder = tmp_path_factory.mktemp("runs") / "first"
    config = TrainConfig(data="planted", width=(16, 32), k=(2,), tokens=64 * 500, batch=64, lr=1e-2)
    train(config, out=folder, data=x)
    return folder


def log_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_table_of_ends_is_the_mean_of_the_last_tenth_of_the_log(run):
    ends = training([run]).tables["ends"].frame
    own = [record for record in log_of(run) if record["member"] == "local-topk2-32-s0"]
    last = own[-(len(own) // 10) :]
    row = ends[ends["member"] == "local-topk2-32-s0"].iloc[0]
    for metric in ("loss", "l0", "explained_variance", "dead"):
        assert row[metric] == pytest.approx(sum(r[metric] for r in last) / len(last))
        assert row[f"{metric} low"] <= row[metric] <= row[f"{metric} high"]
    assert row["tokens"] == 64 * 500 and "run" not in ends


def test_every_term_of_the_loss_has_its_panel(run):
    report = training(run)
    assert set(report.plots) == {"overview", "terms"}
    labels = {ax.get_ylabel() for ax in report.plots["terms"].figure.axes}
    assert labels == {"reconstruction", "aux"}
    assert len(report.plots["overview"].figure.axes) == 5 and not report.cautions
    assert len(report.tables["curves"].frame) == len(log_of(run))


def test_several_runs_are_told_apart_and_unfinished_ones_are_said(run, tmp_path):
    other = tmp_path / "first"
    shutil.copytree(run, other)
    about = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(
        json.dumps(about | {"state": "stopped", "reason": "interrupted", "diverged": {"local-topk2-16-s0": 31}})
    )
    with (other / "metrics.jsonl").open("a") as file:
        file.write('{"member": "local-to')  # being written
    report = training([run, other])
    ends = report.tables["ends"].frame
    assert list(ends["run"]) == ["first (1)", "first (1)", "first (2)", "first (2)"]
    assert "not finished (interrupted)" in report.cautions[0] and "given up at step 31" in report.cautions[1]
    assert len(report.tables["curves"].frame) == 2 * len(log_of(run))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.toml").unlink(), "holds no training run"),
        (lambda f: (f / "metrics.jsonl").unlink(), "has logged nothing yet"),
        (lambda f: (f / "metrics.jsonl").write_text(""), "nothing is logged yet"),
        (lambda f: (f / "metrics.jsonl").write_text("{}\n{\n{}\n"), "line 2 is damaged"),
    ],
)
def test_what_is_no_run_is_refused(run, tmp_path, damage, message):
    shutil.copytree(run, tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(DictlabError, match=message):
        training([tmp_path / "run"])
    with pytest.raises(DictlabError, match="no run was given"):
        training([])
