"""Latents of several dictionaries side by side, each by its own dictionary's activation function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictlab.dictionary.activation_functions import AbsTopK, Activation, Gated, JumpReLU, ReLU
from dictlab.dictionary.codes import Codes, offsets_of


@dataclass(frozen=True, eq=False)
class Union:
    """Latents of several donors side by side, each donor's chosen by its own rule among its own candidates.

    A stitched dictionary needs this: a latent taken from a TopK dictionary is active only where it is among the k
    largest of that dictionary's. Latents that were not taken along still compete, but emit nothing.

    Attributes:
        parts: The number of latents and the activation function of each donor, in order.
        emits: False for a latent that only competes.
    """

    parts: tuple[tuple[int, Activation], ...]
    emits: Bool[Tensor, " n_latents"]
    kind: ClassVar[str] = "union"
    elementwise: ClassVar[bool] = False

    @property
    def batchwise(self) -> bool:
        return any(activation.batchwise for _, activation in self.parts)

    def __call__(self, z: Float[Tensor, "tokens n_latents"]) -> Codes:
        values, indices, rows, start = [], [], [], 0
        for width, activation in self.parts:
            codes = activation(z[:, start : start + width])
            values.append(codes.values)
            indices.append(codes.indices + start)
            rows.append(codes.rows)
            start += width
        all_indices, all_rows, all_values = torch.cat(indices), torch.cat(rows), torch.cat(values)
        keep = self.emits.to(all_indices.device)[all_indices]
        order = torch.argsort(all_rows[keep], stable=True)
        counts = torch.bincount(all_rows[keep], minlength=len(z))
        return Codes(all_values[keep][order], all_indices[keep][order], offsets_of(counts), z.shape[1])

    def emitted(self, z: Float[Tensor, " nnz"], indices: Int[Tensor, " nnz"]) -> Float[Tensor, " nnz"]:
        values, start = torch.empty_like(z), 0
        for width, activation in self.parts:
            part = (indices >= start) & (indices < start + width)
            values[part] = activation.emitted(z[part], indices[part] - start)
            start += width
        return values

    def slope(self, indices: Int[Tensor, " nnz"]) -> Float[Tensor, " nnz"]:
        slopes, start = torch.ones(len(indices), device=indices.device, dtype=torch.float64), 0
        for width, activation in self.parts:
            part = (indices >= start) & (indices < start + width)
            slope = activation.slope(indices[part] - start)
            slopes[part] = slope.to(slopes) if isinstance(slope, Tensor) else slope
            start += width
        return slopes

    def scaled(self, factor: float) -> Union:
        return replace(self, parts=tuple((width, activation.scaled(factor)) for width, activation in self.parts))

    def at(self, latents: Int[Tensor, " kept"]) -> Union:
        raise ValueError("latents of a union compete: some of them alone are another function")

    def record(self) -> dict[str, Any]:
        return {"kind": self.kind, "parts": [[width, activation.record()] for width, activation in self.parts]}

    def tensors(self) -> dict[str, Tensor]:
        own = {
            f"{index}.{name}": tensor
            for index, (_, activation) in enumerate(self.parts)
            for name, tensor in activation.tensors().items()
        }
        return {"emits": self.emits, **own}


def side_by_side(parts: Sequence[tuple[int, Activation]], emits: Bool[Tensor, " n_latents"]) -> Activation:
    """The latents of several donors together: under one rule where that is the same function, else as a `Union`.

    Args:
        parts: The number of latents and the activation function of each donor, in order.
        emits: False for a latent that only competes.
    """
    if emits.all() and len(parts) == 1:
        return parts[0][1]
    if emits.all() and all(isinstance(own, ReLU) for _, own in parts):
        return ReLU()
    if emits.all() and all(isinstance(own, ReLU | JumpReLU) for _, own in parts):
        like = next(own.threshold for _, own in parts if isinstance(own, JumpReLU))
        return JumpReLU(
            torch.cat([own.threshold if isinstance(own, JumpReLU) else like.new_zeros(width) for width, own in parts])
        )
    if emits.all() and all(isinstance(own, Gated) for _, own in parts):
        return Gated(*map(torch.cat, zip(*(own.tensors().values() for _, own in parts), strict=True)))
    return Union(tuple(parts), emits)


def emitting(activation: Activation, n_latents: int) -> Bool[Tensor, " n_latents"]:
    """False for latents that can never be active because they only compete."""
    if isinstance(activation, Union):
        return activation.emits.cpu()
    return torch.ones(n_latents, dtype=torch.bool)


def signed(activation: Activation, n_latents: int) -> Bool[Tensor, " n_latents"]:
    """True for latents that emit values of either sign: with encoder and decoder negated they are the same function."""
    if isinstance(activation, Union):
        return torch.cat([signed(own, width) for width, own in activation.parts])
    return torch.full((n_latents,), isinstance(activation, AbsTopK))
