"""A file that is mapped into memory, and watched: where it has become shorter, reading it would kill the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dictlab.errors import DictlabError


class MappedFile:
    """The size and the time of the last change that a file had when it was mapped.

    Reading a mapped page behind the end of a file is a signal (SIGBUS), which no exception handler sees; and a file
    that is written while it is read gives numbers of two files.

    Args:
        path: The file.
        what: What messages call it: data, text.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._name = f"{what} {path}"
        self._file = path.open("rb")  # the mapped file itself, even if another takes its name
        self._mapped = self._present()

    def _present(self) -> tuple[int, int]:
        stat = os.fstat(self._file.fileno())
        return stat.st_size, stat.st_mtime_ns

    def check(self) -> None:
        """Refuse a file that changed since it was mapped.

        Raises:
            DictlabError: It did.
        """
        present = self._present()
        if present != self._mapped:
            was, is_ = self._mapped[0], present[0]
            sizes = f"from {was:,} to {is_:,} bytes" if was != is_ else f"of {was:,} bytes, written again"
            raise DictlabError(
                f"{self._name}: the file changed while it was being read ({sizes}). "
                "Start again when nothing writes it any more, or give a copy of it."
            )

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Check before the block, which copies some of it, and after."""
        self.check()
        yield
        self.check()
