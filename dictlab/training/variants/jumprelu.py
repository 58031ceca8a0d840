"""JumpReLU with an L0 penalty (Rajamanoharan et al. 2024b, sections 3 and 4).

    f = z [z > theta]          loss = objective + lambda mean_t |f|_0

Neither has a gradient in theta. Theirs is that of the loss smoothed by a rectangle K of width eps around theta:

    df/dtheta     := -(theta / eps) K((z - theta) / eps)
    d|f|_0/dtheta := -(1 / eps) K((z - theta) / eps)          K(u) = [|u| < 1/2]

and none of either reaches z. Thresholds are trained as logarithms. The error at the site is divided by its variance, so
lambda is in units of explained variance a latent; eps and the first theta are shares of the activations' typical norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dictlab.dictionary import Dictionary, activation_functions
from dictlab.dictionary.codes import Codes
from dictlab.training.variants.base import BaseVariant, ForwardPass, Term, Weights
from dictlab.training.variants.penalties import ramp

LEAST = 1e-6  # a threshold at 0 or below is that of a ReLU; it has no logarithm


@dataclass(frozen=True)
class JumpReLUVariant(BaseVariant):
    """Each latent has its own threshold.

    Attributes:
        coefficient: lambda.
        bandwidth: eps, as a share of the typical norm of an activation about its mean.
        warmup: Share of the run in which lambda rises from 0.
    """

    coefficient: float
    bandwidth: float
    warmup: float = 0.0

    @property
    def label(self) -> str:
        return f"jumprelu{self.coefficient:g}"

    @property
    def normalised(self) -> bool:
        return True

    def tensors(self, width: int, d_in: int) -> dict[str, Tensor]:
        return {"log_threshold": torch.full((width,), math.log(self._eps(d_in)))}

    def adopted(self, dictionary: Dictionary) -> dict[str, Tensor]:
        threshold = dictionary.activation.tensors()["threshold"].float()
        return {"log_threshold": threshold.clamp_min(LEAST).log()}

    def choose(self, weights: Weights) -> activation_functions.Activation:
        threshold = weights["log_threshold"].detach().exp()
        return activation_functions.JumpReLU(threshold - self._eps(weights["bias"].shape[0]) / 2)

    def emit(self, entries: Codes, weights: Weights) -> Codes:
        values = _Jump.apply(entries.values, *self._at(entries, weights))
        return entries._replace(values=values)

    def terms(self, forward: ForwardPass) -> dict[str, Term]:
        entries = forward.entries.to_sparse()
        active: Tensor = _Step.apply(entries.values, *self._at(entries, forward.weights))
        weight = self.coefficient * ramp(forward.progress, self.warmup)
        return {"l0": Term(forward.ranks.sum_over_latents(active.sum()) / forward.codes.n_tokens, weight)}

    def finished(self, dictionary: Dictionary, weights: Weights, counters: Mapping[str, Tensor]) -> Dictionary:
        return replace(dictionary, activation=activation_functions.JumpReLU(weights["log_threshold"].exp()))

    def record(self) -> dict[str, Any]:
        return {
            "activation": "jumprelu",
            "l0": self.coefficient,
            "bandwidth": self.bandwidth,
            "sparsity_warmup": self.warmup,
        }

    def _eps(self, d_in: int) -> float:
        return self.bandwidth * math.sqrt(d_in)  # coordinates have variance 1 in training

    def _at(self, entries: Codes, weights: Weights) -> tuple[Tensor, float]:
        threshold = weights["log_threshold"].exp()[entries.indices]
        return threshold, self._eps(weights["bias"].shape[0])


class _Jump(torch.autograd.Function):
    """z [z > theta], with the pseudo-derivative in theta."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.eps = eps
        return torch.where(z > threshold, z, 0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        z, threshold = ctx.saved_tensors
        return torch.where(z > threshold, g, 0), -g * threshold * _kernel(z, threshold, ctx.eps), None


class _Step(torch.autograd.Function):
    """[z > theta], with the pseudo-derivative in theta."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.eps = eps
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor, None]:
        z, threshold = ctx.saved_tensors
        return None, -g * _kernel(z, threshold, ctx.eps), None


def _kernel(z: Tensor, threshold: Tensor, eps: float) -> Tensor:
    """K((z - theta) / eps) / eps."""
    return ((z - threshold).abs() < eps / 2).to(z.dtype) / eps
