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

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from analyses.quality.curve_comparison import estimate, interpolated
from analyses.quality.measured_points import Point
from dictlab.evaluation.metrics import METRICS

Array = NDArray[np.float64]
ERRORS = ("mse", "ce_increase", "kl")
COSTS = {"l0": "L0", "latents": "latents"}
CLOSE = 0.02  # a cost this near to a trained one, as a share of it, is the same


def frontier_at(
    cost: Float[Array, "resamples points"], error: Float[Array, "resamples points"], at: Float[Array, " resamples"]
) -> Float[Array, " resamples"]:
    """The frontier of measured points at a cost, resample by resample; NaN below the smallest, and without logarithms.

    Args:
        cost: Of the points, in any order.
        error: Theirs.
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


def compared(made: Sequence[Point], trained: Sequence[Point], cost: str) -> pd.DataFrame:
    """One row a made dictionary and error: ratio to the trained frontier at equal cost, with its interval.

    Args:
        made: Dictionaries to compare.
        trained: What the frontier is made of.
        cost: "l0" or "latents".
    """
    costs = np.stack([_cost(point, cost) for point in trained], axis=1)
    rows = []
    for point in made:
        at = _cost(point, cost)
        for key in point.evaluation.among(ERRORS):
            errors = np.stack([p.series(key) for p in trained], axis=1)
            level = frontier_at(costs, errors, at)
            own = point.series(key)
            series = np.divide(own, level, out=np.full_like(own, np.nan), where=np.isfinite(level) & (level > 0))
            found = estimate(series)
            where = _where(float(at[0]), costs[0], cost)
            rows.append((point.name, float(at[0]), METRICS[key].label, own[0], level[0], *found[:3], where))
    names = ["dictionary", COSTS[cost], "error", "value", "frontier", "ratio", "low", "high", "frontier there"]
    return pd.DataFrame(rows, columns=names)


def _cost(point: Point, cost: str) -> Array:
    if cost == "l0":
        return point.series("l0")
    return np.full_like(point.series("l0"), float(point.dictionary.n_emitting))


def _where(at: float, costs: Array, cost: str) -> str:
    """What the frontier is at a place, in words."""
    label = COSTS[cost]
    low, high = float(costs.min()), float(costs.max())
    if at < low * (1 - CLOSE):
        return f"none: the smallest {label} is {low:.4g}"
    if at > high * (1 + CLOSE):
        return f"level beyond {label} {high:.4g}"
    near = float(costs[np.abs(costs - at).argmin()])
    return "trained" if abs(near - at) <= CLOSE * at else "between"
