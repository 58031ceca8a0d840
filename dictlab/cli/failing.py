"""A mistake of the user's, said once, whatever the number of processes.

`torchrun` starts the same command several times, so the same mistake is found several times. The first process of each
machine says it and ends; `torchrun` then ends the others. A process whose trouble is its own has not been ended after a
while, and says it too. That another process is gone is said last: what happened to that one is the cause.
"""

from __future__ import annotations

import os
import time

from dictlab.cli.printing import console
from dictlab.train.parallel import Gone

PATIENCE = 4.0  # seconds


def say(message: str, error: BaseException) -> None:
    """Print it in red, or wait to be ended instead."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        waits = (os.environ.get("LOCAL_RANK") != "0") + 2 * isinstance(error, Gone)
        time.sleep(waits * PATIENCE)
    console(stderr=True).print(f"dictlab: {message}", style="red", soft_wrap=True)
