"""How far above or below the dictionaries that were trained does one lie that was made, at equal cost?

The trained ones that no other beats are the frontier: a curve through (L0, error), linear in both logarithms between
neighbouring points. A made dictionary is compared with it at its own L0:

    ratio = error / error of the frontier at that L0

in the sample and in each resample of its sequences, which all dictionaries share, so that the intervals are paired. The
same with the number of latents in place of L0. Beyond the largest trained L0 the frontier goes on level: a dictionary
that takes less is there at any higher price. That is no dictionary of equal L0, and is said. Below the smallest there
is nothing to compare with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from analyses.quality.curve_comparison import CurveEstimate, estimate, interpolated
from analyses.quality.measured_points import Point

Array = NDArray[np.float64]
ERRORS = ("mse", "ce_increase", "kl")
CLOSE = 0.02  # a cost this near to a trained one, as a share of it, is the same


def frontier_at(
    cost: Float[Array, "resamples points"], error: Float[Array, "resamples points"], at: Float[Array, " resamples"]
) -> Float[Array, " resamples"]:
    """The frontier of measured points at a cost, resample by resample; NaN below the smallest, and without logarithms.

    Args:
        cost: Of the points, in any order.
        error: Of the same points.
        at: Where.
    """
    usable = (cost > 0).all(axis=1) & (error > 0).all(axis=1) & (at > 0)
    x, y = (np.log(np.where(usable[:, None], values, 1.0)) for values in (cost, error))
    order = np.lexsort((y, x), axis=1)
    x, y = np.take_along_axis(x, order, axis=1), np.take_along_axis(y, order, axis=1)
    best = np.minimum.accumulate(y, axis=1)
    before = np.concatenate([np.full((len(y), 1), np.inf), best[:, :-1]], axis=1)
    last = np.maximum.accumulate(np.where(y < before, np.arange(y.shape[1]), 0), axis=1)  # beaten: the one before it
    x, y = np.take_along_axis(x, last, axis=1), np.take_along_axis(y, last, axis=1)
    place = np.log(np.where(usable, at, 1.0))
    found: Array = np.exp(interpolated(x, y, place[:, None])[:, 0])
    return np.where(usable & (place >= x[:, 0] + np.log1p(-CLOSE)), found, np.nan)


class FrontierPlace(NamedTuple):
    """What the trained frontier is at a cost.

    Attributes:
        kind: A "trained" dictionary has that cost within CLOSE; it lies "between" two; the frontier goes on "level"
            beyond the largest; or there is "none" below the smallest.
        end: The cost at which it ends, where the place is beyond that.
    """

    kind: Literal["trained", "between", "level", "none"]
    end: float = float("nan")


class FrontierRatio(NamedTuple):
    """One error of one made dictionary, held against the trained frontier at equal cost.

    Attributes:
        made: The dictionary.
        metric: Key of the error in METRICS.
        cost: Its own.
        value: Its own error.
        frontier: The frontier's there; NaN where there is none.
        ratio: The one over the other, with its paired interval.
        place: What the frontier is there.
    """

    made: Point
    metric: str
    cost: float
    value: float
    frontier: float
    ratio: CurveEstimate
    place: FrontierPlace


def frontier_ratios(made: Sequence[Point], trained: Sequence[Point], cost: str) -> list[FrontierRatio]:
    """Each error of each made dictionary over that of the trained frontier at equal cost.

    Args:
        made: Dictionaries to compare.
        trained: What the frontier is made of.
        cost: "l0" or "latents".
    """
    costs = np.stack([_cost(point, cost) for point in trained], axis=1)
    ratios = []
    for point in made:
        at = _cost(point, cost)
        for key in point.evaluation.among(ERRORS):
            errors = np.stack([p.series(key) for p in trained], axis=1)
            level = frontier_at(costs, errors, at)
            error = point.series(key)
            series = np.divide(error, level, out=np.full_like(error, np.nan), where=np.isfinite(level) & (level > 0))
            place = _place(float(at[0]), costs[0])
            ratios.append(
                FrontierRatio(point, key, float(at[0]), float(error[0]), float(level[0]), estimate(series), place)
            )
    return ratios


def _cost(point: Point, cost: str) -> Array:
    if cost == "l0":
        return point.series("l0")
    return np.full_like(point.series("l0"), float(point.dictionary.n_emitting))


def _place(at: float, costs: Array) -> FrontierPlace:
    low, high = float(costs.min()), float(costs.max())
    if at < low * (1 - CLOSE):
        return FrontierPlace("none", low)
    if at > high * (1 + CLOSE):
        return FrontierPlace("level", high)
    near = float(costs[np.abs(costs - at).argmin()])
    return FrontierPlace("trained" if abs(near - at) <= CLOSE * at else "between")
