"""Latents that stand alone: thresholds against trying every one, and files of other libraries."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from analyses.pool.dictionary_pool import part_of, pool_of
from analyses.pool.threshold_calibration import agreement, standing_alone
from dictlab import DictlabError, ReLU, TopK, load
from dictlab.dictionary.activation_functions import AbsTopK, BatchTopK, GroupMax, JumpReLU
from dictlab.dictionary.normalisation import LayerNorm, Scale
from dictlab.formats import conversion
from tests.dictionary.test_activation_functions import gated, jumprelu
from tests.planted import random_dictionary

X = 2 * torch.randn(400, 8, generator=torch.Generator().manual_seed(0)) + 1
HALF = torch.arange(54) % 2 == 0


@pytest.mark.parametrize("kind", [TopK(5), BatchTopK(3), GroupMax(6)])
@pytest.mark.parametrize("normalisation", [None, LayerNorm()])
@pytest.mark.parametrize("by", ["decisions", "codes"])
def test_no_other_threshold_changes_fewer_decisions_or_less_of_the_codes(kind, normalisation, by):
    dictionary = random_dictionary(24, 8, activation=kind, normalisation=normalisation)
    alone = standing_alone(dictionary, X.split(400), by=by)
    z = alone.pre_activations(X).clamp(min=0)
    before = dictionary.encode(X).dense()

    def cost(thresholds):
        wrong = (z > thresholds) != (before != 0)
        return (wrong * (1 if by == "decisions" else z.square())).sum(dim=0)

    best = torch.stack([cost(value) for value in torch.cat([torch.zeros(1, 24), z])]).amin(dim=0)
    torch.testing.assert_close(cost(alone.activation.threshold), best)


def test_by_rate_every_latent_fires_as_often_as_it_did():
    dictionary = random_dictionary(24, 8, activation=TopK(5))
    alone = standing_alone(dictionary, [X], by="rate")
    assert (alone.encode(X).active_counts() == dictionary.encode(X).active_counts()).all()


@pytest.mark.parametrize("kinds", [(ReLU(), jumprelu(30, 1)), (gated(24, 1), ReLU()), (jumprelu(24, 2), gated(30, 3))])
def test_latents_without_rivals_keep_their_codes(kinds):
    """A gated latent is a JumpReLU latent of another encoder."""
    whole = pool_of([random_dictionary(n, 8, seed=n, activation=kind) for n, kind in zip((24, 30), kinds, strict=True)])
    part = part_of(whole, HALF)
    alone = standing_alone(part, [X])
    assert isinstance(alone.activation, JumpReLU) and alone.n_latents == 27
    torch.testing.assert_close(alone.reconstruct(X), part.reconstruct(X), atol=1e-4, rtol=1e-4)
    assert agreement(part, alone, [X])[:4] == (1.0, 1.0, 0.0, 0.0)


def test_a_part_of_a_topk_dictionary_loses_its_rivals_and_what_that_changes_is_counted():
    whole = pool_of([random_dictionary(24, 8, seed=1), random_dictionary(30, 8, seed=2, activation=TopK(6))])
    part = part_of(whole, HALF, name="part")
    alone = standing_alone(part, X.split(90))
    assert part.n_latents == 54 and alone.n_latents == 27
    found = agreement(part, alone, X.split(70))
    f = part.encode(X).dense()[:, HALF] != 0
    g = alone.encode(X).dense() != 0
    assert found.decisions == pytest.approx(float((f == g).float().mean()))
    assert found.firings == pytest.approx(float((f & g).sum() / (f | g).sum()))
    assert found.lost == pytest.approx(float((f & ~g).sum() / f.sum()))
    assert found.new == pytest.approx(float((g & ~f).sum() / g.sum()))
    assert found.silent == int((f.any(0) & ~g.any(0)).sum())
    both = (f & g).nonzero()[:50]
    for t, j in both.tolist():  # where a latent fires in both, as strongly
        torch.testing.assert_close(part.encode(X).dense()[:, HALF][t, j], alone.encode(X).dense()[t, j])


@pytest.mark.parametrize("by", ["codes", "decisions", "rate"])
def test_latents_that_never_fire_stay_silent(by):
    dictionary = random_dictionary(24, 8)
    dictionary = replace(dictionary, b_enc=torch.where(torch.arange(24) == 5, -1000.0, dictionary.b_enc))
    assert standing_alone(dictionary, [X], by=by).encode(X).active_counts()[5] == 0


@pytest.mark.parametrize("format", ["saelens", "dictionary_learning"])
@pytest.mark.parametrize("normalisation", [None, Scale(0.5)])
def test_other_libraries_can_hold_it(format, normalisation, tmp_path):
    """Read back and compared by the writer, and here on data; the union that it was made from cannot be written."""
    made = [random_dictionary(n, 8, seed=n, activation=TopK(5), normalisation=normalisation) for n in (24, 30)]
    part = part_of(pool_of(made), HALF)
    with pytest.raises(DictlabError):
        conversion.write(part, tmp_path / "union", format)
    alone = standing_alone(part, [X])
    try:
        back = load(conversion.write(alone, tmp_path / "alone", format))
    except DictlabError as error:
        pytest.skip(f"{format} cannot hold a JumpReLU: {error}")
    torch.testing.assert_close(back.in_input_units().reconstruct(X), alone.reconstruct(X), atol=1e-4, rtol=1e-4)


def test_negative_codes_and_unknown_calibrations_are_refused():
    with pytest.raises(DictlabError, match="abstopk"):
        standing_alone(random_dictionary(24, 8, activation=AbsTopK(3)), [X])
    with pytest.raises(DictlabError, match="expected one of"):
        standing_alone(random_dictionary(24, 8), [X], by="guess")
    with pytest.raises(DictlabError, match="24"):
        agreement(random_dictionary(24, 8), random_dictionary(20, 8), [X])


def test_it_does_not_matter_how_many_latents_are_calibrated_at_once(monkeypatch):
    dictionary = random_dictionary(24, 8)
    expected = standing_alone(dictionary, [X]).activation.threshold
    monkeypatch.setattr("analyses.pool.threshold_calibration.BLOCK", 1)
    np.testing.assert_allclose(standing_alone(dictionary, [X]).activation.threshold, expected, rtol=1e-6)
