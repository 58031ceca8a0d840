"""The plots of the probes: losses beside floor and ceiling, losses against width, and who has which task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.common import plotting
from analyses.features.probes_tables import label
from analyses.features.single_latent_probes import Probed

MEASURES = {"probe loss": "probe loss (nats, mean over tasks)", "of entropy": "share of the labels' entropy left"}
DODGE = 1.03  # widths beside each other in a plot
KINDS = {"dictionary": 0, "single coordinates": 1, "all coordinates": 2}


@plotting.applied
def losses(overview: pd.DataFrame) -> Figure:
    """One line a set of features, the best on top."""
    figure, panels = plotting.axes(2, width=5.2, height=max(2.2, 0.24 * len(overview) + 1.1))
    for ax, (measure, words) in zip(panels, MEASURES.items(), strict=True):
        frame = overview.sort_values(measure, ascending=False, ignore_index=True)
        for kind, number in KINDS.items():
            some = frame[frame["kind"] == kind]
            ax.errorbar(
                some[measure], some.index, xerr=_bars(some, measure), ls="none", ms=5, elinewidth=1,
                color=plotting.colour(number), marker=plotting.marker(number), label=kind,
            )  # fmt: skip
        ax.set(xlabel=words, yticks=frame.index, yticklabels=plotting.short(list(frame["features"])))
        ax.tick_params(axis="y", labelsize=8)
    panels[0].set_title("How well does the best single feature answer a task?")
    panels[1].set_title("… each task counted alike")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@plotting.applied
def widths(overview: pd.DataFrame) -> Figure:
    """Losses against width, a series for each objective and activation function."""
    figure, panels = plotting.axes(2, width=4.8, height=3.8)
    own = overview[overview["kind"] == "dictionary"]
    series = sorted(own.groupby(["objective", "activation"], sort=False), key=lambda one: _natural(one[0]))
    titles = ("Do wider dictionaries answer more?", "… each task counted alike")
    for ax, (measure, words), title in zip(panels, MEASURES.items(), titles, strict=True):
        for number, (name, some) in enumerate(series):
            some = some.sort_values("width")
            beside = DODGE ** (number - (len(series) - 1) / 2)  # so that equal widths do not hide each other
            ax.errorbar(
                some["width"].astype(float) * beside, some[measure], yerr=_bars(some, measure), ls="none",
                ms=5, elinewidth=1, color=plotting.colour(number), marker=plotting.marker(number),
                label=" ".join(map(str, name)),
            )  # fmt: skip
        for number, (_, row) in enumerate(overview[overview["kind"] != "dictionary"].iterrows()):
            ax.axhline(row[measure], color="0.4", ls=plotting.line(number + 1), lw=1, label=row["features"])
        ax.set(xlabel="width (latents)", ylabel=words, title=title, xscale="log")
        _plain_ticks(ax, own)
    panels[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _natural(name: Sequence[str]) -> list[tuple[int, str]]:
    """Sorts numbers as numbers: k = 8 before k = 16."""
    return [(int(word), "") if word.isdigit() else (0, word) for part in name for word in str(part).split()]


@plotting.applied
def grid(measured: Sequence[Probed], names: Sequence[str]) -> Figure:
    """F1 by task and set of features, tasks sorted by the best dictionary's."""
    scores = np.stack([one.f1 for one in measured], axis=1)
    own = np.array([one.dictionary is not None for one in measured])
    order = np.argsort(-scores[:, own].max(axis=1), kind="stable")
    labels = plotting.short([label(one, measured) for one in measured])
    width, height = 3.4 + 0.3 * len(measured), 1.9 + 0.145 * len(names)
    figure, (ax,) = plotting.axes(1, width=width, height=height)
    image = ax.imshow(scores[order], aspect="auto", cmap="cividis", vmin=0, vmax=1)
    ax.set(xticks=range(len(measured)), yticks=range(len(names)), title="Who has a latent for what?")
    ax.set_xticklabels(labels, rotation=90, fontsize=8)
    ax.set_yticklabels([names[i] for i in order], fontsize=7)
    ax.grid(False)
    if not own.all():
        ax.axvline(own.sum() - 0.5, color="white", lw=2)
    figure.colorbar(image, ax=ax, label="F1 on held-out text", shrink=0.6, pad=0.02)
    return figure


def _bars(frame: pd.DataFrame, measure: str) -> np.ndarray:
    ends = np.stack([frame[measure] - frame[f"{measure} low"], frame[f"{measure} high"] - frame[measure]])
    bars: np.ndarray = np.nan_to_num(ends).clip(min=0)
    return bars


def _plain_ticks(ax: Axes, own: pd.DataFrame) -> None:
    widths = sorted(set(own["width"].astype(int)))
    ax.set_xticks(widths, labels=[str(width) for width in widths])
    ax.minorticks_off()
