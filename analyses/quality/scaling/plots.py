"""The plots of the scaling analysis: losses with their laws, and dead latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.common import plotting
from analyses.quality.scaling.fits import FittedLaw
from analyses.quality.scaling.runs import LoggedDead, ScalingRun

UNITS = {"normalised MSE": "normalised MSE", "CE increase": "CE increase (nats/token)"}
PANELS = (
    ("width", "width (latents)", "Does width pay?"),
    ("flops", "compute of training (FLOPs)", "Does compute?"),
)
BEYOND = 4  # times the largest value seen: how far the line of a law goes


def drawable(runs: Sequence[ScalingRun], loss: str) -> bool:
    """Whether a loss of some run has a place on a logarithmic axis."""
    return any(loss in run.losses and run.losses[loss].value > 0 for run in runs)


@plotting.applied
def laws(runs: Sequence[ScalingRun], fitted: Sequence[FittedLaw], loss: str) -> Figure:
    """One loss, of which some is above 0, against width and, where it is known, against compute."""
    shown = [run for run in runs if run.losses[loss].value > 0]
    drawn = [panel for panel in PANELS if any(run.known(panel[0]) for run in shown)]
    figure, panels = plotting.axes(len(drawn), width=5.2, height=4.0)
    for ax, (variable, unit, title) in zip(panels, drawn, strict=True):
        _points(ax, runs, loss, variable)
        _lines(ax, runs, [one for one in fitted if one.loss == loss and one.law.variables == (variable,)], variable)
        ax.set(xscale="log", yscale="log", xlabel=unit, ylabel=UNITS[loss], title=title)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


@plotting.applied
def dead(runs: Sequence[ScalingRun], log: Sequence[LoggedDead]) -> Figure:
    """Dead latents at the end against width; and over training, where there are logs."""
    figure, panels = plotting.axes(2 if log else 1, width=5.2, height=3.8)
    for number, (name, series) in enumerate(_series(runs).items()):
        points = [(run.width, 100 * run.dead) for run in series if run.dead is not None]
        panels[0].plot([x for x, _ in points], [y for _, y in points], label=name, **_look(number))
    panels[0].set(xscale="log", xlabel="width (latents)", ylabel="dead latents (%)", title="Do wide dictionaries die?")
    widths = sorted({run.width for run in runs})
    panels[0].set_xticks(widths, [f"{width:,}" for width in widths], rotation=30)
    panels[0].minorticks_off()
    panels[0].legend(fontsize=7)
    for number, member in enumerate(dict.fromkeys(record.member for record in log)):
        records = [record for record in log if record.member == member]
        panels[1].plot(
            [record.tokens for record in records], [100 * record.dead for record in records], lw=1.2,
            color=plotting.colour(number), ls=plotting.line(number),
            label=member if number < len(plotting.COLOURS) else None,
        )  # fmt: skip
    if log:
        panels[1].set(xlabel="tokens of training", ylabel="dead latents (%)", title="When do they die?")
        panels[1].legend(fontsize=7)
    return figure


def _series(runs: Sequence[ScalingRun]) -> dict[str, list[ScalingRun]]:
    """Runs by family and k, in the words that fits call them by; smaller k first, and last what has none."""
    ordered = sorted(runs, key=lambda run: (run.family, run.k is None, run.k or 0))
    series: dict[str, list[ScalingRun]] = {}
    for run in ordered:
        series.setdefault(run.family if run.k is None else f"{run.family}, k = {run.k}", []).append(run)
    return series


def _look(number: int) -> Any:
    return {"color": plotting.colour(number), "marker": plotting.marker(number), "ls": "none", "ms": 5}


def _points(ax: Axes, runs: Sequence[ScalingRun], loss: str, variable: str) -> None:
    for number, (name, series) in enumerate(_series(runs).items()):
        shown = [run for run in series if run.known(variable) and run.losses[loss].value > 0]
        x, y = [run.value(variable) for run in shown], [run.losses[loss].value for run in shown]
        ax.plot(x, y, label=name, **_look(number))


def _lines(ax: Axes, runs: Sequence[ScalingRun], fitted: Sequence[FittedLaw], variable: str) -> None:
    """Laws of one variable, from the least value of their series to beyond the largest."""
    series = _series(runs)
    colours = {name: plotting.colour(i) for i, name in enumerate(series)}
    for one in fitted:
        values = [run.value(variable) for run in series[one.runs_of] if run.known(variable)]
        x = np.geomspace(min(values), BEYOND * max(values), 60)
        look: Any = {"ls": "--" if one.law.irreducible else "-", "color": colours[one.runs_of]}
        ax.plot(x, one.fit.predict({variable: x}), lw=1.2, **look)
