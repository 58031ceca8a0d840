"""The plots of the Pareto analysis. A curve has a colour, a marker and a dash; a ring marks what no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from analyses.common import plotting
from analyses.quality.measured_points import Curve, Measure, Point, average
from analyses.quality.pareto.comparisons import on_front
from dictlab.evaluation.metrics import METRICS

AXES = {"l0": "L0 (active latents/token)", "alive": "alive latents"}
RING: Any = {"ls": "none", "marker": "o", "ms": 11, "mfc": "none", "mec": "black", "mew": 1.1}
TITLES = {
    "ce_increase": "How much worse does the model predict?",
    "kl": "How far does its output move?",
    "ce_recovered_zero": "What is kept, beside zeros?",
    "ce_recovered_mean": "… and beside the mean?",
    "explained_variance": "Is the activation reconstructed?",
    "mse": "How large is the error?",
}


@plotting.applied
def headline(curves: Sequence[Curve]) -> Figure:
    """CE increase (MSE, where there is no model) against L0 and against alive latents."""
    measure = curves[0].measures[0]
    figure, (left, right, beside) = plotting.axes(3, width=4.0, height=3.8)
    _panel(left, curves, measure, "l0", "Who loses least for few active latents?")
    _panel(right, curves, measure, "alive", "… and for few alive ones?")
    _legend(beside, curves)
    return figure


@plotting.applied
def others(curves: Sequence[Curve], cost: str) -> Figure:
    """The other measures against one of the two costs."""
    measures = curves[0].measures[1:]
    figure, panels = plotting.axes(len(measures) + 1, width=3.8, height=3.4)
    for ax, measure in zip(panels, measures, strict=False):
        _panel(ax, curves, measure, cost, TITLES[measure.key])
    _legend(panels[-1], curves)
    return figure


def _panel(ax: Axes, curves: Sequence[Curve], measure: Measure, cost: str, title: str) -> None:
    for number, curve in enumerate(curves):
        look = _look(number)
        shown = [p for p in curve.points if _drawable(p, measure, cost)]
        ax.plot(*_line(curve, measure, cost), color=look["color"], ls=look["ls"], lw=1.4)
        ax.errorbar(
            [p.value(cost) for p in shown],
            [p.value(measure.key) for p in shown],
            xerr=_bars(shown, cost),
            yerr=_bars(shown, measure.key),
            **look | {"ls": "none"},
            ms=5,
            elinewidth=1,
        )
    points = [p for p in chain.from_iterable(curve.points for curve in curves) if _drawable(p, measure, cost)]
    unit = f"{measure.label} ({METRICS[measure.key].unit})".replace(") (", ", ")
    ax.set(xlabel=AXES[cost], ylabel=unit, title=title)
    if not points:
        ax.text(0.5, 0.5, "nothing above 0 to show", ha="center", transform=ax.transAxes)
        return
    best = [p for p, on in zip(points, on_front(points, measure, cost), strict=True) if on]
    ax.plot([p.value(cost) for p in best], [p.value(measure.key) for p in best], **RING)
    _logarithmic(ax, "x")
    if measure.logarithmic:
        _logarithmic(ax, "y")


def _drawable(point: Point, measure: Measure, cost: str) -> bool:
    """Whether a point has a place on the axes."""
    return point.value(cost) > 0 and (not measure.logarithmic or point.value(measure.key) > 0)


def _line(curve: Curve, measure: Measure, cost: str) -> tuple[list[float], list[float]]:
    """Through the settings of a curve, each at the mean of its seeds, in the order of their cost."""
    settings = [seeds for seeds in curve.settings if all(_drawable(p, measure, cost) for p in seeds)]
    x = [average([p.value(cost) for p in seeds], logarithmic=True) for seeds in settings]
    y = [average([p.value(measure.key) for p in seeds], logarithmic=measure.logarithmic) for seeds in settings]
    order = np.argsort(x)
    return [x[i] for i in order], [y[i] for i in order]


def _bars(points: Sequence[Point], key: str) -> Float[NDArray[np.float64], "2 points"]:
    """Lengths of the error bars, below and above; none where there is no interval."""
    ends = np.array([(p.value(key), *p.interval(key)) for p in points]).reshape(-1, 3)
    lengths = np.stack([ends[:, 0] - ends[:, 1], ends[:, 2] - ends[:, 0]])
    bars: NDArray[np.float64] = np.nan_to_num(lengths).clip(min=0)
    return bars


def _look(number: int) -> Any:
    """The look of a curve. Markers move on when colours come round, so that no two of 64 curves look the same."""
    return {
        "color": plotting.colour(number),
        "marker": plotting.marker(number),
        "ls": plotting.line(number),
    }


def _legend(ax: Axes, curves: Sequence[Curve]) -> None:
    """One legend for all panels, in a place of its own."""
    ax.set_axis_off()
    handles = [Line2D([], [], **_look(number), ms=5, lw=1.4, label=c.name) for number, c in enumerate(curves)]
    handles.append(Line2D([], [], **RING, label="on the front: no other is better in both"))
    ax.legend(handles=handles, loc="center left", fontsize=9, handlelength=3.5, labelspacing=0.8)


def _logarithmic(ax: Axes, which: str) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 of each decade."""
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
