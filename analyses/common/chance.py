"""What similarities stand beside: the level of chance, and which latents take part at all."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from analyses.common.neighbours import nearest
from dictlab import seeds
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError

NULL_ROWS = 512  # random directions that a chance level is the mean of
NULL_BLOCK = 4096  # rows that are read at once for their second moments


def chance(b: Float[Tensor, "m d"], *, shaped: bool, seed: int = 0, rows: int = NULL_ROWS) -> float:
    """Mean max cosine of random directions with the rows of b: what similarity is worth nothing.

    Args:
        b: The candidates.
        shaped: Draw directions with the second moments of b's own rows, instead of uniformly on the sphere. Trained
            directions crowd into the directions of large variance, so this is the stricter level.
        seed: Of the draw.
        rows: Directions drawn.
    """
    return float(nearest(random_directions(b, rows, shaped=shaped, seed=seed), b).cosine.mean())


def random_directions(
    b: Float[Tensor, "m d"], rows: int, *, shaped: bool, seed: int, of_b: Int[Tensor, " some_b"] | None = None
) -> Float[Tensor, "rows d"]:
    """Normal directions, isotropic or with the second moments of (some of) b's unit rows, which are read in blocks."""
    draw = torch.randn(rows, b.shape[1], generator=seeds.generator(seed, "chance level")).to(b.device)
    if shaped:
        latents = torch.arange(len(b)) if of_b is None else of_b
        moments = torch.zeros(b.shape[1], b.shape[1], device=b.device)
        for some in latents.split(NULL_BLOCK):
            unit = normalize(b[some.to(b.device)].float(), dim=1)
            moments += unit.T @ unit / len(latents)
        values, vectors = torch.linalg.eigh(moments)
        draw = draw * values.clamp_min(0).sqrt() @ vectors.T
    return draw


def alive_latents(dictionary: Dictionary) -> Int[Tensor, " alive"]:
    """The latents that fire.

    Raises:
        DictlabError: There are fewer than two.
    """
    latents = dictionary.alive.nonzero().squeeze(1)
    if len(latents) < 2:
        raise DictlabError(f"{dictionary.name}: {len(latents)} alive latents; a comparison needs two or more.")
    return latents


def alive_directions(dictionary: Dictionary) -> tuple[Float[Tensor, "alive d_in"], Int[Tensor, " alive"]]:
    """Unit decoder directions of the latents that fire, and which latents they are.

    Raises:
        DictlabError: There are fewer than two.
    """
    latents = alive_latents(dictionary)
    return dictionary.directions[latents], latents
