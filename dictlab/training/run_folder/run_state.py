"""The state that a run goes on from: one file, replaced whole or not at all. Nothing is pickled.

Tensors are in the safetensors format; the rest is JSON under its header's key `dictlab_state`, with a digest of itself
and one of the tensors (those of the rows below are not under it). The file is written under another name, synchronised
with the disk and renamed: a kill or a loss of power leaves the old state or the new one.

Where the latents of a dictionary are those of several processes, the tensors that have a row for each latent are in a
folder beside it (`latent_rows`), which is complete before the file names it. Whatever number of processes wrote a
state, any other can read it, each the rows of its own latents.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dictlab.errors import DictlabError
from dictlab.runtime.atomic_files import new_file, save_tensors, synchronise
from dictlab.training.distributed import latent_rows
from dictlab.training.distributed.ranks import SINGLE_PROCESS, Ranks
from dictlab.training.run_folder.state_checks import TensorsDigest, digest, refuse

if TYPE_CHECKING:
    from dictlab.training.distributed.latent_sharding import LatentShardedRanks

SCHEMA = 3
KEY = "dictlab_state"
COMMON = "bias"  # the one weight of a dictionary that has no row for each latent
ROWS = re.compile(r"[^/\\]+\.rows\.\d+")


class State(NamedTuple):
    """Tensors by name, and everything else as JSON knows it."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


def has_rows(name: str) -> bool:
    """Whether a tensor of this name has a row for each latent (see `learner_state` for names)."""
    kind, *rest = name.rpartition("/")[2].split(".")
    if kind not in ("weight", "average", "optimizer"):
        return kind == "since_fired" or (kind == "firings" and rest[0] != "tokens")
    return rest[0] != COMMON and rest[-1] != "step"


def write(path: Path, state: State, widths: Mapping[str, int], ranks: Ranks = SINGLE_PROCESS) -> None:
    """Replace the state in a file, and in the folder of rows that belongs to it.

    Args:
        path: The file's.
        state: Of every process, all of which call this.
        widths: For each member, latents of all processes.
        ranks: The processes; rank zero writes the file.

    Raises:
        OSError: It cannot be written; the state that was there is left as it was.
    """
    if ranks.shards > 1:
        rows = {name: t for name, t in state.tensors.items() if has_rows(name)}
        counts = {name: widths[name.rpartition("/")[0]] for name in rows}
        folder = ranks.broadcast_from_rank_zero(lambda: _new_folder(path))
        latent_rows.save(path.with_name(folder), rows, counts, cast("LatentShardedRanks", ranks))
        others = {name: t for name, t in state.tensors.items() if name not in rows}
        state = State(others, state.record | {"rows": {"folder": folder, "widths": counts}})
    ranks.on_rank_zero(lambda: _replace(path, state))


def remove(path: Path) -> None:
    """Remove the state of a run that is complete, and the folders of rows beside it."""
    path.unlink(missing_ok=True)
    _clear(path)


def _replace(path: Path, state: State) -> None:
    tensors = {name: t.detach().cpu().contiguous() for name, t in state.tensors.items()}
    record = {"schema": SCHEMA, "tensors": TensorsDigest.of(tensors)} | state.record
    header = {KEY: json.dumps(record | {"digest": digest(record)}, allow_nan=False)}
    rows = state.record.get("rows", {}).get("folder")
    if rows is not None:
        synchronise(path.with_name(rows))
    with new_file(path, alone=True) as partial:
        save_tensors(tensors, partial, header)
    _clear(path, keep=rows)


def _clear(path: Path, keep: str | None = None) -> None:
    """Remove folders of rows that no file names."""
    for folder in path.parent.glob(f"{path.stem}.rows.*"):
        if folder.name != keep and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


def _new_folder(path: Path) -> str:
    """A name that no folder has: the one that is named by the file stays until the file names another."""
    taken = {folder.name for folder in path.parent.glob(f"{path.stem}.rows.*")}
    return next(name for number in range(len(taken) + 1) if (name := f"{path.stem}.rows.{number}") not in taken)


def read(path: Path, widths: Mapping[str, int], ranks: Ranks = SINGLE_PROCESS) -> State:
    """The state in a file, with the rows of this process's latents.

    Args:
        path: The file's.
        widths: For each member, latents of all processes.
        ranks: The processes.

    Raises:
        DictlabError: It is damaged, or of another version, or has rows of other widths.
    """
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})[KEY])
            if not isinstance(record, dict) or record.get("schema") != SCHEMA:
                found = record.get("schema") if isinstance(record, dict) else "none"
                raise DictlabError(
                    f"{path}: state of schema {found}; this version of dictlab reads {SCHEMA}. "
                    "Go on with the version that began the run."
                )
            tensors, whole = {}, TensorsDigest()
            for name in sorted(file.keys()):
                tensors[name] = _own_part(file, name, path, widths, ranks)
                whole.add(name, file.get_tensor(name))
    except (SafetensorError, KeyError, ValueError, OSError, RecursionError) as error:
        refuse(path, str(error))
    if record.get("tensors") != whole.value():
        refuse(path, "its tensors do not have the digest that was written with them")
    if "rows" in record:
        tensors |= _sharded_rows(path, record["rows"], widths, ranks)
    return State(tensors, record)


def _own_part(file: Any, name: str, path: Path, widths: Mapping[str, int], ranks: Ranks) -> Tensor:
    """A tensor of the file; of one with a row for each latent, this process's rows."""
    if not has_rows(name):
        whole: Tensor = file.get_tensor(name).clone()
        return whole
    part, width = file.get_slice(name), widths.get(name.rpartition("/")[0])
    shape = part.get_shape()
    if not shape or shape[0] != width:
        refuse(path, f"{name} has the shape {shape}; expected {width} rows")
    rows: Tensor = part[ranks.latent_slice(shape[0])].clone()
    return rows


def _sharded_rows(path: Path, rows: Any, widths: Mapping[str, int], ranks: Ranks) -> dict[str, Tensor]:
    """Rows of this process's latents, out of the folder that the state names."""
    folder, counts = (rows.get("folder"), rows.get("widths")) if isinstance(rows, dict) else (None, None)
    if not isinstance(folder, str) or not ROWS.fullmatch(folder) or not isinstance(counts, dict):
        refuse(path, f"its rows are in {folder!r}")
    if any(count != widths.get(name.rpartition("/")[0]) or not has_rows(name) for name, count in counts.items()):
        refuse(path, "its rows are of other widths than the run's")
    if (path.with_name(folder)).is_symlink():
        refuse(path, f"{folder} is a symbolic link")
    return latent_rows.load(path.with_name(folder), counts, ranks)


def below(prefix: str, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries whose name begins with `prefix/`, without it."""
    return {name[len(prefix) + 1 :]: value for name, value in entries.items() if name.startswith(f"{prefix}/")}
