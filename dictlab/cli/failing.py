"""A mistake of the user's, said once, whatever the number of processes.

`torchrun` starts the same command several times, so the same mistake is found several times. Where the processes know
of each other, the first one says it. Before that the first of each machine does, and ends; `torchrun` then ends the
others. A process whose trouble is its own has not been ended after a while, and says it too. That another process is
gone is said last: what happened to that one is the cause.
"""

from __future__ import annotations

import os
import sys
import time

from dictlab.cli.printing import console

DISTRIBUTED = "dictlab.training.distributed.data_parallel"  # slow to import; where it was not, none of its errors is

PATIENCE = 10.0  # seconds


def say(message: str, error: BaseException) -> None:
    """Print it in red, or leave that to another process."""
    distributed = sys.modules.get(DISTRIBUTED)
    if distributed is not None and isinstance(error, distributed.ReportedByRankZero):
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        lost = distributed is not None and isinstance(error, distributed.ProcessLost)
        time.sleep(((os.environ.get("LOCAL_RANK") != "0") + 2 * lost) * PATIENCE)
    console(stderr=True).print(f"dictlab: {message}", style="red", soft_wrap=True)
