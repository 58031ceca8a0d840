"""One file out of the latents of several processes, a group at a time: the first process writes, the others send.

What the first process holds of another's latents is one group. Optimizers stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from dictlab.dictionary import Dictionary
from dictlab.formats.native import streamed
from dictlab.training.distributed.data_parallel import connected
from dictlab.training.distributed.latent_sharding import LatentShardedRanks

SENT = 1 << 24  # numbers of a matrix sent at once: 64 MiB


def write(own: Dictionary, width: int, path: Path, ranks: LatentShardedRanks) -> None:
    """Write the dictionary of which each process has some latents.

    Args:
        own: This process's latents.
        width: Latents of all.
        path: Where the first process writes.
        ranks: The processes, all of which call this; those of the first share of the tokens take part.

    Raises:
        DictlabError: Another process is gone, or some values are no numbers.
        OSError: The disk is full, or gone.
    """
    if ranks.part:
        return
    if ranks.is_rank_zero:
        streamed.save(_all(own, width, ranks), width, path)
        return
    for group in _groups(0, own.n_latents, own.d_in):
        for tensor in _parts(own, group):
            with connected():
                dist.send(tensor, dst=0)


def _all(own: Dictionary, width: int, ranks: LatentShardedRanks) -> Iterator[Dictionary]:
    """The latents of all processes in their order, as the first one gets them."""
    for group in _groups(0, own.n_latents, own.d_in):
        yield _made(_parts(own, group), own)
    for shard in range(1, ranks.shards):
        theirs = ranks.latent_slice(width, shard)
        for group in _groups(theirs.start, theirs.stop, own.d_in):
            parts = [t.new_empty(group.stop - group.start, *t.shape[1:]) for t in _parts(own, slice(0, 1))]
            for tensor in parts:
                with connected():
                    dist.recv(tensor, src=shard)  # the process of this shard in the first row of the mesh
            yield _made(parts, own)


def _groups(start: int, stop: int, d_in: int) -> Iterator[slice]:
    size = max(1, SENT // d_in)
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def _parts(own: Dictionary, group: slice) -> list[Tensor]:
    """All that some latents have of their own, on the CPU, a row for each: weights, then the activation function's."""
    function = own.activation.tensors()
    assert own.firing_rate is not None
    weights = [own.W_enc.T, own.b_enc, own.W_dec, own.firing_rate]
    rows = [t[group] for t in (*weights, *function.values())]
    return [t.detach().cpu().contiguous() for t in rows]


def _made(parts: list[Tensor], like: Dictionary) -> Dictionary:
    W_enc, b_enc, W_dec, firing_rate, *function = parts
    activation: Any = like.activation  # a value whose fields are its tensors
    activation = replace(activation, **dict(zip(activation.tensors(), function, strict=True)))
    b_pre, b_out = like.b_pre.detach().cpu(), like.b_out.detach().cpu()
    return replace(
        like,
        W_enc=W_enc.T,
        b_enc=b_enc,
        W_dec=W_dec,
        b_pre=b_pre,
        b_out=b_out,
        firing_rate=firing_rate,
        activation=activation,
    )
