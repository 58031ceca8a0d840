"""ReLU with an L1 penalty (Braun et al. 2024, section 2).

f = max(z, 0)          loss = objective + (lambda / d) mean_t |f|_p
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from dictlab.dictionary import Dictionary, activation_functions
from dictlab.training.variants.base import BaseVariant, ForwardPass, Term, Weights
from dictlab.training.variants.penalties import l1, ramp


@dataclass(frozen=True)
class L1Variant(BaseVariant):
    """What variants with an L1 penalty have in common.

    Attributes:
        coefficient: lambda, in the model's units.
        p: The norm.
        warmup: Share of the run in which lambda rises from 0.
    """

    coefficient: float
    p: float = 1.0
    warmup: float = 0.0
    kind: ClassVar[str]

    @property
    def label(self) -> str:
        return f"{self.kind}{self.coefficient:g}"

    def terms(self, forward: ForwardPass) -> dict[str, Term]:
        value = l1(forward.codes, forward.x.shape[1], self.p, forward.ranks) * forward.unit
        return {"l1": Term(value, self.coefficient * ramp(forward.progress, self.warmup))}

    def record(self) -> dict[str, Any]:
        return {"activation": self.kind, "l1": self.coefficient, "p_norm": self.p, "sparsity_warmup": self.warmup}


@dataclass(frozen=True)
class ReLUVariant(L1Variant):
    """max(z, 0) with an L1 penalty."""

    kind: ClassVar[str] = "relu"

    @property
    def plain(self) -> bool:
        return True

    def choose(self, weights: Weights) -> activation_functions.Activation:
        return activation_functions.ReLU()

    def finished(self, dictionary: Dictionary, weights: Weights, counters: Mapping[str, Tensor]) -> Dictionary:
        return dictionary
