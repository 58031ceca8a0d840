"""Files that a crash, a full disk or another process leaves whole: the old one or the new one, never part of one.

What is new is written beside, under a name of its own, and its bytes are on the disk before it takes the place of what
was there; then the folder is synchronised. Nothing is written through a symbolic link: names beside are made new, and a
link in the place is replaced. Files are readable by whom the user's umask lets read them.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from dictlab.errors import DictlabError

if TYPE_CHECKING:
    from torch import Tensor

WRITING = ".writing"  # what a file's name is followed by in that of the folder that it is written in
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a new safetensors file, readable by whom the user's umask lets read it.

    The library writes under a random name beside, which would stay for ever where the process is killed. It gets a
    folder for that, of a name that follows from the file's, so that the next writing of the file removes it.

    Raises:
        FileExistsError: There is something in that place.
        OSError: The disk is full, or gone.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with path.open("xb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
    folder = path.with_name(f"{path.name}{WRITING}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        save_file(dict(tensors), folder / "tensors", metadata=metadata)
        (folder / "tensors").rename(path)
    except SafetensorError as error:
        raise OSError(errno.EIO, " ".join(str(error).split())[:200], str(path)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    path.chmod(mode)  # the library makes its files the user's alone


def save_pickled(content: Mapping[str, Any], path: Path) -> None:
    """Write a new file of torch.save.

    Raises:
        FileExistsError: There is something in that place.
        OSError: The disk is full, or gone.
    """
    import torch

    with path.open("xb") as file:
        try:
            torch.save(dict(content), file)
        except RuntimeError as error:  # what it makes of an error in writing
            raise OSError(errno.EIO, "it could not be written to its end; is the disk full?", str(path)) from error


@contextmanager
def new_file(path: Path, *, alone: bool = False) -> Iterator[Path]:
    """A name to write a file under, which replaces `path` when the block has ended well, and is gone otherwise.

    Args:
        path: What is replaced.
        alone: No other process writes this file, since its folder is locked. The name beside it is then always the
            same, so that what a killed process left there goes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial" if alone else f".{path.name}.{token_hex(4)}.partial")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        synchronise(partial)
        os.replace(partial, path)
        synchronise_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def locked_folder(path: Path) -> Iterator[Path]:
    """An empty folder for this process alone, made if need be and removed in the end; the lock dies with the process.

    Raises:
        DictlabError: Another process holds it, or it is no folder.
    """
    try:
        handle = _locked(path)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise DictlabError(f"{path} is in the way, a file or a link; remove it.") from error
    try:
        for left in path.iterdir():  # of a process that was killed
            remove(left)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def _locked(path: Path) -> int:
    while True:
        with suppress(FileExistsError):
            path.mkdir(parents=True)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # removed by the process that had it
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise DictlabError(f"another process is writing it just now ({path.name} is its folder).") from error
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(handle)):
                return handle
        os.close(handle)


def put(new: Path, path: Path) -> None:
    """Give a complete file or folder its place. What was there, of either kind, is then at `new`.

    At every moment one of the two is at `path`, where the operating system can exchange names (Linux); elsewhere a
    folder is away between two renamings.
    """
    synchronise(new)
    if not os.path.lexists(path):
        new.rename(path)
    elif not _exchanged(new, path):
        before = new.with_name(f"{new.name}.before")
        path.rename(before)
        new.rename(path)
        before.rename(new)
    synchronise_folder(path.parent)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether both have got the other's name, in one step."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)


def synchronise(path: Path) -> None:
    """Have the bytes of a file, or of everything in a folder, on the disk."""
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            synchronise(inner)
        synchronise_folder(path)
    else:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def synchronise_folder(path: Path) -> None:
    """Have the names in a folder on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that cannot do this for a folder
            raise
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a small UTF-8 file, durably, whole or not at all."""
    with new_file(path, alone=True) as partial:
        partial.write_text(text, encoding="utf-8")


def refuse_links(paths: Iterable[Path], what: str) -> None:
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
