"""What the report of a path says of matched latents: components by kind, and from which cosine all hang together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analyses.common import plotting
from analyses.composition.path.latent_graph import (
    KINDS,
    PERCOLATES,
    PercolationPoint,
    count_components,
    percolates,
)
from analyses.composition.path.path_steps import LatentMatching
from dictlab.reports.report import Plot


def component_table(matchings: Sequence[LatentMatching]) -> pd.DataFrame:
    """One row a pair and kind of component."""
    columns = ["pair", "kind", "components", "latents of SMALL", "latents of LARGE", "largest (latents)"]
    rows = [(matching.pair, *count) for matching in matchings for count in count_components(matching.components)]
    return pd.DataFrame(rows, columns=columns)


def percolation_table(curves: Mapping[str, Sequence[PercolationPoint]]) -> pd.DataFrame:
    """One row a pair and threshold.

    Args:
        curves: Of `percolation`, by the name of the pair.
    """
    rows = [
        {"pair": pair, "threshold": point.threshold, "largest": point.largest, "share of latents": point.share}
        | point.counts
        for pair, points in curves.items()
        for point in points
    ]
    return pd.DataFrame(rows)


def percolation_warnings(matchings: Sequence[LatentMatching]) -> tuple[str, ...]:
    """What is said where one component is a giant."""
    return tuple(
        f"At a cosine of {matching.graph.threshold:g} one component holds {matching.components.largest} latents of "
        f"{matching.small} and {matching.large}: swapping it is no step but a jump. A higher threshold takes it apart."
        for matching in matchings
        if percolates(matching.components)
    )


@plotting.applied
def percolation_plot(curves: Mapping[str, Sequence[PercolationPoint]], threshold: float) -> Plot:
    """The size of the largest component, and the kinds of components, over thresholds.

    Args:
        curves: Of `percolation`, by the pair that it is of.
        threshold: That was used.
    """
    figure, (left, right) = plotting.axes(2, width=5.4, height=3.8)
    for number, (name, curve) in enumerate(curves.items()):
        line: dict[str, Any] = {"color": plotting.colour(number), "marker": plotting.marker(number), "ms": 4}
        at, shares = [point.threshold for point in curve], [point.share for point in curve]
        left.plot(at, shares, label=plotting.short([name], 36)[0], **line)
    first = next(iter(curves.values()))
    for number, kind in enumerate(KINDS):
        drawn: dict[str, Any] = {
            "color": plotting.colour(number),
            "ls": plotting.line(number),
            "marker": plotting.marker(number),
            "ms": 4,
        }
        counts = [point.counts[kind] for point in first]
        right.plot([point.threshold for point in first], counts, label=kind, **drawn)
    left.axhline(PERCOLATES, color="#666666", ls=":", lw=1, label=f"one giant component, {PERCOLATES:g}")
    for ax in (left, right):
        ax.axvline(threshold, color="#666666", ls="--", lw=1)
        ax.set_xlabel("cosine from which two latents are joined")
        ax.legend(loc="best")
    left.set(ylabel="share of alive latents in the largest component", ylim=(0, 1.02))
    left.set_title("At which cosine does everything hang together?")
    right.set(ylabel="components", yscale="symlog", ylim=(0, None))
    right.set_title("What kinds of components are there?")
    return Plot(
        figure,
        f"Components of the graph of decoder cosines over thresholds; right: {next(iter(curves))}. Dashed: "
        f"{threshold:g}, as used.",
    )
