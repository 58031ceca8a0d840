"""The tables of the Pareto analysis: points, comparisons of curves, pairs of dictionaries, fronts, training cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from analyses.quality.curve_comparison import estimate, front, mean_ratio, nearest
from analyses.quality.measured_points import COSTS, Curve, Measure, Point
from dictlab.evaluation.metrics import METRICS

FRONTS = {"l0": "L0", "alive": "alive"}
SIMILAR = 4 / 3  # the widest spread of CE increase or L0 inside a row of Braun et al. 2024, tables 2 and 3
MATCHED = ("what", "of", "over", "ratio", "low", "high", "resamples", "from", "to")
COST = ("curve", "dictionaries", "recorded", "tokens", "seconds", "least", "most", "relative to")
RELATIVE = {"tokens": "× tokens", "seconds": "× seconds"}


def points_table(points: Sequence[Point]) -> pd.DataFrame:
    """One row a dictionary: where it is on the headline's axes, and on which of its fronts."""
    head = points[0].measures[0]
    on = {name: on_front(points, head, cost) for cost, name in FRONTS.items()}
    rows = []
    for i, point in enumerate(points):
        row: dict[str, object] = {"dictionary": point.name, "curve": point.curve, "alive": point.evaluation.alive}
        row |= {METRICS[key].label: point.value(key) for key in ("l0", head.key)}
        row[f"{head.label} low"], row[f"{head.label} high"] = point.interval(head.key)
        row["explained variance"] = point.value("explained_variance")
        rows.append(row | {"front": _which([name for name in on if on[name][i]])})
    return pd.DataFrame(rows).sort_values(head.label, ignore_index=True)


def measures_table(points: Sequence[Point]) -> pd.DataFrame:
    """One row a dictionary: every measure of quality beside L0 and alive latents."""
    measures = points[0].measures
    shown = {"L0": "l0"} | {measure.label: measure.key for measure in measures}
    rows = [{"dictionary": p.name} | {label: p.value(key) for label, key in shown.items()} for p in points]
    return pd.DataFrame(rows).sort_values(measures[0].label, ignore_index=True)


def matched(curves: Sequence[Curve]) -> pd.DataFrame:
    """For every two curves, the four ratios where they overlap; pairs that differ in objective only come first."""
    long = [curve for curve in curves if curve.series["l0"].shape[1] > 1]
    couples = sorted(_couples(long), key=lambda couple: not _like_for_like(*couple))
    rows = []
    for over, of in couples:
        for what, x, y in comparisons(over.measures[0]):
            series, start, end = mean_ratio(over.series[x], over.series[y], of.series[x], of.series[y])
            found = estimate(series, centred="alive" in (x, y))
            rows.append((what, of.name, over.name, *found, float(start[0]), float(end[0])))
    return pd.DataFrame(rows, columns=list(MATCHED))


def comparisons(head: Measure) -> list[tuple[str, str, str]]:
    """What curves are compared in: the name, what is matched, and the quantity of which the ratio is taken."""
    costs = [(f"{label} at matched {head.label}", head.key, cost) for cost, label in COSTS.items()]
    return costs + [(f"{head.label} at matched {label}", cost, head.key) for cost, label in COSTS.items()]


def pairs(curves: Sequence[Curve], key: str) -> pd.DataFrame:
    """The dictionaries of every two curves of one width and two objectives that are most alike in a metric.

    As the papers' tables 2 and 3 pick their runs: one dictionary of each objective, about equal in one quantity, so
    that the others can be compared. Those further apart than a factor of 4/3 are no pair.

    Args:
        curves: What dictionaries are taken from.
        key: What they are to be alike in: the first measure, "ce_increase" with a model, or "l0".
    """
    head = curves[0].measures[0]
    ratios = {"L0": "l0", head.short: head.key, "alive": "alive"}
    alike = [(a, b) for a, b in _couples(curves) if a.width == b.width and a.objective != b.objective]
    rows = []
    for over_curve, of_curve in sorted(alike, key=lambda couple: not _like_for_like(*couple)):
        over_values, of_values = (np.array([p.value(key) for p in c.points]) for c in (over_curve, of_curve))
        i, j, apart = nearest(over_values, of_values)
        if apart <= SIMILAR:
            over, of = over_curve.points[i], of_curve.points[j]
            rows.append((of.name, over.name, *_ratios(of, over, ratios.values())))
    names = [f"{name}{part}" for name in ratios for part in ("", " low", " high")]
    return pd.DataFrame(rows, columns=["of", "over", *names])


def fronts(points: Sequence[Point], cost: str) -> pd.DataFrame:
    """Dictionaries that no other beats, by quality: the share of resamples in which each is on the front."""
    label = COSTS[cost]
    frame = pd.DataFrame({"dictionary": [p.name for p in points], label: [p.value(cost) for p in points]})
    costs = _stacked(points, cost)
    for measure in points[0].measures:
        on = front(costs, losses(points, measure))
        share = on[1:].mean(axis=0) if len(on) > 1 else np.ones(len(points))
        frame[measure.label] = np.where(on[0], share, np.nan)
    on_any = frame[[measure.label for measure in points[0].measures]].notna().any(axis=1)
    return frame[on_any].sort_values(label, ignore_index=True)


def losses(points: Sequence[Point], measure: Measure) -> Float[NDArray[np.float64], "resamples points"]:
    """A quality turned so that less is better, in the sample and in each resample."""
    values = _stacked(points, measure.key)
    return -values if measure.more_is_better else values


def on_front(points: Sequence[Point], measure: Measure, cost: str) -> NDArray[np.bool_]:
    """Which dictionaries are on the front of the whole sample."""
    values = np.array([p.value(measure.key) for p in points])
    return front(np.array([p.value(cost) for p in points]), -values if measure.more_is_better else values)


def cost_table(curves: Sequence[Curve]) -> pd.DataFrame:
    """What the files say training cost, by curve, and relative to the local objective at the same width."""
    names = {curve.name: beside.name for curve in curves if (beside := _local_beside(curve, curves))}
    rows = [(*_cost_of(curve), names.get(curve.name)) for curve in curves]
    frame = pd.DataFrame(rows, columns=list(COST))
    base = frame.set_index("curve").reindex(frame["relative to"])
    for column, label in RELATIVE.items():
        frame[label] = frame[column].to_numpy() / base[column].to_numpy()
    return frame.astype({"tokens": "Int64"})


def _cost_of(curve: Curve) -> tuple[object, ...]:
    """Medians of tokens and seconds over a curve's dictionaries, and the least and most seconds of one."""
    tokens, seconds = (np.array([getattr(p, what) for p in curve.points]) for what in RELATIVE)
    known = {what: values[np.isfinite(values)] for what, values in zip(RELATIVE, (tokens, seconds), strict=True)}
    said = [f"{what} of {len(values)}" for what, values in known.items() if 0 < len(values) < len(curve.points)]
    whole = [what for what, values in known.items() if len(values) == len(curve.points)]
    recorded = "yes" if len(whole) == len(known) else ", ".join(whole + said) or "not recorded"
    spread = (known["seconds"].min(), known["seconds"].max()) if len(known["seconds"]) else (np.nan, np.nan)
    return curve.name, len(curve.points), recorded, np.round(_median(tokens)), _median(seconds), *spread


def _which(fronts: Sequence[str]) -> str:
    return "both" if len(fronts) == len(FRONTS) else fronts[0] if fronts else "no"


def _median(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


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


def _ratios(of: Point, over: Point, keys: Iterable[str]) -> Iterator[float]:
    """Each ratio of two dictionaries with its interval, over the resamples that they share."""
    for key in keys:
        a, b = of.series(key), over.series(key)
        series = np.divide(a, b, out=np.full_like(a, np.nan), where=(a > 0) & (b > 0))
        yield from estimate(series, centred=key == "alive")[:3]


def _stacked(points: Sequence[Point], key: str) -> Float[NDArray[np.float64], "resamples points"]:
    return np.stack([point.series(key) for point in points], axis=1)
