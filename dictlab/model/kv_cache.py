"""Keys and values that the tokens before a token leave in each attention, so that they are computed once.

Many versions of one token share them: 500 random points at one token cost 500 tokens, not 500 sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class KVCache(NamedTuple):
    """Keys and values of earlier tokens, block by block.

    Attributes:
        layers: `(keys, values)` of each block, each `[batch, heads, tokens, d_head]`. Blocks that did not run have
            empty ones of the right length, for models read the length of the cache from the first block.
        batch: Sequences.
    """

    layers: tuple[tuple[Float[Tensor, "batch heads tokens d_head"], Float[Tensor, "batch heads tokens d_head"]], ...]
    batch: int

    @classmethod
    def from_forward(cls, forward: Callable[[Any], object], n_blocks: int) -> KVCache:
        """The cache that a forward leaves behind.

        Args:
            forward: Runs the model on the earlier tokens with the `transformers` cache that it is given.
            n_blocks: Blocks of the model.
        """
        from transformers import DynamicCache

        cache = DynamicCache()
        with torch.no_grad():
            forward(cache)
        filled = {i: (layer.keys, layer.values) for i, layer in enumerate(cache.layers) if layer.get_seq_length()}
        if not filled:  # attention is in none of the blocks that ran
            return cls((), 0)
        keys = next(iter(filled.values()))[0]
        empty = keys.new_zeros(len(keys), 1, keys.shape[2], 1)
        return cls(tuple(filled.get(i, (empty, empty)) for i in range(n_blocks)), len(keys))

    def to_transformers(self, batch: int) -> Any:
        """A `DynamicCache` for `batch` sequences: this cache repeated as often as that takes, one after the other."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for index, (keys, values) in enumerate(self.layers):
            cache.update(keys, values, index)
            layer = cache.layers[index]
            layer.keys, layer.values = (_repeated(part, batch // self.batch) for part in (keys, values))
        return cache


def _repeated(part: Tensor, times: int) -> Tensor:
    """The sequences `times` times, one block after the other; a single sequence is not copied."""
    return part[None].expand(times, *part.shape).flatten(0, 1)
