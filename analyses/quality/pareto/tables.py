"""The tables of the Pareto analysis: points, comparisons of curves, pairs of dictionaries, fronts, training cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analyses.quality.measured_points import COSTS, Point
from analyses.quality.pareto.comparisons import CurveRatio, SimilarPair, TrainingCost, front_shares, on_front
from dictlab.evaluation.metrics import METRICS

FRONTS = {"l0": "L0", "alive": "alive"}
MATCHED = ("what", "of", "over", "ratio", "low", "high", "resamples", "from", "to")


def points_table(points: Sequence[Point]) -> pd.DataFrame:
    """One row a dictionary: where it is on the headline's axes, and on which of its fronts."""
    head = points[0].measures[0]
    on = {name: on_front(points, head, cost) for cost, name in FRONTS.items()}
    rows = []
    for i in _by_value(points, head.key):
        point = points[i]
        row: dict[str, object] = {"dictionary": point.name, "curve": point.curve, "alive": point.evaluation.alive}
        row |= {METRICS[key].label: point.value(key) for key in ("l0", head.key)}
        row[f"{head.label} low"], row[f"{head.label} high"] = point.interval(head.key)
        row["explained variance"] = point.value("explained_variance")
        fronts = [name for name in on if on[name][i]]
        rows.append(row | {"front": "both" if len(fronts) == len(FRONTS) else fronts[0] if fronts else "no"})
    return pd.DataFrame(rows)


def measures_table(points: Sequence[Point]) -> pd.DataFrame:
    """One row a dictionary: every measure of quality beside L0 and alive latents."""
    measures = points[0].measures
    shown = {"L0": "l0"} | {measure.label: measure.key for measure in measures}
    ordered = [points[i] for i in _by_value(points, measures[0].key)]
    return pd.DataFrame(
        [{"dictionary": p.name} | {label: p.value(key) for label, key in shown.items()} for p in ordered]
    )


def metrics_table(points: Sequence[Point]) -> pd.DataFrame:
    """Every metric of every dictionary, with its interval."""
    return pd.concat([point.evaluation.table() for point in points], ignore_index=True)


def matched_table(ratios: Sequence[CurveRatio]) -> pd.DataFrame:
    """For every two curves, the four ratios where they overlap."""
    rows = [(one.what, one.of.name, one.over.name, *one.ratio, one.start, one.end) for one in ratios]
    return pd.DataFrame(rows, columns=list(MATCHED))


def pairs_table(pairs: Sequence[SimilarPair], quantities: Sequence[str]) -> pd.DataFrame:
    """One row a pair of similar dictionaries: their ratios in some quantities."""
    rows = [
        (one.of.name, one.over.name, *(number for name in quantities for number in one.ratios[name][:3]))
        for one in pairs
    ]
    names = [f"{name}{part}" for name in quantities for part in ("", " low", " high")]
    return pd.DataFrame(rows, columns=["of", "over", *names])


def fronts_table(points: Sequence[Point], cost: str) -> pd.DataFrame:
    """Dictionaries that no other beats, by quality: the share of resamples in which each is on the front."""
    shares = {measure.label: front_shares(points, measure, cost) for measure in points[0].measures}
    on_any = np.logical_or.reduce([np.isfinite(share) for share in shares.values()])
    rows = [
        {"dictionary": points[i].name, COSTS[cost]: points[i].value(cost)}
        | {label: share[i] for label, share in shares.items()}
        for i in _by_value(points, cost)
        if on_any[i]
    ]
    return pd.DataFrame(rows, columns=["dictionary", COSTS[cost], *shares])


def cost_table(costs: Sequence[TrainingCost]) -> pd.DataFrame:
    """What the files say training cost, by curve, and relative to the local objective at the same width."""
    tokens = [None if np.isnan(one.tokens) else int(one.tokens) for one in costs]
    columns = {
        "curve": [one.curve.name for one in costs],
        "dictionaries": [len(one.curve.points) for one in costs],
        "recorded": [one.recorded for one in costs],
        "tokens": pd.array(tokens, dtype="Int64"),
        "seconds": [one.seconds for one in costs],
        "least": [one.least for one in costs],
        "most": [one.most for one in costs],
        "relative to": [one.relative_to.name if one.relative_to else None for one in costs],
        "× tokens": [one.times_tokens for one in costs],
        "× seconds": [one.times_seconds for one in costs],
    }
    return pd.DataFrame(columns)


def _by_value(points: Sequence[Point], key: str) -> list[int]:
    """Numbers of the points, in the order of a metric; those without a value last."""
    values = np.array([point.value(key) for point in points])
    return [int(i) for i in np.argsort(values, kind="stable")]
