"""The quadratic form of a pool against decoding every subset."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses.composition.insertion.insertion_effects import insertion_effects
from analyses.pool.dictionary_pool import part_of, pool_of
from analyses.pool.pool_sample import PoolSample, encode_sample
from analyses.pool.quadratic_error import QuadraticError
from analyses.pool.ridge_refit import normal_equations, refit_bias
from dictlab import Dictionary, ReLU, TopK
from dictlab.dictionary.normalisation import LayerNorm, NoNormalisation, Normalisation, Scale
from tests.dictionary.test_activation_functions import jumprelu
from tests.planted import random_dictionary

X = 2 * torch.randn(400, 8, generator=torch.Generator().manual_seed(0)) + 1
N = 24 + 30 + 20


def pool(normalisation: Normalisation | None = None) -> Dictionary:
    kinds = ((24, TopK(4)), (30, ReLU()), (20, jumprelu(20, 1)))
    return pool_of([random_dictionary(n, 8, seed=n, activation=kind, normalisation=normalisation) for n, kind in kinds])


def brute_force(part: Dictionary, x: torch.Tensor = X) -> float:
    return float((x - part.reconstruct(x)).double().square().mean())


def subset(seed: int, n: int = N) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.random(n) < generator.random()


@pytest.mark.parametrize("normalisation", [NoNormalisation(), Scale(0.3), LayerNorm()])
@pytest.mark.parametrize("free", [True, False])
def test_error_changes_and_l0_of_subsets_equal_those_of_the_dictionary_that_they_make(normalisation, free):
    """To 1e-5 of the error: codes and targets are float32, sums float64."""
    whole = pool(normalisation)
    made = QuadraticError.from_sample(encode_sample(whole, X.split(90)), whole.W_dec, None if free else whole.b_out)
    for seed in range(6):
        chosen = subset(seed)
        bias = made.sample.best_bias(chosen, whole.W_dec).float() if free else None
        part = part_of(whole, torch.from_numpy(chosen), b_out=bias)
        error, product = brute_force(part), made.product(chosen.astype(float))
        assert made.error(chosen) == pytest.approx(error, rel=1e-5)
        assert made.l0(chosen) == pytest.approx(float((part.encode(X).dense() != 0).sum(1).float().mean()), rel=1e-6)
        if free:  # nothing else is better
            np.testing.assert_allclose(bias, refit_bias(part, [X]).b_out, atol=1e-4)
        changes = made.changes(chosen, product)
        for latent in (0, 23, 40, 70):
            other = chosen.copy()
            other[latent] = not other[latent]
            moved = made.sample.best_bias(other, whole.W_dec).float() if free else None
            after = brute_force(part_of(whole, torch.from_numpy(other), b_out=moved))
            assert changes[latent] == pytest.approx(after - error, rel=1e-3, abs=1e-5 * error)


@pytest.mark.parametrize("free", [True, False])
def test_columns_are_those_of_the_matrix_that_the_form_stands_for(free):
    whole = pool()
    made = QuadraticError.from_sample(encode_sample(whole, [X]), whole.W_dec, None if free else whole.b_out)
    matrix = np.stack([made.column(j) for j in range(N)])
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    np.testing.assert_allclose(matrix.diagonal(), made.diagonal, atol=1e-6)
    weights = np.random.default_rng(0).normal(size=N)
    np.testing.assert_allclose(matrix @ weights, made.product(weights), atol=1e-5)
    assert np.linalg.eigvalsh(matrix).min() > -1e-6  # a mean of squares


def test_adding_one_latent_costs_what_the_one_pass_measurement_says():
    small, large = (random_dictionary(n, 8, seed=n) for n in (24, 30))
    whole = pool_of([small, large])
    made = QuadraticError.from_sample(encode_sample(whole, [X]), whole.W_dec, whole.b_out)
    chosen = np.arange(54) < 24
    changes = made.changes(chosen, made.product(chosen.astype(float)))[24:]
    expected = insertion_effects(small, large, [X.view(4, 100, 8)]).change
    np.testing.assert_allclose(changes, expected, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_the_form_does_not_mind_in_which_order_latents_stand_or_how_they_are_scaled(seed):
    """A permutation permutes it; f -> f / c with d -> c d is the same function."""
    generator = np.random.default_rng(seed)
    whole = pool()
    seen = encode_sample(whole, [X])
    order, factors = generator.permutation(N), generator.uniform(0.2, 5, N).astype(np.float32)
    moved = PoolSample((seen.codes / factors)[:, order].tocsr(), seen.target, seen.scale)
    a, b = (
        QuadraticError.from_sample(seen, whole.W_dec),
        QuadraticError.from_sample(moved, whole.W_dec[order] * torch.from_numpy(factors[order])[:, None]),
    )
    chosen = subset(seed)
    assert b.error(chosen[order]) == pytest.approx(a.error(chosen), rel=1e-4)
    np.testing.assert_allclose(b.column(0), a.column(order[0])[order], atol=1e-4)


def test_silent_latents_and_zero_directions_cost_nothing():
    dead = random_dictionary(12, 8, seed=1, activation=ReLU())
    dead = replace(dead, b_enc=torch.full((12,), -1e6))
    flat = replace(random_dictionary(10, 8, seed=2), W_dec=torch.zeros(10, 8))
    whole = pool_of([random_dictionary(24, 8), dead, flat])
    made = QuadraticError.from_sample(encode_sample(whole, [X]), whole.W_dec)
    chosen = np.arange(46) < 24
    changes = made.changes(chosen, made.product(chosen.astype(float)))
    np.testing.assert_allclose(changes[24:], 0, atol=1e-7)


def test_the_error_of_the_normal_equations_is_that_of_the_decoder():
    whole = pool()
    equations = normal_equations(encode_sample(whole, [X]))
    decoder = torch.cat([whole.W_dec, whole.b_out[None]]).double()
    assert equations.error(decoder) == pytest.approx(brute_force(whole), rel=1e-5)
