"""The plots of the sparsity of downstream effects."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.common import plotting
from analyses.model_effects.ablation_tables import CHANNEL, LATENT, OWN, RANDOM

NORMAL = 2 / math.pi
DRAWN = 6  # dictionaries of which curves can be told apart
READ = (
    f"Left: ablations up to each share, of the first {DRAWN} dictionaries and of all random directions and channels; "
    "dashed: 2/π, as of independent normal numbers. Others: means."
)


@plotting.applied
def single(frame: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """How sparse single effects are; and their means, over all positions and at the token itself."""
    figure, (left, *right) = plotting.axes(3, width=4.6, height=max(3.8, 0.25 * len(table) + 1.6))
    names = list(table["features"][table["width"].notna()])[:DRAWN]
    series = [(name, frame[(frame["dictionary"] == name) & (frame["kind"] == LATENT)]) for name in names]
    series += [(f"{kind}s", frame[frame["kind"] == kind]) for kind in (RANDOM, CHANNEL)]
    for number, (name, some) in enumerate(series):
        if len(known := some["sparsity"].dropna().sort_values()):
            left.step(
                known, np.arange(1, len(known) + 1) / len(known), where="post", label=name, lw=1.4,
                color=plotting.colour(number), ls=plotting.line(number),
            )  # fmt: skip
    left.axvline(NORMAL, color="0.4", lw=1, ls="--")
    left.set(xlabel="share of the logits that an effect is spread over", ylabel="share of ablations", xlim=(0, None))
    left.set_title("How sparse is a single effect?")
    left.legend(fontsize=7, loc="lower right")
    for ax, measure, title in zip(
        right, ("sparsity", OWN), ("… on average, over all positions?", "… at the token itself?"), strict=True
    ):
        _means(ax, table, measure)
        ax.set(xlabel="mean share of the logits", title=title)
    right[1].tick_params(labelleft=False)
    figure.legend(*right[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _means(ax: Axes, table: pd.DataFrame, measure: str) -> None:
    places = np.arange(len(table))[::-1]
    for number, (column, label) in enumerate(
        ((measure, "latent, or channel"), (_random(measure), "random direction of the same length"))
    ):
        ax.errorbar(
            table[column], places + 0.12 - 0.24 * number, xerr=_bars(table, column), ls="none", ms=4.5, elinewidth=1,
            label=label, marker=plotting.marker(number), color=plotting.colour(number),
        )  # fmt: skip
    ax.set_yticks(places, plotting.short(list(table["features"])), fontsize=8)


@plotting.applied
def against_l0(table: pd.DataFrame) -> Figure:
    """Means against the number of active latents, a series for each family and width; random directions beside."""
    figure, panels = plotting.axes(2, width=5.0, height=4.2)
    own = table[table["L0"].notna() & table["sparsity"].notna()]
    places = (
        ("sparsity", "Are effects sparser where more latents are active?"),
        (OWN, "… at the token itself?"),
    )
    for ax, (measure, title) in zip(panels, places, strict=True):
        for number, ((family, width), some) in enumerate(own.groupby(["family", "width"], sort=False)):
            some = some.sort_values("L0")
            look: Any = {"color": plotting.colour(number), "marker": plotting.marker(number)}
            ax.errorbar(
                some["L0"], some[measure], yerr=_bars(some, measure), ms=5, lw=1, elinewidth=1,
                ls=plotting.line(number), label=f"{family}, {width} latents", **look,
            )  # fmt: skip
            ax.plot(some["L0"], some[_random(measure)], ls="none", ms=4, mfc="none", **look)
        ax.set(xscale="log", xlabel="L0 (active latents/token)", ylabel="mean share of the logits", title=title)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _random(measure: str) -> str:
    return "random" if measure == "sparsity" else f"random {measure}"


def _bars(table: pd.DataFrame, column: str) -> np.ndarray:
    ends = np.stack([table[column] - table[f"{column} low"], table[f"{column} high"] - table[column]])
    bars: np.ndarray = np.nan_to_num(ends).clip(min=0)
    return bars
