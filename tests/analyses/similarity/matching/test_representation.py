"""Whole-space similarities against closed forms and brute force, and what leaves them unchanged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import spearmanr

from analyses.similarity.matching import code_cka as cka_of_codes
from analyses.similarity.matching import representation
from analyses.similarity.matching.code_cka import code_cka, code_cka_value, seldom
from analyses.similarity.matching.representation import cka, principal, procrustes, rsa, svcca, value_of, with_null

MEASURES = [cka, svcca, rsa]


def rows(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def turn(d: int, seed: int = 9) -> np.ndarray:
    return np.linalg.qr(rows(d, d, seed))[0]


@pytest.mark.parametrize("measure", MEASURES)
def test_a_space_is_itself(measure):
    x = rows(200, 5, 0)
    assert value_of(measure, x, x, seed=0) == pytest.approx(1)


@pytest.mark.parametrize("measure", [cka, svcca, procrustes])
def test_a_rotated_space_is_the_same_space(measure):
    """RSA compares correlations of coordinates, which a rotation changes."""
    x = rows(200, 6, 0)
    expected = 0 if measure is procrustes else 1
    assert value_of(measure, x, x @ turn(6), seed=0) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("measure", [cka, svcca, rsa, procrustes])
def test_shuffled_rows_have_the_null_that_the_permutations_give(measure):
    x = rows(300, 5, 0)
    y = x[np.random.default_rng(5).permutation(300)]
    found = with_null(measure, x, y, permutations=99, seed=0, smaller_is_alike=measure is procrustes)
    same = with_null(measure, x, x, permutations=99, seed=0, smaller_is_alike=measure is procrustes)
    assert found.p > 0.01 and same.p == pytest.approx(0.01)
    assert abs(found.value - found.shuffled) < 0.1 and found.low <= found.value <= found.high


def test_cka_is_the_ratio_of_unbiased_estimates_written_out():
    """The estimator of Song et al. (2012), equation 5, with kernels held whole."""
    x, y = rows(12, 3, 0), rows(12, 4, 1)
    y[:, :3] += x

    def hsic(one, other):
        n = len(one)
        k, m = (z @ z.T * (1 - np.eye(n)) for z in (one, other))
        trace = np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k @ m).sum() / (n - 2)
        return trace / (n * (n - 3))

    expected = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
    assert value_of(cka, x, y, seed=0) == pytest.approx(expected)
    assert code_cka_value(sparse.csr_array(x), sparse.csr_array(y)) == pytest.approx(expected)


def test_independent_spaces_have_a_cka_of_zero_on_average_however_few_rows():
    """The biased estimator would give 0.45 here."""
    found = [value_of(cka, rows(20, 15, s), rows(20, 15, 1000 + s), seed=0) for s in range(200)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 200**0.5


@given(st.integers(0, 1000), st.sampled_from([1, 30, 1 << 24]))
@settings(max_examples=15, deadline=None)
def test_codes_in_sparse_blocks_have_the_cka_and_interval_of_dense_ones(seed, cells):
    generator = np.random.default_rng(seed)
    x, y = (generator.exponential(size=(60, n)) * (generator.random((60, n)) < 0.4) for n in (7, 9))
    a, b = sparse.csr_array(x), sparse.csr_array(y)
    group = np.arange(60) // 15
    original = cka_of_codes.CELLS
    try:
        cka_of_codes.CELLS = cells
        found = cka_of_codes._ckas(a, b, group, 4)
    finally:
        cka_of_codes.CELLS = original
    kept = [group >= 0, *(group != g for g in range(4))]
    np.testing.assert_allclose(found, [value_of(cka, x[k], y[k], seed=0) for k in kept], atol=1e-10)


def test_the_null_of_codes_is_about_zero_and_equal_codes_are_beyond_it():
    generator = np.random.default_rng(0)
    a = sparse.csr_array(generator.random((400, 20)) * (generator.random((400, 20)) < 0.2))
    b = a[generator.permutation(400)]
    sequence = np.arange(400) // 20
    same = code_cka(a, a, sequence, permutations=99, seed=0)
    other = code_cka(a, b, sequence, permutations=99, seed=0)
    assert same.value == pytest.approx(1) and same.p == pytest.approx(0.01) and abs(same.shuffled) < 0.01
    assert other.p > 0.01 and other.low < 0 < other.high + 0.05


def test_dense_latents_rule_the_cka_of_codes_and_are_left_out_on_demand():
    """One latent that always fires is shared, the others are independent."""
    generator = np.random.default_rng(0)
    shared = 30 * generator.random((500, 1))
    a, b = (
        sparse.csr_array(np.hstack([shared, generator.random((500, 10)) * (generator.random((500, 10)) < 0.05)]))
        for _ in range(2)
    )
    assert code_cka_value(a, b) > 0.99
    assert seldom(a, 0.1).shape[1] == 10 and abs(code_cka_value(seldom(a, 0.1), seldom(b, 0.1))) < 0.1


def test_components_are_kept_up_to_a_share_of_the_variance_not_up_to_the_first():
    """A selector that compares a cumulative share with a share of the total variance would keep one of them."""
    x = rows(3000, 512, 0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    kept = principal(x).shape[1]
    variances = np.sort(np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2)[::-1]
    assert variances[:kept].sum() / variances.sum() >= 0.99 > variances[: kept - 1].sum() / variances.sum()
    assert kept > 480


def test_svcca_of_a_shared_subspace_is_its_share_of_the_directions():
    """Three of six directions are shared, the others independent: 3 canonical correlations of 1, 3 near 0."""
    common = rows(20_000, 3, 0)
    x, y = (np.hstack([common, rows(20_000, 3, s)]) @ turn(6, s) for s in (1, 2))
    assert value_of(svcca, x[:8000], y[:8000], seed=0) == pytest.approx(0.5, abs=0.02)


def test_rsa_is_the_rank_correlation_of_distances():
    x, y = rows(30, 6, 0), rows(30, 5, 1)
    y[:, :4] += 2 * x[:, :4]
    upper = np.triu_indices(30, 1)
    expected = spearmanr((1 - np.corrcoef(x))[upper], (1 - np.corrcoef(y))[upper]).statistic
    assert value_of(rsa, x, y, seed=0) == pytest.approx(expected, abs=1e-5)


def test_no_rotation_comes_nearer_than_procrustes_and_noise_leaves_what_it_must():
    x = rows(400, 5, 0)
    y = x @ turn(5) + 0.1 * rows(400, 5, 1)
    found = value_of(procrustes, x, y, seed=0)
    tried = [np.linalg.norm(x @ turn(5, s) - y) / np.linalg.norm(y) for s in range(30)]
    assert found <= min(tried) + 1e-9
    assert found == pytest.approx(np.linalg.norm(0.1 * rows(400, 5, 1)) / np.linalg.norm(y), rel=0.02)


def test_the_jackknife_interval_of_a_similarity_covers_what_many_rows_give():
    """Y is X and as much noise; 60 samples of 150 rows against 8,000 rows."""

    def drawn(n, seed):
        x = rows(n, 4, seed)
        return x, x + rows(n, 4, seed + 10_000)

    truth = value_of(cka, *drawn(8000, 77), seed=0)
    found = [with_null(cka, *drawn(150, s), permutations=1, seed=s) for s in range(60)]
    assert np.mean([one.low <= truth <= one.high for one in found]) > 0.85


def test_of_very_many_rows_a_sample_is_compared(monkeypatch):
    monkeypatch.setattr(representation, "ROWS", 50)
    x = rows(400, 3, 0)
    assert with_null(cka, x, x, permutations=1, seed=0).n == 50
