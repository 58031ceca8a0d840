"""dictlab's own file: one `.safetensors`, which can be mailed, hashed, mapped and sliced.

Tensors: `W_enc [d_in, n_latents]`, `b_enc [n_latents]`, `W_dec [n_latents, d_in]`, `b_pre [d_in]`, `b_out [d_in]`,
`firing_rate [n_latents]` where it is known, and what the activation function keeps, under `activation.`. A transcoder
has `W_dec [n_latents, d_out]` and `b_out [d_out]`, and it or an autoencoder may have `W_skip [d_in, d_out]`; the header
of these has the schema 2 and says `transcodes`, so that a version that knows schema 1 alone refuses them.
Everything else is JSON under the header's key `dictlab`. Weights may be stored in half precision; they are computed
with in float32.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dictlab.dictionary import Dictionary, activation_records, normalisation
from dictlab.dictionary.tensor_checks import check_shapes
from dictlab.errors import DictlabError
from dictlab.formats.native.header import SCHEMA, TWO_PLACES, metadata_of, short
from dictlab.formats.reading.checks import check
from dictlab.formats.reading.configs import line, plain
from dictlab.formats.reading.source import Source
from dictlab.runtime import atomic_files

WRITES_TWO_PLACES = True
OWN = "activation."  # tensors of the activation function


def save(dictionary: Dictionary, path: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write a dictionary to a single file, whole or not at all.

    Args:
        path: Ends in `.safetensors`; an existing file is replaced.
        dtype: Precision of the weights in the file; as they are by default.

    Raises:
        DictlabError: The path has another ending or is a folder, or the dictionary is one that `load` would refuse: it
            holds NaN or infinite values (perhaps only in this precision), or metadata that is no JSON.
        OSError: The disk is full, or gone.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise DictlabError(f"{path}: a dictionary's file ends in .safetensors.")
    if path.is_dir():
        raise DictlabError(f"{path}: this is a folder; expected the name of a file.")
    try:
        written = header(dictionary)
    except (TypeError, ValueError) as error:
        raise DictlabError(f"{path}: not saved: {error}") from error
    own = tensors(dictionary, dtype)
    check_written(written, own, path)
    with atomic_files.new_file(path) as partial:
        atomic_files.save_tensors(_apart(own), partial, {"dictlab": written})
    return path


def tensors(dictionary: Dictionary, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """What the file holds as tensors, by name, on the CPU."""
    own = {name: t.detach().to("cpu", dtype).contiguous() for name, t in dictionary._weights()}
    own |= {OWN + name: t.cpu().contiguous() for name, t in dictionary.activation.tensors().items()}
    if dictionary.firing_rate is not None:
        own["firing_rate"] = dictionary.firing_rate.float().cpu()
    return own


def header(dictionary: Dictionary) -> str:
    """What the file's header says.

    Raises:
        TypeError: The metadata is no JSON.
    """
    schema = {"schema": SCHEMA} if dictionary.plain else {"schema": TWO_PLACES, "transcodes": dictionary.transcodes}
    return json.dumps(
        {
            **schema,
            "activation": dictionary.activation.record(),
            "normalisation": normalisation.to_record(dictionary.normalisation),
            "metadata": asdict(dictionary.metadata),
        }
    )


def check_written(header: str, own: dict[str, Tensor], path: Path) -> None:
    """Refuse to write what could not be read.

    Raises:
        DictlabError: It could not.
    """
    try:
        check(_assemble(_header(header), own))
    except (DictlabError, TypeError, ValueError) as error:
        raise DictlabError(f"{path}: not saved: {error}") from error


def write(dictionary: Dictionary, path: Path) -> Path:
    """`save`, under the name that every format gives it."""
    return save(dictionary, path)


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, no two in the same memory as a bias that serves twice is: the file format refuses that."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return apart


def recognise(source: Source) -> bool:
    """Whether dictlab wrote it: the header says so."""
    return "dictlab" in source.header


def read(source: Source) -> Dictionary:
    """The dictionary in a file of dictlab's.

    Raises:
        DictlabError: Its header is damaged or of a later version, tensors are missing or do not fit each other, or a
            part or scale is given that it has no use for.
    """
    if "dictlab" not in source.header:
        raise DictlabError("dictlab did not write it: its header has no entry 'dictlab'.")
    if source.part is not None:
        raise DictlabError(f"it holds one dictionary, and none called {source.part[:40]!r}; leave out what follows #.")
    if source.scale is not None:
        raise DictlabError(f"a scale of {source.scale} is given, and it says itself how its inputs are scaled.")
    return _assemble(_header(source.header["dictlab"]), dict(source.tensors))


def _header(text: str) -> dict[str, Any]:
    try:
        header = plain(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise DictlabError(f"the header's entry 'dictlab' is damaged ({line(error)}).") from error
    if not isinstance(header, dict) or "schema" not in header:
        raise DictlabError("the header's entry 'dictlab' is damaged (it names no schema).")
    schema = header["schema"]
    if type(schema) is not int or schema not in (SCHEMA, TWO_PLACES):
        raise DictlabError(
            f"file schema {short(schema)}; this version of dictlab reads {SCHEMA} and {TWO_PLACES}. Upgrade dictlab."
        )
    if schema == TWO_PLACES and type(header.get("transcodes")) is not bool:
        raise DictlabError(f"the header's 'transcodes' is {short(header.get('transcodes'))}; expected true or false.")
    return header


def _assemble(header: dict[str, Any], tensors: dict[str, Tensor]) -> Dictionary:
    transcodes = header["transcodes"] if header["schema"] == TWO_PLACES else False
    if header["schema"] == SCHEMA and "W_skip" in tensors:
        raise DictlabError(f"it has a tensor W_skip, which files of schema {SCHEMA} have not.")
    check_shapes(tensors, transcodes=transcodes)
    about = metadata_of(_entry(header, "metadata"))
    if about.writes is not None and not transcodes:
        raise DictlabError(f"metadata: writes is {short(about.writes)}, and its header says of no transcoder.")
    rate = tensors.get("firing_rate")
    own = {name.removeprefix(OWN): t for name, t in tensors.items() if name.startswith(OWN)}
    return Dictionary(
        W_enc=tensors["W_enc"],
        b_enc=tensors["b_enc"],
        W_dec=tensors["W_dec"],
        b_pre=tensors["b_pre"],
        b_out=tensors["b_out"],
        activation=activation_records.from_record(_entry(header, "activation"), own, len(tensors["W_dec"])),
        normalisation=normalisation.from_record(_entry(header, "normalisation")),
        W_skip=tensors.get("W_skip"),
        transcodes=transcodes,
        firing_rate=None if rate is None else rate.float(),
        metadata=about,
    )


def _entry(header: dict[str, Any], name: str) -> dict[str, Any]:
    entry = header.get(name)
    if not isinstance(entry, dict):
        raise DictlabError(f"the header's {name!r} is {short(entry)}; expected a JSON object.")
    return entry
