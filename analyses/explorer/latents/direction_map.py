"""The decoder directions of all dictionaries in two dimensions, for the eye: neighbours on the map are near in cosine.

UMAP with cosine distance places up to `LANDMARKS` alive latents; others stand between the landmarks nearest to them.
Without UMAP the map is the two main axes of the unit directions, which shows less.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from analyses.common.chance import oriented
from analyses.common.neighbours import nearest
from analyses.similarity.geometry.direction_umap import embed
from dictlab.dictionary import Dictionary
from dictlab.numerics import seeds
from dictlab.runtime.progress import Phase

LANDMARKS = 4000
BETWEEN = 3  # landmarks that another latent stands between


class DirectionMap(NamedTuple):
    """Where directions lie.

    Attributes:
        kind: "UMAP", or "main axes".
        landmarks: Latents that UMAP placed.
        positions: Of each latent of each dictionary; NaN of dead ones.
    """

    kind: str
    landmarks: int
    positions: list[Float[NDArray[np.float32], "n_latents 2"]]


def direction_map(
    dictionaries: Sequence[Dictionary], alive: Sequence[Bool[NDArray[np.bool_], " n_latents"]], umap: bool, seed: int
) -> DirectionMap:
    """The map of all alive latents.

    Args:
        dictionaries: Of one site.
        alive: Latents of each that are active on the sample.
        umap: Use UMAP, where it is installed.
        seed: Of the landmarks and of UMAP.
    """
    parts = [
        oriented(d.directions[torch.from_numpy(mask)].float().cpu(), d.signed.cpu()[torch.from_numpy(mask)])
        for d, mask in zip(dictionaries, alive, strict=True)
    ]
    directions = torch.cat(parts)
    if umap and find_spec("umap") and len(directions) > 2 * BETWEEN:
        with Phase("Map of directions", len(directions), unit="latents") as phase:
            placed, landmarks, kind = *_by_umap(directions, seed), "UMAP"
            phase.advance(len(directions))
    else:
        placed, landmarks, kind = _main_axes(directions), 0, "main axes"
    positions, start = [], 0
    for mask in alive:
        own = np.full((len(mask), 2), np.nan, dtype=np.float32)
        own[mask] = placed[start : start + int(mask.sum())]
        start += int(mask.sum())
        positions.append(own)
    return DirectionMap(kind, landmarks, positions)


def _by_umap(directions: Float[Tensor, "n d"], seed: int) -> tuple[NDArray[np.float32], int]:
    """Positions, and how many of them are landmarks."""
    order = torch.randperm(len(directions), generator=seeds.generator(seed, "landmarks of the map"))
    chosen = order[:LANDMARKS].sort().values
    placed = np.asarray(embed(directions[chosen], seed), dtype=np.float32)
    if len(chosen) == len(directions):
        return placed, len(chosen)
    near = nearest(directions, directions[chosen], top=BETWEEN)
    weight = near.cosine.clamp_min(1e-6).pow(8)  # the nearest one counts most
    shares = (weight / weight.sum(dim=1, keepdim=True)).numpy()
    between = np.asarray((placed[near.rows.numpy()] * shares[:, :, None]).sum(axis=1), dtype=np.float32)
    between[chosen.numpy()] = placed
    return between, len(chosen)


def _main_axes(directions: Float[Tensor, "n d"]) -> NDArray[np.float32]:
    unit = normalize(directions, dim=1)
    centred = unit - unit.mean(dim=0, keepdim=True)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    return np.asarray((centred @ vectors[:, -2:].flip(1)).numpy(), dtype=np.float32)
