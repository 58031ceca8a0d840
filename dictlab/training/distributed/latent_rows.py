"""Tensors that have a row for each latent, in files of as many processes as there are, for any other number of them.

    save    each process writes its own rows        torch.distributed.checkpoint, in the safetensors format
    load    each process reads the rows that are its own now, from whatever files they are in

A tensor is a DTensor here, and only here: `Shard(0)` over the processes that share the latents, `Replicate()` over
those that share tokens, of which one writes. That is how the checkpoint knows which rows are whose. Its own format is
not taken: that would be unpickled on reading.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from dictlab.errors import DictlabError
from dictlab.training.distributed.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from dictlab.training.distributed.latent_sharding import LatentShardedRanks

NEEDED = "`shards=...` keeps its state with torch.distributed.checkpoint in the safetensors format, which torch 2.9 has"


def save(folder: Path, own: Mapping[str, Tensor], widths: Mapping[str, int], ranks: LatentShardedRanks) -> None:
    """Write each process's rows into a new folder; returns when all are written.

    Args:
        folder: The same in every process.
        own: This process's rows.
        widths: How many rows each tensor has in all processes.
        ranks: The processes.

    Raises:
        OSError: One of the processes cannot write.
    """
    checkpoint = _checkpoint()
    whole = {name: _of_all(t.detach(), widths[name], ranks.mesh) for name, t in own.items()}
    try:
        checkpoint.save(whole, storage_writer=checkpoint.HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except checkpoint.api.CheckpointException as error:
        raise OSError("; ".join(f"process {rank}: {what[0]}" for rank, what in error.failures.items())) from error


def load(folder: Path, widths: Mapping[str, int], ranks: Ranks) -> dict[str, Tensor]:
    """The rows of this process's latents, on the CPU.

    Args:
        folder: Where some processes saved them.
        widths: How many rows each tensor has in all processes.
        ranks: The processes that there are now.

    Raises:
        DictlabError: A file is missing or damaged.
    """
    checkpoint = _checkpoint()
    try:
        reader = checkpoint.HuggingFaceStorageReader(str(folder))
        known = reader.read_metadata().state_dict_metadata
        _check_complete(known, widths)
        own = {name: _own_rows(entry, ranks) for name, entry in known.items()}
        if ranks.shards == 1:
            with warnings.catch_warnings():  # that there is but one process
                warnings.simplefilter("ignore", UserWarning)
                checkpoint.load(own, storage_reader=reader, no_dist=True)
            return own
        mesh = ranks.cpu_mesh  # type: ignore[attr-defined]
        checkpoint.load({name: _of_all(t, known[name].size[0], mesh) for name, t in own.items()}, storage_reader=reader)
    except (SafetensorError, OSError, KeyError, ValueError, checkpoint.api.CheckpointException) as error:
        raise DictlabError(f"{folder}: rows of a run's state, missing or damaged ({error}). Train anew.") from error
    return own


def _own_rows(entry: Any, ranks: Ranks) -> Tensor:
    """Room for the rows of one tensor that are this process's; `Shard(0)` cuts as `latents` does."""
    own = ranks.latent_slice(entry.size[0])
    return torch.empty(own.stop - own.start, *entry.size[1:], dtype=entry.properties.dtype)


def _check_complete(known: Mapping[str, Any], widths: Mapping[str, int]) -> None:
    """The reader takes what there is for all there was."""
    for name, width in widths.items():
        found = sum(chunk.sizes[0] for chunk in known[name].chunks) if name in known else 0
        if found != width:
            raise ValueError(f"{found} of {width} rows of {name}")


def _of_all(own: Tensor, width: int, mesh: DeviceMesh) -> Tensor:
    from torch.distributed.tensor import DTensor, Replicate, Shard

    shape = torch.Size([width, *own.shape[1:]])
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(own, mesh, [Replicate(), Shard(0)], run_check=False, shape=shape, stride=stride)


def _checkpoint() -> Any:
    import torch.distributed.checkpoint as checkpoint

    if not hasattr(checkpoint, "HuggingFaceStorageWriter"):
        raise DictlabError(f"{NEEDED}; this is torch {torch.__version__}. Install a later one.")
    return checkpoint
