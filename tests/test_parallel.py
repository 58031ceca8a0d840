"""Two processes that share each batch learn what one process learns."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dictlab import load
from dictlab.runs import records
from dictlab.train import TrainConfig, resume, source, train
from dictlab.train.learner import Learner
from tests.planted import SITE, sparse_data, tiny_model

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
MODEL = {"model": "tiny", "site": SITE, "context": 16, "batch": 128, "tokens": 128 * 50}
ARRAY = {"data": "rows", "batch": 128, "tokens": 128 * 50}
TASKS = {
    "shuffled": MODEL | {"width": (24,), "k": (4,), "activation": ("topk", "batchtopk"), "dead_after": 256},
    "clipped": MODEL | {"width": (64,), "k": (2,), "clip": 1e-3, "ema": 0.9, "dead_after": 256, "seed": (0, 1)},
    "spliced": MODEL | {"width": (24,), "objective": ("e2e+ds",), "finetune": "local"},
    "weighted": MODEL | {"objective": ("weighted",), "ce": 1.0, "kl": 0.5, "width": (24,), "k": (4,)},
    "rest": ARRAY | {"width": (24,), "k": (4,), "l0": (0.003,), "activation": ("multitopk", "jumprelu", "gated")},
    "nested": ARRAY | {"width": (64,), "k": (4,), "activation": ("matryoshka-batchtopk",)},
}
STOPPED_AFTER = 17  # steps
SCRIPT = """
import json, sys
from pathlib import Path
import torch.distributed as dist
from dictlab.train import source
from tests import test_parallel
from dictlab import DictlabError
source.BUFFER = 1024
dist.init_process_group("gloo")
out, said = Path(sys.argv[1]), {}
for name in test_parallel.TASKS:
    test_parallel.trained(name, out / name)
test_parallel.stopped_and_resumed(out)
for name, settings in test_parallel.REFUSED.items():
    try:
        test_parallel.trained(name, out / name, settings)
    except DictlabError as error:
        said[name] = str(error)
(out / f"said.{dist.get_rank()}").write_text(json.dumps(said))
dist.destroy_process_group()
"""
REFUSED = {
    "odd batch": MODEL | {"batch": 127},
    "odd contexts": MODEL | {"batch": 48, "objective": ("e2e",)},
    "resample": ARRAY | {"activation": ("relu",), "width": (24,), "resample": 2},
    "cache": MODEL | {"cache": "kept"},
    "no variance": ARRAY | {"data": "zeros"},
}


def trained(name: str, out: Path, settings: dict | None = None):
    """A run of this name, in however many processes there are."""
    config = TrainConfig(**{"save_minutes": 0.001} | (settings or TASKS[name]))
    if config.model:
        return train(config, out=out, model=tiny_model())
    rows, _ = sparse_data(4096)
    return train(config, out=out, data=rows if config.data == "rows" else torch.zeros_like(rows))


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


def environment() -> dict[str, str]:
    root = str(Path(__file__).parent.parent)
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """Every task, in two processes."""
    out = tmp_path_factory.mktemp("together")
    (out / "script.py").write_text(SCRIPT)
    done = subprocess.run([*LAUNCH, out / "script.py", out], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
    return out


@pytest.mark.parametrize("name", TASKS)
def test_two_processes_have_the_loss_curve_and_the_dictionaries_of_one(name, together, tmp_path, monkeypatch):
    monkeypatch.setattr(source, "BUFFER", 1024)
    alone = trained(name, tmp_path / name)
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
    """AuxK had dead latents."""
    assert max(r["aux"] for r in records(together / "clipped" / "metrics.jsonl")) > 0


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
        ("cache", "cache kept: for one process"),
        ("resample", "resample 2: for one process"),
        ("no variance", "do not vary"),  # found by the first process alone
    ],
)
def test_every_process_says_what_cannot_be_shared(name, words, together):
    for rank in (0, 1):
        assert words in json.loads((together / f"said.{rank}").read_text())[name]
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
