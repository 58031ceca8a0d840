"""The plots of refinement and progressive recovery."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analyses.common import plotting
from analyses.quality.shrinkage_tables import THRESHOLD, TOPK, Measured

BINS = np.linspace(0, 2.5, 51)
LOOKS = {TOPK: "-", THRESHOLD: ":"}
PANELS = {  # axis and title of each loss
    "normalised MSE": ("normalised MSE", "Does more of the code reconstruct better?"),
    "CE increase": ("CE increase (nats/token)", "… and serve the model better?"),
}
DRAWN = 8  # dictionaries that lines can be told apart of


@plotting.applied
def refinement(found: Sequence[Measured], overview: pd.DataFrame) -> Figure:
    """How activations change, and what that gains."""
    figure, (left, right) = plotting.axes(2, width=5.4, height=max(3.6, 0.24 * len(found) + 1.2))
    for number, one in enumerate(found[:DRAWN]):
        counts = np.histogram(one.ratios.clip(0, BINS[-1]), BINS)[0] / len(one.ratios)
        left.stairs(counts, BINS, color=plotting.colour(number), ls=plotting.line(number), lw=1.3, label=one.name)
    left.axvline(1, color="0.4", lw=1)
    left.set(xlabel="refined / plain activation", ylabel="share of active latents", title="Were activations too small?")
    left.legend(fontsize=7)
    places = np.arange(len(overview))[::-1]
    for number, measure in enumerate(measure for measure in PANELS if measure in overview):
        change = 100 * overview[f"{measure} change"] / overview[measure]
        low, high = (100 * overview[f"{measure} change {end}"] / overview[measure] for end in ("low", "high"))
        right.errorbar(
            change, places + 0.1 - 0.2 * number, xerr=np.stack([change - low, high - change]).clip(min=0), ls="none",
            marker=plotting.marker(number), color=plotting.colour(number), ms=5, elinewidth=1, label=measure,
        )  # fmt: skip
    right.axvline(0, color="0.4", lw=1)
    right.set(xlabel="change by refinement (%)", yticks=places, title="What does refinement gain?")
    right.set_yticklabels(plotting.short(list(overview["dictionary"])), fontsize=8)
    right.legend(fontsize=8)
    return figure


@plotting.applied
def recovery(found: Sequence[Measured], frame: pd.DataFrame) -> Figure:
    """Error and, where there is a model, CE increase against L0, by rule; a ring where it was trained."""
    shown = [measure for measure in PANELS if measure in frame]
    figure, panels = plotting.axes(len(shown), width=5.4, height=4.2)
    for ax, measure in zip(panels, shown, strict=True):
        _recovered(ax, found, frame, measure, *PANELS[measure])
    names = [
        Line2D([], [], color=plotting.colour(i), marker=plotting.marker(i), label=one.name)
        for i, one in enumerate(found[:DRAWN])
    ]
    rules = [Line2D([], [], color="0.3", ls=look, label=rule) for rule, look in LOOKS.items()]
    rules.append(Line2D([], [], ls="none", marker="o", ms=11, mfc="none", mec="black", label="as trained"))
    figure.legend(handles=[*names, *rules], loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _recovered(ax: Axes, found: Sequence[Measured], frame: pd.DataFrame, measure: str, words: str, title: str) -> None:
    for number, one in enumerate(found[:DRAWN]):
        own = frame[frame["dictionary"] == one.name]
        for rule, look in LOOKS.items():
            some = own[(own["rule"] == rule) & (own[measure] > 0)].sort_values("L0")
            ax.plot(
                some["L0"],
                some[measure],
                color=plotting.colour(number),
                ls=look,
                marker=plotting.marker(number),
                ms=3.5,
            )
        trained = own[own["trained"]]
        ax.plot(trained["L0"], trained[measure], ls="none", marker="o", ms=11, mfc="none", mec="black")
    ax.set(xlabel="L0 (active latents/token)", ylabel=words, title=title, xscale="log")
    if (frame[measure] > 0).any():
        ax.set_yscale("log")
