"""The plot of explanations by a language model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analyses.autointerp.prompts import KINDS
from analyses.autointerp.tables import CHANCE
from analyses.common import plotting

TITLES = {"detection": "Is the latent found in a text?", "fuzzing": "Are its tokens found in a text?"}


@plotting.applied
def scores(latents: pd.DataFrame, overview: pd.DataFrame) -> Figure:
    """One panel a score, one row a dictionary: the distribution over latents, every latent, and the mean."""
    figure, panels = plotting.axes(len(KINDS), width=5.2, height=max(2.7, 0.6 * len(overview) + 1.4))
    places = np.arange(len(overview))[::-1]
    for ax, kind in zip(panels, KINDS, strict=True):
        for place, name in zip(places, overview["dictionary"], strict=True):
            values = latents.loc[latents["dictionary"] == name, kind].dropna().to_numpy()
            if len(values) > 1 and np.ptp(values) > 0:
                shapes: Any = ax.violinplot(values, [place], orientation="horizontal", widths=0.8, showextrema=False)
                shapes["bodies"][0].set(facecolor="0.8", alpha=1, zorder=1)
            ax.plot(values, np.full(len(values), place - 0.3), ls="none", marker="|", ms=5, color="0.5", zorder=2)
        low, high = overview[kind] - overview[f"{kind} low"], overview[f"{kind} high"] - overview[kind]
        ax.errorbar(
            overview[kind], places, xerr=np.nan_to_num(np.stack([low, high])).clip(min=0), ls="none", ms=6,
            elinewidth=2, zorder=3, color=plotting.colour(0), marker=plotting.marker(0), label="mean over latents",
        )  # fmt: skip
        ax.axvline(CHANCE, color=plotting.colour(1), ls="--", lw=1.2, label="chance")
        ax.set(xlabel=f"{kind} score (balanced accuracy)", yticks=places, title=TITLES[kind], xlim=(-0.03, 1.03))
        ax.set_ylim(-0.7, len(overview) - 0.3)
        ax.set_yticklabels(plotting.short(list(overview["dictionary"])) if ax is panels[0] else [])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
