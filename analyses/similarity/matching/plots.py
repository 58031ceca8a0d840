"""Plots of a comparison of two or more dictionaries by the directions of their latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from analyses.common import plotting
from analyses.common.seed_floor import SEEDS, mean_known
from analyses.similarity.matching.coactivation_report import OFF, QUADRANTS, LatentPoints, point_table
from analyses.similarity.matching.direction_similarities import THRESHOLDS, OrderedPair, Stratum, ThresholdShares
from analyses.similarity.matching.latent_pairs import Pair
from dictlab.dictionary import Dictionary
from dictlab.reports.report import Plot, Scatter

LINES = 8  # pairs that one panel can show


def histogram(pairs: Sequence[Pair], both_ways: Sequence[OrderedPair]) -> Plot:
    """Max cosines, one line an ordered pair."""
    shown = [
        (of, to, nearest.cosine[:, 0])
        for pair in pairs[: LINES // 2]
        for of, to, nearest in ((pair.a, pair.b, pair.forward), (pair.b, pair.a, pair.backward))
    ]
    return _histogram(shown, both_ways, 2 * len(pairs))


@plotting.applied
def _histogram(
    shown: Sequence[tuple[Dictionary, Dictionary, Tensor]], both_ways: Sequence[OrderedPair], total: int
) -> Plot:
    figure, (ax,) = plotting.axes(width=7.0)
    edges, curves = plotting.bins([values for *_, values in shown]), len(shown) > 2
    for number, (of, to, values) in enumerate(shown):
        how: dict[str, Any] = {"color": plotting.colour(number), "ls": plotting.line(number), "lw": 1.6}
        how["label"] = f"{of.name} in {to.name} ({len(values)})"
        if curves:
            ax.ecdf(values.numpy(), complementary=True, **how)
        else:
            ax.hist(values.numpy(), bins=edges, density=True, histtype="step", **how)
    ax.axvline(mean_known([one.mmcs.shaped for one in both_ways]), color="#666666", ls=":", label="chance (shaped)")
    _floor_line(ax, [one.mmcs.value for one in both_ways if one.mmcs.relation == SEEDS])
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
def matrix(opened: Sequence[Dictionary], both_ways: Sequence[OrderedPair]) -> Plot:
    """Mean max cosine of every ordered pair, as a matrix."""
    names = [d.name for d in opened]
    means = np.full((len(names), len(names)), np.nan)
    for one in both_ways:
        means[names.index(one.mmcs.of), names.index(one.mmcs.to)] = one.mmcs.value
    size = max(4.0, 0.75 * len(names) + 2.5)
    figure, (ax,) = plotting.axes(width=size + 1, height=size)
    image = ax.imshow(means, vmin=0, vmax=1, cmap="cividis")
    for (i, j), value in np.ndenumerate(means):
        if i != j:
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    ax.set_yticks(range(len(names)), plotting.short(names))
    ax.set_xticks(range(len(names)), plotting.short(names), rotation=30, ha="right")
    ax.set(xlabel="found in", ylabel="latents of", title="Mean max cosine of every ordered pair")
    ax.grid(False)
    figure.colorbar(image, ax=ax, label="cosine", shrink=0.8)
    levels = [one.mmcs.shaped for one in both_ways]
    low, high = min(levels), max(levels)
    return Plot(
        figure, f"Mean max cosine of the row's latents with the column's; chance (shaped): {low:.2f}–{high:.2f}."
    )


@plotting.applied
def threshold_curves(shares: Sequence[ThresholdShares]) -> Plot:
    """For two dictionaries every way of being the same; for more, the aligned share of each pair."""
    figure, (ax,) = plotting.axes(width=7.0)
    one = len(shares) == 1
    measures = list(shares[0].by_measure) if one else ["aligned"]
    lines = [(n if one else f"{s.of}, {s.to}", s.by_measure[n]) for s in shares[:LINES] for n in measures]
    for number, (label, values) in enumerate(lines):
        look: dict[str, Any] = {"color": plotting.colour(number), "marker": plotting.marker(number)}
        ax.plot(THRESHOLDS, values, ms=4, label=label, **look)
    ax.set(xlabel="cosine from which two latents are the same", ylim=(0, 1.02))
    ax.set(ylabel="share of latents" if one else "share aligned", title="How much is shared depends on the threshold")
    ax.legend(fontsize=7)
    left = f" {LINES} of {len(shares)} pairs are shown." if len(shares) > LINES else ""
    return Plot(
        figure,
        "Share of latents that have a match at or above each cosine. Aligned: decoders and encoders pick the same "
        f"partner, and both cosines reach it; of the smaller dictionary's latents.{left}",
    )


@plotting.applied
def strata_plot(by_pair: Sequence[Sequence[Stratum]], rates: str) -> Plot:
    """MCC by decile of the firing rate, one line a pair."""
    figure, (ax,) = plotting.axes(width=7.0)
    for number, deciles in enumerate(by_pair[:LINES]):
        mcc = deciles[0].mcc
        spans = np.array([(one.lowest_rate, one.highest_rate) for one in deciles]).clip(min=1e-7)
        value, low, high = np.array([(one.mcc.value, one.mcc.low, one.mcc.high) for one in deciles]).T
        ax.errorbar(
            np.sqrt(spans.prod(axis=1)),
            value,
            yerr=plotting.error_lengths(value, low, high),
            color=plotting.colour(number),
            marker=plotting.marker(number),
            ms=4,
            lw=1.2,
            label=f"{mcc.of}, {mcc.to}" + (" (seeds)" if mcc.relation == SEEDS else ""),
        )
    level = mean_known([one.mcc.shaped for deciles in by_pair for one in deciles])
    ax.axhline(level, color="#666666", ls=":", label="chance (shaped)")
    ax.set(xscale="log", xlabel="firing rate (share of tokens; deciles)", ylabel="mean cosine of pairs (signed)")
    ax.set(title="Do latents that fire often match better?")
    ax.legend(fontsize=7)
    return Plot(
        figure,
        "One-to-one pairs by decile of the firing rate of the smaller dictionary's latent "
        f"({rates}); 95 % bootstrap intervals over latents. Dotted: random directions.",
    )


@plotting.applied
def quadrant_plot(points: LatentPoints, cosine: float, correlation: float, n: str) -> Scatter:
    """Decoder cosine against activation correlation, one point a pair of latents."""
    figure, (ax,) = plotting.axes(width=6.5, height=5.0)
    colours = {kind: plotting.colour(number) for number, kind in enumerate(QUADRANTS.values())}
    for number, (kind, colour) in enumerate(colours.items()):
        x, y = next(key for key, value in QUADRANTS.items() if value == kind)
        part = points.at((points.same_direction == x) & (points.same_trigger == y))
        ax.scatter(
            part.cosine,
            part.correlation,
            s=12 if kind in OFF else 6,
            alpha=0.7 if kind in OFF else 0.35,
            lw=0,
            color=colour,
            marker=plotting.marker(number),
            label=f"{kind} ({len(part.latent)})",
        )
    ax.axvline(cosine, color="#666666", ls="--", lw=1)
    ax.axhline(correlation, color="#666666", ls="--", lw=1)
    ax.set(xlabel="cosine of decoder directions", ylabel="correlation of activations over tokens")
    ax.set(title="Same direction and same trigger are two questions")
    ax.legend(fontsize=7, loc="upper left")
    return Scatter(
        figure,
        f"Latents of {points.of} and {points.to}, each with its nearest by direction and by correlation: "
        f"{len(points.latent)} pairs; {n}. "
        "Dashed: the thresholds.",
        frame=point_table(points),
        x="cosine",
        y="correlation",
        group="quadrant",
        labels=("latent", "partner", "nearest by", "Jaccard"),
        colours=colours,
    )


def quadrant_plots(points: Sequence[LatentPoints], cosine: float, correlation: float, n: str) -> Mapping[str, Scatter]:
    """One a pair of dictionaries, the first of them."""
    return {
        "quadrants" if not number else f"quadrants_{number + 1}": quadrant_plot(frame, cosine, correlation, n)
        for number, frame in enumerate(points[:LINES])
    }


def _floor_line(ax: Axes, between_seeds: Sequence[float]) -> None:
    if len(between_seeds):
        ax.axvline(mean_known(between_seeds), color="#666666", ls="--", label="mean between seeds")
