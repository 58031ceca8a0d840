"""The processes of a run: those of an initialised process group, those that `torchrun` started, or this one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from dictlab.errors import DictlabError
from dictlab.training.distributed.data_parallel import DataParallelRanks
from dictlab.training.distributed.ranks import SINGLE_PROCESS, Ranks


@contextmanager
def training_processes(device: str, shards: int = 1) -> Iterator[Ranks]:
    """The processes that train together.

    Args:
        device: cpu, or cuda: then each process has the GPU of its local number.
        shards: Parts that the latents of each dictionary are cut into; the others share out the tokens.

    Raises:
        DictlabError: There are fewer GPUs than processes on this machine, or one was named for all of them, or the
            processes are no multiple of the shards.
    """
    if dist.is_available() and dist.is_initialized():
        yield _grouped(device, shards)
        return
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        _check_shards(1, shards)
        yield SINGLE_PROCESS
        return
    _check_shards(int(os.environ["WORLD_SIZE"]), shards)
    if device.startswith("cuda"):
        _take_gpu(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    try:
        yield _grouped(device, shards)
    finally:
        dist.destroy_process_group()


def _grouped(device: str, shards: int) -> Ranks:
    processes = dist.get_world_size()
    _check_shards(processes, shards)
    if shards > 1:
        from dictlab.training.distributed.latent_sharding import LatentShardedRanks  # DTensor takes a second to import

        return LatentShardedRanks(shards, device.partition(":")[0])
    return DataParallelRanks() if processes > 1 else SINGLE_PROCESS


def _check_shards(processes: int, shards: int) -> None:
    if processes % shards:
        raise DictlabError(
            f"shards {shards}: latents are shared out over processes, and {processes} "
            f"{'was' if processes == 1 else 'were'} started; start a multiple of {shards}, such as torchrun "
            f"--nproc_per_node {shards} -m dictlab train ..., or change `shards=...`."
        )


def _take_gpu(device: str) -> None:
    own, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device != "cuda":
        raise DictlabError(f"device {device!r}: of several processes each takes a GPU of its own; write cuda.")
    if own >= there:
        raise DictlabError(
            f"process {own} of this machine has no GPU: there are {there}. Start at most {there} (--nproc_per_node)."
        )
    torch.cuda.set_device(own)
