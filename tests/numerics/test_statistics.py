"""Differences of means: intervals and p against closed forms and counts of every resample."""

import re
from itertools import islice, product
from math import isnan
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dictlab.numerics import statistics
from dictlab.numerics.significance import difference_of_means
from dictlab.numerics.statistics import latent_counts, latent_mean_draws, resampled_runs, share_draws


def test_p_is_the_share_of_all_resamples_of_the_pool():
    a, b = np.array([1.0, 2.0]), np.array([2.0, 5.0, 6.0])
    observed, pool = abs(a.mean() - b.mean()), [*a, *b]
    draws = [abs(np.mean(x[:2]) - np.mean(x[2:])) for x in product(pool, repeat=5)]
    assert difference_of_means(a, b, seed=0).p == pytest.approx(np.mean(np.array(draws) >= observed - 1e-12), abs=0.01)


def test_large_samples_agree_with_normal_theory():
    generator = np.random.default_rng(0)
    a, b = generator.normal(0.3, 1, 150), generator.normal(0, 1, 200)
    found, error = difference_of_means(a, b, seed=1), np.sqrt(a.var() / 150 + b.var() / 200)
    assert found.value == pytest.approx(a.mean() - b.mean())
    assert [found.low, found.high] == pytest.approx([found.value - 1.96 * error, found.value + 1.96 * error], abs=0.03)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(found.value) / error), abs=0.01)


def test_equal_samples_do_not_differ():
    same = np.array([0.5, 0.6, 0.7, 0.9])
    found = difference_of_means(same, same, seed=0, resamples=2000)
    assert found.value == 0 and found.low < 0 < found.high and found.p == 1


def test_samples_without_spread_have_an_interval_without_width():
    found = difference_of_means(np.ones(5), np.full(4, 0.5), seed=0)
    assert found[:3] == (0.5, 0.5, 0.5) and found.p < 0.05


def test_exchanging_the_samples_changes_the_sign():
    generator = np.random.default_rng(2)
    a, b = generator.random(20), generator.random(30)
    one, other = difference_of_means(a, b, 0, 20_000), difference_of_means(b, a, 0, 20_000)
    assert one.value == pytest.approx(-other.value) and one.p == pytest.approx(other.p, abs=0.02)
    assert [one.low, one.high] == pytest.approx([-other.high, -other.low], abs=0.02)


def test_one_value_has_no_interval():
    found = difference_of_means(np.array([1.0]), np.array([0.5, 0.7]), seed=0)
    assert found.value == pytest.approx(0.4) and isnan(found.low) and isnan(found.p)
    assert isnan(difference_of_means(np.array([]), np.array([0.5]), seed=0).value)


def test_latents_are_drawn_alike_however_many_are_held_at_once(monkeypatch):
    whole = np.concatenate(list(latent_counts(30, 3, "a purpose")))
    assert whole.shape == (statistics.RESAMPLES, 30) and (whole.sum(axis=1) == 30).all()
    monkeypatch.setattr(statistics, "CELLS", 30 * 7)
    blocks = list(latent_counts(30, 3, "a purpose"))
    assert {len(block) for block in blocks} == {7, statistics.RESAMPLES % 7}
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    assert (np.concatenate(list(latent_counts(30, 3, "another"))) != whole).any()


def test_means_and_shares_of_resampled_latents_have_their_standard_errors():
    generator = np.random.default_rng(0)
    mask = generator.random(400) < 0.3
    values = np.stack([mask, 2 - 3.0 * mask], axis=1)
    draws, shares = latent_mean_draws(values, 1, "latents"), share_draws(mask, 1, "latents")
    error = np.sqrt(mask.mean() * (1 - mask.mean()) / 400)  # of a share, by the binomial distribution
    np.testing.assert_allclose(draws[:, 1], 2 - 3 * draws[:, 0])  # columns share their latents
    for share in (draws[:, 0], shares):
        assert share.mean() == pytest.approx(mask.mean(), abs=4 * error / np.sqrt(statistics.RESAMPLES))
        assert share.std() == pytest.approx(error, rel=0.1)


def test_runs_are_drawn_with_replacement():
    drawn = np.array(list(islice(resampled_runs(5, 0, "runs"), 2000)))
    assert drawn.shape == (2000, 5) and set(np.unique(drawn)) == set(range(5))
    distinct = np.mean([len(set(rows)) for rows in drawn.tolist()])
    assert distinct == pytest.approx(5 * (1 - 0.8**5), abs=0.1)


def test_no_other_module_draws_resamples():
    drawing = re.compile(r"\.(multinomial|binomial)\(|replace=True|\.integers\(len\(")
    assert drawing.search("rng.multinomial(n, p)") and drawing.search("rng.choice(n, n, replace=True)")
    root = Path(__file__).parents[2]
    files = [p for folder in ("analyses", "dictlab/evaluation") for p in (root / folder).rglob("*.py")]
    assert len(files) > 100 and [str(p) for p in files if drawing.search(p.read_text())] == []
