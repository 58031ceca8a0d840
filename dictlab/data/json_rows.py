"""Rows of JSON lines, and of JSON files that are one list, by Python's own parser: depth and size cannot crash it.

Lines are read in blocks from anywhere in a file, so that a shuffled reading begins at once and is of all of it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

BLOCK = 1 << 20  # bytes read at once, but for longer lines
LARGEST_LIST = 1 << 28  # bytes of a file that is one list, which has to be read whole


@dataclass(frozen=True)
class JsonRows:
    """Objects of JSON files, in their order or shuffled.

    Attributes:
        paths: The files.
        seed: Of the order of blocks, and of the rows in each.
    """

    paths: Sequence[Path]
    seed: int | None = None

    @property
    def column_names(self) -> list[str]:
        """Fields of the first row."""
        return list(next(iter(replace(self, seed=None)), {}))

    def shuffle(self, seed: int) -> JsonRows:
        """The same rows in another order."""
        return replace(self, seed=seed)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows.

        Raises:
            ValueError: A file is no JSON of objects, or is nested too deeply.
        """
        blocks = [(path, at) for path in self.paths for at in range(0, max(1, path.stat().st_size), BLOCK)]
        order = None if self.seed is None else random.Random(self.seed)
        for path, at in blocks if order is None else order.sample(blocks, len(blocks)):
            rows = _list(path) if _is_list(path) and not at else [] if _is_list(path) else _lines(path, at)
            if order is None:
                yield from rows
            else:
                shuffled = list(rows)
                order.shuffle(shuffled)
                yield from shuffled


def _lines(path: Path, at: int) -> Iterator[dict[str, Any]]:
    """Rows whose lines begin in a block."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError(f"{path.name} is empty")
        place = _next_line(file, at)
        while place < at + BLOCK and (line := file.readline()):
            if line.strip():
                row = _parsed(line, f"{path.name}, byte {place}")
                if not isinstance(row, dict):
                    raise ValueError(f"{path.name}, byte {place}: no object")
                yield row
            place += len(line)


def _next_line(file: BinaryIO, at: int) -> int:
    """The first line that begins at a place of a block or later, or the block's end; the file stands there."""
    if not at:
        return 0
    file.seek(at - 1)
    line_end = file.read(BLOCK + 1).find(b"\n")
    place = at + line_end if line_end >= 0 else at + BLOCK
    file.seek(place)
    return place


def _list(path: Path) -> list[dict[str, Any]]:
    if path.stat().st_size > LARGEST_LIST:
        raise ValueError(f"{path.name} is one list of {path.stat().st_size} bytes; write it as JSON lines")
    rows = _parsed(path.read_bytes(), path.name)
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path.name} is a list of something else than objects")
    return list(rows)


def _is_list(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix.lower() == ".json" and file.read(64).lstrip()[:1] == b"["


def _parsed(data: bytes, where: str) -> Any:
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError(f"{where}: nested too deeply") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{where}: {error}") from error
    if not isinstance(value, dict | list):
        raise ValueError(f"{where}: no object")
    return value
