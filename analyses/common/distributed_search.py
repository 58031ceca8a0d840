"""The work of one search shared out over the processes that `torchrun` started.

Each rank takes a share of the rows of a, and all of b. Its rows are finished then; of the best for the rows of b, those
of all ranks are brought together. Every rank ends with the whole answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor


@contextmanager
def ranks() -> Iterator[None]:
    """A process group for as long as it is needed, if `torchrun` started this process and there is none yet."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def count() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rows_of_rank(n: int, of: Int[Tensor, " some"] | None) -> tuple[Int[Tensor, " own"], int]:
    """This rank's part of n rows (or of those listed), and the number of its first."""
    each = -(-n // count())
    first = min(n, each * dist.get_rank())
    rows = torch.arange(n) if of is None else of
    return rows[first : first + each], first


def all_gather_padded(own: Tensor, lines: int, fill: float) -> list[Tensor]:
    """A tensor of each rank, on the CPU; of at most so many lines, padded with `fill`."""
    padded = torch.full((lines, *own.shape[1:]), fill, dtype=own.dtype)
    padded[: len(own)] = own.cpu()
    found = [torch.empty_like(padded) for _ in range(count())]
    dist.all_gather(found, padded)
    return found
