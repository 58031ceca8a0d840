"""Runs that survive: killed at any moment, stopped, out of disk, out of data, out of range, they go on or say why not."""

import os
import random
import resource
import signal
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dictlab import DictlabError, Text, load
from dictlab.data import shuffle_buffer
from dictlab.formats.native import native_file as native
from dictlab.runs import open_run, records
from dictlab.runtime import atomic_files
from dictlab.training import TrainConfig, configfile, resume, train, training_loop
from dictlab.training.learner.learner import Learner
from dictlab.training.recipes import Recipe
from dictlab.training.run_folder import completion
from dictlab.training.sources import model as model_source
from dictlab.training.training_loop import LOG_EVERY
from tests.planted import SITE, sparse_data, tiny_model
from tests.processes import with_a_lock_of_its_own

CLOCK = ("seconds", "tokens_per_second")  # differ between two runs of the same


@pytest.fixture(autouse=True)
def small_window(monkeypatch):
    """The window moves on many times in a short run; and no waiting for the disk, which a kill does not touch."""
    monkeypatch.setattr(shuffle_buffer, "FORWARD_TOKENS", 256)
    monkeypatch.setattr(model_source, "BUFFER_TOKENS", 1024)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """A forked process has no pool of threads, and would wait for it for ever."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def config(**changes) -> TrainConfig:
    settings = {"width": (24,), "k": (4,), "tokens": 128 * 60, "batch": 128, "context": 16, "save_minutes": 0.0}
    return TrainConfig("tiny", SITE, **(settings | changes))


def apart(work) -> int:
    """Run something in a process of its own; returns its number."""
    child = os.fork()
    if child:
        return child
    with_a_lock_of_its_own()
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)


def status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tensors(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def logged(folder: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in records(folder / "metrics.jsonl")]


def same_bits(a: Path, b: Path) -> None:
    """The same files with the same tensors, and logs that differ in nothing but the clock."""
    one, two = tensors(a), tensors(b)
    assert one.keys() == two.keys() and one
    for name, own in one.items():
        assert own.keys() == two[name].keys()
        assert all(torch.equal(tensor, two[name][key]) for key, tensor in own.items()), name
    assert logged(a) == logged(b)


FAMILIES = {
    "TopK, EMA, two widths": {"width": (24, 40), "ema": 0.9, "dead_after": 512},
    "end-to-end": {"objective": ("local", "e2e+ds"), "activation": "relu", "l1": (0.01,), "tokens": 128 * 40},
    "BatchTopK and gated, fine-tuned": {
        "activation": ("batchtopk", "gated"),
        "finetune": "e2e",
        "finetune_tokens": 128 * 20,
        "resample": 2,
        "dead_after": 256,
    },
    "two sites": {"site": (SITE, "blocks.2.hook_resid_pre")},
}


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_run_that_is_killed_at_random_moments_ends_with_the_bits_of_one_that_is_not(tmp_path, text, family, model):
    """SIGKILL at five random moments from the first on; every state is saved, and the shuffle window moves on."""
    settings = replace(config(), **FAMILIES[family])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    began = time.monotonic()
    train(settings, out=whole, model=model, text=text)
    lasted = time.monotonic() - began
    moments = random.Random(0)
    killed = 0
    for _ in range(5):
        started = (broken / "config.toml").exists()
        work = (
            (lambda: resume(broken, model=model, text=text))
            if started
            else (lambda: train(settings, out=broken, model=model, text=text))
        )
        child = apart(work)
        time.sleep(moments.uniform(0, 0.4 * lasted))
        os.kill(child, signal.SIGKILL)
        killed += status(child) == -signal.SIGKILL
    assert killed  # on a machine whose load falls, later ones may come after the end
    if not (broken / "config.toml").exists():
        train(settings, out=broken, model=model, text=text)
    resume(broken, model=model, text=text)
    assert open_run(broken).finished
    same_bits(whole, broken)
    steps = [line["step"] for line in logged(broken) if line["member"] == logged(broken)[0]["member"]]
    assert steps == sorted({*range(LOG_EVERY, settings.steps + 1, LOG_EVERY), settings.steps})


@pytest.mark.parametrize("moment", ["first", "saving", "logging", "writing", "measuring", "cleaning"])
def test_a_kill_in_the_middle_of_any_write_costs_nothing(tmp_path, text, moment, model):
    """The process dies inside the very call."""
    where = {
        "first": (training_loop.TrainingLoop, "fit"),
        "saving": (atomic_files.os, "replace"),
        "logging": (training_loop.JsonLines, "write"),
        "writing": (native, "save"),
        "measuring": (model_source, "evaluate"),
        "cleaning": (completion, "write_record"),
    }
    owner, name = where[moment]
    wanted = {"saving": 30, "logging": 2, "cleaning": 2}.get(moment, 1)
    settings, broken, whole = config(), tmp_path / "broken", tmp_path / "whole"

    def dying() -> None:
        original, calls = getattr(owner, name), []

        def call(*arguments, **options):
            calls.append(1)
            if len(calls) >= wanted:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        setattr(owner, name, call)
        train(settings, out=broken, model=model, text=text)

    assert status(apart(dying)) == -signal.SIGKILL
    train(settings, out=whole, model=model, text=text)
    resume(broken, model=model, text=text)
    same_bits(whole, broken)
    assert not list(broken.glob(".*")) or moment == "saving"


def test_a_finished_run_has_nothing_to_go_on_with(tmp_path, text, model):
    run = train(config(), out=tmp_path / "run", model=model, text=text)
    before = {path.name: path.stat().st_mtime_ns for path in run.folder.iterdir()}
    assert "state.safetensors" not in before
    again = resume(run.folder)
    assert [d.name for d in again.dictionaries] == [d.name for d in run.dictionaries] and not again.interrupted
    assert {path.name: path.stat().st_mtime_ns for path in run.folder.iterdir()} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, text, monkeypatch, number, model):
    original = Learner.step

    def step(self, *arguments, **options):
        if self.steps == 40:
            signal.raise_signal(number)
        return original(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "step", step)
        run = train(config(save_minutes=10.0), out=tmp_path / "a", model=model, text=text)
    assert run.stopped == "interrupted" and open_run(run.folder).about["steps"] == 41
    assert load(run.folder / "local-topk4-24-s0.safetensors").metadata.tokens == 41 * 128
    resume(run.folder, model=model, text=text)
    train(config(), out=tmp_path / "b", model=model, text=text)
    same_bits(tmp_path / "a", tmp_path / "b")


def test_a_disk_that_fills_up_leaves_the_last_good_state(tmp_path, text, model):
    """A real limit on what the process may write: the message names the step, and the run goes on once there is room."""
    settings, folder = config(width=(512,)), tmp_path / "run"
    said = tmp_path / "said"

    def limited() -> None:
        original = training_loop.TrainingLoop._report

        def full(self, *arguments) -> None:
            original(self, *arguments)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

        training_loop.TrainingLoop._report = full
        try:
            train(settings, out=folder, model=model, text=text)
        except DictlabError as error:
            os.write(out, str(error).encode())

    out = os.open(said, os.O_WRONLY | os.O_CREAT)
    assert status(apart(limited)) == 0
    message = said.read_text()
    assert f"{folder}: cannot be written" in message and "of step 24, is kept" in message and "--resume" in message
    assert not list(folder.glob(".*"))
    resume(folder, model=model, text=text)
    train(settings, out=tmp_path / "whole", model=model, text=text)
    same_bits(folder, tmp_path / "whole")


def test_a_loss_that_is_no_number_keeps_the_last_good_state(tmp_path, text, model, monkeypatch):
    monkeypatch.setattr(Recipe, "share_of_peak", lambda *_: 1e38)
    settings = config(activation="relu", lr=1.0)
    with pytest.raises(
        DictlabError, match=r"no finite number at step \d+\. Lower `lr=...`.*last good state, of step \d+"
    ):
        train(settings, out=tmp_path / "run", model=model, text=text)
    state = load_file(tmp_path / "run" / "state.safetensors")
    assert all(torch.isfinite(t).all() for name, t in state.items() if "/weight." in name)


def test_a_member_that_diverges_is_given_up_and_the_rest_go_on(tmp_path, text, monkeypatch, model):
    """One of two is made to explode; the other ends as it would have alone, also across a stop."""
    original = Learner.step

    def step(self, *arguments, **options):
        if self.member.width == 40 and self.steps == 30:
            with torch.no_grad():
                self.encoder.fill_(float("nan"))
        if self.member.width == 24 and self.steps == 50:
            signal.raise_signal(signal.SIGINT)
        return original(self, *arguments, **options)

    monkeypatch.setattr(Learner, "step", step)
    run = train(config(width=(24, 40), save_minutes=10.0), out=tmp_path / "two", model=model, text=text)
    assert dict(run.diverged) == {"local-topk4-40-s0": 31} and [d.n_latents for d in run.dictionaries] == [24]
    monkeypatch.setattr(Learner, "step", original)
    run = resume(tmp_path / "two", model=model, text=text)
    assert dict(run.diverged) == {"local-topk4-40-s0": 31} and not run.interrupted
    alone = train(config(), out=tmp_path / "one", model=model, text=text)
    assert torch.equal(run.dictionaries[0].W_dec, alone.dictionaries[0].W_dec)
    assert not (tmp_path / "two" / "local-topk4-40-s0.safetensors").exists()


def test_data_that_ends_before_its_time_is_said_and_what_was_learnt_is_kept(tmp_path, text, model):
    run = train(config(tokens=10**7, epochs=1), out=tmp_path / "run", model=model, text=text)
    assert "the data ended after" in run.stopped and "`epochs=...`" in run.stopped
    tokens = run.dictionaries[0].metadata.tokens
    assert 0 < tokens < 120 * 121 and tokens % 128 == 0
    assert (tmp_path / "run" / "state.safetensors").exists()


def test_a_text_that_cannot_be_read_any_more_keeps_the_state(tmp_path, text, model, monkeypatch):
    """The stream fails half way; with the text whole again the run ends as if nothing had been."""

    def failing(seed):
        for number, entry in enumerate(text._source(seed)):
            if number == 30:
                raise DictlabError("text far away: the connection is lost.")
            yield entry

    broken, original = replace(text, _source=failing), Text.sample
    with monkeypatch.context() as patched:
        patched.setattr("dictlab.data.packing.GROUP", 4)
        patched.setattr(Text, "sample", lambda self, *a, **k: original(text if self is broken else self, *a, **k))
        with pytest.raises(DictlabError, match=r"connection is lost.*The state of step \d+ is kept.*--resume"):
            train(config(), out=tmp_path / "a", model=model, text=broken)
        resume(tmp_path / "a", model=model, text=text)
        train(config(), out=tmp_path / "b", model=model, text=text)
    same_bits(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.toml").unlink(), r"holds no training run"),
        (lambda run: (run / "config.toml").write_text("width = ["), r"cannot be read as TOML"),
        (
            lambda run: (run / "config.toml").write_text('modell = "x"'),
            r"no setting is called 'modell'; did you mean model",
        ),
        (
            lambda run: (run / "state.safetensors").write_bytes(b"\0" * 100),
            r"not a state of a training run, or damaged",
        ),
        (lambda run: (run / "run.json").write_text("{"), r"run\.json: cannot be read as JSON"),
    ],
)
def test_what_cannot_be_resumed_is_said(tmp_path, text, monkeypatch, damage, message, model):
    original = Learner.step
    monkeypatch.setattr(
        Learner, "step", lambda self, *a, **o: (signal.raise_signal(signal.SIGINT), original(self, *a, **o))[1]
    )
    train(config(), out=tmp_path / "run", model=model, text=text)
    damage(tmp_path / "run")
    with pytest.raises(DictlabError, match=message):
        resume(tmp_path / "run", model=model, text=text)


def test_another_model_or_text_is_refused(tmp_path, text, monkeypatch, model):
    original = Learner.step
    monkeypatch.setattr(
        Learner, "step", lambda self, *a, **o: (signal.raise_signal(signal.SIGINT), original(self, *a, **o))[1]
    )
    train(config(), out=tmp_path / "run", model=model, text=text)
    with pytest.raises(DictlabError, match="the model of this run changed"):
        resume(tmp_path / "run", model=tiny_model(seed=1), text=text)
    (tmp_path / "other").mkdir()
    for number in range(40):
        (tmp_path / "other" / f"{number}.txt").write_text(f"{number} " * 100)
    with pytest.raises(DictlabError, match="the text of this run changed"):
        resume(tmp_path / "run", model=tiny_model(), text=Text.files(tmp_path / "other"))
    with pytest.raises(DictlabError, match="holds no training run"):
        resume(tmp_path / "nowhere")


def test_the_config_in_a_folder_gives_the_run_again(tmp_path, text, model):
    run = train(config(width=(24, 40), ema=0.9), out=tmp_path / "a", model=model, text=text)
    again = TrainConfig(**configfile.read(tmp_path / "a" / "config.toml"))
    assert again == run.config
    assert tomllib.loads((tmp_path / "a" / "config.toml").read_text())["width"] == [24, 40]
    train(again, out=tmp_path / "b", model=model, text=text)
    same_bits(tmp_path / "a", tmp_path / "b")


def test_an_array_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    x, _ = sparse_data(5000)
    settings = TrainConfig(data="planted", width=(32,), k=(2,), tokens=128 * 100, batch=128)
    whole = train(settings, out=tmp_path / "a", data=x)
    original = Learner.step
    with monkeypatch.context() as patched:
        patched.setattr(
            Learner,
            "step",
            lambda self, *a, **o: (
                signal.raise_signal(signal.SIGINT) if self.steps == 50 else 0,
                original(self, *a, **o),
            )[1],
        )
        train(settings, out=tmp_path / "b", data=x)
    with pytest.raises(DictlabError, match="the data of this run changed"):
        resume(tmp_path / "b", data=x + 1)
    resume(tmp_path / "b", data=x)
    same_bits(tmp_path / "a", tmp_path / "b")
    assert whole.dictionaries[0].metadata.training["data"] == "planted"
