"""TopK with AuxK, Multi-TopK, and other rules that choose a number of latents (Gao et al. 2024, sections 2.3 and 2.4).

    TopK         f = the k largest z of each token          loss = objective + aux / 32
    Multi-TopK   the same                                   loss = objective + L(4k) / 8 + aux / 32

where L(4k) is the squared error at the site, over its variance, of what the 4k largest z reconstruct. Without it, a
dictionary is good at its own k alone (their section 5.2 and appendix).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from dictlab.dictionary import Dictionary, activation_functions
from dictlab.dictionary.codes import Codes
from dictlab.errors import DictlabError
from dictlab.training.variants.aux_k import AUX_WEIGHT, aux_k, nearest_power_of_two
from dictlab.training.variants.base import BaseVariant, ForwardPass, Term, Weights

WIDER = 4  # Multi-TopK's second k, as a multiple of the first
WIDER_WEIGHT = 1 / 8


@dataclass(frozen=True)
class AuxKVariant(BaseVariant):
    """What variants with AuxK have in common.

    Attributes:
        aux_k: Dead latents that are revived at once; None for the power of two nearest d_in / 2.
    """

    aux_k: int | None = None

    @property
    def normalised(self) -> bool:
        return True

    @property
    def revived(self) -> bool:
        return True

    def terms(self, forward: ForwardPass) -> dict[str, Term]:
        k = self.aux_k or nearest_power_of_two(forward.x.shape[1] / 2)
        share = aux_k(
            forward.dictionary, forward.x, forward.x_hat, forward.dead_latents(), k, forward.ranks, forward.dtype
        )
        return {"aux": Term(share, AUX_WEIGHT)}

    def finished(self, dictionary: Dictionary, weights: Weights, counters: Mapping[str, Tensor]) -> Dictionary:
        return dictionary


@dataclass(frozen=True)
class PerTokenVariant(AuxKVariant):
    """Latents chosen by a rule with nothing to train: TopK, or what else a file holds.

    Attributes:
        rule: The activation function, in training and in use.
    """

    rule: activation_functions.Activation = activation_functions.TopK(16)

    @property
    def label(self) -> str:
        return f"{self.rule.kind}{getattr(self.rule, 'k', '')}"

    @property
    def shared(self) -> bool:
        return isinstance(self.rule, activation_functions.TopK)

    def choose(self, weights: Weights) -> activation_functions.Activation:
        return self.rule

    def record(self) -> dict[str, Any]:
        own = {"k": self.rule.k} if isinstance(self.rule, activation_functions.PerToken) else {}
        return {"activation": self.rule.kind, "aux_k": self.aux_k, **own}

    def check(self, width: int) -> None:
        check_k(getattr(self.rule, "k", 0), width)


@dataclass(frozen=True)
class MultiTopKVariant(AuxKVariant):
    """TopK that is also good at a larger k.

    Attributes:
        k: Latents of each token, in use.
    """

    k: int = 16

    @property
    def label(self) -> str:
        return f"multitopk{self.k}"

    @property
    def shared(self) -> bool:
        return False  # its codes are the first of its entries, and a shard has any of them

    def choose(self, weights: Weights) -> activation_functions.Activation:
        return DescendingTopK(WIDER * self.k)

    def emit(self, entries: Codes, weights: Weights) -> Codes:
        values, indices = (t.view(entries.n_tokens, -1)[:, : self.k] for t in (entries.values, entries.indices))
        offsets = torch.arange(entries.n_tokens + 1, device=indices.device) * values.shape[1]
        return Codes(values.flatten(), indices.flatten(), offsets, entries.n_latents)

    def terms(self, forward: ForwardPass) -> dict[str, Term]:
        return {
            "multi": Term(forward.error(forward.entries), WIDER_WEIGHT / forward.variance),
            **super().terms(forward),
        }

    def finished(self, dictionary: Dictionary, weights: Weights, counters: Mapping[str, Tensor]) -> Dictionary:
        return replace(dictionary, activation=activation_functions.TopK(self.k))

    def record(self) -> dict[str, Any]:
        return {"activation": "multitopk", "k": self.k, "aux_k": self.aux_k}

    def check(self, width: int) -> None:
        check_k(self.k, width)


@dataclass(frozen=True)
class DescendingTopK(activation_functions.PerToken):
    """TopK whose entries are in descending order, so that the first of them are those of a smaller k."""

    kind: ClassVar[str] = "descending"  # of no file

    def __call__(self, z: Float[Tensor, "tokens n_latents"]) -> Codes:
        values, indices = z.topk(min(self.k, z.shape[1]), dim=1)
        offsets = torch.arange(len(z) + 1, device=z.device) * values.shape[1]
        return Codes(values.relu().flatten(), indices.flatten(), offsets, z.shape[1])


def check_k(k: int, width: int) -> None:
    """Refuse to choose more latents than there are.

    Raises:
        DictlabError: k is above the width.
    """
    if k > width:
        raise DictlabError(f"k {k} exceeds width {width}; keep k below the width.")
