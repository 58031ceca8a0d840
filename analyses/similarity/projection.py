"""Directions of several dictionaries on one map.

UMAP with cosine distance (Braun et al. 2024, appendix on UMAP; they take Euclidean distance, which gives unit vectors
the same neighbours). A map shows what to look at; nothing is computed from it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.common import plotting
from analyses.similarity.matching import alive_directions
from dictlab import seeds
from dictlab.dictionary import Dictionary
from dictlab.reports.report import Scatter

NEIGHBOURS = 15  # of UMAP
KEPT = 20  # latents of each region that are on the map whatever the sample
NAMED = 12  # regions whose number stands on the map; more are unreadable

Latent = tuple[str, int]  # dictionary, number


def embed(directions: Float[Tensor, "n d"], seed: int) -> Float[np.ndarray, "n 2"]:
    """A two-dimensional map of directions, by UMAP with cosine distance."""
    import umap  # compiles itself on import: seconds that nobody else should pay

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_jobs value")  # a seed means one job: that is what we want
        mapper = umap.UMAP(n_neighbors=min(NEIGHBOURS, len(directions) - 1), metric="cosine", random_state=seed)
        placed: np.ndarray = mapper.fit_transform(directions.numpy())
    return placed


def map_points(opened: Sequence[Dictionary], points: int, regions: Mapping[Latent, str], seed: int) -> pd.DataFrame:
    """Positions of a sample of alive directions, with the most central latents of each region among them.

    Args:
        opened: The dictionaries.
        points: How many at most.
        regions: The regions, by number, that a latent is in; a region's most central latents come first.
        seed: Of the sample and the map.
    """
    found = [alive_directions(d) for d in opened]
    frame = pd.DataFrame(
        {
            "dictionary": np.repeat([d.name for d in opened], [len(latents) for _, latents in found]),
            "latent": torch.cat([latents for _, latents in found]).numpy(),
        }
    )
    frame["region"] = [regions.get(key) for key in zip(frame["dictionary"], frame["latent"], strict=True)]
    sure = _first_of_each(regions)
    first = np.array([key in sure for key in zip(frame["dictionary"], frame["latent"], strict=True)])
    chosen = np.sort(np.argsort(seeds.numpy_generator(seed, "points of a map").random(len(frame)) - first)[:points])
    frame = frame.iloc[chosen].reset_index(drop=True)
    placed = embed(torch.cat([directions for directions, _ in found])[torch.from_numpy(chosen)], seed)
    frame.insert(2, "x", placed[:, 0])
    frame.insert(3, "y", placed[:, 1])
    return frame


def _first_of_each(regions: Mapping[Latent, str]) -> set[Latent]:
    seen: dict[str, int] = {}
    kept = set()
    for latent, names in regions.items():
        for name in names.split(", "):
            seen[name] = seen.get(name, 0) + 1
            if seen[name] <= KEPT:
                kept.add(latent)
    return kept


@plotting.applied
def map_plot(opened: Sequence[Dictionary], points: pd.DataFrame) -> Scatter:
    """The map, with a ring around each latent that is in a region."""
    figure, (ax,) = plotting.axes(width=7.5, height=6.0)
    for number, dictionary in enumerate(opened):
        part = points[points["dictionary"] == dictionary.name]
        ax.scatter(
            part["x"],
            part["y"],
            s=9,
            alpha=0.6,
            lw=0,
            color=plotting.colour(number),
            marker=plotting.marker(number),
            label=dictionary.name,
        )
    marked = points[points["region"].notna()]
    if len(marked):
        ax.scatter(marked["x"], marked["y"], s=22, facecolors="none", edgecolors="black", lw=0.5, label="in a region")
    for name in sorted({name for names in marked["region"] for name in names.split(", ")}, key=int)[:NAMED]:
        part = marked[[name in names.split(", ") for names in marked["region"]]]
        around = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "black", "lw": 0.6, "alpha": 0.85}
        away = np.hypot(part["x"] - part["x"].median(), part["y"] - part["y"].median())
        x, y = part.loc[away.idxmin(), ["x", "y"]]  # a latent of its own, however the map tears it apart
        ax.text(x, y, name, fontsize=8, ha="center", va="center", bbox=around)
    ax.set(
        xlabel="UMAP 1 (no unit)",
        ylabel="UMAP 2 (no unit)",
        title="Decoder directions of all dictionaries on one map",
        xticks=[],
        yticks=[],
    )
    ax.legend(markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    total = sum(int(d.alive.sum()) for d in opened)
    return Scatter(
        figure,
        f"UMAP (cosine, {NEIGHBOURS} neighbours) of {len(points)} of {total} alive directions. Rings: latents in "
        f"regions that one of two dictionaries fills, found among the cosines, not on the map; numbers: the {NAMED} "
        "largest of them. Distances and sizes on the map are not to be trusted.",
        frame=points,
        x="x",
        y="y",
        group="dictionary",
        labels=tuple(column for column in points.columns if column not in ("x", "y", "dictionary")),
        marks="region",
        colours={d.name: plotting.colour(i) for i, d in enumerate(opened)},
    )
