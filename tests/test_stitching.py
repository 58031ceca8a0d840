"""The stitched dictionary: its codes, its decoder in closed form, and its honesty."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from analyses.stitching import join, refit_bias, refit_decoder
from dictlab import DictlabError, ReLU, TopK
from dictlab.normalisation import LayerNorm, Scale
from dictlab.sparsity import Union
from tests.planted import random_dictionary
from tests.test_novelty import planted

X = 2 * torch.randn(300, 8, generator=torch.Generator().manual_seed(0)) + 1
CHOSEN = torch.arange(30) % 3 == 0


@pytest.mark.parametrize("first", [ReLU(), TopK(4)])
@pytest.mark.parametrize("second", [ReLU(), TopK(6)])
@pytest.mark.parametrize("normalisation", [None, Scale(0.3), LayerNorm()])
def test_the_joined_codes_are_smalls_and_beside_them_larges_at_the_chosen_latents(first, second, normalisation):
    small = random_dictionary(20, 8, seed=1, activation=first, normalisation=normalisation)
    large = random_dictionary(30, 8, seed=2, activation=second, normalisation=normalisation)
    joined = join(small, large, CHOSEN)
    f, g = small.folded().encode(X).dense(), large.folded().encode(X).dense()
    found = joined.encode(X).dense()
    emits = joined.alive
    torch.testing.assert_close(found[:, emits], torch.cat([f, g[:, CHOSEN]], dim=1), atol=1e-5, rtol=1e-5)
    assert not found[:, ~emits].any()
    scale = torch.as_tensor(small.normalisation(X)[1].scale)
    units = 1 / getattr(normalisation, "factor", 1.0)
    added = (g[:, CHOSEN] @ large.W_dec[CHOSEN]) * (1.0 if units != 1 else scale)
    torch.testing.assert_close(joined.reconstruct(X), small.reconstruct(X) + added, atol=1e-4, rtol=1e-4)


def test_two_relu_dictionaries_join_to_a_relu_dictionary_without_rivals():
    joined = join(*(random_dictionary(30, 8, seed=s, activation=ReLU()) for s in (1, 2)), CHOSEN)
    assert joined.activation == ReLU() and joined.n_latents == 40


def test_rivals_that_were_not_taken_still_compete():
    """Without them a TopK latent would fire where it never did."""
    small, large = (random_dictionary(30, 8, seed=s) for s in (1, 2))
    joined = join(small, large, CHOSEN)
    assert isinstance(joined.activation, Union) and joined.n_latents == 60
    assert (joined.encode(X).firings()[30:] == large.encode(X).firings() * CHOSEN).all()


def test_a_stitched_dictionary_can_be_stitched_again():
    a, b, c = (random_dictionary(30, 8, seed=s, activation=k) for s, k in ((1, TopK(3)), (2, TopK(4)), (3, ReLU())))
    twice = join(join(a, b, CHOSEN), c, CHOSEN)
    expected = [d.folded().encode(X).dense() for d in (a, b, c)]
    found = twice.encode(X).dense()[:, twice.alive]
    torch.testing.assert_close(
        found, torch.cat([expected[0], expected[1][:, CHOSEN], expected[2][:, CHOSEN]], dim=1), atol=1e-5, rtol=1e-5
    )


def test_dictionaries_that_normalise_differently_are_not_stitched():
    with pytest.raises(DictlabError, match="layer_norm"):
        join(random_dictionary(name="a"), random_dictionary(name="b", normalisation=LayerNorm()), torch.ones(24).bool())


@pytest.mark.parametrize("normalisation", [None, Scale(0.3), LayerNorm()])
def test_the_refitted_decoder_is_the_least_squares_solution(normalisation):
    """Against NumPy's lstsq on the full design matrix, the ridge as good as none; 1e-3 on reconstructions of order 3."""
    dictionary = random_dictionary(12, 8, normalisation=normalisation)
    refit = refit_decoder(dictionary, X.split(70), ridge=1e-9)
    undo = dictionary.normalisation(X)[1]
    scale = torch.as_tensor(undo.scale).expand(len(X), 1)
    design = torch.cat([dictionary.encode(X).dense(), torch.ones(len(X), 1)], dim=1) * scale
    solution = np.linalg.lstsq(design.double().numpy(), (X - undo.shift).double().numpy(), rcond=None)[0]
    expected = design.double().numpy() @ solution + torch.as_tensor(undo.shift).double().numpy()
    np.testing.assert_allclose(refit.reconstruct(X).numpy(), expected, atol=1e-3)
    assert torch.equal(refit.W_enc, dictionary.W_enc)


def test_a_strong_ridge_leaves_the_directions_as_they_were():
    dictionary = random_dictionary(12, 8)
    refit = refit_decoder(dictionary, [X], ridge=1e9)
    torch.testing.assert_close(refit.W_dec, dictionary.W_dec, atol=1e-5, rtol=1e-5)


def test_latents_that_never_fire_keep_their_directions():
    dictionary = random_dictionary(12, 8)
    dictionary = replace(dictionary, b_enc=torch.where(torch.arange(12) == 3, -1000.0, dictionary.b_enc))
    refit = refit_decoder(dictionary, [X])
    torch.testing.assert_close(refit.W_dec[3], dictionary.W_dec[3])
    silent = replace(dictionary, b_enc=torch.full((12,), -1000.0), activation=ReLU())
    still = refit_decoder(silent, [X])
    torch.testing.assert_close(still.W_dec, dictionary.W_dec)
    torch.testing.assert_close(still.b_out, X.mean(dim=0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalisation", [None, Scale(0.3), LayerNorm()])
def test_the_refitted_bias_cannot_be_bettered(normalisation):
    dictionary = random_dictionary(12, 8, normalisation=normalisation)
    refit = refit_bias(dictionary, X.split(70))

    def error(change: torch.Tensor) -> float:
        return float((X - replace(refit, b_out=refit.b_out + change).reconstruct(X)).square().sum())

    best = error(torch.zeros(8))
    assert best < float((X - dictionary.reconstruct(X)).square().sum())
    assert all(error(sign * 0.01 * torch.eye(8)[i]) > best for i in range(8) for sign in (1, -1))


def test_inserting_the_planted_novel_latents_makes_small_as_good_as_large():
    small, large, x = planted()
    joined = join(small, large, torch.arange(32) >= 20)
    flat = x.flatten(0, 1)
    torch.testing.assert_close(joined.reconstruct(flat), large.reconstruct(flat), atol=1e-4, rtol=1e-4)


def test_too_many_latents_for_the_normal_equations_are_refused(monkeypatch):
    monkeypatch.setattr(sys.modules["analyses.stitching"], "LARGEST_REFIT", 10)
    with pytest.raises(DictlabError, match="--refit bias"):
        refit_decoder(random_dictionary(12, 8), [X])
