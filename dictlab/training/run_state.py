"""The state that a run goes on from: one file, replaced whole or not at all. Nothing is pickled.

Tensors are in the safetensors format; the rest is JSON under its header's key `dictlab_state`. The file is written
under another name, synchronised with the disk and renamed: a kill at any moment leaves the old state or the new one.

Where the latents of a dictionary are those of several processes, the tensors that have a row for each latent are in a
folder beside it (`rows`), which is complete before the file names it. Whatever number of processes wrote a state, any
other can read it, each the rows of its own latents.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dictlab.errors import DictlabError
from dictlab.training.distributed import latent_rows
from dictlab.training.distributed.ranks import SINGLE_PROCESS, Ranks

if TYPE_CHECKING:
    from dictlab.training.distributed.latent_sharding import LatentShardedRanks

SCHEMA = 2
KEY = "dictlab_state"
COMMON = "bias"  # the one weight of a dictionary that has no row for each latent


class State(NamedTuple):
    """Tensors by name, and everything else as JSON knows it."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


def has_rows(name: str) -> bool:
    """Whether a tensor of this name has a row for each latent (see `snapshot` for names)."""
    kind, *rest = name.rpartition("/")[2].split(".")
    if kind not in ("weight", "average", "optimizer"):
        return kind == "since_fired"
    return rest[0] != COMMON and rest[-1] != "step"


def write(path: Path, state: State, widths: Mapping[str, int], ranks: Ranks = SINGLE_PROCESS) -> None:
    """Replace the state in a file, and in the folder of rows that belongs to it.

    Args:
        path: The file's.
        state: Of every process, all of which call this.
        widths: For each member, latents of all processes.
        ranks: The processes; the first writes the file.

    Raises:
        OSError: It cannot be written; the state that was there is left as it was.
    """
    if ranks.shards > 1:
        own = {name: t for name, t in state.tensors.items() if has_rows(name)}
        counts = {name: widths[name.rpartition("/")[0]] for name in own}
        folder = ranks.broadcast_from_rank_zero(lambda: _new_folder(path))
        latent_rows.save(path.with_name(folder), own, counts, cast("LatentShardedRanks", ranks))
        apart = {"rows": {"folder": folder, "widths": counts}}
        whole = {name: t for name, t in state.tensors.items() if name not in own}
        state = State(whole, state.record | apart)
    ranks.on_rank_zero(lambda: _replace(path, state))


def remove(path: Path) -> None:
    """There is nothing left to go on with."""
    path.unlink(missing_ok=True)
    _clear(path)


def _replace(path: Path, state: State) -> None:
    _write(path, state)
    _clear(path, keep=state.record.get("rows", {}).get("folder"))


def _clear(path: Path, keep: str | None = None) -> None:
    """Remove folders of rows that no file names."""
    for folder in path.parent.glob(f"{path.stem}.rows.*"):
        if folder.name != keep:
            shutil.rmtree(folder, ignore_errors=True)


def _new_folder(path: Path) -> str:
    """A name that no folder has: the one that is named by the file stays until the file names another."""
    taken = {folder.name for folder in path.parent.glob(f"{path.stem}.rows.*")}
    return next(name for number in range(len(taken) + 1) if (name := f"{path.stem}.rows.{number}") not in taken)


def _write(path: Path, state: State) -> None:
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


def read(path: Path, ranks: Ranks = SINGLE_PROCESS) -> State:
    """The state in a file, with the rows of this process's latents.

    Raises:
        DictlabError: It is damaged, or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})[KEY])
            tensors = {name: _own(file, name, ranks) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise DictlabError(f"{path}: not a state of a training run, or damaged ({error}). Train anew.") from error
    if record.get("schema") != SCHEMA:
        raise DictlabError(
            f"{path}: state of schema {record.get('schema')}; this version of dictlab reads {SCHEMA}. "
            "Go on with the version that began the run."
        )
    apart = record.pop("rows", None)
    if apart is not None:
        tensors |= latent_rows.load(path.with_name(apart["folder"]), apart["widths"], ranks)
    return State(tensors, record)


def _own(file: Any, name: str, ranks: Ranks) -> Tensor:
    if ranks.shards == 1 or not has_rows(name):
        whole: Tensor = file.get_tensor(name).clone()
        return whole
    part = file.get_slice(name)
    some: Tensor = part[ranks.latent_slice(part.get_shape()[0])].clone()
    return some


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
