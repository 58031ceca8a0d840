"""The k largest of each row or of all, and where a condition holds, in fewer comparisons than torch's own.

The k largest of each row: the columns of a row are cut into groups. The k largest entries lie in the k groups whose
largest entries are the k largest (any other group's entries are no larger than k others), so only these are looked
into:

    n comparisons of a running maximum, then the k largest of n / 16 and of 16 k entries

The m largest of all: those above a bound that a sample says is a little too low, and the m largest of these. Too few of
them above the bound, and all are compared after all.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SAMPLE = 64  # one entry in so many is looked at for the bound
GROUP = 16  # columns a group
WIDE = 8192  # columns from which on the detour pays


def largest(z: Float[Tensor, "rows n"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """Values and columns of the k largest entries of each row, in no particular order. Among equals, any.

    Args:
        z: Rows.
        k: At most n.
    """
    n = z.shape[1]
    if z.device.type != "cpu" or n < WIDE or n % GROUP or 2 * GROUP * k > n:
        values, columns = z.topk(k, dim=1, sorted=False)
        return values, columns
    stride = n // GROUP  # a group is every so many columns: then its maximum runs over whole rows of memory
    groups = z.unflatten(1, (GROUP, stride)).amax(dim=1).topk(k, dim=1, sorted=False).indices
    columns = (groups[:, :, None] + torch.arange(0, n, stride)).flatten(1)
    values, chosen = z.gather(1, columns).topk(k, dim=1, sorted=False)
    return values, columns.gather(1, chosen)


def largest_of_all(z: Float[Tensor, "rows n"], count: int) -> Int[Tensor, " count"]:
    """Where the `count` largest entries stand in `z.flatten()`, in no particular order. Among equals, any.

    Args:
        z: Any matrix.
        count: At most as many as it has entries.
    """
    flat = z.flatten()
    expected = count / SAMPLE
    rank = math.ceil(expected + 5 * math.sqrt(expected)) + 1
    if z.device.type != "cpu" or rank > len(flat) // SAMPLE // 2:
        return flat.topk(count, sorted=False).indices
    sample = flat[: len(flat) // SAMPLE * SAMPLE].view(-1, SAMPLE)[:, 0]
    above = positions(flat > sample.topk(rank, sorted=False).values.min())
    if len(above) < count:
        return flat.topk(count, sorted=False).indices
    return above[flat[above].topk(count, sorted=False).indices]


def positions(mask: Bool[Tensor, " n"]) -> Int[Tensor, " found"]:
    """Where a mask is true, in order. NumPy skips runs of false, of which masks of sparse codes consist."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().squeeze(1)
