"""A mistake of the user's, said once, whatever the number of processes.

`torchrun` starts the same command several times, so the same mistake is found several times. Where the processes know
of each other, the first one says it. Before that the first of each machine does, and ends; `torchrun` then ends the
others. A process whose trouble is its own has not been ended after a while, and says it too. That another process is
gone is said last: what happened to that one is the cause.
"""

from __future__ import annotations

import os
import time

from dictlab.cli.printing import console
from dictlab.training.distributed.data_parallel import ProcessLost, ReportedByRankZero

PATIENCE = 10.0  # seconds


def say(message: str, error: BaseException) -> None:
    """Print it in red, or leave that to another process."""
    if isinstance(error, ReportedByRankZero):
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        waits = (os.environ.get("LOCAL_RANK") != "0") + 2 * isinstance(error, ProcessLost)
        time.sleep(waits * PATIENCE)
    console(stderr=True).print(f"dictlab: {message}", style="red", soft_wrap=True)
