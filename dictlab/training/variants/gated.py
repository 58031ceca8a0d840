"""Gated (Rajamanoharan et al. 2024a, section 3): one path decides whether a latent is active, another how strongly.

    pi = h W + b_gate                                     the gate; here b_enc is b_gate
    f  = [pi > 0] max(exp(r_mag) h W + b_mag, 0)
    loss = objective + (lambda / d) mean_t |max(pi, 0)|_1 + mean_t |x - x_hat_frozen(max(pi, 0))|^2 / d

The gate's step has no gradient: it learns from its own penalty, and from reconstructing the activation by itself
through the decoder, which that term leaves alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from dictlab.dictionary import Dictionary, activation_functions
from dictlab.dictionary.codes import Codes
from dictlab.training.variants.base import ForwardPass, Term, Weights
from dictlab.training.variants.penalties import l1, ramp
from dictlab.training.variants.relu import L1Variant


@dataclass(frozen=True)
class GatedVariant(L1Variant):
    """A gate and a magnitude that share their directions."""

    kind: ClassVar[str] = "gated"

    def tensors(self, width: int, d_in: int) -> dict[str, Tensor]:
        return {"r_mag": torch.zeros(width), "b_mag": torch.zeros(width)}

    def adopted(self, dictionary: Dictionary) -> dict[str, Tensor]:
        b_gate, r_mag, b_mag = dictionary.activation.tensors().values()
        return {"b_enc": dictionary.b_enc + b_gate, "r_mag": r_mag, "b_mag": b_mag + dictionary.b_enc * r_mag.exp()}

    def choose(self, weights: Weights) -> activation_functions.Activation:
        return activation_functions.ReLU()

    def emit(self, entries: Codes, weights: Weights) -> Codes:
        b_gate, r_mag, b_mag = (weights[name][entries.indices] for name in ("b_enc", "r_mag", "b_mag"))
        return entries._replace(values=((entries.values - b_gate) * r_mag.exp() + b_mag).relu())

    def terms(self, forward: ForwardPass) -> dict[str, Term]:
        frozen = replace(
            forward.dictionary, W_dec=forward.dictionary.W_dec.detach(), b_out=forward.dictionary.b_out.detach()
        )
        penalty = l1(forward.entries, forward.x.shape[1], self.p, forward.ranks) * forward.unit
        return {
            "l1": Term(penalty, self.coefficient * ramp(forward.progress, self.warmup)),
            "gate": Term(forward.error(forward.entries, frozen), 1.0),
        }

    def finished(self, dictionary: Dictionary, weights: Weights, counters: Mapping[str, Tensor]) -> Dictionary:
        gated = activation_functions.Gated(weights["b_enc"], weights["r_mag"], weights["b_mag"])
        return replace(dictionary, b_enc=torch.zeros_like(weights["b_enc"]), activation=gated)
