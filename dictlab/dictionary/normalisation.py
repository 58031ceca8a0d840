"""What happens to an activation before the encoder, and is undone after the decoder?

Like the activation function, a normalisation is a small value that a file stores as a tagged record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from dictlab.errors import DictlabError


class Undo(NamedTuple):
    """Per token, what brings a decoded vector back: `y * scale + shift`."""

    scale: Tensor | float
    shift: Tensor | float

    def __call__(self, y: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_in"]:
        """`y * scale + shift`, without a pass over y for what does nothing."""
        scaled = y if isinstance(self.scale, float) and self.scale == 1.0 else y * self.scale
        return scaled if isinstance(self.shift, float) and self.shift == 0.0 else scaled + self.shift

    @property
    def factor(self) -> float | None:
        """The one number that it multiplies everything by, if that is all it does."""
        plain = isinstance(self.scale, float) and isinstance(self.shift, float) and self.shift == 0.0
        return float(self.scale) if plain else None


class Normalisation(Protocol):
    """From an activation x to the encoder's input h, and how to come back."""

    kind: ClassVar[str]
    per_token: ClassVar[bool]

    def __call__(self, x: Float[Tensor, "tokens d_in"]) -> tuple[Float[Tensor, "tokens d_in"], Undo]:
        """The encoder's input, and how to undo it on the decoder's output."""
        ...


@dataclass(frozen=True)
class NoNormalisation:
    """h = x."""

    kind: ClassVar[str] = "none"
    per_token: ClassVar[bool] = False

    def __call__(self, x: Float[Tensor, "tokens d_in"]) -> tuple[Float[Tensor, "tokens d_in"], Undo]:
        return x, Undo(1.0, 0.0)


@dataclass(frozen=True)
class Scale:
    """h = factor * x, one factor for all tokens: the units a dictionary is trained in."""

    factor: float
    kind: ClassVar[str] = "scale"
    per_token: ClassVar[bool] = False

    def __call__(self, x: Float[Tensor, "tokens d_in"]) -> tuple[Float[Tensor, "tokens d_in"], Undo]:
        return x * self.factor, Undo(1.0 / self.factor, 0.0)


@dataclass(frozen=True)
class LayerNorm:
    """Each token centred over its coordinates and divided by their standard deviation (n - 1) plus eps.

    The way back multiplies by the standard deviation without eps, as OpenAI's and SAELens' dictionaries do.
    """

    eps: float = 1e-5
    kind: ClassVar[str] = "layer_norm"
    per_token: ClassVar[bool] = True

    def __call__(self, x: Float[Tensor, "tokens d_in"]) -> tuple[Float[Tensor, "tokens d_in"], Undo]:
        mean = x.mean(dim=-1, keepdim=True)
        centred = x - mean
        # not x.std, which warns of a batch without tokens and has no gradient at a constant one
        std = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / max(1, x.shape[-1] - 1) ** 0.5
        return centred / (std + self.eps).clamp_min(torch.finfo(x.dtype).tiny), Undo(std, mean)


@dataclass(frozen=True)
class ConstantNorm:
    """Each token scaled to the length sqrt(d_in), as older dictionaries of SAELens do."""

    kind: ClassVar[str] = "constant_norm"
    per_token: ClassVar[bool] = True

    def __call__(self, x: Float[Tensor, "tokens d_in"]) -> tuple[Float[Tensor, "tokens d_in"], Undo]:
        scale = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return x / scale.clamp_min(torch.finfo(x.dtype).tiny), Undo(scale, 0.0)  # a token of zeros stays one


@dataclass(frozen=True)
class Centred:
    """Each token centred over its coordinates first, and its mean given back at the end.

    A dictionary trained where activations have the mean 0, as those of TransformerLens models do, reads the activations
    of an unprocessed model through this.

    Attributes:
        then: What is done to the centred token.
    """

    then: Normalisation = NoNormalisation()
    kind: ClassVar[str] = "centred"
    per_token: ClassVar[bool] = True

    def __call__(self, x: Float[Tensor, "tokens d_in"]) -> tuple[Float[Tensor, "tokens d_in"], Undo]:
        mean = x.mean(dim=-1, keepdim=True)
        h, undo = self.then(x - mean)
        return h, Undo(undo.scale, undo.shift + mean)


def unscaled(
    normalisation: Normalisation, x: Float[Tensor, "tokens d_in"]
) -> tuple[Float[Tensor, "tokens d_in"], float, Undo]:
    """The encoder's input as a matrix and a factor of it, and how to undo it. One scale for all makes no copy of x."""
    if isinstance(normalisation, Scale):
        return x, normalisation.factor, Undo(1.0 / normalisation.factor, 0.0)
    h, undo = normalisation(x)
    return h, 1.0, undo


PLAIN: dict[str, type] = {cls.kind: cls for cls in (NoNormalisation, Scale, LayerNorm, ConstantNorm)}
KINDS = (*PLAIN, Centred.kind)


def to_record(normalisation: Normalisation) -> dict[str, Any]:
    """What a file's header says of it."""
    if isinstance(normalisation, Centred):
        return {"kind": normalisation.kind, "then": to_record(normalisation.then)}
    return {"kind": normalisation.kind, **asdict(normalisation)}  # type: ignore[call-overload]


def from_record(record: Mapping[str, Any]) -> Normalisation:
    """The normalisation that a file describes.

    Raises:
        DictlabError: Its kind is unknown, or its numbers are not what that kind needs.
    """
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise DictlabError(f"input normalisation {str(kind)[:40]!r} is unknown; known are {', '.join(KINDS)}.")
    given = {name: value for name, value in record.items() if name != "kind"}
    needed = {"then"} if kind == Centred.kind else {field.name for field in fields(PLAIN[kind])}
    if given.keys() != needed:
        raise DictlabError(f"input normalisation {kind}: it has {sorted(given)}; expected {sorted(needed)}.")
    if kind == Centred.kind:
        return Centred(_inner(given["then"]))
    for name, value in given.items():
        # eps may be 0; by a factor one divides
        least = 0.0 if kind == LayerNorm.kind else torch.finfo(torch.float32).tiny
        if type(value) not in (int, float) or not least <= value <= torch.finfo(torch.float32).max:
            raise DictlabError(f"input normalisation {kind}: {name} is {value!r}; expected a positive number.")
    made: Normalisation = PLAIN[kind](**{name: float(value) for name, value in given.items()})
    return made


def _inner(record: Any) -> Normalisation:
    if not isinstance(record, dict) or record.get("kind") == Centred.kind:
        raise DictlabError("input normalisation centred: 'then' is no other normalisation.")
    return from_record(record)
