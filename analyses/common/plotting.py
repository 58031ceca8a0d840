"""One look for all plots: colour-blind safe (Okabe and Ito), told apart by line or marker too, readable in grey."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dictlab.numerics.statistics import Estimate

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (5, 5)))
SETTINGS: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


P = ParamSpec("P")
R = TypeVar("R")


def applied(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function that draws; the caller's own settings are left alone."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context(SETTINGS):
            return draw(*args, **kwargs)

    return styled


def axes(panels: int = 1, *, width: float = 5.5, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """A figure that belongs to no window, with its panels in rows of at most three; width and height are a panel's."""
    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for empty in grid[panels:]:
        empty.remove()
    return figure, grid[:panels]


def colour(index: int) -> str:
    """The colour of the index-th series."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """The marker of the index-th series. With its colour it is no other's of the first 64."""
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def line(index: int) -> object:
    """The dash pattern of the index-th series."""
    return LINES[index % len(LINES)]


def error_lengths(value: Any, low: Any, high: Any) -> list[Any]:
    """What error bars reach below and above values; not below 0, where an interval is the value but for rounding."""
    return [np.maximum(value - low, 0), np.maximum(high - value, 0)]


def bins(values: Sequence[Tensor]) -> list[float]:
    """Edges of 50 bins for cosines: up to 1, and down to 0 or the smallest of them."""
    lowest = min(0.0, *(float(v.min()) for v in values)) if values else 0.0
    return [lowest + (1 - lowest) * i / 50 for i in range(51)]


def short(names: Sequence[str], longest: int = 28) -> list[str]:
    """Names that fit an axis: cut in the middle where they are long."""
    return [name if len(name) <= longest else f"{name[: longest // 2]}…{name[-longest // 2 + 1 :]}" for name in names]


def bar_lengths(frame: pd.DataFrame, name: str) -> Float[np.ndarray, "2 rows"]:
    """Lengths of error bars below and above a column, from its columns `low` and `high`; 0 where these are NaN."""
    ends = np.stack([frame[name] - frame[f"{name} low"], frame[f"{name} high"] - frame[name]]).astype(float)
    lengths: np.ndarray = np.nan_to_num(ends).clip(min=0)
    return lengths


def points(ax: Axes, frame: pd.DataFrame, name: str, places: Any, number: int, **options: Any) -> None:
    """Values of a column with their intervals, side by side along x, each at its place along y.

    Args:
        ax: Where.
        frame: One row a point.
        name: Its column, beside which `low` and `high` stand.
        places: Of each point along y.
        number: Of the series, for its colour and marker.
        options: Of `Axes.errorbar`.
    """
    look: dict[str, Any] = {"ls": "none", "ms": 6, "elinewidth": 1, "color": colour(number), "marker": marker(number)}
    ax.errorbar(frame[name], places, xerr=bar_lengths(frame, name), **(look | options))


def estimates(
    ax: Axes, values: Sequence[Estimate], places: Any, number: int, *, along: Literal["x", "y"] = "x", **options: Any
) -> None:
    """Numbers with their intervals, each at its place on an axis. An interval that is not known has no bar.

    Args:
        ax: Where.
        values: The numbers.
        places: Of each of them on the axis `along`.
        number: Of the series, for its colour and marker.
        along: The axis of the places; values are on the other one.
        options: Of `Axes.errorbar`.
    """
    value, low, high = np.array([tuple(one) for one in values], dtype=float).reshape(-1, 3).T
    bars = np.nan_to_num([value - low, high - value]).clip(min=0)
    look: dict[str, Any] = {"ls": "none", "ms": 4.5, "elinewidth": 1, "color": colour(number), "marker": marker(number)}
    if along == "x":
        ax.errorbar(places, value, yerr=bars, **(look | options))
    else:
        ax.errorbar(value, places, xerr=bars, **(look | options))


def named_rows(ax: Axes, places: Any, names: Sequence[str], **options: Any) -> None:
    """Names of rows along y, cut where they are long."""
    ax.set_yticks(places, short(names), **options)
