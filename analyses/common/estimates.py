"""Numbers with intervals, out of what was measured token by token.

Everything is a ratio of sums over tokens, kept by sequence: a mean has the number of tokens below, a ratio of means
another mean (they are paired). Intervals are 95 % bootstrap intervals over sequences, and all share their resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from analyses.model_effects.replacement_damage import NAMES, Arrays
from analyses.model_effects.replacements import RECONSTRUCTION
from dictlab.dictionary import Dictionary
from dictlab.evaluation.evaluate import bounds, resamples

Values = NDArray[np.float64]


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of one dictionary.

    Attributes:
        dictionary: Which.
        arrays: As `interventions.measured` gives them.
        spread: Root mean square distance of the site's activations from their mean.
        seed: Of the resampling.
    """

    dictionary: Dictionary
    arrays: Arrays
    spread: float
    seed: int

    @property
    def name(self) -> str:
        """The dictionary's name."""
        return self.dictionary.name

    @property
    def sequences(self) -> int:
        """Sequences measured."""
        return len(self.arrays["kl"])

    def kl(self, intervention: str, first: bool = True) -> Values:
        """KL under an intervention, mean over draws, `[sequences, positions]`; `first`: with the first position."""
        found: Values = self.arrays["kl"][:, NAMES.index(intervention), 0 if first else 1 :]
        return found

    def ce(self, intervention: str, first: bool = True) -> Values:
        """CE increase under an intervention, `[sequences, positions]`."""
        found: Values = self.arrays["ce"][:, NAMES.index(intervention), 0 if first else 1 :]
        return found

    def mean(self, values: Values) -> Estimate:
        """Mean of `[sequences, tokens]`; NaN entries are left out."""
        return ratio(np.nansum(values, axis=1), np.isfinite(values).sum(axis=1).astype(float), self.seed)

    def over(self, intervention: str, first: bool = True, what: str = "kl") -> Estimate:
        """Mean damage of the reconstruction over that of an intervention."""
        read = self.kl if what == "kl" else self.ce
        return ratio(read(RECONSTRUCTION, first).sum(axis=1), read(intervention, first).sum(axis=1), self.seed)

    @cached_property
    def z(self) -> Values:
        """How many standard deviations the reconstruction's KL lies above the cloud's, `[points, clouds]`."""
        cloud = self.arrays["cloud"]
        found: Values = (self.arrays["point"][:, None] - cloud.mean(axis=2)) / cloud.std(axis=2)
        return found


@cache
def weights(n: int, seed: int) -> Values:
    """How often each of n sequences is drawn in each resample, computed once."""
    return resamples(n, seed)


def draws(over: Values, under: Values, seed: int) -> Values:
    """sum(over) / sum(under) in each resample of the sequences, which are the first dimension of both."""
    weight = weights(len(over), seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Values = (weight @ over) / (weight @ under)
    return found


def ratio(over: Values, under: Values, seed: int) -> Estimate:
    """sum(over) / sum(under) with its interval; both `[sequences]`."""
    below = float(under.sum())
    if below == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    found = draws(over, under, seed)
    return Estimate(float(over.sum()) / below, *bounds(found[np.isfinite(found)]))


def columns(name: str, estimate: Estimate) -> dict[str, Any]:
    """The columns of a table that an estimate fills."""
    return {name: estimate.value, f"{name} low": estimate.low, f"{name} high": estimate.high}


def spearman(a: Values, b: Values, seed: int) -> Estimate:
    """Rank correlation over all tokens of `[sequences, positions]`. Resamples keep the ranks of the whole sample."""
    ranks = [rankdata(v).reshape(a.shape) / a.size - 0.5 for v in (a, b)]
    x, y = ranks
    sums = np.stack([np.full(len(a), float(a.shape[1])), *(s.sum(axis=1) for s in (x, y, x * x, y * y, x * y))])

    def of(totals: Values) -> Values:
        n, sx, sy, sxx, syy, sxy = totals
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Values = (sxy - sx * sy / n) / np.sqrt((sxx - sx**2 / n) * (syy - sy**2 / n))
        return found

    resampled = of(sums @ weights(len(a), seed).T)
    value = float(of(sums.sum(axis=1)))
    if not np.isfinite(value):
        return Estimate(float("nan"), float("nan"), float("nan"))
    return Estimate(value, *bounds(resampled[np.isfinite(resampled)]))
