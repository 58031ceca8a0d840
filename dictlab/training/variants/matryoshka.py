"""Matryoshka (Bussmann et al. 2025): the first latents alone must reconstruct as well as they can.

    loss = objective + sum over prefixes m of L(m) + the terms of the variant that is nested

where L(m) is the squared error at the site, over its variance, of what the active ones among the first m latents
reconstruct. Which latents are active is decided among all. The whole dictionary is the objective's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dictlab.dictionary import Dictionary, activation_functions
from dictlab.dictionary.codes import Codes
from dictlab.dictionary.kernels.error import squared_error
from dictlab.errors import DictlabError
from dictlab.training.variants.base import ForwardPass, Term, Variant, Weights


@dataclass(frozen=True)
class MatryoshkaVariant:
    """Another variant, nested.

    Attributes:
        base: Which one.
        prefixes: Shares of the latents, rising and below 1.
    """

    base: Variant
    prefixes: tuple[float, ...]

    @property
    def label(self) -> str:
        return f"matryoshka-{self.base.label}"

    @property
    def normalised(self) -> bool:
        return self.base.normalised

    @property
    def revived(self) -> bool:
        return self.base.revived

    @property
    def shared(self) -> bool:
        return self.base.shared

    @property
    def plain(self) -> bool:
        return False  # prefixes are cut out of the entries

    def tensors(self, width: int, d_in: int) -> dict[str, Tensor]:
        return self.base.tensors(width, d_in)

    def adopted(self, dictionary: Dictionary) -> dict[str, Tensor]:
        return self.base.adopted(dictionary)

    def counters(self) -> dict[str, Tensor]:
        return self.base.counters()

    def choose(self, weights: Weights) -> activation_functions.Activation:
        return self.base.choose(weights)

    def emit(self, entries: Codes, weights: Weights) -> Codes:
        return self.base.emit(entries, weights)

    def terms(self, forward: ForwardPass) -> dict[str, Term]:
        errors = [squared_error(x_hat, forward.x) for x_hat in nested(forward, self.sizes(forward.width))]
        return {"nested": Term(torch.stack(errors).sum(), 1 / forward.variance), **self.base.terms(forward)}

    def observe(self, forward: ForwardPass, counters: dict[str, Tensor]) -> None:
        self.base.observe(forward, counters)

    def finished(self, dictionary: Dictionary, weights: Weights, counters: Mapping[str, Tensor]) -> Dictionary:
        return self.base.finished(dictionary, weights, counters)

    def record(self) -> dict[str, Any]:
        base = self.base.record()
        return base | {"activation": f"matryoshka-{base['activation']}", "prefixes": self.prefixes}

    def check(self, width: int) -> None:
        self.base.check(width)
        if len(set(self.sizes(width)) - {0, width}) < len(self.prefixes):
            raise DictlabError(
                f"prefixes {list(self.prefixes)} of {width} latents are {self.sizes(width)}; "
                "expected different numbers above 0 and below the width."
            )

    def sizes(self, width: int) -> list[int]:
        """Latents of each prefix."""
        return [round(share * width) for share in self.prefixes]


def nested(forward: ForwardPass, sizes: Sequence[int]) -> Iterator[Float[Tensor, "tokens d_in"]]:
    """What the first latents reconstruct, for rising numbers of them, each out of the last by the latents between."""
    dictionary = forward.dictionary
    undo = dictionary.normalisation(forward.x)[1]
    first = forward.ranks.latent_slice(forward.width).start
    ends, on_cpu = [size - first for size in sizes], forward.x.device.type == "cpu"
    parts = by_prefix(forward.codes.to_sparse(), ends, counted=on_cpu)  # a GPU would make the host wait for the count
    y = dictionary.b_out
    for between in forward.ranks.decode(parts, dictionary.W_dec).chunk(len(sizes)):
        y = y + between
        yield y * undo.scale + undo.shift


def by_prefix(codes: Codes, sizes: Sequence[int], *, counted: bool) -> Codes:
    """The entries by the first prefix that they belong to: tokens once for each prefix, one prefix after the other.

    Args:
        codes: Codes of all latents.
        sizes: Where each prefix ends.
        counted: Whether entries of no prefix are counted, and left out; else they come with the last, and emit nothing.
    """
    last, n = len(sizes) - 1, codes.n_tokens
    prefix = torch.stack([codes.indices >= size for size in sizes]).sum(dim=0)
    order = prefix.clamp_max(last).sort(stable=True).indices
    if counted:
        order = order[prefix[order] <= last]
    rows = (prefix.clamp_max(last) * n + codes.rows)[order]
    values = torch.where(prefix <= last, codes.values, 0)[order]
    offsets = torch.searchsorted(rows, torch.arange(len(sizes) * n + 1, device=rows.device))
    return Codes(values, codes.indices[order], offsets, codes.n_latents)
