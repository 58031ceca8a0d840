"""The stream of activations, and one-pass statistics against NumPy's two-pass ones."""

from functools import partial

import numpy as np
import pytest
import torch

from dictlab import Text
from dictlab.data.activations import moments, sample_site, shuffled_activations
from dictlab.data.shuffle_buffer import ShuffledStream
from tests.planted import SITE, tiny_model


@pytest.fixture
def text(tmp_path) -> Text:
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"document {number} says {'abcdefghij'[number % 10] * 50}\n" * 3)
    return Text.files(tmp_path)


def test_statistics_agree_with_numpy_far_from_the_origin():
    x = torch.randn(5, 40, 6) * torch.arange(1, 7) + 1000.0
    found = moments(iter(x), covariance=True)
    flat = x.flatten(0, 1).double().numpy()
    np.testing.assert_allclose(found.mean, flat.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.covariance, np.cov(flat.T, bias=True), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.variance, flat.var(axis=0).sum(), rtol=1e-6)
    assert found.n == 200 and moments(iter(x)).covariance is None
    np.testing.assert_allclose(moments(iter(x)).variance, found.variance, rtol=1e-9)


def test_statistics_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no activations"):
        moments([])


def test_a_sample_is_of_captured_activations_sequence_by_sequence(text):
    model = tiny_model()
    tokens = text.sample(model.tokenizer, 16, 3)
    found = torch.cat(list(sample_site(model, text, SITE, context=16, tokens=48)))
    assert torch.allclose(found, model.capture(tokens, SITE)[SITE], atol=1e-6)


def test_a_sample_comes_from_all_over_the_text(text):
    """One context in four is drawn: most kinds of documents are among them, and not only the first."""
    model = tiny_model()
    everything = torch.stack(list(text.contexts(model.tokenizer, 16)))
    drawn = text.sample(model.tokenizer, 16, len(everything) // 4)
    assert len(drawn) == len(everything) // 4
    assert len(set(drawn.mode(dim=1).values.tolist())) >= 8  # each document is mostly one of ten letters
    assert len(set(everything[:5].mode(dim=1).values.tolist())) <= 3
    assert torch.equal(drawn, text.sample(model.tokenizer, 16, len(everything) // 4))
    assert not torch.equal(drawn, text.sample(model.tokenizer, 16, len(everything) // 4, seed=1))


def test_the_stream_gives_every_activation_once_in_another_order(text):
    model = tiny_model()
    options = {"context": 16, "batch": 10, "buffer": 200, "repeat": False}
    batches = list(shuffled_activations(model, text, SITE, seed=0, **options))
    assert {len(batch) for batch in batches} == {10}
    found = torch.cat(batches)
    everything = torch.cat(
        [model.capture(t, SITE)[SITE].flatten(0, 1) for t in text.batches(model.tokenizer, 16, 8, seed=0)]
    )
    assert len(everything) - 20 < len(found) <= len(everything)
    distances = torch.cdist(found.double(), everything.double())
    assert (distances.min(dim=1).values < 1e-4).all()
    assert not torch.allclose(found[:50], everything[:50], atol=1e-3)


def test_the_seed_decides_the_order(text):
    model = tiny_model()

    def first(seed: int) -> torch.Tensor:
        return next(shuffled_activations(model, text, SITE, context=16, batch=20, buffer=200, seed=seed))

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_the_buffer_bounds_what_is_held(text, monkeypatch):
    """No more forwards are done than the buffer and what was handed out account for."""
    model, seen = tiny_model(), []
    capture = model.capture
    monkeypatch.setattr(model, "capture", lambda tokens, site: seen.append(tokens.numel()) or capture(tokens, site))
    monkeypatch.setattr("dictlab.data.shuffle_buffer.FORWARD_TOKENS", 64)
    handed_out = 0
    for batch in shuffled_activations(model, text, SITE, context=16, batch=10, buffer=200, repeat=False):
        handed_out += len(batch)
        assert sum(seen) - handed_out <= 200 + 64
    assert sum(seen) > 1000


@pytest.mark.parametrize("total", [40, 200, 320, 400])
def test_the_last_block_is_as_long_as_the_batches_that_are_asked_for_need(text, monkeypatch, total):
    """Every position gives the same rest, with a selection that drops some tokens of each context."""
    monkeypatch.setattr("dictlab.data.shuffle_buffer.FORWARD_TOKENS", 64)
    tokenizer, selected = tiny_model().tokenizer, []

    def capture(tokens):
        ids = tokens.flatten()
        selected.append(ids[ids % 5 > 0, None].float())
        return {SITE: selected[-1]}

    def stream(start=None):
        settings = {"context": 16, "batch": 8, "buffer": 256, "seed": 0, "total": total}
        contexts = partial(text.contexts, tokenizer, 16, seed=0, repeat=True)
        return ShuffledStream(capture, lambda at: contexts(start=at), start=start, **settings)

    whole, places, running = [], [], stream()
    for batch in running:
        whole.append(batch[SITE])
        places.append(running.position())
    assert len(whole) >= total // 8
    assert total <= sum(map(len, selected)) < total + 64  # less than a forward beyond
    for number in range(0, len(places), 3):
        rest = [batch[SITE] for batch in stream(places[number])]
        assert len(rest) == len(whole) - number - 1
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[number + 1 :], strict=True))
