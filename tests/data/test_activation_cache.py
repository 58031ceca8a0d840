"""The cache of activations: the same bits with and without, bounded, and used only for the tokens that it holds."""

import json
import os
import socket
import subprocess

import pytest
import torch

from dictlab import DictlabError
from dictlab.data.activation_cache import ActivationCache
from dictlab.runtime.atomic_files import WRITING
from dictlab.training import TrainConfig, train
from tests.planted import SITE, tiny_model

OTHER = "blocks.2.hook_resid_pre"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def cache_of(folder, model, gigabytes=1.0, sites=(SITE,)) -> ActivationCache:
    return ActivationCache(folder, model, sites, context=16, gigabytes=gigabytes)


def some_tokens(seed: int) -> torch.Tensor:
    return torch.randint(0, 97, (4, 16), generator=torch.Generator().manual_seed(seed))


def test_what_is_found_is_what_the_model_computes(tmp_path, model):
    tokens = some_tokens(0)
    expected = model.capture(tokens, [SITE, OTHER])
    for hits in (0, 1, 2):
        cache = cache_of(tmp_path, model, sites=(SITE, OTHER))
        found = cache.capture(tokens)
        assert all(torch.equal(found[site], expected[site]) for site in (SITE, OTHER))
        assert (cache.hits, cache.misses) == (int(hits > 0), int(hits == 0))
    alone = cache_of(tmp_path, model)  # one of the sites is enough for a run at that site
    assert torch.equal(alone.capture(tokens)[SITE], expected[SITE]) and alone.hits == 1


@pytest.mark.parametrize("what", ["tokens", "model", "context", "site"])
def test_nothing_is_found_for_anything_else(tmp_path, model, what):
    cache_of(tmp_path, model).capture(some_tokens(0))
    other = cache_of(
        tmp_path, tiny_model(seed=1) if what == "model" else model, sites=(OTHER if what == "site" else SITE,)
    )
    tokens = some_tokens(1 if what == "tokens" else 0)
    other.capture(tokens[:, :8] if what == "context" else tokens)
    assert other.hits == 0 and other.misses == 1


def test_it_does_not_grow_beyond_its_bound(tmp_path, model):
    one = 4 * 16 * 16 * 4 + 4 * 16 * 4
    cache = cache_of(tmp_path, model, gigabytes=2.9 * one / 1e9)
    for seed in range(6):
        cache.capture(some_tokens(seed))
    files = list(tmp_path.rglob("*.safetensors"))
    assert len(files) == 2 and sum(f.stat().st_size for f in files) < 3.2 * one
    again = cache_of(tmp_path, model, gigabytes=2.9 * one / 1e9)
    again.capture(some_tokens(0))
    again.capture(some_tokens(7))
    assert again.hits == 1 and len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_what_a_killed_process_left_unfinished_goes_and_what_is_being_written_stays(tmp_path, model):
    cache_of(tmp_path, model).capture(some_tokens(0))
    (place,) = tmp_path.iterdir()
    gone = subprocess.Popen(["true"])
    gone.wait()
    left, going, elsewhere = (
        place / f".{host}.{process}.partial"
        for host, process in (
            (f"x.safetensors.{socket.gethostname()}", gone.pid),
            (f"y.safetensors.{socket.gethostname()}", os.getpid()),
            ("z.safetensors.another-machine", gone.pid),
        )
    )
    for path in (left, going, elsewhere):
        path.write_bytes(b"")
        inner = path.with_name(f"{path.name}{WRITING}")  # with what the library was writing
        inner.mkdir()
        (inner / ".tmpAbCdEf").write_bytes(b"")
    cache_of(tmp_path, model)
    assert sorted(path.name for path in place.glob(".*.writing")) == sorted(
        f"{path.name}{WRITING}" for path in (going, elsewhere)
    )
    assert not left.exists() and going.exists() and elsewhere.exists()


def test_a_process_that_ends_while_it_describes_the_place_leaves_no_half_description(tmp_path, model, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", stop)
        cache_of(tmp_path, model)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert cache_of(tmp_path, model).misses == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "damaged"),
        (lambda path: path.replace(path.with_name("x")) and path.write_bytes(b""), "damaged"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, model, damage, message):
    cache_of(tmp_path, model).capture(some_tokens(0))
    (path,) = tmp_path.rglob("*.safetensors")
    damage(path)
    with pytest.raises(DictlabError, match=message):
        cache_of(tmp_path, model).capture(some_tokens(0))


def test_files_under_another_name_are_not_believed(tmp_path, model):
    """The tokens in a file are compared with those asked for, whatever it is called."""
    cache = cache_of(tmp_path, model)
    cache.capture(some_tokens(0))
    (first,) = tmp_path.rglob("*.safetensors")
    cache.capture(some_tokens(1))
    (second,) = set(tmp_path.rglob("*.safetensors")) - {first}
    first.replace(second)
    with pytest.raises(DictlabError, match="other tokens than its name says"):
        cache.capture(some_tokens(1))
    about = next(tmp_path.rglob("about.json"))
    about.write_text(json.dumps({"model": "another"}))
    with pytest.raises(DictlabError, match="another model or site"):
        cache_of(tmp_path, model)
    (tmp_path / "file").write_text("")
    with pytest.raises(DictlabError, match="this is a file"):
        cache_of(tmp_path / "file", model)


def test_a_run_with_a_cache_is_the_run_without(tmp_path, model, text, monkeypatch):
    """Bit for bit, the first time and the second; the second time the model is asked for the sample alone."""
    settings = {"width": (24,), "k": (4,), "tokens": 128 * 60, "batch": 128, "context": 16}
    site = (SITE, OTHER)
    plain = train(TrainConfig("tiny", site, **settings), out=tmp_path / "plain", model=model, text=text)
    cached = TrainConfig("tiny", site, cache=str(tmp_path / "cache"), **settings)
    train(cached, out=tmp_path / "first", model=model, text=text)
    asked = []
    original = model.capture
    monkeypatch.setattr(model, "capture", lambda tokens, sites: asked.append(len(tokens)) or original(tokens, sites))
    second = train(cached, out=tmp_path / "second", model=model, text=text)
    names = [d.name for d in second.dictionaries]
    assert names == ["blocks.1.hook_resid_pre-local-topk4-24-s0", "blocks.2.hook_resid_pre-local-topk4-24-s0"]
    for a, b in zip(plain.dictionaries, second.dictionaries, strict=True):
        assert torch.equal(a.W_dec, b.W_dec) and torch.equal(a.W_enc, b.W_enc)
        assert a.metadata.site == b.metadata.site and a.metadata.metrics == b.metadata.metrics
    monkeypatch.setattr(model, "capture", original)
    for number, one in enumerate(site):  # a site of several is what it would be alone
        alone = train(TrainConfig("tiny", one, **settings), out=tmp_path / str(number), model=model, text=text)
        assert torch.equal(alone.dictionaries[0].W_dec, plain.dictionaries[number].W_dec)
    with pytest.raises(DictlabError, match="cache local training alone"):
        train(
            TrainConfig("tiny", SITE, cache="x", objective=("e2e",), **settings),
            out=tmp_path / "e2e",
            model=model,
            text=text,
        )
