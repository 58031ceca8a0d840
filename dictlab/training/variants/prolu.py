"""ProLU with an L1 penalty (Taggart 2024): the bias decides whether a latent is active, and is no part of its value.

    m = h W,  f = m [m + b > 0 and m > 0]          loss = objective + (lambda / d) mean_t |f|_p

f has no gradient in b. Theirs is that of the step replaced by a ramp (their straight-through variant), where f > 0:

    df/dm := 1 + m          df/db := m

In use this is JumpReLU with the threshold max(-b, 0) and no bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dictlab.dictionary import Dictionary, activation_functions
from dictlab.dictionary.codes import Codes
from dictlab.training.variants.base import Weights
from dictlab.training.variants.relu import L1Variant


@dataclass(frozen=True)
class ProLUVariant(L1Variant):
    """A latent's value is proportional to its input wherever it is active."""

    kind: ClassVar[str] = "prolu"

    def adopted(self, dictionary: Dictionary) -> dict[str, Tensor]:
        return {"b_enc": -dictionary.activation.tensors()["threshold"]}

    def choose(self, weights: Weights) -> activation_functions.Activation:
        return activation_functions.JumpReLU(weights["b_enc"].detach())  # z = m + b is above 0, and m above 0

    def emit(self, entries: Codes, weights: Weights) -> Codes:
        return entries._replace(values=_ProLU.apply(entries.values, weights["b_enc"][entries.indices]))

    def finished(self, dictionary: Dictionary, weights: Weights, counters: Mapping[str, Tensor]) -> Dictionary:
        bias = weights["b_enc"]
        return replace(
            dictionary, b_enc=torch.zeros_like(bias), activation=activation_functions.JumpReLU((-bias).relu())
        )


class _ProLU(torch.autograd.Function):
    """m = z - b at entries that are active; z's gradient reaches b too, so that the sum of both is that of the head."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, bias: Tensor) -> Tensor:
        m = z - bias
        ctx.save_for_backward(m)
        return m

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        (m,) = ctx.saved_tensors
        return g * (1 + m), -g
