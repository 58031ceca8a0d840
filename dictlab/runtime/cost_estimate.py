"""What a command is going to cost, from a short probe: tokens, forwards of the model, memory, time.

It is said before the work begins, where that takes more than a minute: somebody who asked for too much stops it then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from dictlab.runtime import progress
from dictlab.runtime.progress import clock

WORTH_SAYING = 60.0  # seconds


class CostEstimate(NamedTuple):
    """What some work is going to cost.

    Attributes:
        work: What it is called: train, path, ...
        tokens: That go through the model, each counted as often as it does.
        forwards: Of the model, whole or in part, that take them.
        seconds: Of it all.
        gigabytes: Of memory at most (10^9 bytes), the model included; None where it was not estimated.
        note: What the figures leave out or are made of.
    """

    work: str
    tokens: int
    forwards: int
    seconds: float
    gigabytes: float | None = None
    note: str = ""

    @property
    def sentence(self) -> str:
        """The estimate in words."""
        forwards = f"{self.tokens:,} tokens in {self.forwards:,} forwards of the model" if self.forwards else ""
        memory = "" if self.gigabytes is None else f"{self.gigabytes:.1f} GB of memory"
        parts = ", ".join(filter(None, (forwards, memory, self.note)))
        return f"{self.work} will take about {clock(self.seconds)} at the present speed of this machine: {parts}."

    def announce(self) -> None:
        """Say it on standard error, where it is more than a minute."""
        if self.seconds > WORTH_SAYING:
            progress.write(f"dictlab: {self.sentence}\n")


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that a second call takes: the first one also allocates, compiles and reads from the disk."""
    work()
    began = time.monotonic()
    work()
    return time.monotonic() - began
