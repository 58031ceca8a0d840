"""Several processes that know each other, forked from the one that tests: nothing is imported again."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from tqdm import tqdm


def with_a_lock_of_its_own() -> None:
    """For a process just forked. Progress bars of all share a lock: killed while it holds that, it would never give it
    back, and the process that tests would wait for ever."""
    tqdm.set_lock(threading.RLock())


def spread(count: int, work: Callable[[int], object], folder: Path) -> list[int]:
    """Do it in so many processes of one gloo group; returns how each ended (-9: it was killed).

    What a process says goes to `folder / said.RANK`. The caller has one thread: see `one_thread` in test_resume.
    """
    store = Path(tempfile.mkdtemp(dir=folder)) / "store"
    children = [_forked(rank, count, work, folder, store) for rank in range(count)]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _forked(rank: int, count: int, work: Callable[[int], object], folder: Path, store: Path) -> int:
    child = os.fork()
    if child:
        return child
    with_a_lock_of_its_own()
    try:
        sys.stdout = sys.stderr = (folder / f"said.{rank}").open("w", buffering=1)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
        work(rank)
        dist.barrier()
        dist.destroy_process_group()
        sys.stderr.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
