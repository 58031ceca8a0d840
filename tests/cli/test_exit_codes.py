"""Exit codes by real signals, and standard output that is closed or full: no failure of the work."""

import importlib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dictlab import Metadata, cli, save
from dictlab.runs import open_run
from dictlab.training import resume
from dictlab.training.learner.learner import Learner
from dictlab.training.sources.array import ArraySource
from tests.planted import random_dictionary

ROOT = Path(__file__).parents[2]
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


def exit_code(arguments: list[str]) -> int:
    """What the process would end with."""
    try:
        return cli.main(arguments)
    except SystemExit as ended:
        return int(ended.code)


@pytest.fixture
def train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32))
    return ["train", "--data", "x.npy", "--width", "16", "--k", "2", "--tokens", "640", "--batch", "64", "--out", "run"]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_while_training_is_the_exit_code_and_the_run_can_go_on(train, monkeypatch, number, code):
    original = Learner.step

    def step(self, *arguments, **options):
        if self.steps == 3:
            signal.raise_signal(number)
        return original(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "step", step)
        assert exit_code(train) == code
    assert exit_code(["train", "--resume", "run"]) == 0 and open_run("run").finished


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_while_measuring_leaves_the_state_whole(train, monkeypatch, number, code):
    original = ArraySource.with_metrics

    def interrupted(self, dictionaries):
        signal.raise_signal(number)
        return original(self, dictionaries)

    with monkeypatch.context() as patched:
        patched.setattr(ArraySource, "with_metrics", interrupted)
        assert exit_code(train) == code
    assert Path("run/state.safetensors").exists() and not open_run("run").finished
    run = resume("run")
    assert run.exit_code == 0 and "l0" in run.dictionaries[0].metadata.metrics


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_in_an_analysis_is_the_exit_code(tmp_path, monkeypatch, number, code):
    monkeypatch.chdir(tmp_path)
    save(random_dictionary(24, 16, metadata=Metadata(site="x")), "a.safetensors")
    geometry = importlib.import_module("analyses.similarity.geometry.geometry")
    monkeypatch.setattr(geometry, "open_dictionaries", lambda *_, **__: signal.raise_signal(number))
    assert exit_code(["report", "geometry", "a.safetensors", "--out", "made"]) == code
    assert not Path("made").exists()


@pytest.mark.parametrize("output", ["closed", "full"])
def test_a_run_whose_output_nobody_reads_is_whole(train, output):
    streams = {"closed": ">&- 2>&-", "full": ">/dev/full 2>/dev/full"}[output]
    command = f"exec {shlex.join([sys.executable, '-m', 'dictlab', *train])} {streams}"
    assert (
        subprocess.run(["sh", "-c", command], env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=300).returncode == 0
    )
    assert open_run("run").finished
