"""Logs of a run: lines that are cut back, other libraries' loggers, and a table in the end."""

import json
import sys

import pandas as pd
import pytest

from dictlab import DictlabError
from dictlab.runs import records
from dictlab.training import TrainConfig, train
from dictlab.training.run_folder.logs import JsonLines
from tests.planted import sparse_data


def config(**changes) -> TrainConfig:
    return TrainConfig(data="planted", width=(16, 24), k=(2,), tokens=64 * 60, batch=64, **changes)


def test_a_log_goes_on_where_the_state_was_saved(tmp_path):
    log = JsonLines(tmp_path)
    log.write({"step": 1, "loss": 0.5})
    size = log.synchronise()
    log.write({"step": 2})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # killed while it wrote
    assert [r["step"] for r in records(tmp_path / "metrics.jsonl")] == [1, 2]
    log = JsonLines(tmp_path, size)
    log.write({"step": 2, "loss": float("nan")})
    assert records(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]
    log.table()
    assert list(pd.read_parquet(tmp_path / "metrics.parquet")["step"]) == [1, 2]


def test_the_table_of_a_run_is_its_log(tmp_path):
    run = train(config(), out=tmp_path / "run", data=sparse_data(2000)[0])
    table = pd.read_parquet(run.folder / "metrics.parquet")
    assert len(table) == len(run.metrics()) == 6
    assert list(table["loss"]) == [record["loss"] for record in run.metrics()]


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_logger_that_is_not_installed_is_said_before_any_work(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DictlabError, match=rf"{name} is not installed.*pip install 'dictlab\[{name}\]'"):
        train(config(log=(name,)), out=tmp_path / "run", data=sparse_data(2000)[0])
    assert not (tmp_path / "run").exists()


def test_tensorboard_is_told_every_record(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(config(log=("tensorboard",)), out=tmp_path / "run", data=sparse_data(2000)[0])
    for member in ("local-topk2-16-s0", "local-topk2-24-s0"):
        events = EventAccumulator(str(run.folder / "tensorboard" / member)).Reload()
        own = [record for record in run.metrics() if record["member"] == member]
        told = events.Scalars("loss")
        assert [event.step for event in told] == [record["tokens"] for record in own]
        assert [event.value for event in told] == pytest.approx([record["loss"] for record in own])


def test_wandb_is_told_every_record(tmp_path, monkeypatch):
    """Against a stand-in with wandb's own calls: a run of a fixed identity, and members by name over tokens."""
    calls = []

    class Stub:
        def init(self, **options):
            calls.append(options)
            return self

        def define_metric(self, name, step_metric):
            calls.append((name, step_metric))

        def log(self, values):
            calls.append(values)

        def finish(self):
            calls.append("finished")

    monkeypatch.setitem(sys.modules, "wandb", Stub())
    run = train(config(log=("wandb",)), out=tmp_path / "run", data=sparse_data(2000)[0])
    opened, metric, *logged, end = calls
    assert opened["id"] == json.loads((run.folder / "run.json").read_text())["id"] and opened["resume"] == "allow"
    assert metric == ("*", "tokens") and end == "finished"
    assert [v["tokens"] for v in logged] == [record["tokens"] for record in run.metrics()]
    assert logged[0]["local-topk2-16-s0/loss"] == run.metrics()[0]["loss"]
