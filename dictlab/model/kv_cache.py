"""What do the tokens before a token leave to it, so that they need not be computed again?

Keys and values of attention, block by block. Many versions of one token share them: 500 random points at one token
cost 500 tokens, not 500 sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Past(NamedTuple):
    """Keys and values of some tokens, by block.

    Attributes:
        layers: `(keys, values)` of each block. Blocks that were passed over have empty ones of the right length, for
            models ask the first block how long the past is.
        batch: Sequences.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    batch: int

    @classmethod
    def of(cls, forward: Callable[[Any], object], n_blocks: int) -> Past:
        """The past that a forward leaves behind, given a cache to fill."""
        from transformers import DynamicCache

        cache = DynamicCache()
        with torch.no_grad():
            forward(cache)
        filled = {i: (layer.keys, layer.values) for i, layer in enumerate(cache.layers) if layer.get_seq_length()}
        if not filled:  # attention is in none of the blocks that ran
            return cls((), 0)
        some = next(iter(filled.values()))[0]
        empty = some.new_zeros(len(some), 1, some.shape[2], 1)
        return cls(tuple(filled.get(i, (empty, empty)) for i in range(n_blocks)), len(some))

    def cache(self, batch: int) -> Any:
        """A cache as models take it, for `batch` sequences: as many versions of this past as that makes."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for index, (keys, values) in enumerate(self.layers):
            cache.update(keys, values, index)
            layer = cache.layers[index]
            layer.keys, layer.values = (_versions(part, batch // self.batch) for part in (keys, values))
        return cache


def _versions(part: Tensor, times: int) -> Tensor:
    """So many versions of the same sequences, one after the other; of a single one nothing is copied."""
    return part[None].expand(times, *part.shape).flatten(0, 1)
