"""dictlab's own file: one `.safetensors`, which can be mailed, hashed, mapped and sliced.

Tensors: `W_enc [d_in, n_latents]`, `b_enc [n_latents]`, `W_dec [n_latents, d_in]`, `b_pre [d_in]`, `b_out [d_in]`,
`firing_rate [n_latents]` where it is known, and what the activation function keeps, under `activation.`.
Everything else is JSON under the header's key `dictlab`. Weights may be stored in half precision; they are computed
with in float32.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dictlab import normalisation, sparsity
from dictlab.dictionary import Dictionary, Metadata
from dictlab.errors import DictlabError

SCHEMA = 1
OWN = "activation."  # tensors of the activation function
WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_pre", "b_out")
PRECISIONS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
METADATA: dict[str, type] = {
    "model": str,
    "model_fingerprint": str,
    "site": str,
    "objective": str,
    "seed": int,
    "tokens": int,
    "training": dict,
    "metrics": dict,
    "sources": list,
    "library": str,
}


def save(dictionary: Dictionary, path: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write a dictionary to a single file, whole or not at all.

    Args:
        path: Ends in `.safetensors`; an existing file is replaced.
        dtype: Precision of the weights in the file; as they are by default.

    Raises:
        DictlabError: The path has another ending or is a folder, or the dictionary is one that `load` would refuse: it
            holds NaN or infinite values (perhaps only in this precision), or metadata that is no JSON.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise DictlabError(f"{path}: a dictionary's file ends in .safetensors.")
    if path.is_dir():
        raise DictlabError(f"{path}: this is a folder; expected the name of a file.")
    tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in dictionary._weights()}
    tensors |= {OWN + name: t.cpu().contiguous() for name, t in dictionary.activation.tensors().items()}
    if dictionary.firing_rate is not None:
        tensors["firing_rate"] = dictionary.firing_rate.float().cpu()
    header = {
        "schema": SCHEMA,
        "activation": dictionary.activation.record(),
        "normalisation": normalisation.to_record(dictionary.normalisation),
        "metadata": asdict(dictionary.metadata),
    }
    try:
        written = json.dumps(header)
        _assemble(path, json.loads(written), tensors)  # what is written can be read
    except (DictlabError, TypeError, ValueError) as error:
        raise DictlabError(f"{path}: not saved: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(_apart(tensors), partial, metadata={"dictlab": written})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, no two in the same memory as a bias that serves twice is: the file format refuses that."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return apart


def load(path: str | Path, device: str | torch.device = "cpu") -> Dictionary:
    """Read a dictionary from its file, in float32.

    Raises:
        DictlabError: There is no such file, it is damaged, or it is no dictionary of dictlab's.
    """
    path = Path(path)
    if not path.exists():
        raise DictlabError(f"{path}: no such file.")
    if path.is_dir():
        raise DictlabError(f"{path}: this is a folder; expected a .safetensors file.")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            header = _header(path, file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DictlabError(f"{path}: not a readable safetensors file, truncated or damaged ({reason}).") from error
    try:
        return _assemble(path, header, tensors)
    except DictlabError as error:
        raise DictlabError(f"{path}: {error}") from None


def _header(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    if "dictlab" not in metadata:
        raise DictlabError(
            f"{path}: a safetensors file, but no dictionary written by dictlab (its header has no entry 'dictlab')."
        )
    try:
        header = json.loads(metadata["dictlab"])
    except (ValueError, RecursionError) as error:
        raise DictlabError(f"{path}: the header's entry 'dictlab' is damaged ({error}).") from error
    if not isinstance(header, dict) or "schema" not in header:
        raise DictlabError(f"{path}: the header's entry 'dictlab' is damaged (it names no schema).")
    schema = header["schema"]
    if type(schema) is not int or schema != SCHEMA:
        raise DictlabError(f"{path}: file schema {schema!r}; this version of dictlab reads {SCHEMA}. Upgrade dictlab.")
    return header


def _assemble(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> Dictionary:
    _check(tensors)
    own = {name.removeprefix(OWN): t for name, t in tensors.items() if name.startswith(OWN)}
    rate = tensors.get("firing_rate")
    return Dictionary(
        **{name: tensors[name].float() for name in WEIGHTS},
        activation=sparsity.from_record(_entry(header, "activation"), own),
        normalisation=normalisation.from_record(_entry(header, "normalisation")),
        firing_rate=None if rate is None else rate.float(),
        metadata=_metadata(_entry(header, "metadata")),
        name=path.stem,
        path=path,
    )


def _entry(header: dict[str, Any], name: str) -> dict[str, Any]:
    entry = header.get(name)
    if not isinstance(entry, dict):
        raise DictlabError(f"the header's {name!r} is {_short(entry)}; expected a JSON object.")
    return entry


def _metadata(record: dict[str, Any]) -> Metadata:
    """Its fields, checked; what a later version has added is passed over."""
    known = {name: value for name, value in record.items() if name in METADATA and value is not None}
    for name, value in known.items():
        if type(value) is not METADATA[name]:
            raise DictlabError(f"metadata: {name} is {_short(value)}; expected a JSON {METADATA[name].__name__}.")
    sources = known.pop("sources", [])
    if not all(isinstance(source, str) for source in sources):
        raise DictlabError(f"metadata: sources is {_short(sources)}; expected names.")
    return Metadata(**known, sources=tuple(sources))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _check(tensors: dict[str, Tensor]) -> None:
    """Shapes agree with W_dec's, and every number is finite, in float32 too."""
    missing = [name for name in WEIGHTS if name not in tensors]
    if missing:
        raise DictlabError(f"the tensor {missing[0]!r} is missing; found {', '.join(sorted(tensors))}.")
    if tensors["W_dec"].ndim != 2 or 0 in tensors["W_dec"].shape:
        raise DictlabError(f"W_dec has shape {list(tensors['W_dec'].shape)}; expected [n_latents, d_in].")
    n_latents, d_in = tensors["W_dec"].shape
    expected = {
        "W_enc": [d_in, n_latents],
        "b_enc": [n_latents],
        "W_dec": [n_latents, d_in],
        "b_pre": [d_in],
        "b_out": [d_in],
        "firing_rate": [n_latents],
        OWN + "emits": [n_latents],
    }
    for name, tensor in tensors.items():
        if name not in expected and not name.startswith(OWN):
            continue
        if name in expected and list(tensor.shape) != expected[name]:
            raise DictlabError(
                f"{name} has shape {list(tensor.shape)}; expected {expected[name]} beside W_dec {[n_latents, d_in]}."
            )
        precisions = (torch.bool,) if name == OWN + "emits" else PRECISIONS
        if tensor.dtype not in precisions:
            raise DictlabError(f"{name} holds {_named(tensor.dtype)}; expected {' or '.join(map(_named, precisions))}.")
        bad = int((~torch.isfinite(tensor.float())).sum())
        if bad:
            raise DictlabError(f"{name} holds {bad} values that are NaN or infinite.")


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
