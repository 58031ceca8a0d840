"""Lines of progress: what a command is doing, how fast, and how long that will take.

A phase has one line on standard error, with a rate and a remaining time that are measured, not guessed. While nothing
advances, a thread shows that time passes: no phase is silent for more than `HEARTBEAT` seconds. On a terminal the line
is rewritten in place; elsewhere (a log file) a new one is written now and then.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from types import TracebackType
from typing import ClassVar, TypeVar

T = TypeVar("T")

HEARTBEAT = 4.0  # seconds between lines where nothing advances, or where each is a new one
WORTH_A_LINE = 1.0  # seconds that a phase must last for its line to stay
BEAT = 1.0  # seconds between lines of a terminal where nothing advances
REDRAWN = 0.2  # seconds between two states of a terminal's line


class Phase:
    """One phase of a command, from `with` to its end. Of phases inside each other, the innermost has the line.

    Args:
        label: What is done.
        total: How much there is to do; None where that is not known.
        done: How much of it is done already.
        unit: What it is counted in.
        shown: Whether anything is printed.

    Attributes:
        note: Further words at the end of the line, such as a loss.
        stage: What is done just now, where a phase has several kinds of work; shown after the note.
        time_left: Gives the seconds to go, where something knows better than the mean rate.
    """

    _open: ClassVar[list[Phase]] = []

    def __init__(
        self, label: str, total: int | None = None, *, done: int = 0, unit: str = "", shown: bool = True
    ) -> None:
        self.label, self.total, self.unit, self.note, self.stage = label, total, unit, "", ""
        self.done = self._done_before = done
        self.time_left: Callable[[], float | None] = self._by_mean_rate
        self._began = self._advanced_at = time.monotonic()
        self._shown, self._drawn_at, self._drawn = shown, float("-inf"), ""
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Phase:
        """Begin: on a terminal the first line comes at once, in a log file once there is something to wait for."""
        self._began = self._advanced_at = self._drawn_at = time.monotonic()
        if self._shown:
            self._open.append(self)
            if _is_terminal():
                self._draw()
            self._thread = threading.Thread(target=self._beat, daemon=True, name="progress")
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End, with a last line where it took its time, and did not fail."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if not self._shown:
            return
        if kind is None and self.elapsed >= WORTH_A_LINE:
            self._draw(last=True)
        elif _is_terminal():
            write("\r" + " " * len(self._drawn) + "\r")
        self._open.remove(self)

    def advance(self, amount: int = 1) -> None:
        """So much more is done."""
        self.done += amount
        self._advanced_at = time.monotonic()
        self.refresh()

    def refresh(self) -> None:
        """Show the present state, unless the last one is very new."""
        if self._shown and time.monotonic() - self._drawn_at >= (REDRAWN if _is_terminal() else HEARTBEAT):
            self._draw()

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def line(self, *, last: bool = False) -> str:
        """The state in words: how much of how much, rate, time to go."""
        elapsed, done = self.elapsed, self.done - self._done_before
        parts = []
        if self.total is not None:
            share = f" ({self.done / self.total:.0%})" if self.total else ""
            parts.append(f"{self.done:,} of {self.total:,} {self.unit}".rstrip() + share)
        elif self.done:
            parts.append(f"{self.done:,} {self.unit}".rstrip())
        if done:
            parts.append(f"{rate(done, self._paced)} {self.unit or 'items'}/s")
        parts.append(clock(elapsed))
        left = None if last else self.time_left()
        if left is not None:
            parts.append(f"{clock(left)} left")
        words = [self.note, "" if last else self.stage]
        return ". ".join([f"{self.label}: {', '.join(parts)}", *filter(None, words)])

    @property
    def _paced(self) -> float:
        """Seconds to the last advance: those since then belong to what is not done yet, and say nothing of the rate."""
        return self._advanced_at - self._began

    def _by_mean_rate(self) -> float | None:
        done = self.done - self._done_before
        if self.total is None or not done:
            return None
        return max(0.0, (self.total - self.done) * self._paced / done - (self.elapsed - self._paced))

    def _beat(self) -> None:
        beat = BEAT if _is_terminal() else HEARTBEAT
        while not self._over.wait(beat / 4):
            if time.monotonic() - self._drawn_at >= beat:
                self._draw()

    def _draw(self, *, last: bool = False) -> None:
        with self._lock:
            self._drawn_at = time.monotonic()
            if self._open[-1:] != [self]:
                return
            text = self.line(last=last)
            if not _is_terminal():
                write(text + "\n")
                return
            blanks = " " * max(0, len(self._drawn) - len(text))
            write(f"\r{text}{blanks}" + ("\n" if last else ""))
            self._drawn = text

    def say(self, message: str) -> None:
        """Print a message on a line of its own."""
        with self._lock:
            if _is_terminal() and self._shown:
                write("\r" + " " * len(self._drawn) + "\r")
                self._drawn = ""
            write(message + "\n")


def track(items: Iterable[T], label: str, total: int | None = None, *, unit: str = "") -> Iterator[T]:
    """Go through some items as a phase of their own.

    Args:
        items: What to go through.
        label: What is done with them.
        total: How many there are; found out where they have a length.
        unit: What they are called, in the plural.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Phase(label, total, unit=unit) as phase:
        for item in items:
            yield item
            phase.advance()


def clock(seconds: float) -> str:
    """A duration as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def rate(amount: float, seconds: float) -> str:
    """Amount per second, to three digits."""
    value = amount / max(seconds, 1e-9)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


_wording: list[Callable[[str], str]] = []


@contextmanager
def worded(wording: Callable[[str], str]) -> Iterator[None]:
    """Put everything that is written in other words: a command line has options where a function has arguments."""
    _wording.append(wording)
    try:
        yield
    finally:
        _wording.pop()


def write(text: str) -> None:
    """Write to standard error; one that is closed or full is no failure of the work."""
    for wording in _wording:
        text = wording(text)
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (ValueError, AttributeError):
        return False
