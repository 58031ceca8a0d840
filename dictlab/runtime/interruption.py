"""Work that may end before it is complete: Ctrl-C, or the end of a job's time.

What is measured sequence by sequence is worth keeping when the rest will never come. `Completion` counts what is
complete, ends the loop quietly once enough is, and says in the report's warnings how much is missing.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import TracebackType


class Completion:
    """How much of a measurement is complete. An interrupt ends its `with` block quietly once that is enough.

        with Completion(len(tokens), "sequences") as completion:
            for batch in batches:
                rows.append(measure(batch))
                completion.add(len(batch))
        warnings = completion.warnings

    Args:
        asked: How many there are to measure.
        unit: What they are called, in the plural.
        least: So many must be complete for the result to be worth keeping; two for an interval. None: never.
    """

    def __init__(self, asked: int, unit: str = "sequences", *, least: int | None = 2) -> None:
        self.asked, self.unit, self.least = asked, unit, least
        self.done = 0

    def add(self, count: int = 1) -> None:
        """So many more are complete."""
        self.done += count

    @property
    def partial(self) -> bool:
        """Whether some are missing."""
        return self.done < self.asked

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a report must say where some are missing."""
        return partial_warnings(self.done, self.asked, self.unit)

    def __enter__(self) -> Completion:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        """Let go on after an interrupt, if enough is complete; everything else is raised."""
        enough = self.least is not None and self.done >= self.least
        return enough and kind is not None and issubclass(kind, KeyboardInterrupt)


def partial_warnings(done: int, asked: int, unit: str = "sequences") -> tuple[str, ...]:
    """What a report must say of a measurement of which some is missing; nothing of a complete one."""
    return (f"PARTIAL: interrupted after {done} of {asked} {unit}.",) if done < asked else ()


class Interrupts:
    """Which signal asked the process to end, if one did.

    Attributes:
        number: SIGINT (Ctrl-C) or SIGTERM (the end of a job's time); None so far.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    @property
    def exit_code(self) -> int:
        """What the process exits with: 130 or 143, as shells have it; 0 where it was not interrupted."""
        return 0 if self.number is None else 128 + self.number

    def receive(self, number: int, frame: object) -> None:
        """Keep the signal, and interrupt what is going on, for both signals in the same way."""
        self.number = number
        raise KeyboardInterrupt


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Within the block SIGINT and SIGTERM raise KeyboardInterrupt, and which it was is kept."""
    caught = Interrupts()
    if current_thread() is not main_thread():
        yield caught  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, caught.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
