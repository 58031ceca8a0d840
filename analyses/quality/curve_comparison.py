"""Curves through measured points, on bare arrays: how two compare where they overlap, and which points nothing beats.

Leading dimensions are resamples; all of them are worked out at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from dictlab.numerics.statistics import interval

PLACES = 20
LEAST_OVERLAP = 1.1  # largest over smallest abscissa that two curves share; less is a point, not an overlap

Array = NDArray[np.float64]


class CurveEstimate(NamedTuple):
    """A number with its 95 % interval, NaN where there is none, and the resamples that the interval rests on."""

    value: float
    low: float
    high: float
    resamples: int


def mean_ratio(
    x: Float[Array, "*resamples points"],
    y: Float[Array, "*resamples points"],
    other_x: Float[Array, "*resamples others"],
    other_y: Float[Array, "*resamples others"],
) -> tuple[Float[Array, "*resamples"], Float[Array, "*resamples"], Float[Array, "*resamples"]]:
    """Mean over the overlap in x of (y of the other curve) / (y of this one), and where the overlap begins and ends.

    Curves are piecewise linear in log x and log y; the mean is over 20 places, evenly spaced in log x (Braun et al.
    2024 do so without logarithms). NaN where the curves hardly overlap, and where a coordinate is not positive.

    Args:
        x: Abscissae of this curve, in any order.
        y: Its ordinates.
        other_x: Abscissae of the other curve.
        other_y: Its ordinates.
    """
    given = [np.asarray(values, dtype=np.float64) for values in (x, y, other_x, other_y)]
    usable = np.logical_and.reduce([(values > 0).all(axis=-1) for values in given])
    x, y, other_x, other_y = (np.where(usable[..., None], values, 1.0) for values in given)
    low, high = np.maximum(x.min(-1), other_x.min(-1)), np.minimum(x.max(-1), other_x.max(-1))
    usable &= high >= LEAST_OVERLAP * low
    steps = np.linspace(0, 1, PLACES)
    places = np.log(low)[..., None] * (1 - steps) + np.log(high)[..., None] * steps
    this, other = (interpolated(np.log(a), np.log(b), places) for a, b in ((x, y), (other_x, other_y)))
    ratio, low, high = (np.where(usable, found, np.nan) for found in (np.exp(other - this).mean(axis=-1), low, high))
    return ratio, low, high


def interpolated(
    x: Float[Array, "*resamples points"], y: Float[Array, "*resamples points"], at: Float[Array, "*resamples places"]
) -> Float[Array, "*resamples places"]:
    """Piecewise linear through the points of each resample, constant beyond them."""
    order = np.argsort(x, axis=-1)
    x, y = np.take_along_axis(x, order, axis=-1), np.take_along_axis(y, order, axis=-1)
    if x.shape[-1] == 1:
        return np.broadcast_to(y, at.shape)
    right = (x[..., None, :] <= at[..., :, None]).sum(axis=-1).clip(1, x.shape[-1] - 1)
    (x0, x1), (y0, y1) = ([np.take_along_axis(v, i, axis=-1) for i in (right - 1, right)] for v in (x, y))
    gap = x1 - x0
    share = np.divide(at - x0, gap, out=np.zeros_like(at), where=gap > 0).clip(0, 1)
    return y0 + share * (y1 - y0)


def front(
    cost: Float[Array, "*resamples points"], loss: Float[Array, "*resamples points"]
) -> Bool[NDArray[np.bool_], "*resamples points"]:
    """Which points no other beats: none has at most the cost and at most the loss, and less of one of them."""
    beaten = np.zeros(cost.shape, dtype=bool)
    for j in range(cost.shape[-1]):
        c, s = cost[..., j : j + 1], loss[..., j : j + 1]
        beaten |= (c <= cost) & (s <= loss) & ((c < cost) | (s < loss))
    return ~beaten


def nearest(a: Float[Array, " a"], b: Float[Array, " b"]) -> tuple[int, int, float]:
    """The two most similar values, one of each: their places, and the factor (1 or more) between them.

    Values that are not positive are similar to none; the factor is then infinite.
    """
    positive = (a[:, None] > 0) & (b > 0)
    safe_a, safe_b = np.where(a > 0, a, 1.0), np.where(b > 0, b, 1.0)
    apart = np.where(positive, np.abs(np.log(safe_a)[:, None] - np.log(safe_b)), np.inf)
    i, j = np.unravel_index(int(apart.argmin()), apart.shape)
    return int(i), int(j), float(np.exp(apart[i, j]))


def estimate(series: Float[Array, " resamples"], *, centred: bool = False) -> CurveEstimate:
    """A positive number and its interval, from its value in the sample (first) and in each resample of it.

    Args:
        series: NaN where a resample has no value. With less than half of them left there is no interval.
        centred: A count of what was seen at all is smaller in every resample than in the sample, and a ratio of such
            counts is shifted. The draws are then moved, in logarithms, so that their median is the value.
    """
    value, draws = float(series[0]), np.where(series[1:] > 0, series[1:], np.nan)
    known = np.isfinite(draws)
    if not np.isfinite(value) or not known.any():
        return CurveEstimate(value, float("nan"), float("nan"), int(known.sum()))
    if centred:
        draws = value * draws / np.median(draws[known])
    return CurveEstimate(value, *interval(draws), int(known.sum()))
