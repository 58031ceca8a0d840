"""The refit does not depend on how a latent's scale is split between its encoder and its decoder."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from analyses.pool.pool_sample import encode_sample
from analyses.pool.quadratic_error import QuadraticError
from analyses.pool.refitted_updates import RefittedDecoder, penalties_of
from analyses.pool.ridge_refit import normal_equations, refit_decoder, ridge_penalties
from analyses.pool.subset_search import search
from dictlab import Dictionary
from dictlab.dictionary.activation_functions import ReLU
from dictlab.dictionary.normalisation import LayerNorm, NoNormalisation

N, D = 14, 8
X = torch.randn(400, D, generator=torch.Generator().manual_seed(0))
UNSCALED = NoNormalisation()
FACTORS = torch.logspace(-4, 4, N).roll(5)


def dictionary(normalisation=UNSCALED, lengths=1.0) -> Dictionary:
    generator = torch.Generator().manual_seed(1)
    W = normalize(torch.randn(N, D, generator=generator), dim=1)
    b_enc, b_pre, b_out = (0.2 * torch.randn(size, generator=generator) for size in (N, D, D))
    return Dictionary(W.T.contiguous(), b_enc, W * lengths, b_pre, b_out, ReLU(), normalisation, name="plain")


def rescaled(d: Dictionary) -> Dictionary:
    return replace(d, W_enc=d.W_enc * FACTORS, b_enc=d.b_enc * FACTORS, W_dec=d.W_dec / FACTORS[:, None])


@pytest.mark.parametrize("normalisation", [UNSCALED, LayerNorm()])
@pytest.mark.parametrize("ridge", [None, 1e-3, 1.0, 10.0])
def test_a_refit_of_equal_functions_is_equal(normalisation, ridge):
    """Eight orders of magnitude of c in f -> c f, d -> d / c; with a scale for each token too."""
    plain = dictionary(normalisation, torch.linspace(0.3, 3, N)[:, None])
    one, other = (refit_decoder(d, [X], ridge=ridge) for d in (plain, rescaled(plain)))
    assert one.metadata.training["ridge"] == other.metadata.training["ridge"]
    torch.testing.assert_close(other.W_dec * FACTORS[:, None], one.W_dec, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.b_out, one.b_out, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one.W_dec, plain.W_dec, atol=1e-2)


def test_directions_of_unit_length_have_one_penalty_a_share_of_the_mean_energy():
    """Against least squares with the penalty as further rows."""
    plain, ridge = dictionary(), 0.3
    codes = plain.encode(X).dense().double().numpy()
    root = np.sqrt(ridge * np.square(codes).sum(axis=0).mean())
    rows = np.vstack([np.hstack([codes, np.ones((len(X), 1))]), np.hstack([root * np.eye(N), np.zeros((N, 1))])])
    targets = np.vstack([X.numpy(), root * plain.W_dec.numpy()])
    expected = np.linalg.lstsq(rows, targets, rcond=None)[0]
    refit = refit_decoder(plain, [X], ridge=ridge)
    np.testing.assert_allclose(torch.cat([refit.W_dec, refit.b_out[None]]).numpy(), expected, atol=1e-5)


def test_latents_that_are_dead_or_write_nothing():
    """Dead ones change no penalty and keep their directions; an active one without a direction gets one."""
    energies = torch.tensor([4.0, 9.0, 2.0, 0.0, 0.0]).double()
    directions = torch.tensor([[1.0, 0], [0, 2], [0, 0], [5, 5], [0, 0]]).double()
    mean = (4 + 36 + 0) / 3
    expected = [0.1 * mean, 0.1 * mean / 4, 0.1 * 2.0, 1.0, 1.0]
    torch.testing.assert_close(ridge_penalties(energies, directions, 0.1), torch.tensor(expected).double())
    torch.testing.assert_close(ridge_penalties(0 * energies, directions, 0.1), torch.ones(5).double())
    torch.testing.assert_close(
        ridge_penalties(energies, 0 * directions, 0.1), torch.tensor([0.4, 0.9, 0.2, 1.0, 1.0]).double()
    )
    plain = dictionary()
    W_dec = plain.W_dec.clone()
    W_dec[3] = 0
    zero = replace(plain, W_dec=W_dec, b_enc=torch.where(torch.arange(N) == 7, -1e9, plain.b_enc))
    one, other = (refit_decoder(d, [X], ridge=1e-3) for d in (zero, rescaled(zero)))
    assert one.W_dec[3].norm() > 0.05 and torch.equal(one.W_dec[7], zero.W_dec[7])
    torch.testing.assert_close(other.W_dec * FACTORS[:, None], one.W_dec, rtol=1e-4, atol=1e-5)


def test_a_search_with_a_refit_makes_the_same_moves_for_equal_functions():
    moves = []
    for d in (dictionary(), rescaled(dictionary())):
        quadratic = QuadraticError.from_sample(encode_sample(d, [X]), d.W_dec)
        moves.append(search(quadratic, latents=6, refit=0.01).moves)
        state = RefittedDecoder(quadratic, np.arange(N) % 2 == 0, penalties_of(quadratic, 0.01))
        before = torch.cat([d.W_dec[::2], torch.zeros(1, D)]).double()
        kept = normal_equations(quadratic.sample).of(torch.arange(0, N, 2))
        penalties = torch.from_numpy(penalties_of(quadratic, 0.01))[::2]
        solution = kept.solution(before, penalties)
        pulled = float((penalties[:, None] * (solution - before)[:-1].square()).sum()) / X.numel()
        assert state.error == pytest.approx(kept.error(solution) + pulled, rel=1e-6)
    assert [m[:2] for m in moves[0]] == [m[:2] for m in moves[1]] and moves[0]
    np.testing.assert_allclose([m.error for m in moves[0]], [m.error for m in moves[1]], rtol=1e-5)
