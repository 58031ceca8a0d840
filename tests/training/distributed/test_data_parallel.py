"""Two processes that share each batch learn what one process learns."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from dictlab import DictlabError, Text, load
from dictlab.runs import records
from dictlab.training import TrainConfig, resume, train
from dictlab.training.learner.learner import Learner
from dictlab.training.sources import model
from tests.planted import SITE, sparse_data, tiny_model
from tests.processes import spread

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "dictlab"]
MODEL = {"model": "tiny", "site": SITE, "context": 16, "batch": 128, "tokens": 128 * 50}
ARRAY = {"data": "rows", "batch": 128, "tokens": 128 * 50}
TASKS = {
    "shuffled": MODEL | {"width": (24,), "k": (4,), "activation": ("topk", "batchtopk"), "dead_after": 256},
    "clipped": MODEL | {"width": (64,), "k": (2,), "clip": 1e-3, "ema": 0.9, "dead_after": 128, "seed": (0, 1)},
    "spliced": MODEL | {"width": (24,), "objective": ("e2e+ds",), "finetune": "local"},
    "weighted": MODEL | {"objective": ("weighted",), "ce": 1.0, "kl": 0.5, "width": (24,), "k": (4,)},
    "rest": ARRAY | {"width": (24,), "k": (4,), "l0": (0.003,), "activation": ("multitopk", "jumprelu", "gated")},
    "resampled": ARRAY | {"activation": ("relu",), "l1": (100.0,), "lr": 0.01, "width": (64,), "tokens": 128 * 60,
                          "resample": 2, "dead_after": 128},
    "nested": ARRAY | {"width": (64,), "k": (4,), "activation": ("matryoshka-batchtopk",)},
}  # fmt: skip
STOPPED_AFTER = 17  # steps
REFUSED = {
    "odd batch": MODEL | {"batch": 127},
    "odd contexts": MODEL | {"batch": 48, "objective": ("e2e",)},
    "no variance": ARRAY | {"data": "zeros"},
}


def trained(name: str, out: Path, settings: dict | None = None, text: Text | None = None):
    """A run of this name, in however many processes there are."""
    config = TrainConfig(**{"save_minutes": 0.001} | (settings or TASKS[name]))
    if config.model:
        return train(config, out=out, model=tiny_model(), text=text)
    rows, _ = sparse_data(4096)
    return train(config, out=out, data=rows if config.data == "rows" else torch.zeros_like(rows))


def everything(rank: int, out: Path, text: Text) -> None:
    """What the second of two processes does as well as the first."""
    for name in TASKS:
        trained(name, out / name, text=text)
    cached = MODEL | {"width": (24,), "k": (4,), "cache": str(out / "kept"), "tokens": 128 * 20}
    for name in ("filling", "filled"):
        trained(name, out / name, cached, text)
    stopped_and_resumed(out)
    said = {}
    for name, settings in REFUSED.items():
        try:
            trained(name, out / name, settings, text)
        except DictlabError as error:
            said[name] = str(error)
    (out / f"refused.{rank}").write_text(json.dumps(said))


def stopped_and_resumed(out: Path) -> None:
    """A run of which only the second process is asked to stop, and a copy of it that goes on."""
    step, rows = Learner.step, sparse_data(4096)[0]

    def asked(learner, *args, **options):
        if learner.steps + 1 == STOPPED_AFTER and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(learner, *args, **options)

    Learner.step = asked
    trained("stopped", out / "stopped", TASKS["nested"])
    Learner.step = step
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.copytree(out / "stopped", out / "resumed")
    dist.barrier()
    resume(out / "resumed", data=rows)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """A forked process has no pool of threads, and would wait for it for ever."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def small_window(monkeypatch):
    monkeypatch.setattr(model, "BUFFER_TOKENS", 1024)


@pytest.fixture(scope="module")
def together(tmp_path_factory, text) -> Path:
    """Every task, in two processes."""
    out = tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model, "BUFFER_TOKENS", 1024)
        ended = spread(2, lambda rank: everything(rank, out, text), out)
    assert ended == [0, 0], (out / "said.0").read_text()[-3000:]
    return out


@pytest.mark.parametrize("name", TASKS)
def test_two_processes_have_the_loss_curve_and_the_dictionaries_of_one(name, together, tmp_path, text):
    alone = trained(name, tmp_path / name, text=text)
    one, two = alone.metrics(), records(together / name / "metrics.jsonl")
    assert [(r["member"], r["step"]) for r in one] == [(r["member"], r["step"]) for r in two]
    for mine, theirs in zip(one, two, strict=True):
        clock = {"seconds", "tokens_per_second", "member"}
        for key in mine.keys() - clock:
            assert theirs[key] == pytest.approx(mine[key], rel=1e-3, abs=1e-5), (key, mine["step"])
    for dictionary in alone.dictionaries:
        other = load(together / name / f"{dictionary.name}.safetensors")
        torch.testing.assert_close(other.W_dec, dictionary.W_dec, atol=2e-3, rtol=0)
        torch.testing.assert_close(other.b_enc, dictionary.b_enc, atol=2e-3, rtol=0)
        assert other.metadata.metrics["l0"] == pytest.approx(dictionary.metadata.metrics["l0"], rel=0.01)


def test_the_tasks_meet_what_needs_the_whole_batch(together):
    """AuxK had dead latents, and some were resampled."""
    assert max(r["aux"] for r in records(together / "clipped" / "metrics.jsonl")) > 0
    assert max(r["dead"] for r in records(together / "resampled" / "metrics.jsonl")) > 0


def test_what_several_processes_left_in_a_cache_serves_as_many(together):
    """The second run finds every forward, and is the first one again."""
    one, two = (load_file(together / name / "local-topk4-24-s0.safetensors") for name in ("filling", "filled"))
    assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())
    forwards = list((together / "kept").rglob("*.safetensors"))
    assert len(forwards) > 1 and len({len(load_file(path)["tokens"]) for path in forwards}) == 1  # equal shares


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.npy"
    np.save(path, sparse_data(4096)[0].numpy())
    return path


def launched(*arguments: object) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[3])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}
    command = [*LAUNCH, "train", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_torchrun_shares_out_tokens_or_latents_and_one_process_speaks(rows, tmp_path):
    """The command itself, with its own group of processes."""
    done = launched("--data", rows, "--width", 32, "--k", 2, "--tokens", 4096, "--out", tmp_path / "run", "--shards", 2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Run: ") == 1 and "Traceback" not in done.stderr
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (about["sittings"][0]["processes"], about["sittings"][0]["shards"]) == (2, 2)
    assert load(tmp_path / "run" / "local-topk2-32-s0.safetensors").n_latents == 32


def test_a_mistake_is_said_by_one_process_and_all_end_with_it(rows, tmp_path):
    done = launched("--data", rows, "--batch", 127, "--out", tmp_path / "run")
    assert done.returncode != 0 and not (tmp_path / "run").exists()
    assert done.stderr.count("dictlab: a batch has 127 rows") == 1 and "exitcode  : 2" in done.stderr


def test_only_the_first_process_writes(together):
    files = {path.name for path in (together / "shuffled").iterdir()}
    assert files == {
        "config.toml", "run.json", "metrics.jsonl", "metrics.parquet",
        "local-topk4-24-s0.safetensors", "local-batchtopk4-24-s0.safetensors",
    }  # fmt: skip
    assert json.loads((together / "shuffled" / "run.json").read_text())["sittings"][0]["processes"] == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("odd batch", "127 tokens, and 2 processes"),
        ("odd contexts", "3 contexts, and 2 processes"),
        ("no variance", "do not vary"),  # found by the first process alone
    ],
)
def test_every_process_says_what_cannot_be_shared(name, words, together):
    for rank in (0, 1):
        assert words in json.loads((together / f"refused.{rank}").read_text())[name]
    assert not (together / name).exists()


def test_a_stop_asked_of_one_process_stops_both_and_any_number_of_processes_goes_on(together, tmp_path):
    rows, _ = sparse_data(4096)
    whole = trained("stopped", tmp_path / "whole", TASKS["nested"]).dictionaries[0]
    about = json.loads((together / "stopped" / "run.json").read_text())
    assert (about["state"], about["reason"], about["steps"]) == ("stopped", "interrupted", STOPPED_AFTER)
    assert json.loads((together / "resumed" / "run.json").read_text())["sittings"][1]["from_step"] == STOPPED_AFTER
    by_two = load(together / "resumed" / f"{whole.name}.safetensors")
    by_one = resume(together / "stopped", data=rows).dictionaries[0]
    for other in (by_two, by_one):
        assert other.metadata.tokens == whole.metadata.tokens
        torch.testing.assert_close(other.W_dec, whole.W_dec, atol=2e-3, rtol=0)
