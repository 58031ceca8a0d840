"""Which latents are active, and how strongly?

An activation function is a small value (`ReLU()`, `TopK(32)`) that turns pre-activations z into sparse `Codes`. It is
written to files as a tagged record, its tensors beside it; a new one is one class here, and
one line in `activation_records.py`.

    relu        f = max(z, 0)
    jumprelu    f = max(z, 0) [z > threshold]                          Rajamanoharan et al. 2024b
    gated       f = [z + b_gate > 0] max(z exp(r_mag) + b_mag, 0)      Rajamanoharan et al. 2024a
    topk        the k largest z of each token, negative ones set to 0  Gao et al. 2024, section 2.3
    abstopk     the k largest |z| of each token, with their signs
    groupmax    the largest z of each of k groups of latents, negative ones set to 0
    batchtopk   the k n largest z of a batch of n tokens, negative ones set to 0    Bussmann et al. 2024
    union       the latents of several dictionaries side by side, each by its own rule
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictlab.dictionary.codes import Codes
from dictlab.dictionary.top_k import largest, largest_of_all, positions


class Activation(Protocol):
    """From pre-activations to codes.

    Attributes:
        kind: Its name in files.
        elementwise: Whether a latent's activation depends on its own pre-activation alone.
        batchwise: Whether the codes of a token depend on the other tokens of the batch.
    """

    kind: ClassVar[str]
    elementwise: ClassVar[bool]

    @property
    def batchwise(self) -> bool: ...

    def __call__(self, z: Float[Tensor, "tokens n_latents"]) -> Codes:
        """Sparse codes of the pre-activations `z`."""
        ...

    def emitted(self, z: Float[Tensor, " nnz"], indices: Int[Tensor, " nnz"]) -> Float[Tensor, " nnz"]:
        """Activations of selected latents, from their pre-activations."""
        ...

    def slope(self, indices: Int[Tensor, " nnz"]) -> Float[Tensor, " nnz"] | float:
        """The derivative of an active latent's value with respect to its pre-activation."""
        ...

    def scaled(self, factor: float) -> Activation:
        """The function g for which g(factor z) = factor f(z), factor > 0."""
        ...

    def at(self, latents: Int[Tensor, " kept"]) -> Activation:
        """This function restricted to some latents. Only an element-wise one then gives them the same activations."""
        ...

    def record(self) -> dict[str, Any]:
        """Its entry in a file's header, `{"kind": ..., ...}`."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors in a file, by name."""
        ...


@dataclass(frozen=True)
class _WithoutTensors:
    """Defaults of most activation functions: no tensors, slope 1, unchanged by a positive factor."""

    kind: ClassVar[str]
    elementwise: ClassVar[bool] = False

    @property
    def batchwise(self) -> bool:
        return False

    def emitted(self, z: Float[Tensor, " nnz"], indices: Int[Tensor, " nnz"]) -> Float[Tensor, " nnz"]:
        return z.relu()

    def slope(self, indices: Int[Tensor, " nnz"]) -> Float[Tensor, " nnz"] | float:
        return 1.0

    def scaled(self, factor: float) -> Any:
        return self

    def at(self, latents: Int[Tensor, " kept"]) -> Any:
        return self

    def record(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def tensors(self) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True)
class ReLU(_WithoutTensors):
    """Every latent with a positive pre-activation is active."""

    kind: ClassVar[str] = "relu"
    elementwise: ClassVar[bool] = True

    def __call__(self, z: Float[Tensor, "tokens n_latents"]) -> Codes:
        return _where(z > 0, z)

    def matrix(self, z: Float[Tensor, "tokens n_latents"]) -> Float[Tensor, "tokens n_latents"]:
        """The codes as a matrix, zeros included."""
        return z.relu()


@dataclass(frozen=True)
class PerToken(_WithoutTensors):
    """k latents of each token.

    Attributes:
        k: Latents kept for each token.
    """

    k: int

    def record(self) -> dict[str, Any]:
        return {"kind": self.kind, "k": self.k}


@dataclass(frozen=True)
class TopK(PerToken):
    """The k largest pre-activations of each token, negative ones set to zero (Gao et al. 2024, section 2.3)."""

    kind: ClassVar[str] = "topk"

    def __call__(self, z: Float[Tensor, "tokens n_latents"]) -> Codes:
        values, indices = largest(z, min(self.k, z.shape[1]))
        return _rectangle(values.relu(), indices, z.shape[1])


@dataclass(frozen=True)
class AbsTopK(PerToken):
    """The k pre-activations of each token that are largest in size, with their signs."""

    kind: ClassVar[str] = "abstopk"

    def __call__(self, z: Float[Tensor, "tokens n_latents"]) -> Codes:
        indices = z.abs().topk(min(self.k, z.shape[1]), dim=1, sorted=False).indices
        return _rectangle(z.gather(1, indices), indices, z.shape[1])

    def emitted(self, z: Float[Tensor, " nnz"], indices: Int[Tensor, " nnz"]) -> Float[Tensor, " nnz"]:
        return z


@dataclass(frozen=True)
class GroupMax(PerToken):
    """The largest pre-activation in each of k contiguous groups of equal size, negative ones set to zero."""

    kind: ClassVar[str] = "groupmax"

    def __call__(self, z: Float[Tensor, "tokens n_latents"]) -> Codes:
        size = z.shape[1] // self.k
        values, indices = z.unflatten(1, (self.k, size)).max(dim=2)
        starts = torch.arange(0, z.shape[1], size, device=z.device)
        return _rectangle(values.relu(), indices + starts, z.shape[1])


@dataclass(frozen=True)
class BatchTopK(PerToken):
    """The k n largest pre-activations among the n tokens encoded together, negative ones set to zero.

    The rule of training (Bussmann et al. 2024). For use, a threshold takes its place (`JumpReLU`); this is for files
    that hold none. Codes of a token then depend on what it is encoded with.
    """

    kind: ClassVar[str] = "batchtopk"

    @property
    def batchwise(self) -> bool:
        return True

    def __call__(self, z: Float[Tensor, "tokens n_latents"]) -> Codes:
        chosen = largest_of_all(z, min(self.k * len(z), z.numel())).sort().values
        codes = at_entries(chosen, z)
        return codes._replace(values=codes.values.relu())


@dataclass(frozen=True, eq=False)
class JumpReLU:
    """A latent is active where its pre-activation is above its threshold, and above zero (Rajamanoharan et al. 2024b).

    Attributes:
        threshold: Of each latent.
    """

    threshold: Float[Tensor, " n_latents"]
    kind: ClassVar[str] = "jumprelu"
    elementwise: ClassVar[bool] = True
    batchwise: ClassVar[bool] = False

    def __call__(self, z: Float[Tensor, "tokens n_latents"]) -> Codes:
        return _where(z > self.threshold.to(z).clamp(min=0), z)

    def matrix(self, z: Float[Tensor, "tokens n_latents"]) -> Float[Tensor, "tokens n_latents"]:
        """The codes as a matrix, zeros included."""
        return z * (z > self.threshold.to(z).clamp(min=0))

    def emitted(self, z: Float[Tensor, " nnz"], indices: Int[Tensor, " nnz"]) -> Float[Tensor, " nnz"]:
        return z.relu()

    def slope(self, indices: Int[Tensor, " nnz"]) -> float:
        return 1.0

    def scaled(self, factor: float) -> JumpReLU:
        return JumpReLU(self.threshold * factor)

    def at(self, latents: Int[Tensor, " kept"]) -> JumpReLU:
        return JumpReLU(self.threshold[latents.to(self.threshold.device)])

    def record(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def tensors(self) -> dict[str, Tensor]:
        return {"threshold": self.threshold}


@dataclass(frozen=True, eq=False)
class Gated:
    """One path decides whether a latent is active, another how strongly (Rajamanoharan et al. 2024a, section 3.2).

    Attributes:
        b_gate: Bias of the first path.
        r_mag: Logarithm of the second path's factor.
        b_mag: Bias of the second path.
    """

    b_gate: Float[Tensor, " n_latents"]
    r_mag: Float[Tensor, " n_latents"]
    b_mag: Float[Tensor, " n_latents"]
    kind: ClassVar[str] = "gated"
    elementwise: ClassVar[bool] = True
    batchwise: ClassVar[bool] = False

    def __call__(self, z: Float[Tensor, "tokens n_latents"]) -> Codes:
        magnitude = z * self.r_mag.to(z).exp() + self.b_mag.to(z)
        return _where((z + self.b_gate.to(z) > 0) & (magnitude > 0), magnitude)

    def matrix(self, z: Float[Tensor, "tokens n_latents"]) -> Float[Tensor, "tokens n_latents"]:
        """The codes as a matrix, zeros included."""
        magnitude = (z * self.r_mag.to(z).exp() + self.b_mag.to(z)).relu()
        return magnitude * (z + self.b_gate.to(z) > 0)

    def emitted(self, z: Float[Tensor, " nnz"], indices: Int[Tensor, " nnz"]) -> Float[Tensor, " nnz"]:
        return (z * self.r_mag.to(z)[indices].exp() + self.b_mag.to(z)[indices]).relu()

    def slope(self, indices: Int[Tensor, " nnz"]) -> Float[Tensor, " nnz"]:
        r_mag = self.r_mag.to(indices.device)[indices]
        return r_mag.to(torch.promote_types(r_mag.dtype, torch.float32)).exp()

    def scaled(self, factor: float) -> Gated:
        return Gated(self.b_gate * factor, self.r_mag, self.b_mag * factor)

    def at(self, latents: Int[Tensor, " kept"]) -> Gated:
        return Gated(*(tensor[latents.to(tensor.device)] for tensor in self.tensors().values()))

    def record(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def tensors(self) -> dict[str, Tensor]:
        return {"b_gate": self.b_gate, "r_mag": self.r_mag, "b_mag": self.b_mag}


Elementwise = ReLU | JumpReLU | Gated  # each latent by itself: their codes can be had as a full matrix as well


def _where(active: Bool[Tensor, "tokens n_latents"], values: Float[Tensor, "tokens n_latents"]) -> Codes:
    """Codes of the entries that are active."""
    return at_entries(positions(active.flatten()), values)


def at_entries(entries: Int[Tensor, " nnz"], values: Float[Tensor, "tokens n_latents"]) -> Codes:
    """Codes of entries at these places of the flat matrix, in ascending order."""
    rows = entries // values.shape[1]
    offsets = torch.searchsorted(rows, torch.arange(len(values) + 1, device=rows.device))
    return Codes(values.flatten()[entries], entries - rows * values.shape[1], offsets, values.shape[1])


def _rectangle(values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], n_latents: int) -> Codes:
    """Codes of the same number of entries for each token."""
    n, k = values.shape
    offsets = torch.arange(0, n * k + 1, k, device=values.device) if k else indices.new_zeros(n + 1)
    return Codes(values.flatten(), indices.flatten(), offsets, n_latents)
