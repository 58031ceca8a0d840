"""The state that a run goes on from: one file, replaced whole or not at all. Nothing is pickled.

Tensors are in the safetensors format; the rest is JSON under its header's key `dictlab_state`. The file is written
under another name, synchronised with the disk and renamed: a kill at any moment leaves the old state or the new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dictlab.errors import DictlabError

SCHEMA = 1
KEY = "dictlab_state"


class State(NamedTuple):
    """Tensors by name, and everything else as JSON knows it."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


def write(path: Path, state: State) -> None:
    """Replace the state in a file.

    Raises:
        OSError: It cannot be written; the state that was there is left as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    tensors = {name: t.detach().cpu().contiguous() for name, t in state.tensors.items()}
    header = {KEY: json.dumps({"schema": SCHEMA} | state.record, allow_nan=False)}
    try:
        try:
            save_file(tensors, partial, metadata=header)
        except SafetensorError as error:  # what Rust says of a full disk
            raise OSError(str(error)) from error
        _synchronise(partial)
        os.replace(partial, path)
        _synchronise(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path) -> State:
    """The state in a file.

    Raises:
        DictlabError: It is damaged, or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise DictlabError(f"{path}: not a state of a training run, or damaged ({error}). Train anew.") from error
    if record.get("schema") != SCHEMA:
        raise DictlabError(
            f"{path}: state of schema {record.get('schema')}; this version of dictlab reads {SCHEMA}. "
            "Go on with the version that began the run."
        )
    return State(tensors, record)


def below(prefix: str, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries whose name begins with `prefix/`, without it."""
    return {name[len(prefix) + 1 :]: value for name, value in entries.items() if name.startswith(f"{prefix}/")}


def _synchronise(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
