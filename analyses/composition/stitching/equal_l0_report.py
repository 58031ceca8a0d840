"""A stitched dictionary and its parents at equal L0: the table, the picture and the sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses.common import plotting
from analyses.composition.stitching.equal_l0 import EqualL0, SparsityCurve, at_equal_l0
from analyses.composition.trained_frontier import ERRORS
from analyses.quality.measured_points import Point
from dictlab.evaluation.metrics import METRICS
from dictlab.reports.report import Plot

SAME_ERROR = 0.002  # what refits from different starts may differ by
BEYOND = "beyond the densest point of the curve"


def percent_at_equal_l0(point: Point, curves: Sequence[SparsityCurve], metric: str = "mse") -> float:
    """By how many per cent an error is larger than that of the best parent at its L0; NaN where there is none."""
    compared = at_equal_l0(point, curves).get(metric)
    return float("nan") if compared is None else 100 * (compared.ratio.ratio.value - 1)


def equal_l0_table(points: Sequence[Point], curves: Sequence[SparsityCurve]) -> pd.DataFrame:
    """One row for each candidate and error: its own, the best parent's at its L0, and the one over the other."""
    rows = []
    for point in points:
        for metric, (parent, ratio) in at_equal_l0(point, curves).items():
            value, low, high = (100 * (end - 1) for end in ratio.ratio[:3])
            note = BEYOND if ratio.place.kind == "level" else ""
            row = (point.name, METRICS[metric].label, ratio.cost, ratio.value, parent, ratio.frontier, value, low, high)
            rows.append((*row, note))
    columns = ["dictionary", "metric", "L0", "value", "best parent at that L0", "its value"]
    return pd.DataFrame(rows, columns=[*columns, "difference (%)", "low", "high", "note"])


def curve_table(curves: Sequence[SparsityCurve]) -> pd.DataFrame:
    """One row for each point of each parent's curve."""
    return pd.DataFrame(
        [
            {
                "parent": curve.parent,
                "dictionary": point.name,
                "L0": point.value("l0"),
                **{METRICS[key].label: point.value(key) for key in point.evaluation.among(ERRORS)},
            }
            for curve in curves
            for point in curve.points
        ]
    )


@plotting.applied
def equal_l0_plot(points: Sequence[Point], result: Point, curves: Sequence[SparsityCurve]) -> Plot:
    """Errors against L0: the parents' curves, and everything else as points."""
    keys = result.evaluation.among(ERRORS)
    figure, panels = plotting.axes(len(keys), width=4.6, height=4.6)
    for ax, key in zip(panels, keys, strict=True):
        for number, curve in enumerate(curves):
            for place, (kind, along) in enumerate(_by_activation(curve).items()):
                costs, errors = (np.array([p.value(metric) for p in along]) for metric in ("l0", key))
                look: dict[str, Any] = {"color": plotting.colour(number), "ls": plotting.line(place), "marker": "."}
                ax.plot(costs, errors, label=f"{curve.parent}, {kind}, at other sparsities", **look)
        for number, point in enumerate(points, start=len(curves)):
            low, high = point.interval(key)
            value = point.value(key)
            known = np.isfinite([low, high]).all()
            bars = np.array([[value - low], [high - value]]).clip(min=0) if known else None
            size = 9 if point is result else 6
            look = {"color": plotting.colour(number), "marker": plotting.marker(number), "ms": size, "ls": "none"}
            ax.errorbar([point.value("l0")], [value], yerr=bars, elinewidth=1, label=point.name, **look)
        label = METRICS[key].label
        title = f"Lower is better: {label} at equal L0" if key == keys[0] else label
        ax.set(xlabel="L0 (latents/token)", ylabel=f"{label} ({METRICS[key].unit})", title=title)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    caption = (
        "Each parent along its own sparsity curve (another k, or other thresholds), refitted at each point as the "
        "result is, a line for each activation function; everything else as points. Measured on "
        f"{result.evaluation.size}; bars: 95 % bootstrap interval over sequences. What lies below the parents' curves "
        "is better than both at its L0."
    )
    return Plot(figure, caption)


def _by_activation(curve: SparsityCurve) -> dict[str, list[Point]]:
    """A curve's points by activation function: one line through several would jump where they take turns."""
    found: dict[str, list[Point]] = {}
    for point in curve.points:
        found.setdefault(point.dictionary.activation.kind, []).append(point)
    return found


def equal_l0_sentence(compared: Mapping[str, EqualL0], *, refitted: bool) -> str:
    """By how much the result is better or worse than the best parent at its L0, error by error.

    Args:
        compared: Of `at_equal_l0`.
        refitted: Whether parents and result were refitted.
    """
    if "mse" not in compared:
        return "No parent can be made as sparse as the stitched dictionary, so that nothing is compared at equal L0."
    (parent, ratio), others = compared["mse"], [metric for metric in ERRORS[1:] if metric in compared]
    verdict = "WORSE than" if ratio.ratio.value > 1 else "better than"
    verdict = "as good as" if abs(ratio.ratio.value - 1) < SAME_ERROR else verdict
    noise = ", within the noise" if _unclear(compared["mse"]) and verdict != "as good as" else ""
    parts = [f"MSE {_percent(compared['mse'])}", *(f"{METRICS[m].label} {_percent(compared[m])}" for m in others)]
    dense = f" ({parent} goes no further than L0 {ratio.place.end:.1f})" if ratio.place.kind == "level" else ""
    alike = " and refitted in the same way" if refitted else ""
    return (
        f"At its L0 of {ratio.cost:.1f} the stitched dictionary is {verdict} the best parent, {parent}, at the same "
        f"L0{alike}{noise}: {', '.join(parts)}{dense}."
    )


def _unclear(compared: EqualL0) -> bool:
    _, low, high, _ = compared.ratio.ratio
    return not (low > 1 or high < 1)


def _percent(compared: EqualL0) -> str:
    value, low, high = (100 * (end - 1) for end in compared.ratio.ratio[:3])
    span = "" if np.isnan(low) else f" [{low:+.1f}, {high:+.1f}]"
    return f"{value:+.1f} %{span}"
