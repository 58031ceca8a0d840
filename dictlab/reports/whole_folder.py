"""A report's folder appears whole or not at all: it is written aside and takes its place in one step.

One writer at a time, by a lock that dies with its process. What a killed process left aside is removed by the next.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dictlab.errors import DictlabError
from dictlab.runtime import atomic_files
from dictlab.runtime.folder_lock import file_lock

RECORD = "report.json"  # its list of files says what is the report's, and what somebody else's


def write_whole(folder: Path, write: Callable[[Path], None], *, force: bool) -> None:
    """Have `write` fill a folder, which then takes the place of `folder`.

    Args:
        folder: Made if it does not exist. Files in it that no report wrote are kept.
        write: Writes all files into the folder that it is given.
        force: Replace files of the same names that no report wrote.

    Raises:
        DictlabError: Another process is writing there, or there are files of the same names and `force` is False.
    """
    folder = folder.resolve()
    above = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        with file_lock(folder, "report"):
            atomic_files.remove(partial)  # of a process that was killed
            try:
                partial.mkdir()
                write(partial)
                _take_place(partial, folder, force)
            finally:
                atomic_files.remove(partial)
    except BaseException:
        for parent in above:
            with suppress(OSError):  # somebody else has put something there by now
                parent.rmdir()
        raise


def _take_place(partial: Path, folder: Path, force: bool) -> None:
    new = {path.name for path in partial.iterdir()}
    foreign = sorted({path.name for path in folder.iterdir()} - set(listed_files(folder))) if folder.exists() else []
    taken = [name for name in foreign if name in new]
    if taken and not force:
        raise DictlabError(
            f"{folder}: already holds {', '.join(taken)}, which no report wrote. "
            "Choose another folder with `out=...`, or give `force=True`."
        )
    if folder.exists() and _must_stay(folder):
        _replace_files(partial, folder)
        return
    for name in foreign:
        if name not in new:
            _link(folder / name, partial / name)
    atomic_files.put(partial, folder)


def _link(source: Path, target: Path) -> None:
    """The same file, or folder of files, under a second name; a copy where the file system has no links."""
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, copy_function=_link_file)
    else:
        _link_file(source, target)


def _link_file(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _must_stay(folder: Path) -> bool:
    """Whether a folder cannot be replaced: somebody stands in it, or another file system is mounted there."""
    return folder.samefile(Path.cwd()) or folder.is_mount()


def _replace_files(partial: Path, folder: Path) -> None:
    """File by file, the record of them last."""
    for name in listed_files(folder):
        atomic_files.remove(folder / name)
    for path in sorted(partial.iterdir(), key=lambda path: path.name == RECORD):
        shutil.move(path, folder / path.name)


def listed_files(folder: Path) -> list[str]:
    """What an earlier report wrote to a folder, files and folders, by its own list; of a damaged one, report.json."""
    try:
        names = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
        return [name for name in names if Path(name).name == name and (folder / name).exists()]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, RecursionError):
        return [RECORD]
