"""Resampling and intervals: how sure is a number that was measured on these sequences, or on these latents?

Tokens of one sequence are not independent. What is measured token by token is therefore summed by sequence, and whole
sequences are resampled (bootstrap, percentile intervals). Everything that is resampled with one seed and one number of
sequences draws the same ones: differences and ratios of two dictionaries are paired.

Latents, or scores of latents, are resampled one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from dictlab.numerics import seeds

COVERAGE = 0.95  # share of the distribution that an interval covers
RESAMPLES = 1000  # of a percentile interval
ENDS = ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2)  # quantiles that an interval lies between
STANDARD_ERRORS = NormalDist().inv_cdf((1 + COVERAGE) / 2)  # on either side of a value: 1.96
LEAST_SHARE = 0.5  # of the resamples must have a value, for these to stand for all of them
LATENT_BATCH = 50  # resamples of latents that are held at once
FIT_RESAMPLES = 200  # where each is a fit
CELLS = 1 << 22  # counts of resampled latents that are held at once
NAN = float("nan")

Array = NDArray[np.float64]
Formula = Callable[[Mapping[str, Array]], Array]


class Estimate(NamedTuple):
    """A number with its interval; NaN is what there is none of."""

    value: float
    low: float = NAN
    high: float = NAN

    def words(self, style: str = ".3g") -> str:
        """As sentences give it: "0.12 [0.10, 0.14]"; without an interval or a value, where there is none.

        Args:
            style: How each number is written, as `format` reads it; of shares such as ".1%".
        """
        if not np.isfinite(self.value):
            return "not known"
        known = np.isfinite([self.low, self.high]).all()
        span = f" [{self.low:{style}}, {self.high:{style}}]" if known else ""
        return f"{self.value:{style}}{span}".replace("%", " %")


def interval_words(over: str = "", *, plural: bool = True) -> str:
    """How captions call an interval: "95 % bootstrap intervals over sequences"."""
    return f"{COVERAGE * 100:.0f} % bootstrap interval{'s' if plural else ''}" + (f" over {over}" if over else "")


def estimate_columns(name: str, estimate: Estimate) -> dict[str, Any]:
    """The columns of a table that an estimate fills: name, low and high."""
    return {name: estimate.value, f"{name} low": estimate.low, f"{name} high": estimate.high}


# Intervals of draws


def interval(draws: Float[Array, " resamples"]) -> tuple[float, float]:
    """The central 95 % of bootstrap draws.

    Resamples without a value (NaN or infinite) are left out; (NaN, NaN) where fewer than half of them have one.
    """
    low, high = intervals(np.asarray(draws, dtype=np.float64)[:, None])
    return float(low[0]), float(high[0])


def intervals(draws: Float[Array, resamples * shape]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """`interval` of each of several numbers, over the first dimension of their draws."""
    known = np.isfinite(draws)
    if known.all() and len(draws):
        low, high = np.quantile(draws, ENDS, axis=0)
        return low, high
    low, high = (np.full(draws.shape[1:], np.nan) for _ in ENDS)
    enough = known.sum(axis=0) >= max(1.0, LEAST_SHARE * len(draws))
    if enough.any():
        kept = np.where(known, draws, np.nan)[:, enough]
        low[enough], high[enough] = np.nanquantile(kept, ENDS, axis=0)
    return low, high


# Sequences resampled


@lru_cache(maxsize=4)
def bootstrap_weights(n: int, seed: int) -> Float[Array, "resamples n"]:
    """How often each of n sequences is drawn in each bootstrap resample. Not to be written to."""
    weights = _generator(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)
    weights.flags.writeable = False
    return weights


def mean_draws(values: Float[Array, sequences * shape], seed: int) -> Float[Array, resamples * shape]:
    """The mean over sequences in each resample of them."""
    return np.asarray(np.tensordot(bootstrap_weights(len(values), seed), values, axes=1) / len(values))


def ratio_draws(over: Float[Array, " sequences"], under: Float[Array, " sequences"], seed: int) -> Array:
    """sum(over) / sum(under) in each resample of the sequences."""
    weights = bootstrap_weights(len(over), seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        draws: Array = (weights @ over) / (weights @ under)
    return draws


def ratio(over: Float[Array, " sequences"], under: Float[Array, " sequences"], seed: int) -> Estimate:
    """sum(over) / sum(under) with its interval over sequences; NaN where the denominator is 0."""
    total = float(under.sum())
    if total == 0:
        return Estimate(NAN)
    value = float(over.sum()) / total
    return Estimate(value, *interval(ratio_draws(over, under, seed))) if len(over) > 1 else Estimate(value)


def spearman(a: Float[Array, "sequences positions"], b: Float[Array, "sequences positions"], seed: int) -> Estimate:
    """Rank correlation over the tokens that have both values. Resamples of sequences keep the ranks of the whole."""
    known = np.isfinite(a) & np.isfinite(b)
    x, y = np.zeros((2, *a.shape))
    for ranks, values in ((x, a), (y, b)):
        ranks[known] = stats.rankdata(values[known]) / max(1, known.sum()) - 0.5
    sums = np.stack([known.sum(axis=1).astype(np.float64), *(s.sum(axis=1) for s in (x, y, x * x, y * y, x * y))])

    def correlation(totals: Array) -> Array:
        n, sx, sy, sxx, syy, sxy = totals
        with np.errstate(divide="ignore", invalid="ignore"):
            r: Array = (sxy - sx * sy / n) / np.sqrt((sxx - sx**2 / n) * (syy - sy**2 / n))
        return r

    value = float(correlation(sums.sum(axis=1)))
    if not np.isfinite(value):
        return Estimate(NAN)
    return Estimate(value, *interval(correlation(sums @ bootstrap_weights(len(a), seed).T)))


@dataclass(frozen=True, eq=False)
class BySequence:
    """Sums over the tokens of each sequence, and whatever follows from them.

    Attributes:
        sums: By name, `[sequences, ...]`.
        seed: Of the resampling.
    """

    sums: Mapping[str, Array]
    seed: int

    @property
    def n_sequences(self) -> int:
        """Sequences measured."""
        return len(next(iter(self.sums.values())))

    def value(self, of: Formula) -> Array:
        """A formula of the sums over all sequences."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return of({name: values.sum(axis=0) for name, values in self.sums.items()})

    def draws(self, of: Formula) -> Array:
        """The formula in each bootstrap resample of the sequences, `[RESAMPLES, ...]`."""
        weights = bootstrap_weights(self.n_sequences, self.seed)
        with np.errstate(divide="ignore", invalid="ignore"):
            return of({name: np.tensordot(weights, values, axes=1) for name, values in self.sums.items()})

    def interval(self, of: Formula) -> tuple[Array, Array]:
        """Percentile bootstrap interval over sequences; NaN for a single sequence."""
        if self.n_sequences < 2:
            unknown = np.full_like(self.value(of), np.nan)
            return unknown, unknown
        return intervals(self.draws(of))

    def estimate(self, of: Formula) -> Estimate:
        """A formula that gives one number, with its interval."""
        low, high = self.interval(of)
        return Estimate(float(self.value(of)), float(low), float(high))

    def estimates(self, of: Formula) -> list[Estimate]:
        """A formula that gives several numbers, each with its interval."""
        return [Estimate(*map(float, row)) for row in zip(self.value(of), *self.interval(of), strict=True)]


# Latents resampled


def mean_interval(values: Float[Tensor, " n"] | Float[Array, " n"], seed: int) -> tuple[float, float]:
    """Bootstrap interval of a mean over latents (percentile); NaN for fewer than two."""
    return _row_interval(np.mean, seed, values)


def ratio_of_sums_interval(
    over: Float[Tensor, " n"] | Float[Array, " n"], under: Float[Tensor, " n"] | Float[Array, " n"], seed: int
) -> tuple[float, float]:
    """Bootstrap interval of sum(over) / sum(under), rows resampled together; NaN for fewer than two."""

    def quotient(x: Array, y: Array, axis: int) -> Array:
        total = y.sum(axis=axis)
        return np.asarray(np.divide(x.sum(axis=axis), total, out=np.full_like(total, np.nan), where=total != 0))

    return _row_interval(quotient, seed, over, under)


def latent_counts(n: int, seed: int, purpose: str) -> Iterator[Float[Array, "some n"]]:
    """How often each of n latents is drawn in each of RESAMPLES bootstrap resamples, blocks of resamples at a time.

    Equal seeds and purposes draw equal latents. At most CELLS counts are held, or those of one resample.

    Args:
        n: Latents.
        seed: Of the resampling.
        purpose: What is resampled; another purpose draws others.
    """
    generator, step = seeds.numpy_generator(seed, purpose), max(1, CELLS // max(1, n))
    for start in range(0, RESAMPLES, step):
        drawn = generator.multinomial(n, np.full(n, 1 / n), size=min(step, RESAMPLES - start))
        yield drawn.astype(np.float64)


def latent_mean_draws(values: Float[Array, "n columns"], seed: int, purpose: str) -> Float[Array, "resamples columns"]:
    """The means of several numbers of each latent in each resample of the latents, which all columns share."""
    means = [counts @ values / len(values) for counts in latent_counts(len(values), seed, purpose)]
    return np.concatenate(means)


def share_draws(mask: Bool[NDArray[np.bool_], " n"], seed: int, purpose: str) -> Float[Array, " resamples"]:
    """The share of latents in a mask in each resample of the latents: a binomial count, so none need be drawn."""
    drawn = seeds.numpy_generator(seed, purpose).binomial(len(mask), mask.mean(), size=RESAMPLES)
    return np.asarray(drawn / len(mask), dtype=np.float64)


def resampled_runs(n: int, seed: int, purpose: str) -> Iterator[Int[NDArray[np.int64], " n"]]:
    """Bootstrap resamples of n runs, by their numbers, without end: whoever fits them stops when enough could be."""
    generator = seeds.numpy_generator(seed, purpose)
    while True:
        yield generator.integers(n, size=n)


def _row_interval(statistic: Callable[..., Any], seed: int, *samples: Tensor | Array) -> tuple[float, float]:
    rows = [np.asarray(values, dtype=np.float64) for values in samples]
    if len(rows[0]) < 2:
        return NAN, NAN
    resampled = stats.bootstrap(
        rows, statistic, n_resamples=RESAMPLES, method="percentile", batch=LATENT_BATCH,
        paired=len(rows) > 1, vectorized=True, rng=_generator(seed),
    )  # fmt: skip
    return interval(resampled.bootstrap_distribution)


# Differences and p values


def _generator(seed: int) -> np.random.Generator:
    """What bootstraps draw from: the bare seed, which nothing else draws from, so published intervals stay as drawn."""
    return np.random.default_rng(seed)
