"""What does the header of dictlab's own file say? Read without torch, for `dictlab info` to answer at once.

Only the usual is read here: `described` gives None for all that is out of the ordinary or may be damaged, which the
format itself then reads, or refuses by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from dictlab.dictionary.metadata import Metadata
from dictlab.errors import DictlabError

SCHEMA = 1  # of dictionaries that reconstruct what they read from codes alone
TWO_PLACES = 2  # of transcoders, and of those with a skip
HEADER_BYTES = 1 << 20
METADATA: dict[str, type] = {
    "model": str,
    "model_fingerprint": str,
    "site": str,
    "writes": str,
    "objective": str,
    "seed": int,
    "tokens": int,
    "training": dict,
    "metrics": dict,
    "sources": list,
    "library": str,
    "convention": str,
    "foreign": dict,
    "notes": list,
}
DTYPES = {"F64": ("float64", 8), "F32": ("float32", 4), "BF16": ("bfloat16", 2), "F16": ("float16", 2)}
BY_K = ("topk", "abstopk", "batchtopk")


class Described(NamedTuple):
    """What a file says of its dictionary.

    Attributes:
        n_latents: Latents.
        d_in: Width of the activations it reads.
        activation: The record of its activation function.
        normalisation: The record of its input normalisation.
        metadata: Where it came from.
        dtype: Precision of `W_dec` in the file.
    """

    n_latents: int
    d_in: int
    activation: dict[str, Any]
    normalisation: dict[str, Any]
    metadata: Metadata
    dtype: str


def described(path: Path) -> Described | None:
    """What the header of a file of dictlab's says, where all of it is as usual; else None."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= HEADER_BYTES:
                return None
            tensors = json.loads(file.read(length))
        about = json.loads(tensors.pop("__metadata__")["dictlab"])
        if about["schema"] != SCHEMA or not _whole(tensors, path.stat().st_size - 8 - length):
            return None
        n_latents, d_in = tensors["W_dec"]["shape"]
        widths = {"b_enc": [n_latents], "b_pre": [d_in], "b_out": [d_in], "W_enc": [d_in, n_latents]}
        if any(tensors[name]["shape"] != shape for name, shape in widths.items()):
            return None
        activation, normalisation = about["activation"], about["normalisation"]
        if normalisation != {"kind": "none"} or not _usual(activation, tensors, n_latents):
            return None
        dtype, metadata = DTYPES[tensors["W_dec"]["dtype"]][0], metadata_of(about["metadata"])
        if "W_skip" in tensors or metadata.writes is not None:
            return None
        return Described(n_latents, d_in, activation, normalisation, metadata, dtype)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, DictlabError):
        return None


def _whole(tensors: dict[str, Any], size: int) -> bool:
    """Whether the tensors lie one behind the other, as long as their shapes say, and fill the file."""
    end = 0
    for tensor in sorted(tensors.values(), key=lambda one: one["data_offsets"]):
        n = DTYPES[tensor["dtype"]][1]
        for side in tensor["shape"]:
            n *= side
        if tensor["data_offsets"] != [end, end + n] or n <= 0:
            return False
        end += n
    return end == size


def _usual(activation: dict[str, Any], tensors: dict[str, Any], n_latents: int) -> bool:
    """Whether an activation function is one of the plain ones, and has what it needs."""
    own = {name: tensor["shape"] for name, tensor in tensors.items() if name.startswith("activation.")}
    kind, k = activation["kind"], activation.get("k")
    if kind in BY_K:
        return activation.keys() == {"kind", "k"} and type(k) is int and 1 <= k <= n_latents and not own
    needed = {"activation.threshold": [n_latents]} if kind == "jumprelu" else {}
    return kind in ("relu", "jumprelu") and activation.keys() == {"kind"} and own == needed


def metadata_of(record: dict[str, Any]) -> Metadata:
    """Its fields, checked; what a later version has added is passed over.

    Raises:
        DictlabError: A field is of another type.
    """
    if "convention" not in record:  # not yet a field: dictlab has never trained on anything else
        record = record | {"convention": "huggingface"}
    known = {name: value for name, value in record.items() if name in METADATA and value is not None}
    for name, value in known.items():
        if type(value) is not METADATA[name]:
            raise DictlabError(f"metadata: {name} is {short(value)}; expected a JSON {METADATA[name].__name__}.")
    for name in ("sources", "notes"):
        texts = known.pop(name, [])
        if not all(isinstance(text, str) for text in texts):
            raise DictlabError(f"metadata: {name} is {short(texts)}; expected texts.")
        known[name] = tuple(texts)
    return Metadata(**known)


def short(value: Any) -> str:
    """The beginning of a value, for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
