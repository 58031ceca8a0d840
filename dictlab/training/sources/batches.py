"""Which batches does a run see, in which order? Some steps in a row for one objective, then some for another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from dictlab.data.shuffle_buffer import Stream
from dictlab.training.distributed.ranks import SINGLE_PROCESS, Ranks
from dictlab.training.objectives import Batch, Splice


class Part(NamedTuple):
    """Some steps in a row that are for the same objectives.

    Attributes:
        steps: How many.
        stream: From a position to what gives its batches.
        batch_of: From what the stream gives to a batch a site.
        splices: Where reconstructions go, by site; None where no objective asks for it.
    """

    steps: int
    stream: Callable[[Mapping[str, Any] | None], Stream]
    batch_of: Callable[[Any], dict[str, Batch]]
    splices: Mapping[str, Splice | None]


class Batches:
    """The batches of a run's parts, one part after the other.

    Args:
        parts: The parts.
        start: `position()` of an earlier one.
        ranks: The processes that share each batch.
    """

    def __init__(self, parts: Sequence[Part], start: Mapping[str, Any] | None, ranks: Ranks = SINGLE_PROCESS) -> None:
        self._parts, self._ranks = parts, ranks
        at: Mapping[str, Any] = start or {"part": 0, "taken": 0, "stream": None}
        self._part: int = at["part"]
        self._taken: int = at["taken"]
        self._stream = parts[self._part].stream(at["stream"])

    def position(self) -> dict[str, Any]:
        """Which part, how many of its steps were taken, and where its stream is."""
        return {"part": self._part, "taken": self._taken, "stream": self._stream.position()}

    def __iter__(self) -> Iterator[tuple[dict[str, Batch], Mapping[str, Splice | None]]]:
        """A batch for each site, and where reconstructions go. Ends early where a stream does."""
        while True:
            part = self._parts[self._part]
            for entry in islice(self._stream, part.steps - self._taken):
                self._taken += 1
                yield part.batch_of(self._ranks.local_share(entry)), part.splices
            if self._taken < part.steps or self._part + 1 == len(self._parts):
                return
            self._part, self._taken = self._part + 1, 0
            self._stream = self._parts[self._part].stream(None)
