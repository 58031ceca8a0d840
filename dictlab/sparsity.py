"""Which latents are active, and how strongly?

An activation function is a small value (`ReLU()`, `TopK(32)`) that turns pre-activations into sparse `Codes`. It is
written to files as a tagged record; a new one is one class here and one line in `READERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictlab.errors import DictlabError


class Codes(NamedTuple):
    """Sparse codes of a batch of tokens, in compressed rows: token t owns `offsets[t]:offsets[t + 1]`.

    An entry may hold the value 0 (a latent that TopK chose and ReLU then silenced); a latent is *active* where its
    value is not 0. Latents absent from a row have the activation 0.
    """

    values: Float[Tensor, " nnz"]
    indices: Int[Tensor, " nnz"]
    offsets: Int[Tensor, " tokens+1"]
    n_latents: int

    @property
    def n_tokens(self) -> int:
        return len(self.offsets) - 1

    @property
    def rows(self) -> Int[Tensor, " nnz"]:
        """The token of each entry."""
        return torch.repeat_interleave(
            torch.arange(self.n_tokens, device=self.offsets.device), self.offsets.diff(), output_size=len(self.values)
        )

    def dense(self) -> Float[Tensor, "tokens n_latents"]:
        """The same codes as a full matrix."""
        matrix = self.values.new_zeros(self.n_tokens, self.n_latents)
        return matrix.index_put((self.rows, self.indices), self.values)

    def l0(self) -> Int[Tensor, " tokens"]:
        """Active latents of each token."""
        return torch.zeros_like(self.offsets[1:]).index_add_(0, self.rows, (self.values != 0).long())

    def firings(self) -> Int[Tensor, " n_latents"]:
        """Tokens at which each latent is active."""
        return torch.bincount(self.indices[self.values != 0], minlength=self.n_latents)


def concatenate(parts: list[Codes]) -> Codes:
    """Codes of several groups of tokens, one after the other."""
    counts = torch.cat([part.offsets.diff() for part in parts])
    return Codes(
        torch.cat([p.values for p in parts]),
        torch.cat([p.indices for p in parts]),
        _offsets(counts),
        parts[0].n_latents,
    )


class Activation(Protocol):
    """From pre-activations to codes. The gradient of an emitted value to its pre-activation is 1 where it is active."""

    kind: ClassVar[str]

    def __call__(self, z: Float[Tensor, "tokens n_latents"]) -> Codes:
        """Sparse codes of the pre-activations `z`."""
        ...

    def record(self) -> dict[str, Any]:
        """What a file's header says of it, `{"kind": ..., ...}`."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What it keeps as tensors in a file."""
        ...


@dataclass(frozen=True)
class ReLU:
    """Every latent with a positive pre-activation is active."""

    kind: ClassVar[str] = "relu"

    def __call__(self, z: Float[Tensor, "tokens n_latents"]) -> Codes:
        positive = z > 0
        rows, indices = positive.nonzero(as_tuple=True)
        counts = torch.bincount(rows, minlength=len(z))
        return Codes(z[rows, indices], indices, _offsets(counts), z.shape[1])

    def record(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def tensors(self) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True)
class TopK:
    """The k largest pre-activations of each token, negative ones set to zero (Gao et al. 2024, section 2.3).

    Attributes:
        k: Latents kept for each token.
    """

    k: int
    kind: ClassVar[str] = "topk"

    def __call__(self, z: Float[Tensor, "tokens n_latents"]) -> Codes:
        k = min(self.k, z.shape[1])
        values, indices = z.topk(k, dim=1, sorted=False)
        offsets = torch.arange(0, len(z) * k + 1, k, device=z.device) if k else z.new_zeros(len(z) + 1).long()
        return Codes(values.relu().flatten(), indices.flatten(), offsets, z.shape[1])

    def record(self) -> dict[str, Any]:
        return {"kind": self.kind, "k": self.k}

    def tensors(self) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True, eq=False)
class Union:
    """Latents of several donors side by side, each donor's chosen by its own rule among its own candidates.

    A stitched dictionary needs this: a latent taken from a TopK dictionary fires only where it beats its old rivals.
    Rivals that were not taken along still compete, but emit nothing.

    Attributes:
        parts: The number of latents and the activation function of each donor, in order.
        emits: False for a latent that only competes.
    """

    parts: tuple[tuple[int, Activation], ...]
    emits: Bool[Tensor, " n_latents"]
    kind: ClassVar[str] = "union"

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
        return Codes(all_values[keep][order], all_indices[keep][order], _offsets(counts), z.shape[1])

    def record(self) -> dict[str, Any]:
        return {"kind": self.kind, "parts": [[width, activation.record()] for width, activation in self.parts]}

    def tensors(self) -> dict[str, Tensor]:
        return {"emits": self.emits}


def emitting(activation: Activation, n_latents: int) -> Bool[Tensor, " n_latents"]:
    """False for latents that can never be active because they only compete."""
    if isinstance(activation, Union):
        return activation.emits.cpu()
    return torch.ones(n_latents, dtype=torch.bool)


def from_record(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Activation:
    """The activation function that a file describes.

    Raises:
        DictlabError: Its kind is unknown, or it lacks what that kind needs.
    """
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in READERS:
        raise DictlabError(f"activation function {kind!r} is unknown; known are {', '.join(READERS)}.")
    return READERS[kind](record, tensors)


def _read_topk(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TopK:
    k = record.get("k")
    if type(k) is not int or k < 1:  # a bool is an int, and means nothing here
        raise DictlabError(f"activation function topk: k is {k!r}; expected a whole number above 0.")
    return TopK(k)


def _read_union(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Union:
    if "emits" not in tensors:
        raise DictlabError("activation function union: the tensor 'emits' is missing.")
    return Union(_parts(record.get("parts"), len(tensors["emits"])), tensors["emits"].bool())


def _parts(record: Any, n_latents: int) -> tuple[tuple[int, Activation], ...]:
    """The donors of a union, `[[width, activation], ...]` in a file."""
    pairs = record if isinstance(record, list) else []
    if not pairs or not all(
        isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is int and pair[0] > 0 and isinstance(pair[1], dict)
        for pair in pairs
    ):
        raise DictlabError(f"activation function union: parts is {record!r}; expected [[latents, activation], ...].")
    if sum(width for width, _ in pairs) != n_latents:
        raise DictlabError(
            f"activation function union: its parts have {sum(width for width, _ in pairs)} latents, not {n_latents}."
        )
    return tuple((width, from_record(part, {})) for width, part in pairs)


READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Tensor]], Activation]] = {
    ReLU.kind: lambda record, tensors: ReLU(),
    TopK.kind: _read_topk,
    Union.kind: _read_union,
}


def _offsets(counts: Int[Tensor, " tokens"]) -> Int[Tensor, " tokens+1"]:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
