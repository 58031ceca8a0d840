"""Which latents are active, where several processes have to tell each other before one can say?

    TopK over shards     each process finds its own k largest z of a token (no other can be among the k largest of all),
                         sends their values, and keeps those of its own that are among the k largest of all
    BatchTopK            each process sends its k n largest z of n tokens of the whole batch; at least as large as the
                         k n-th largest of all is active

The first is exact, and takes k values of a token from each shard. (The code of Gao et al. 2024 takes a few times k from
all of them together, and loses what does not fit.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dictlab.dictionary.activation_functions import BatchTopK, at_entries
from dictlab.dictionary.codes import Codes, offsets_of
from dictlab.dictionary.top_k import largest_of_all

Gather = Callable[[Tensor], Tensor]  # tensors of one shape, of all processes, one after the other
GATHERED = 1 << 22  # candidates of all processes that are looked at together: 16 MiB in float32


@dataclass(frozen=True)
class WholeBatchTopK(BatchTopK):
    """The k n largest pre-activations of the n tokens of all processes. Of equals at the bound, all.

    Attributes:
        width: Latents of the largest shard.
        parts: How many different shares of the batch there are.
        processes: How many processes.
        gather: From the values of one process to those of all.
    """

    width: int
    parts: int
    processes: int
    gather: Gather

    def __call__(self, z: Float[Tensor, "tokens own"]) -> Codes:
        wanted = self.k * len(z) * self.parts
        sent = min(wanted, len(z) * self.width)  # one process may have them all
        own = largest_of_all(z, min(sent, z.numel())).sort().values
        values = z.flatten()[own]
        mine = values.new_full((sent,), -torch.inf)  # a shard may have fewer latents
        mine[: len(own)] = values
        bound = self.gather(mine).topk(min(wanted, sent * self.processes)).values[-1]
        return at_entries(own[(values >= bound) & (values > 0)], z)


def among_all(codes: Codes, k: int, shard: int, shards: int, gather: Gather) -> Codes:
    """Of each token's candidates, those that are positive and among the k largest of all processes.

    Args:
        codes: The same number of candidates for each token: the k largest, or all latents where there are fewer.
        k: How many of a token are active at most. Of equals at the bound the first are kept, in the order of shards.
        shard: The place of this process among those that have the same tokens.
        shards: How many these are.
        gather: From the candidates of one process to those of all.
    """
    values = codes.values.view(codes.n_tokens, -1)
    size = max(1, GATHERED // (k * shards))
    kept = torch.cat([winning(block, k, shard, gather) for block in values.split(size)])
    flat = kept.flatten()
    return Codes(codes.values[flat], codes.indices[flat], offsets_of(kept.sum(dim=1)), codes.n_latents)


def winning(
    own: Float[Tensor, "tokens candidates"], k: int, shard: int, gather: Gather
) -> Bool[Tensor, "tokens candidates"]:
    """Which of this process's candidates are kept. What is no number is, so that the loss is none either."""
    padded = own.new_full((len(own), k), -torch.inf)  # a shard may have fewer latents
    padded[:, : own.shape[1]] = own.detach()
    everyone = torch.cat(gather(padded).split(len(own)), dim=1)
    bound = everyone.topk(k, dim=1).values[:, -1:]
    above, equal = everyone > bound, everyone == bound
    room = k - above.sum(dim=1, keepdim=True)
    kept = (above | (equal & (equal.cumsum(dim=1) <= room))) & (everyone > 0) | everyone.isnan()
    return kept[:, shard * k : shard * k + own.shape[1]]
