"""A run's folder that was damaged, edited or prepared by somebody: refused in a sentence, or gone on from to the same bits."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dictlab import DictlabError
from dictlab.runtime.folder_lock import InUseError, folder_lock
from dictlab.training import TrainConfig, resume, train
from dictlab.training.learner.learner import Learner
from dictlab.training.recipes import Recipe
from dictlab.training.run_folder.run_state import KEY
from dictlab.training.run_folder.state_checks import TensorsDigest, digest
from tests.planted import sparse_data

X, _ = sparse_data(1500)
SETTINGS = TrainConfig(
    data="planted", width=16, activation=("topk", "batchtopk", "gated"), k=2, tokens=64 * 60, batch=64, ema=0.9
)
NAMES = ["local-topk2-16-s0", "local-batchtopk2-16-s0", "local-gated1-16-s0"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """The folder of a run that was stopped after step 40 of 60."""
    folder, original = tmp_path_factory.mktemp("runs") / "stopped", Learner.step

    def step(self, *arguments, **options):
        if self.steps == 39 and self.member.name == NAMES[0]:
            signal.raise_signal(signal.SIGINT)
        return original(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Learner, "step", step)
        train(SETTINGS, out=folder, data=X)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    """The dictionaries of the run that was never stopped."""
    folder = train(SETTINGS, out=tmp_path_factory.mktemp("runs") / "whole", data=X).folder
    return {name: load_file(folder / f"{name}.safetensors") for name in NAMES}


@pytest.fixture
def folder(stopped, tmp_path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def state_of(folder: Path) -> tuple[dict[str, torch.Tensor], dict]:
    path = folder / "state.safetensors"
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()[KEY])
    return load_file(path), record


def write_state(folder: Path, tensors: dict[str, torch.Tensor], record: dict, *, sealed: bool = True) -> None:
    if sealed:
        record = record | {"tensors": TensorsDigest.of(tensors)}
        record = record | {"digest": digest(record)}
    save_file(tensors, folder / "state.safetensors", metadata={KEY: json.dumps(record)})


def refused(folder: Path, match: str | None = None) -> None:
    with pytest.raises(DictlabError, match=match):
        resume(folder, data=X)


def ends_as(folder: Path, whole: dict[str, dict[str, torch.Tensor]]) -> None:
    resume(folder, data=X)
    for name, tensors in whole.items():
        found = load_file(folder / f"{name}.safetensors")
        assert found.keys() == tensors.keys() and all(torch.equal(found[key], t) for key, t in tensors.items())


def test_a_run_goes_on_from_its_state_to_the_same_bits(folder, whole):
    ends_as(folder, whole)


DAMAGES = {
    "gone": lambda t: None,
    "one element": lambda t: t.flatten()[:1].clone() if t.numel() > 1 else torch.zeros(2, dtype=t.dtype),
    "one more": lambda t: torch.cat([t.flatten(), t.flatten()[:1]]),
    "another dtype": lambda t: t.double() if t.dtype != torch.float64 else t.float(),
    "not finite": lambda t: torch.full_like(t, torch.nan) if t.is_floating_point() else None,
}


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_every_tensor_of_a_state_is_checked(folder, damage):
    """One after the other, those of Adam, averages, counters, firing counts and the sample among them."""
    tensors, record = state_of(folder)
    kinds = {name.rpartition("/")[2].split(".")[0] for name in tensors}
    assert kinds >= {"weight", "average", "optimizer", "counter", "since_fired", "firings", "random", "mean"}
    for name, tensor in tensors.items():
        damaged = DAMAGES[damage](tensor)
        others = {key: t for key, t in tensors.items() if key != name}
        write_state(folder, others if damaged is None else others | {name: damaged}, record)
        refused(folder, "not a state of a training run, or damaged")
    write_state(folder, tensors | {"local-topk2-16-s0/counter.more": torch.zeros(3)}, record)
    refused(folder, "too many")


def test_a_changed_value_of_a_tensor_does_not_have_its_digest(folder):
    """One bit of one number, finite and in range: nothing but the digest can tell."""
    tensors, record = state_of(folder)
    for name, tensor in tensors.items():
        changed = tensor.clone()
        changed.reshape(-1).view(torch.uint8)[0] ^= 1
        write_state(folder, tensors | {name: changed}, record, sealed=False)
        refused(folder, "tensors do not have the digest")


def test_a_changed_record_does_not_have_its_digest(folder):
    tensors, record = state_of(folder)
    for name, value in record.items():
        if name not in ("digest", "schema"):
            write_state(folder, tensors, record | {name: [value]}, sealed=False)
            refused(folder)
    write_state(folder, tensors, record | {"step": 39}, sealed=False)
    refused(folder, "digest")


@pytest.mark.parametrize("value", [None, -1, 10**12, 1.5, "x", [], {}, [[]], {"a": -1}, True], ids=repr)
def test_a_record_with_values_out_of_range_is_refused_whatever_its_digest(folder, value):
    tensors, record = state_of(folder)
    for name in ("step", "position", "seconds", "diverged", "optimized", "identity", "variances", "settings", "log"):
        if (name == "log" and value == 10**12) or (name == "diverged" and value == {}):
            continue  # a log that was lost; nothing diverged, as is true
        write_state(folder, tensors, record | {name: value})
        refused(folder)
    for inside in ("part", "taken", "stream"):
        if inside == "stream" and value in (None, 10**12, [], {}, [[]]):
            continue
        write_state(folder, tensors, record | {"position": record["position"] | {inside: value}})
        refused(folder)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda text: text.replace("lr = ", "lr = 0.5 #") if "lr = " in text else "lr = 0.5\n" + text, "lr is 0.5"),
        (lambda text: text.replace("ema = 0.9", "ema = 0.99"), r"ema is 0\.99, and this run began with 0\.9"),
        (lambda text: text.replace("tokens = 3840", "tokens = 7680"), "tokens is 7680"),
        (lambda text: text.replace("batch = 64", "batch = 32"), "batch is 32"),
        (lambda text: text.replace("width = [", "width = [ 8,"), "."),
    ],
    ids=["lr", "ema", "tokens", "batch", "width"],
)
def test_an_edited_config_does_not_go_on_with_mixed_settings(folder, damage, match):
    path = folder / "config.toml"
    edited = damage(path.read_text())
    assert edited != path.read_text()
    path.write_text(edited)
    refused(folder, match)


def test_settings_of_who_does_the_work_may_change(folder, whole):
    path = folder / "config.toml"
    path.write_text(path.read_text().replace("save_minutes = 10.0", "save_minutes = 0.0"))
    ends_as(folder, whole)


@pytest.mark.parametrize(
    "content",
    [None, b"[]", b"{}", b'"x"', b"{", b"\xff\xfe", b'{"id": 5}', b"[" * 100_000, b'{"id": "a", "sittings": 5}',
     b'{"id": "a", "state": "finished", "members": ["../../x"]}', b'{"id": "a", "state": "finished", "members": [1]}',
     b'{"id": "a", "state": "finished", "diverged": {"a": "b"}}', b'{"id": "a", "members": null}'],
    ids=repr,
)  # fmt: skip
def test_a_damaged_run_json_is_refused_in_a_sentence(folder, content):
    path = folder / "run.json"
    path.unlink() if content is None else path.write_bytes(content)
    refused(folder, "run.json")


def test_a_damaged_config_is_refused_in_a_sentence(folder):
    for content in (b"a = " + b"[" * 50_000, b"\xff", b"width = 'x'", b"nope = 1", b""):
        (folder / "config.toml").write_bytes(content)
        refused(folder)


def damaged_log(how: str, path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    if how == "gone":
        path.unlink()
        return
    contents = {
        "empty": b"",
        "cut": path.read_bytes()[: len(lines[0]) + 20],
        "no UTF-8": b"\xff" * len(lines[0]) + b"".join(lines[1:]),
        "no records": b"[1, 2]\n" + b"".join(lines),
        "other kinds": b'{"step": 5, "loss": {"a": 1}}\n' + b"".join(lines),
        "longer": b"".join(lines) + b"{" * 1000,
    }
    path.write_bytes(contents[how])


@pytest.mark.parametrize("how", ["gone", "empty", "cut", "no UTF-8", "no records", "other kinds", "longer"])
def test_a_lost_or_damaged_log_never_spoils_a_resume(folder, whole, how, capsys):
    damaged_log(how, folder / "metrics.jsonl")
    ends_as(folder, whole)
    said = capsys.readouterr().err
    assert ("metrics.jsonl" in said) == (how != "longer"), said
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()][-1] == 60
    assert (folder / "metrics.parquet").exists()


def test_a_log_of_absurd_size_makes_no_file_of_that_size(folder, whole):
    tensors, record = state_of(folder)
    write_state(folder, tensors, record | {"log": 10**12})
    ends_as(folder, whole)
    assert (folder / "metrics.jsonl").stat().st_size < 100_000


WRITTEN = ["config.toml", "run.json", "metrics.jsonl", "metrics.parquet", "state.safetensors", f"{NAMES[0]}.safetensors",
           ".state.safetensors.partial", ".run.json.partial", ".dictlab.lock", "tensorboard", "state.rows.0"]  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_nothing_is_written_through_a_link(folder, tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"somebody's work")
    before = victim.read_bytes()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(victim)
    refused(folder, "symbolic link")
    with pytest.raises(DictlabError, match="symbolic link"):
        train(SETTINGS, out=folder, data=X, force=True)
    assert victim.read_bytes() == before and (folder / name).is_symlink()


def test_a_folder_has_one_writer_who_is_named(folder, whole):
    with folder_lock(folder, "train"):
        with pytest.raises(InUseError, match=r"process \d+ on .* has been writing there since .* \(train\)"):
            resume(folder, data=X)
        with pytest.raises(InUseError):
            train(SETTINGS, out=folder, data=X, force=True)
    ends_as(folder, whole)
    assert not list(folder.glob(".*"))


def test_the_run_is_refused_before_the_work_where_its_numbers_cannot_be(tmp_path):
    cases = {
        "AuxK by the variance": ({"batch": 1, "tokens": 10}, X),
        "squares of such numbers": ({}, X * 1e19),
        "squares of such": ({}, X * 1e-20),
        "lr is 1e\\+06; expected 1 at most": ({"lr": 1e6}, X),
    }
    for message, (settings, data) in cases.items():
        with pytest.raises(DictlabError, match=message):
            train(TrainConfig(data="planted", width=16, k=2, **({"tokens": 640, "batch": 64} | settings)),
                  out=tmp_path / "run", data=data)  # fmt: skip
        assert not (tmp_path / "run").exists()
    run = train(
        TrainConfig(data="planted", width=16, activation="relu", batch=1, tokens=40), out=tmp_path / "run", data=X
    )
    assert not run.interrupted


def test_an_explained_variance_that_exploded_is_a_divergence(tmp_path, monkeypatch):
    monkeypatch.setattr(Recipe, "share_of_peak", lambda *_: 1e6)
    with pytest.raises(DictlabError, match="Lower `lr="):
        train(TrainConfig(data="planted", width=16, k=2, batch=64, tokens=64 * 60, lr=1.0), out=tmp_path / "r", data=X)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_code_says_which_signal_stopped_it(tmp_path, monkeypatch, number, code):
    original = Learner.step
    monkeypatch.setattr(
        Learner, "step", lambda self, *a, **o: (signal.raise_signal(number), original(self, *a, **o))[1]
    )
    run = train(TrainConfig(data="planted", width=16, k=2, batch=64, tokens=640), out=tmp_path / "run", data=X)
    assert run.exit_code == code and run.signal == number


def test_firing_rates_are_those_of_the_last_tokens_trained_on(tmp_path, monkeypatch):
    """Brute force: the codes of every step are kept, and those of the last windows counted."""
    from dictlab.training.learner import firing_counts
    from dictlab.training.learner import learner as module

    monkeypatch.setattr(firing_counts, "FIRING_TOKENS", 64 * 7)
    counts, original = [], module.active_counts

    def kept(codes):
        counts.append(original(codes))
        assert torch.equal(counts[-1], (codes.dense() != 0).sum(dim=0))
        return counts[-1]

    monkeypatch.setattr(module, "active_counts", kept)
    settings = TrainConfig(data="planted", width=16, k=2, batch=64, tokens=64 * 26)
    made = train(settings, out=tmp_path / "run", data=X).dictionaries[0]
    last = counts[14:]  # windows of 7 steps: 0-6, 7-13, 14-20, 21-25; the last two
    assert made.metadata.metrics["firing_tokens"] == 64 * 12
    torch.testing.assert_close(made.firing_rate, torch.stack(last).sum(dim=0) / (64 * 12))
    assert made.metadata.metrics["dead"] == int((made.firing_rate == 0).sum())
