"""Differences of means with their p values, permutation tests, and intervals from values without each group."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from dictlab.numerics import seeds
from dictlab.numerics.statistics import COVERAGE, NAN, STANDARD_ERRORS, Array

DIFFERENCE_RESAMPLES = 100_000  # of a difference of means, whose p may be small
BATCH = 5_000  # resamples of a difference that are held at once
ROUNDING = 1e-12  # numbers that are equal but for the order of a sum


class Difference(NamedTuple):
    """A difference of means with its interval and two-sided p."""

    value: float
    low: float = NAN
    high: float = NAN
    p: float = NAN


def difference_of_means(
    a: Float[Array, " n"], b: Float[Array, " m"], seed: int, resamples: int = DIFFERENCE_RESAMPLES
) -> Difference:
    """mean(a) - mean(b) of two independent samples.

        interval    bootstrap with both samples resampled, bias-corrected and accelerated (BCa)
        p           both samples pooled, and both groups drawn from the pool with replacement: share of the draws whose
                    |difference| is at least the observed one, the observed one counted among them. Two-sided

    Source: Braun et al. 2024, auto-interpretability. There draws above the observed difference are counted; with ties,
    and scores out of a few contexts have ties, that would make equal samples differ.

    Args:
        a: The one sample; without interval and p where a sample has fewer than two values.
        b: The other.
        seed: Of the resampling.
        resamples: For the interval and for p.
    """
    if min(len(a), len(b)) < 2:
        return Difference(float(a.mean() - b.mean()) if len(a) and len(b) else NAN)
    observed = float(a.mean() - b.mean())
    low, high = _bca(a, b, seeds.numpy_generator(seed, "difference of means"), resamples)
    p = _pooled_p(a, b, abs(observed), seeds.numpy_generator(seed, "pooled samples"), resamples)
    return Difference(observed, low, high, p)


def permutation_p(observed: float | Array, shuffled: Float[Array, shuffles * shape]) -> Any:
    """One-sided p of a permutation test: share of shuffles with at least the observed value, itself counted among them.

    NaN where the observed value is.
    """
    beyond = (shuffled >= np.asarray(observed) - ROUNDING).sum(axis=0)
    p = np.where(np.isfinite(observed), (1 + beyond) / (1 + len(shuffled)), np.nan)
    return float(p) if p.ndim == 0 else p


def jackknife_interval(value: float, without: Float[Array, " groups"]) -> tuple[float, float]:
    """Interval from the values without each group (delete-a-group jackknife): 1.96 standard errors on either side."""
    groups = len(without)
    error = float(np.sqrt((groups - 1) / groups * np.square(without - without.mean()).sum()))
    return value - STANDARD_ERRORS * error, value + STANDARD_ERRORS * error


def _bca(a: Array, b: Array, rng: np.random.Generator, resamples: int) -> tuple[float, float]:
    if np.ptp(a) == 0 and np.ptp(b) == 0:  # every resample is the sample
        return (float(a[0] - b[0]),) * 2

    def difference(x: Array, y: Array, axis: int) -> Array:
        return np.asarray(x.mean(axis=axis) - y.mean(axis=axis))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bootstrapped = stats.bootstrap(
            (a, b), difference, confidence_level=COVERAGE, n_resamples=resamples, batch=BATCH, vectorized=True, rng=rng
        )
    return float(bootstrapped.confidence_interval.low), float(bootstrapped.confidence_interval.high)


def _pooled_p(a: Array, b: Array, observed: float, rng: np.random.Generator, resamples: int) -> float:
    pool, beyond = np.concatenate([a, b]), 0
    for start in range(0, resamples, BATCH):
        count = min(BATCH, resamples - start)
        first, second = (pool[rng.integers(len(pool), size=(count, n))].mean(axis=1) for n in (len(a), len(b)))
        beyond += int((np.abs(first - second) >= observed - ROUNDING).sum())
    return (1 + beyond) / (1 + resamples)
