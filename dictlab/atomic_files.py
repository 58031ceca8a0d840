"""Files that are replaced whole or not at all, durably, and never through a symbolic link.

A new file is written beside the old one, synchronised with the disk, renamed over it, and the folder is synchronised:
after a kill or a loss of power there is the old file or the new one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dictlab.errors import DictlabError


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give the name to write a new file under; at the end of the block it takes the place of `path`.

    A link in place of `path` is replaced, and what it points to is left alone. After an error nothing has changed.

    Raises:
        OSError: It cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # of a killed process, or a link that somebody put there
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
        yield partial
        synchronise(partial)
        os.replace(partial, path)
        synchronise(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a small UTF-8 file, durably, whole or not at all."""
    with replaced(path) as partial:
        partial.write_text(text, encoding="utf-8")


def synchronise(path: Path) -> None:
    """Return when a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_links(paths: Iterator[Path] | list[Path], what: str) -> None:
    """Refuse to write where there are symbolic links.

    Args:
        paths: What is going to be written.
        what: The work that writes, for the message.

    Raises:
        DictlabError: One of them is a link; it is named.
    """
    for path in paths:
        if path.is_symlink():
            raise DictlabError(
                f"{path}: this is a symbolic link (to {path.readlink()}), and {what} writes through none. "
                "Remove it, or choose another folder."
            )
