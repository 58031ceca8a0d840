"""What a comparison of two or more dictionaries looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from torch import Tensor

from analyses.common import plotting
from analyses.common.seed_floor import SEEDS
from analyses.similarity.coactivation_tables import OFF, QUADRANTS
from analyses.similarity.latent_pairs import Pair
from dictlab.dictionary import Dictionary
from dictlab.reports.report import Plot, Scatter

LINES = 8  # pairs that one panel can show


def histogram(pairs: Sequence[Pair], overview: pd.DataFrame) -> Plot:
    """Max cosines, one line an ordered pair."""
    shown = [
        (of, to, nearest.cosine[:, 0])
        for pair in pairs[: LINES // 2]
        for of, to, nearest in ((pair.a, pair.b, pair.forward), (pair.b, pair.a, pair.backward))
    ]
    return _histogram(shown, overview, 2 * len(pairs))


@plotting.applied
def _histogram(shown: Sequence[tuple[Dictionary, Dictionary, Tensor]], overview: pd.DataFrame, total: int) -> Plot:
    figure, (ax,) = plotting.axes(width=7.0)
    edges, curves = plotting.bins([values for *_, values in shown]), len(shown) > 2
    for number, (of, to, values) in enumerate(shown):
        how: dict[str, Any] = {"color": plotting.colour(number), "ls": plotting.line(number), "lw": 1.6}
        how["label"] = f"{of.name} in {to.name} ({len(values)})"
        if curves:
            ax.ecdf(values.numpy(), complementary=True, **how)
        else:
            ax.hist(values.numpy(), bins=edges, density=True, histtype="step", **how)
    ax.axvline(overview["chance (shaped)"].mean(), color="#666666", ls=":", label="chance (shaped)")
    _floor_line(ax, overview.loc[overview["relation"] == SEEDS, "MMCS"])
    ax.set(xlabel="max cosine with a latent of the other", title="How much of each is in the other")
    ax.set(ylabel="share with this cosine or more" if curves else "density", xlim=(edges[0], 1.01))
    figure.legend(loc="outside lower center", ncols=2, fontsize=7)
    left = f" {len(shown)} of {total} ordered pairs are shown." if len(shown) < total else ""
    return Plot(
        figure,
        "Distribution of the max cosine of decoder directions; in brackets, alive latents. Grey dotted: mean of random "
        f"directions; grey dashed: mean between seeds, where two dictionaries differ in that alone.{left}",
    )


@plotting.applied
def matrix(opened: Sequence[Dictionary], overview: pd.DataFrame) -> Plot:
    """Mean max cosine of every ordered pair, as a matrix."""
    names = [d.name for d in opened]
    means = overview.pivot(index="from", columns="to", values="MMCS").reindex(index=names, columns=names)
    size = max(4.0, 0.75 * len(names) + 2.5)
    figure, (ax,) = plotting.axes(width=size + 1, height=size)
    image = ax.imshow(means, vmin=0, vmax=1, cmap="cividis")
    for (i, j), value in np.ndenumerate(means.to_numpy()):
        if i != j:
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    ax.set_yticks(range(len(names)), plotting.short(names))
    ax.set_xticks(range(len(names)), plotting.short(names), rotation=30, ha="right")
    ax.set(xlabel="found in", ylabel="latents of", title="Mean max cosine of every ordered pair")
    ax.grid(False)
    figure.colorbar(image, ax=ax, label="cosine", shrink=0.8)
    low, high = overview["chance (shaped)"].min(), overview["chance (shaped)"].max()
    return Plot(
        figure, f"Mean max cosine of the row's latents with the column's; chance (shaped): {low:.2f}–{high:.2f}."
    )


@plotting.applied
def threshold_curves(shares: pd.DataFrame) -> Plot:
    """For two dictionaries every way of being the same; for more, the aligned share of each pair."""
    figure, (ax,) = plotting.axes(width=7.0)
    pairs = list(shares.groupby(["from", "to"], sort=False))
    one = len(pairs) == 1
    measures = list(shares.columns[3:]) if one else ["aligned"]
    lines = [(n if one else f"{a}, {b}", part, n) for (a, b), part in pairs[:LINES] for n in measures]
    for number, (label, part, name) in enumerate(lines):
        ax.plot(
            part["threshold"],
            part[name],
            color=plotting.colour(number),
            marker=plotting.marker(number),
            ms=4,
            label=label,
        )
    ax.set(xlabel="cosine from which two latents are the same", ylim=(0, 1.02))
    ax.set(ylabel="share of latents" if one else "share aligned", title="How much is shared depends on the threshold")
    ax.legend(fontsize=7)
    left = f" {LINES} of {len(pairs)} pairs are shown." if len(pairs) > LINES else ""
    return Plot(
        figure,
        "Share of latents that have a match at or above each cosine. Aligned: decoders and encoders pick the same "
        f"partner, and both cosines reach it; of the smaller dictionary's latents.{left}",
    )


@plotting.applied
def strata_plot(strata: pd.DataFrame, rates: str) -> Plot:
    """MCC by decile of the firing rate, one line a pair."""
    figure, (ax,) = plotting.axes(width=7.0)
    pairs = list(strata.groupby(["from", "to"], sort=False))
    for number, ((a, b), part) in enumerate(pairs[:LINES]):
        middle = np.sqrt(part["rate from"].clip(lower=1e-7) * part["rate to"].clip(lower=1e-7))
        ax.errorbar(
            middle,
            part["MCC"],
            yerr=[part["MCC"] - part["low"], part["high"] - part["MCC"]],
            color=plotting.colour(number),
            marker=plotting.marker(number),
            ms=4,
            lw=1.2,
            label=f"{a}, {b}" + (" (seeds)" if part["relation"].iloc[0] == SEEDS else ""),
        )
    ax.axhline(strata["chance (shaped)"].mean(), color="#666666", ls=":", label="chance (shaped)")
    ax.set(xscale="log", xlabel="firing rate (share of tokens; deciles)", ylabel="mean cosine of pairs (signed)")
    ax.set(title="Do latents that fire often match better?")
    ax.legend(fontsize=7)
    return Plot(
        figure,
        "One-to-one pairs by decile of the firing rate of the smaller dictionary's latent "
        f"({rates}); 95 % bootstrap intervals over latents. Dotted: random directions.",
    )


@plotting.applied
def quadrant_plot(points: pd.DataFrame, cosine: float, correlation: float, n: str) -> Scatter:
    """Decoder cosine against activation correlation, one point a pair of latents."""
    figure, (ax,) = plotting.axes(width=6.5, height=5.0)
    colours = {kind: plotting.colour(number) for number, kind in enumerate(QUADRANTS.values())}
    for number, (kind, colour) in enumerate(colours.items()):
        part = points[points["quadrant"] == kind]
        ax.scatter(
            part["cosine"],
            part["correlation"],
            s=12 if kind in OFF else 6,
            alpha=0.7 if kind in OFF else 0.35,
            lw=0,
            color=colour,
            marker=plotting.marker(number),
            label=f"{kind} ({len(part)})",
        )
    ax.axvline(cosine, color="#666666", ls="--", lw=1)
    ax.axhline(correlation, color="#666666", ls="--", lw=1)
    a, b = (points[c].iloc[0] if len(points) else "" for c in ("from", "to"))
    ax.set(xlabel="cosine of decoder directions", ylabel="correlation of activations over tokens")
    ax.set(title="Same direction and same trigger are two questions")
    ax.legend(fontsize=7, loc="upper left")
    return Scatter(
        figure,
        f"Latents of {a} and {b}, each with its nearest by direction and by correlation: {len(points)} pairs; {n}. "
        "Dashed: the thresholds.",
        frame=points,
        x="cosine",
        y="correlation",
        group="quadrant",
        labels=("latent", "partner", "nearest by", "Jaccard"),
        colours=colours,
    )


def quadrant_plots(points: Sequence[pd.DataFrame], cosine: float, correlation: float, n: str) -> Mapping[str, Scatter]:
    """One a pair of dictionaries, the first of them."""
    return {
        "quadrants" if not number else f"quadrants_{number + 1}": quadrant_plot(frame, cosine, correlation, n)
        for number, frame in enumerate(points[:LINES])
    }


def _floor_line(ax: Axes, between_seeds: pd.Series) -> None:
    if len(between_seeds):
        ax.axvline(between_seeds.mean(), color="#666666", ls="--", label="mean between seeds")
