"""BatchTopK (Bussmann et al. 2024): k latents a token on average over the batch, and one threshold for use.

    training   f = the k n largest z of a batch of n tokens          loss = objective + aux / 32
    use        f = z [z > theta], theta = E over batches of the smallest activation that was kept

The weights move while it is taken, so theta is an average over the last batches: exponential, bias-corrected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dictlab.dictionary import Dictionary, activation_functions
from dictlab.training.variants.base import ForwardPass, Weights
from dictlab.training.variants.topk import AuxKVariant, check_k

DECAY = 0.95  # of the running threshold: the last twenty batches, since it falls while the rate does


@dataclass(frozen=True)
class BatchTopKVariant(AuxKVariant):
    """The k n largest of n tokens while it learns, one threshold for all latents after.

    Attributes:
        k: Latents of a token, on average.
    """

    k: int = 16

    @property
    def label(self) -> str:
        return f"batchtopk{self.k}"

    def counters(self) -> dict[str, Tensor]:
        return {"smallest": torch.zeros(()), "batches": torch.zeros(())}

    def choose(self, weights: Weights) -> activation_functions.Activation:
        return activation_functions.BatchTopK(self.k)

    def observe(self, forward: ForwardPass, counters: dict[str, Tensor]) -> None:
        values = forward.codes.to_sparse().values
        infinite = values.new_full((1,), torch.inf)
        smallest = forward.ranks.all_reduce_min(torch.cat([torch.where(values > 0, values, torch.inf), infinite]).min())
        seen = smallest.isfinite().to(smallest.dtype)  # a batch with nothing active has no smallest
        decay = 1 - (1 - DECAY) * seen
        counters["smallest"].mul_(decay).add_((1 - decay) * smallest.nan_to_num(posinf=0.0))
        counters["batches"].mul_(decay).add_(1 - decay)

    def finished(self, dictionary: Dictionary, weights: Weights, counters: Mapping[str, Tensor]) -> Dictionary:
        threshold = counters["smallest"] / counters["batches"].clamp_min(torch.finfo(torch.float32).tiny)
        return replace(dictionary, activation=activation_functions.JumpReLU(threshold.repeat(dictionary.n_latents)))

    def record(self) -> dict[str, Any]:
        return {"activation": "batchtopk", "k": self.k, "aux_k": self.aux_k}

    def check(self, width: int) -> None:
        check_k(self.k, width)
