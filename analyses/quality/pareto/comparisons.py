"""Which of two curves, or of two dictionaries, gives more for its sparsity, and what did its training cost?

Curves are compared where they overlap (`curve_comparison.mean_ratio`); dictionaries of one width and two objectives
that are about equal in one quantity are compared in the others, as Braun et al. 2024 pick their tables 2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from analyses.quality.curve_comparison import CurveEstimate, estimate, front, mean_ratio, nearest
from analyses.quality.measured_points import COSTS, Curve, Measure, Point

SIMILAR = 4 / 3  # the widest spread of CE increase or L0 inside a row of Braun et al. 2024, tables 2 and 3


class CurveRatio(NamedTuple):
    """One quantity of a curve over that of another, where they overlap in what is matched.

    Attributes:
        what: The quantity, and what is matched.
        of: The curve above the line.
        over: The curve below it.
        ratio: Mean over the overlap.
        start: Where the overlap begins, in what is matched.
        end: Where it ends.
    """

    what: str
    of: Curve
    over: Curve
    ratio: CurveEstimate
    start: float
    end: float


class SimilarPair(NamedTuple):
    """Two dictionaries that are about equal in one quantity, and the ratios of all, by name."""

    of: Point
    over: Point
    ratios: dict[str, CurveEstimate]


class TrainingCost(NamedTuple):
    """What the files of a curve's dictionaries say that their training cost.

    Attributes:
        curve: Which.
        recorded: Of how many of them it is known, in words.
        tokens: Median tokens; NaN where none says.
        seconds: Median seconds.
        least: Least seconds of one.
        most: Most seconds of one.
        relative_to: The local curve of its width; None where there is none.
        times_tokens: Tokens over those of that curve.
        times_seconds: Seconds over those of that curve.
    """

    curve: Curve
    recorded: str
    tokens: float
    seconds: float
    least: float
    most: float
    relative_to: Curve | None = None
    times_tokens: float = float("nan")
    times_seconds: float = float("nan")


def curve_ratios(curves: Sequence[Curve]) -> list[CurveRatio]:
    """For every two curves, the four ratios where they overlap; pairs that differ in objective only come first."""
    long = [curve for curve in curves if curve.series["l0"].shape[1] > 1]
    ratios = []
    for over, of in sorted(_couples(long), key=lambda couple: not _like_for_like(*couple)):
        for what, x, y in comparisons(over.measures[0]):
            series, start, end = mean_ratio(over.series[x], over.series[y], of.series[x], of.series[y])
            ratio = estimate(series, centred="alive" in (x, y))
            ratios.append(CurveRatio(what, of, over, ratio, float(start[0]), float(end[0])))
    return ratios


def comparisons(head: Measure) -> list[tuple[str, str, str]]:
    """What curves are compared in: the name, what is matched, and the quantity of which the ratio is taken."""
    costs = [(f"{label} at matched {head.label}", head.key, cost) for cost, label in COSTS.items()]
    return costs + [(f"{head.label} at matched {label}", cost, head.key) for cost, label in COSTS.items()]


def compared_quantities(head: Measure) -> dict[str, str]:
    """What similar dictionaries are compared in: names in tables, and keys of metrics."""
    return {"L0": "l0", head.short: head.key, "alive": "alive"}


def similar_pairs(curves: Sequence[Curve], key: str) -> list[SimilarPair]:
    """The dictionaries of every two curves of one width and two objectives that are most alike in a metric.

    Those further apart than a factor of 4/3 are no pair.

    Args:
        curves: What dictionaries are taken from.
        key: What they are to be alike in: the first measure, "ce_increase" with a model, or "l0".
    """
    alike = [(a, b) for a, b in _couples(curves) if a.width == b.width and a.objective != b.objective]
    pairs = []
    for over_curve, of_curve in sorted(alike, key=lambda couple: not _like_for_like(*couple)):
        over_values, of_values = (np.array([p.value(key) for p in c.points]) for c in (over_curve, of_curve))
        i, j, apart = nearest(over_values, of_values)
        if apart <= SIMILAR:
            over, of = over_curve.points[i], of_curve.points[j]
            names = compared_quantities(curves[0].measures[0])
            pairs.append(SimilarPair(of, over, {name: _ratio(of, over, key) for name, key in names.items()}))
    return pairs


def front_shares(points: Sequence[Point], measure: Measure, cost: str) -> Float[NDArray[np.float64], " points"]:
    """The share of resamples in which each point is on the front of a measure against a cost; NaN where it is not."""
    on = front(_stacked(points, cost), _losses(points, measure))
    share = on[1:].mean(axis=0) if len(on) > 1 else np.ones(len(points))
    return np.asarray(np.where(on[0], share, np.nan))


def on_front(points: Sequence[Point], measure: Measure, cost: str) -> NDArray[np.bool_]:
    """Which dictionaries are on the front of the whole sample."""
    values = np.array([p.value(measure.key) for p in points])
    return front(np.array([p.value(cost) for p in points]), -values if measure.more_is_better else values)


def training_costs(curves: Sequence[Curve]) -> list[TrainingCost]:
    """What training cost, by curve, and relative to the local objective at the same width."""
    costs = {curve.name: _cost_of(curve) for curve in curves}
    related = []
    for curve in curves:
        cost, beside = costs[curve.name], _local_beside(curve, curves)
        if beside is not None:
            base = costs[beside.name]
            with np.errstate(divide="ignore", invalid="ignore"):
                times = np.array([cost.tokens, cost.seconds]) / np.array([base.tokens, base.seconds])
            cost = cost._replace(relative_to=beside, times_tokens=float(times[0]), times_seconds=float(times[1]))
        related.append(cost)
    return related


def _cost_of(curve: Curve) -> TrainingCost:
    """Medians of tokens and seconds over a curve's dictionaries, and the least and most seconds of one."""
    known = {}
    for what in ("tokens", "seconds"):
        values = np.array([getattr(point, what) for point in curve.points])
        known[what] = values[np.isfinite(values)]
    some = [f"{what} of {len(values)}" for what, values in known.items() if 0 < len(values) < len(curve.points)]
    whole = [what for what, values in known.items() if len(values) == len(curve.points)]
    recorded = "yes" if len(whole) == len(known) else ", ".join(whole + some) or "not recorded"
    seconds = known["seconds"]
    least, most = (float(seconds.min()), float(seconds.max())) if len(seconds) else (float("nan"),) * 2
    return TrainingCost(curve, recorded, float(np.round(_median(known["tokens"]))), _median(seconds), least, most)


def _median(values: NDArray[np.float64]) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def _local_beside(curve: Curve, curves: Sequence[Curve]) -> Curve | None:
    """The local curve of a curve's width, that of its own activation function first; none for a local curve."""
    local = [c for c in curves if c.local and c.width == curve.width and not curve.local]
    return min(local, key=lambda c: c.kind != curve.kind, default=None)


def _couples(curves: Sequence[Curve]) -> list[tuple[Curve, Curve]]:
    """Every two curves, the one to compare with first: a local one, if either is."""
    return [(b, a) if b.local and not a.local else (a, b) for a, b in combinations(curves, 2)]


def _like_for_like(a: Curve, b: Curve) -> bool:
    """Whether two curves differ in their objective only."""
    return a.width == b.width and a.kind == b.kind and a.objective != b.objective


def _ratio(of: Point, over: Point, key: str) -> CurveEstimate:
    """The ratio of two dictionaries with its interval, over the resamples that they share."""
    a, b = of.series(key), over.series(key)
    series = np.divide(a, b, out=np.full_like(a, np.nan), where=(a > 0) & (b > 0))
    return estimate(series, centred=key == "alive")


def _losses(points: Sequence[Point], measure: Measure) -> Float[NDArray[np.float64], "resamples points"]:
    """A quality turned so that less is better, in the sample and in each resample."""
    values = _stacked(points, measure.key)
    return -values if measure.more_is_better else values


def _stacked(points: Sequence[Point], key: str) -> Float[NDArray[np.float64], "resamples points"]:
    return np.stack([point.series(key) for point in points], axis=1)
