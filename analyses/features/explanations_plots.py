"""The plots of explanations by strings of tokens."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analyses.common import plotting
from analyses.features.explanations_tables import LEVELS, MEASURES

WORDS = {
    "reconstruction": "reconstruction",
    "simulated": "explained latents simulated",
    "zeroed": "explained latents at 0",
    "bigram": "bigram model",
}


@plotting.applied
def scores(latents: pd.DataFrame, overview: pd.DataFrame) -> Figure:
    """One panel a measure, one row a dictionary: every latent, and the mean."""
    height = max(2.7, 0.5 * len(overview) + 1.2)
    figure, panels = plotting.axes(len(MEASURES), width=4.4, height=height)
    titles = ("Does it fire where it is said to?", "Is all of its firing said?", "Both together")
    places = np.arange(len(overview))[::-1]
    for ax, name, title in zip(panels, MEASURES, titles, strict=True):
        for place, (_, row) in zip(places, overview.iterrows(), strict=True):
            values = latents.loc[latents["dictionary"] == row["dictionary"], name].dropna()
            spread = np.linspace(-0.3, 0.3, len(values)) if len(values) > 1 else np.zeros(len(values))
            ax.plot(values.sort_values(), place + spread, ls="none", marker=".", ms=4, color="0.6")
        ax.errorbar(
            overview[name], places, xerr=_bars(overview, name), ls="none", ms=6, elinewidth=2, zorder=3,
            color=plotting.colour(0), marker=plotting.marker(0), label="mean over latents",
        )  # fmt: skip
        ax.set(xlabel=f"{name} (share of tokens)", yticks=places, title=title, xlim=(-0.03, 1.03))
        ax.set_yticklabels(plotting.short(list(overview["dictionary"])) if ax is panels[0] else [])
    panels[0].plot(
        overview["chance"], places, ls="none", marker="|", ms=14, mew=2, color=plotting.colour(1), label="chance"
    )
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@plotting.applied
def reconstruction(rebuilt: pd.DataFrame) -> Figure:
    """One row a dictionary: the model's loss with every replacement."""
    figure, (ax,) = plotting.axes(1, width=8.0, height=max(2.4, 0.5 * len(rebuilt) + 1.4))
    places = np.arange(len(rebuilt))[::-1]
    for number, name in enumerate(LEVELS):
        ax.errorbar(
            rebuilt[name], places, xerr=_bars(rebuilt, name), ls="none", ms=6, elinewidth=1,
            color=plotting.colour(number), marker=plotting.marker(number), label=WORDS[name],
        )  # fmt: skip
    ax.set(xlabel="CE increase (nats a token)", yticks=places, title="Is what is said enough for the model?")
    ax.set_ylim(-0.6, len(rebuilt) - 0.4)
    ax.set_yticklabels(
        [f"{name}\n{share:.0%} of activity explained".replace("%", " %") for name, share in
         zip(plotting.short(list(rebuilt["dictionary"])), rebuilt["share"], strict=True)]
    )  # fmt: skip
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _bars(frame: pd.DataFrame, name: str) -> np.ndarray:
    ends = np.stack([frame[name] - frame[f"{name} low"], frame[f"{name} high"] - frame[name]])
    bars: np.ndarray = np.nan_to_num(ends).clip(min=0)
    return bars
