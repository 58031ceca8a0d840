"""The path between dictionaries drawn: error, L0 and what the model loses, every stage as wide as every other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy.typing import NDArray

from analyses.common import plotting
from analyses.composition.path_error import Bias, Walk
from analyses.composition.path_steps import PHASES, Route
from dictlab.evaluation.metrics import Evaluation
from dictlab.reports.report import Plot

SHADES = {"insert": "#56B4E9", "swap": "#E69F00", "drop": "#999999", "silent": "#FFFFFF", "mixed": "#CC79A7"}
PANELS = {  # axis and title of each metric
    "mse": ("MSE (activation²)", "Does the error fall all the way?"),
    "l0": ("active latents a token (L0)", "How many latents are active?"),
    "ce_increase": ("CE increase (nats/token)", "How much does the model suffer?"),
}
CALLED = {
    "insert": "insert novel latents",
    "swap": "swap components",
    "drop": "drop what is left",
    "mixed": "all of these, mixed",
}


@plotting.applied
def path_plot(
    found: Walk,
    others: Sequence[Walk],
    points: NDArray[np.int64],
    evaluations: Sequence[Evaluation],
    names: Sequence[str],
    bias: Bias,
    spans: NDArray[np.float64],
) -> Plot:
    """MSE, L0 and, where there is a model, CE increase along a path.

    Args:
        found: The path.
        others: The same in random orders.
        points: Waypoints.
        evaluations: What was measured there.
        names: Of the dictionaries that it goes by.
        bias: The output bias on the way.
        spans: Intervals of the MSE at the path's marks.
    """
    keys = evaluations[0].among(PANELS)
    figure, panels = plotting.axes(len(keys), width=4.8, height=4.0)
    left, middle = panels[:2]
    x = _abscissa(found.route)
    for ax in panels:
        _phases(ax, found.route, x, names)
    for ax, curve, random in (
        (left, found.mse(bias), [other.mse(bias) for other in others]),
        (middle, found.l0(), [other.l0() for other in others]),
    ):
        if random:
            band = np.stack(random)
            ax.fill_between(
                x, band.min(axis=0), band.max(axis=0), color="#444444", alpha=0.35, lw=0, label="random orders"
            )
        ax.plot(x, curve, color="black", lw=1.3, label="this order")
    left.fill_between(x[found.marks], *spans.T, color=plotting.colour(0), alpha=0.25, lw=0, label="95 % interval")
    for ax, key in zip(panels, keys, strict=True):
        _held_out(ax, x[points], evaluations, key)
        label, title = PANELS[key]
        ax.set(ylabel=label, title=title)
        if key != "l0":
            ax.set_ylim(0, None)
    left.legend(loc="best")
    panels[-1].legend(handles=_legend(found.route), loc="lower left")
    seen, n = found.observations, evaluations[0]
    return Plot(
        figure,
        f"Line: {seen.n_tokens} training {n.counted}. Grey: smallest and largest of {len(others)} random orders. "
        f"Circles: {n.size}, bars 95 % bootstrap interval over sequences. Each stage is drawn equally wide, steps "
        f"evenly spaced. Output bias: {bias}.",
    )


def _abscissa(route: Route) -> NDArray[np.float64]:
    """Stages done at each point, by the share of steps."""
    x = np.zeros(route.steps + 1)
    for stage in range(int(route.stage.max(initial=-1)) + 1):
        steps = np.flatnonzero(route.stage == stage) + 1
        x[steps] = stage + np.arange(1, len(steps) + 1) / len(steps)
    return x


def _phases(ax: Axes, route: Route, x: NDArray[np.float64], names: Sequence[str]) -> None:
    ends = route.ends()
    for a, b in itertools.pairwise(ends):
        ax.axvspan(x[a], x[b], color=SHADES[str(route.phase[b - 1])], alpha=0.22, lw=0)
    for stage in range(1, len(names) - 1):
        ax.axvline(stage, color="black", lw=0.6)
    ax.set_xticks(range(len(names)), plotting.short(names, 20), rotation=30, ha="right")
    ax.grid(False, axis="x")


def _held_out(ax: Axes, x: NDArray[np.float64], evaluations: Sequence[Evaluation], key: str) -> None:
    values = np.array([e.value(key) for e in evaluations])
    spans = np.array([e.interval(key) for e in evaluations]).T
    error = np.clip(np.abs(spans - values), 0, None)
    ax.errorbar(x, values, yerr=error, fmt="o", ms=4, color=plotting.colour(1), lw=1, label="held out")


def _legend(route: Route) -> list[Any]:
    there = [phase for phase in PHASES if phase in CALLED and phase in route.phase]
    return [Patch(color=SHADES[phase], alpha=0.4, label=CALLED[phase]) for phase in there]
