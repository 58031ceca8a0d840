"""The plots of scaling: losses with their laws, and dead latents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.common import plotting
from analyses.quality.scaling_laws import LAWS

UNITS = {"normalised MSE": "normalised MSE", "CE increase": "CE increase (nats/token)"}
PLACES = (
    ("width", "width (latents)", "Does width pay?"),
    ("FLOPs", "compute of training (FLOPs)", "Does compute?"),
)
BY_NAME = {law.name: law for law in LAWS}


@plotting.applied
def laws(runs: pd.DataFrame, fits: pd.DataFrame, loss: str) -> Figure:
    """One loss, of which some is above 0, against width and, where it is known, against compute."""
    above = runs[runs[loss] > 0]
    places = [place for place in PLACES if above[place[0]].notna().any()]
    figure, panels = plotting.axes(len(places), width=5.2, height=4.0)
    for ax, (column, unit, title) in zip(panels, places, strict=True):
        _points(ax, runs, loss, column)
        _lines(ax, runs, fits, loss, column)
        ax.set(xscale="log", yscale="log", xlabel=unit, ylabel=UNITS[loss], title=title)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


@plotting.applied
def dead(runs: pd.DataFrame, log: pd.DataFrame) -> Figure:
    """Dead latents at the end against width; and over training, where there are logs."""
    figure, panels = plotting.axes(1 if log.empty else 2, width=5.2, height=3.8)
    for number, (name, some) in enumerate(_series(runs)):
        known = some[some["dead"].notna()]
        panels[0].plot(known["width"], 100 * known["dead"], label=name, **_look(number))
    panels[0].set(xscale="log", xlabel="width (latents)", ylabel="dead latents (%)", title="Do wide dictionaries die?")
    widths = sorted(set(runs["width"]))
    panels[0].set_xticks(widths, [f"{width:,}" for width in widths], rotation=30)
    panels[0].minorticks_off()
    panels[0].legend(fontsize=7)
    for number, (name, some) in enumerate(log.groupby("member", sort=False)):
        panels[1].plot(
            some["tokens"], 100 * some["dead"], lw=1.2, color=plotting.colour(number), ls=plotting.line(number),
            label=name if number < len(plotting.COLOURS) else None,
        )  # fmt: skip
    if not log.empty:
        panels[1].set(xlabel="tokens of training", ylabel="dead latents (%)", title="When do they die?")
        panels[1].legend(fontsize=7)
    return figure


def _series(runs: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Runs by family and k, smaller k first."""
    runs = runs.sort_values(["family", "k"], kind="stable")
    named = runs["family"] + runs["k"].map(lambda k: "" if pd.isna(k) else f", k = {k}")
    return [(str(name), some) for name, some in runs.groupby(named, sort=False)]


def _look(number: int) -> Any:
    return {"color": plotting.colour(number), "marker": plotting.marker(number), "ls": "none", "ms": 5}


def _points(ax: Axes, runs: pd.DataFrame, loss: str, column: str) -> None:
    for number, (name, some) in enumerate(_series(runs)):
        known = some[some[column].notna() & (some[loss] > 0)]
        ax.plot(known[column], known[loss], label=name, **_look(number))


def _lines(ax: Axes, runs: pd.DataFrame, fits: pd.DataFrame, loss: str, column: str) -> None:
    """The laws of one variable."""
    colours = {name: plotting.colour(i) for i, (name, _) in enumerate(_series(runs))}
    wanted = "L(N)" if column == "width" else "L(C)"
    for row in fits[(fits["loss"] == loss) & fits["law"].isin([wanted, f"{wanted} + irreducible"])].to_dict("records"):
        law = BY_NAME[row["law"]]
        own = dict(_series(runs))[row["runs of"]]
        seen = own[column].dropna().to_numpy(dtype=float)
        x = np.geomspace(seen.min(), 4 * seen.max(), 60)
        values = np.array([row[name] for name in law.parameters])
        y = np.exp(law.of(values, {law.variables[0]: np.log(x)}))
        ax.plot(x, y, lw=1.2, ls="--" if law.irreducible else "-", color=colours[row["runs of"]])
