"""Plain text files, read in pieces from anywhere in them, so that memory does not grow with a file or a folder.

A file is cut into pieces of about as many bytes as are asked for, at line ends; where a line is longer than a piece,
between two characters. Where a piece begins follows from the file's size and the bytes around that place, so pieces can
be read in any order and nothing is read before it is wanted.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from dictlab.errors import DictlabError

HEAD = 4096  # bytes that tell what a file is
HEADS = 1000  # files of a folder that are looked at when it is opened; the others when they are read
COMPRESSED = {
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard",
    b"%PDF-": "PDF",
}  # fmt: skip
HELD_OUT_NAMES = {"validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation", "heldout"}


def pieces(
    root: Path, paths: Sequence[Path], size: int, seed: int | None, *, strict: bool = True
) -> Iterator[tuple[str, str]]:
    """(key, text) of every piece of every file, in the order of the files, or shuffled by `seed` all over them.

    Args:
        root: What keys are relative to, so that they are the same wherever it stands.
        paths: The files.
        size: Bytes of a piece, about: up to twice as many.
        seed: Of the order.
        strict: Refuse bytes that are no UTF-8; else U+FFFD stands in their place.

    Raises:
        DictlabError: A file is compressed, or is not UTF-8 text.
    """
    numbers = [max(1, -(-path.stat().st_size // size)) for path in paths]
    starts = np.array([0, *accumulate(numbers)])
    order: Sequence[int] = range(int(starts[-1]))
    if seed is not None:
        order = random.Random(seed).sample(order, len(order))
    for place in order:
        file = int(np.searchsorted(starts, place, side="right")) - 1
        number, path = place - int(starts[file]), paths[file]
        text = _piece(path, number, numbers[file], size, strict)
        if text:
            base = path.name if path == root else path.relative_to(root).as_posix()
            yield f"{base}#{number}" if number else base, text


def _piece(path: Path, number: int, count: int, size: int, strict: bool) -> str:
    """One piece of a file; nothing of a binary file."""
    if not number and not is_text(path):
        return ""
    with path.open("rb") as file:
        start = _cut(file, number, size) if number else 0
        stop = _cut(file, number + 1, size) if number + 1 < count else None
        file.seek(start)
        data = file.read() if stop is None else file.read(stop - start)
    if b"\0" in data:
        if not is_text(path):
            return ""
        at = start + data.index(bytes(1))
        raise DictlabError(f"text {path}: binary at byte {at} (a zero byte); expected UTF-8 text. Take it out.")
    try:
        text = data.decode("utf-8", "strict" if strict else "replace")
    except UnicodeDecodeError as error:
        raise not_utf8(path, start + error.start) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _cut(file: object, number: int, size: int) -> int:
    """Where piece `number` begins: behind the first line end from its nominal place on, or at a character there."""
    at = number * size
    file.seek(at - 1)  # type: ignore[attr-defined]
    data: bytes = file.read(size)  # type: ignore[attr-defined]
    line_end = data.find(b"\n")
    if line_end >= 0:
        return at + line_end
    continuation = 1
    while continuation < min(len(data), 5) and data[continuation] & 0xC0 == 0x80:
        continuation += 1
    return at + continuation - 1


def not_utf8(path: Path, byte: int) -> DictlabError:
    """The error of a file in another encoding."""
    return DictlabError(
        f"text {path}: not UTF-8 at byte {byte}; is it in another encoding? Convert it first, for instance with "
        "iconv -f latin1 -t utf-8, or take it out."
    )


def is_text(path: Path) -> bool:
    """Whether a file is text, by its first bytes; a binary one holds a zero byte there.

    Raises:
        DictlabError: It is compressed.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    kind = next((kind for magic, kind in COMPRESSED.items() if head.startswith(magic)), None)
    if kind is not None:
        raise DictlabError(
            f"text {path}: a {kind} file; expected UTF-8 text. Unpack or convert it first, or take it out."
        )
    return b"\0" not in head


def check_heads(paths: Sequence[Path]) -> list[Path]:
    """The files that are text by their first bytes, of the first `HEADS`, and all others.

    Raises:
        DictlabError: One is compressed, or begins with bytes that are no UTF-8.
    """
    kept = []
    for path in paths[:HEADS]:
        if not is_text(path):
            continue
        with path.open("rb") as file:
            head = file.read(HEAD)
        try:
            head.decode("utf-8")
        except UnicodeDecodeError as error:
            if error.start < len(head) - 4 or path.stat().st_size <= HEAD:  # else the last character is cut
                raise not_utf8(path, error.start) from error
        kept.append(path)
    return [*kept, *paths[HEADS:]]


def own_splits(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Files for training, and those that their names keep from it, such as test.txt, wiki.valid.raw.

    All of them are for training where none would be left.
    """
    held = [path for path in paths if HELD_OUT_NAMES & set(path.name.lower().split("."))]
    train = [path for path in paths if path not in set(held)]
    return (train, held) if train else (list(paths), [])


def in_split_named(path: Path, root: Path, names: set[str]) -> bool:
    """Whether a data file's path below the root says one of these splits: data/test-00000.parquet, validation/a.csv."""
    words = re.split(r"[^a-z]+", path.relative_to(root).as_posix().lower()) if path != root else []
    return bool(names & set(words))


def visible_files(root: Path) -> list[Path]:
    """The files below a folder in the order of their paths, but for hidden ones and those in hidden folders."""
    return sorted(
        p for p in root.rglob("*") if p.is_file() and not any(s.startswith(".") for s in p.relative_to(root).parts)
    )
