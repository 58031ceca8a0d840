"""The directions of several dictionaries on one map: UMAP with cosine distance.

Braun et al. 2024, appendix on UMAP; they take Euclidean distance, which gives unit vectors the same neighbours. A map
shows what to look at; nothing is computed from it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from analyses.common import plotting
from analyses.common.chance import alive_directions, oriented
from analyses.common.max_activating import LatentContexts, with_contexts
from dictlab.dictionary import Dictionary
from dictlab.numerics import seeds
from dictlab.reports.report import Scatter

MAP_NEIGHBOURS = 15  # of UMAP
LATENTS_OF_A_REGION = 20  # that are on the map whatever the sample
NUMBERED_REGIONS = 12  # whose number stands on the map; more are unreadable

Latent = tuple[str, int]  # dictionary, number
Regions = Mapping[Latent, tuple[int, ...]]  # the numbers of the regions that a latent is in


class MapPoints(NamedTuple):
    """Directions on a map, `[n]` each.

    Attributes:
        dictionary: The name of each one's dictionary.
        latent: Its number there.
        xy: Its place.
        regions: The numbers of the regions that it is in.
    """

    dictionary: NDArray[np.str_]
    latent: Int[NDArray[np.int64], " n"]
    xy: Float[NDArray[np.float32], "n 2"]
    regions: list[tuple[int, ...]]


def embed(directions: Float[Tensor, "n d"], seed: int) -> Float[np.ndarray, "n 2"]:
    """A two-dimensional map of directions, by UMAP with cosine distance."""
    import umap  # compiles itself on import: seconds that nobody else should pay

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_jobs value")  # a seed means one job: that is what we want
        mapper = umap.UMAP(n_neighbors=min(MAP_NEIGHBOURS, len(directions) - 1), metric="cosine", random_state=seed)
        placed: np.ndarray = mapper.fit_transform(directions.numpy())
    return placed


def map_points(opened: Sequence[Dictionary], points: int, regions: Regions, seed: int) -> MapPoints:
    """Positions of a sample of alive directions, with the most central latents of each region among them.

    Args:
        opened: The dictionaries.
        points: How many at most.
        regions: The regions of each latent; a region's most central latents come first.
        seed: Of the sample and the map.
    """
    alive = [(d, *alive_directions(d)) for d in opened]
    directions = torch.cat([oriented(rows, d.signed[latents]) for d, rows, latents in alive])
    names = np.repeat([d.name for d in opened], [len(latents) for *_, latents in alive])
    latent = torch.cat([latents for *_, latents in alive]).numpy()
    keys = list(zip(names.tolist(), latent.tolist(), strict=True))
    central = _most_central(regions)
    first = np.array([key in central for key in keys])
    chosen = np.sort(np.argsort(seeds.numpy_generator(seed, "points of a map").random(len(keys)) - first)[:points])
    placed = embed(directions[torch.from_numpy(chosen)], seed)
    return MapPoints(names[chosen], latent[chosen], placed, [regions.get(keys[i], ()) for i in chosen])


def _most_central(regions: Regions) -> set[Latent]:
    """The first `LATENTS_OF_A_REGION` of each region."""
    counted: dict[int, int] = {}
    central = set()
    for latent, numbers in regions.items():
        for number in numbers:
            counted[number] = counted.get(number, 0) + 1
            if counted[number] <= LATENTS_OF_A_REGION:
                central.add(latent)
    return central


def map_table(points: MapPoints, contexts: LatentContexts | None) -> pd.DataFrame:
    """One row a point, with the contexts of its latent."""
    x, y = points.xy.T
    columns = {"dictionary": points.dictionary, "latent": points.latent, "x": x, "y": y}
    frame = pd.DataFrame(columns | {"region": [", ".join(map(str, numbers)) or None for numbers in points.regions]})
    return with_contexts(frame, list(map(str, points.dictionary)), points.latent.tolist(), contexts)


@plotting.applied
def map_plot(opened: Sequence[Dictionary], points: MapPoints, contexts: LatentContexts | None) -> Scatter:
    """The map, with a ring around each latent that is in a region."""
    figure, (ax,) = plotting.axes(width=7.5, height=6.0)
    for number, dictionary in enumerate(opened):
        x, y = points.xy[points.dictionary == dictionary.name].T
        look: dict[str, Any] = {"color": plotting.colour(number), "marker": plotting.marker(number)}
        ax.scatter(x, y, s=9, alpha=0.6, lw=0, label=dictionary.name, **look)
    in_region = np.array([bool(numbers) for numbers in points.regions], dtype=bool)
    if in_region.any():
        x, y = points.xy[in_region].T
        ax.scatter(x, y, s=22, facecolors="none", edgecolors="black", lw=0.5, label="in a region")
    for region in sorted({number for numbers in points.regions for number in numbers})[:NUMBERED_REGIONS]:
        members = points.xy[[region in numbers for numbers in points.regions]]
        away = np.hypot(*(members - np.median(members, axis=0)).T)
        x, y = members[away.argmin()]  # a latent of the region, however the map tears it apart
        around = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "black", "lw": 0.6, "alpha": 0.85}
        ax.text(x, y, str(region), fontsize=8, ha="center", va="center", bbox=around)
    ax.set(xlabel="UMAP 1 (no unit)", ylabel="UMAP 2 (no unit)", xticks=[], yticks=[])
    ax.set(title="Decoder directions of all dictionaries on one map")
    ax.legend(markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    total, frame = sum(int(d.alive.sum()) for d in opened), map_table(points, contexts)
    return Scatter(
        figure,
        f"UMAP (cosine, {MAP_NEIGHBOURS} neighbours) of {len(frame)} of {total} alive directions. Rings: latents in "
        "regions that one of two dictionaries fills, found among the cosines, not on the map; numbers: the "
        f"{NUMBERED_REGIONS} largest of them. Distances and sizes on the map are not to be trusted.",
        frame=frame,
        x="x",
        y="y",
        group="dictionary",
        labels=tuple(column for column in frame.columns if column not in ("x", "y", "dictionary")),
        marks="region",
        colours={d.name: plotting.colour(i) for i, d in enumerate(opened)},
    )
