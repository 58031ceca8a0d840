"""Activation functions out of files: a tagged record and the tensors beside it.

`Activation.record` and `Activation.tensors` write them; a new activation function is one line in `READERS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dictlab.dictionary.activation_functions import (
    AbsTopK,
    Activation,
    BatchTopK,
    Gated,
    GroupMax,
    JumpReLU,
    PerToken,
    ReLU,
    TopK,
)
from dictlab.dictionary.union import Union
from dictlab.errors import DictlabError

COUNTED = ("topk", "abstopk", "batchtopk", "groupmax")  # kinds that are followed by their k
KINDS = ("relu", "jumprelu", "gated", *COUNTED)  # kinds that have a name in texts


def from_record(record: Mapping[str, Any], tensors: Mapping[str, Tensor], n_latents: int) -> Activation:
    """The activation function that a file describes.

    Args:
        record: What `Activation.record` gave.
        tensors: What `Activation.tensors` gave.
        n_latents: Of the dictionary that it belongs to.

    Raises:
        DictlabError: Its kind is unknown, what it needs is missing or of another shape, or there is more than it needs.
    """
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in READERS:
        raise DictlabError(f"activation function {kind!r} is unknown; known are {', '.join(READERS)}.")
    made = READERS[kind](record, tensors, n_latents)
    unknown = sorted({*record, *tensors} - {*made.record(), *made.tensors()})
    if unknown:
        raise DictlabError(
            f"activation function {kind}: {str(unknown[0])[:40]!r} is unknown here and may change the function."
        )
    return made


def from_name(name: str, tensors: Mapping[str, Tensor], n_latents: int) -> Activation:
    """The activation function that a text such as "relu", "topk:32" or "jumprelu:0.3" names.

    Args:
        name: A kind, and behind a colon the k, or the threshold of all latents.
        tensors: Those of the activation function that the text does not say, such as `threshold`.
        n_latents: Of the dictionary that it belongs to.

    Raises:
        DictlabError: The text is none of these, or does not fit.
    """
    kind, colon, argument = name.partition(":")
    if kind not in KINDS or (colon and kind not in (*COUNTED, JumpReLU.kind)):
        raise DictlabError(f"activation is {name[:40]!r}; expected one of {expected_names()}.")
    if kind in COUNTED:
        if not (argument.isascii() and argument.isdecimal() and 0 < int(argument[:18]) <= n_latents):
            raise DictlabError(f"activation is {name[:40]!r}; expected {kind}:k with k from 1 to {n_latents}.")
        return from_record({"kind": kind, "k": int(argument)}, tensors, n_latents)
    if not colon:
        return from_record({"kind": kind}, tensors, n_latents)
    try:
        threshold = float(argument)
    except ValueError:
        threshold = math.nan
    if not abs(threshold) <= torch.finfo(torch.float32).max:
        raise DictlabError(f"activation is {name[:40]!r}; expected a number behind the colon.")
    return from_record({"kind": kind}, {"threshold": torch.full((n_latents,), threshold), **tensors}, n_latents)


def expected_names() -> str:
    """What `from_name` takes, in words."""
    return f"{', '.join(KINDS)}, with :k behind {', '.join(COUNTED)}"


def whole(value: Any, name: str) -> int:
    """A number of latents, out of a file.

    Raises:
        DictlabError: It is no whole number above 0 (a bool is an int, and means nothing here).
    """
    if type(value) is not int or value < 1:
        raise DictlabError(f"{name} is {repr(value)[:40]}; expected a whole number above 0.")
    return value


def _read_k(cls: type[PerToken]) -> Callable[..., Activation]:
    def read(record: Mapping[str, Any], tensors: Mapping[str, Tensor], n_latents: int) -> Activation:
        activation: Activation = cls(whole(record.get("k"), f"activation function {cls.kind}: k"))  # type: ignore[assignment]
        return activation

    return read


def _read_groupmax(record: Mapping[str, Any], tensors: Mapping[str, Tensor], n_latents: int) -> GroupMax:
    k = whole(record.get("k"), "activation function groupmax: k")
    if n_latents % k:
        raise DictlabError(f"activation function groupmax: {n_latents} latents do not divide into {k} groups.")
    return GroupMax(k)


def _read_vectors(cls: type[JumpReLU] | type[Gated], *names: str) -> Callable[..., Activation]:
    def read(record: Mapping[str, Any], tensors: Mapping[str, Tensor], n_latents: int) -> Activation:
        return cls(*(_vector(tensors, name, n_latents, cls.kind) for name in names))

    return read


def _vector(tensors: Mapping[str, Tensor], name: str, n_latents: int, kind: str) -> Tensor:
    if name not in tensors:
        raise DictlabError(f"activation function {kind}: the tensor {name!r} is missing.")
    if list(tensors[name].shape) != [n_latents]:
        raise DictlabError(
            f"activation function {kind}: {name} has shape {list(tensors[name].shape)}; expected {[n_latents]}."
        )
    return tensors[name]


def _read_union(record: Mapping[str, Any], tensors: Mapping[str, Tensor], n_latents: int) -> Union:
    emits = _vector(tensors, "emits", n_latents, "union")
    pairs = record.get("parts") if isinstance(record.get("parts"), list) else []
    if not pairs or not all(
        isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is int and pair[0] > 0 and isinstance(pair[1], dict)
        for pair in pairs
    ):
        raise DictlabError(
            f"activation function union: parts is {str(record.get('parts'))[:60]}; "
            "expected [[latents, activation], ...]."
        )
    if sum(width for width, _ in pairs) != n_latents:
        raise DictlabError(
            f"activation function union: its parts have {sum(width for width, _ in pairs)} latents, not {n_latents}."
        )
    if any(part.get("kind") == Union.kind for _, part in pairs):
        raise DictlabError("activation function union: one of its parts is a union itself.")
    parts = []
    for index, (width, part) in enumerate(pairs):
        own = {name.removeprefix(f"{index}."): t for name, t in tensors.items() if name.startswith(f"{index}.")}
        parts.append((width, from_record(part, own, width)))
    return Union(tuple(parts), emits.bool())


READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Tensor], int], Activation]] = {
    ReLU.kind: lambda record, tensors, n_latents: ReLU(),
    JumpReLU.kind: _read_vectors(JumpReLU, "threshold"),
    Gated.kind: _read_vectors(Gated, "b_gate", "r_mag", "b_mag"),
    TopK.kind: _read_k(TopK),
    AbsTopK.kind: _read_k(AbsTopK),
    GroupMax.kind: _read_groupmax,
    BatchTopK.kind: _read_k(BatchTopK),
    Union.kind: _read_union,
}
