"""Frankenstein's rule: go through several dictionaries, and keep a latent if no kept one points where it does.

    keep j    if    max over all kept i of cos(d_i, d_j) <= threshold

from the dictionary with the fewest alive latents, of which all are kept, to that with the most (Bussmann, Leask et al.
2024). What they did in detail is not published; this order is the likeliest, and both cosines are parameters here.
Near-duplicates inside one dictionary would count twice, so of latents of one donor that point the same way only the one
that fires most is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from analyses.common.neighbours import absolute_where_signed, nearest

BLOCK = 1024  # latents that are compared with those kept of their own donor at once


@dataclass(frozen=True, eq=False)
class Appended:
    """What the rule keeps.

    Attributes:
        chosen: Of all latents of all donors, side by side as given.
        order: The donors in the order in which they were gone through.
        near: Latents of each donor, in that order, too near to one kept before.
        twice: Latents of each donor too near to another one of the same donor.
    """

    chosen: Bool[np.ndarray, " n_pool"]
    order: tuple[int, ...]
    near: tuple[int, ...]
    twice: tuple[int, ...]


def appended(
    directions: Sequence[Float[Tensor, "_ d_in"]],
    rates: Sequence[Float[Tensor, " _"]],
    *,
    signed: Sequence[Bool[Tensor, " _"]] | None = None,
    threshold: float = 0.4,
    duplicates: float = 0.9,
) -> Appended:
    """Which latents of several dictionaries the rule keeps. Those that never fire, or have no direction, are not.

    Args:
        directions: Decoder directions of each dictionary.
        rates: Their firing rates.
        signed: Latents that emit values of either sign: their cosines are absolute. None by default.
        threshold: The largest cosine with a latent kept from another dictionary.
        duplicates: The largest cosine with a kept latent of the same dictionary; the smallest one is kept as it is.
    """
    widths = [len(rows) for rows in directions]
    alive = [(rate > 0).cpu() & (rows != 0).any(dim=1).cpu() for rate, rows in zip(rates, directions, strict=True)]
    sequence = tuple(sorted(range(len(widths)), key=lambda donor: int(alive[donor].sum())))
    kept, near, twice = [torch.zeros(n, dtype=torch.bool) for n in widths], [], []
    so_far = directions[0].new_zeros(0, directions[0].shape[1])
    signed_of_donor = (
        [torch.zeros(n, dtype=torch.bool) for n in widths] if signed is None else [s.cpu() for s in signed]
    )
    signed_so_far = torch.zeros(0, dtype=torch.bool)
    for place, donor in enumerate(sequence):
        latents = alive[donor].nonzero().squeeze(1)
        whole = place == 0
        new = (
            latents
            if whole
            else _far(directions[donor], latents, so_far, threshold, signed_of_donor[donor], signed_so_far)
        )
        near.append(len(latents) - len(new))
        by_rate = new[rates[donor][new].argsort(descending=True, stable=True)]
        alone = new if whole else _unlike(directions[donor], by_rate, duplicates, signed_of_donor[donor])
        twice.append(len(new) - len(alone))
        kept[donor][alone] = True
        so_far = torch.cat([so_far, directions[donor][kept[donor]]])
        signed_so_far = torch.cat([signed_so_far, signed_of_donor[donor][kept[donor]]])
    return Appended(torch.cat(kept).numpy(), sequence, tuple(near), tuple(twice))


def _far(
    rows: Tensor, latents: Int[Tensor, " some"], kept: Tensor, threshold: float, signed: Tensor, signed_kept: Tensor
) -> Int[Tensor, " far"]:
    """The latents that point where none of the kept ones does; streamed in blocks."""
    if len(latents) == 0 or len(kept) == 0:
        return latents
    near = nearest(rows[latents], kept, signed_a=signed[latents], signed_b=signed_kept)
    return latents[near.cosine[:, 0].cpu() <= threshold]


def _unlike(
    rows: Tensor, latents: Int[Tensor, " some"], limit: float, signed: Bool[Tensor, " n"]
) -> Int[Tensor, " unlike"]:
    """Of latents, the best first, those that are not too near to a better one that stays."""
    unit, stay = normalize(rows[latents].float(), dim=1), torch.zeros(len(latents), dtype=torch.bool)
    for first in range(0, len(latents), BLOCK):
        block = unit[first : first + BLOCK]
        before = unit[:first][stay[:first]]
        of, of_before = signed[latents[first : first + BLOCK]], signed[latents[:first]][stay[:first]]
        free = torch.ones(len(block), dtype=torch.bool)
        if len(before):
            free = (absolute_where_signed(block @ before.T, of, of_before) <= limit).all(dim=1)
        alike = (absolute_where_signed(block @ block.T, of, of) > limit).cpu()
        for i in free.cpu().nonzero().squeeze(1).tolist():
            stay[first + i] = not bool((alike[i, :i] & stay[first : first + i]).any())
    return latents[stay]
