"""How far the model's forwards are that fill the shuffle buffer, as part of a run's line of progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from jaxtyping import Int
from torch import Tensor

from dictlab.runtime.progress import Phase, clock, rate

Capture = Callable[[Int[Tensor, "batch context"]], Mapping[str, Tensor]]


class CaptureProgress:
    """Counts the activations that the model gives, and the seconds that takes.

    Training alternates: the model fills a block of the buffer, then steps are taken from it. So the time to go is that
    of the tokens still to be captured at their own rate, and of the steps still to be taken at theirs.

    Attributes:
        block: Tokens that the buffer takes in at once.
    """

    def __init__(self) -> None:
        self.block, self._in_block = 1, 0
        self.tokens, self.seconds = 0, 0.0
        self._forward_began: float | None = None
        self._phase: Phase | None = None
        self._done_before = 0

    def show_in(self, phase: Phase) -> None:
        """Show the forwards that follow in this phase, whose total and whose steps are in tokens."""
        self._phase, self._done_before = phase, phase.done
        phase.time_left = self.time_left

    def counting(self, capture: Capture) -> Capture:
        """The same capture, counted."""

        def counted(tokens: Tensor) -> Mapping[str, Tensor]:
            self._announce()
            self._forward_began = began = time.monotonic()
            activations = capture(tokens)
            self.seconds += time.monotonic() - began
            self._forward_began = None
            selected = next(iter(activations.values())).flatten(0, -2).shape[0]
            self.tokens += selected
            self._in_block = (self._in_block + selected) * (self._in_block + selected < self.block)
            self._announce()
            return activations

        return counted

    def time_left(self) -> float | None:
        """Seconds to go; None before the first step, whose rate is not known."""
        phase = self._phase
        if phase is None or phase.total is None:
            return None
        trained, left = phase.done - self._done_before, phase.total - phase.done
        if not trained or not self.tokens:
            return None
        current = 0.0 if self._forward_began is None else time.monotonic() - self._forward_began
        step_seconds = max(0.0, phase.elapsed - self.seconds - current)
        return self._to_capture(phase) * self.seconds / self.tokens + left * step_seconds / trained

    def _to_capture(self, phase: Phase) -> int:
        """Tokens that the run still needs from the model."""
        assert phase.total is not None
        return max(0, phase.total - self._done_before - self.tokens)

    def _announce(self) -> None:
        if self._phase is None:
            return
        block = min(self.block, self._in_block + self._to_capture(self._phase))  # the last one is shorter
        words = f"filling the shuffle buffer: {self._in_block:,} of {block:,} tokens"
        if self.tokens:
            left = (block - self._in_block) * self.seconds / self.tokens
            words += f", {rate(self.tokens, self.seconds)} tokens/s, {clock(left)} left"
        self._phase.stage = words if self._in_block or not self.tokens else ""
        self._phase.refresh()
