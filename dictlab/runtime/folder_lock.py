"""One writer for each folder or file, by a lock that the operating system drops when its process ends.

The lock is `flock` on a small file, which says who holds it. A killed process leaves that file and not the lock: the
next writer takes it. The file is removed when the lock is released.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from dictlab.errors import DictlabError

LOCK = ".dictlab.lock"
RECORD_BYTES = 4096  # more of a lock file is not read


class InUseError(DictlabError):
    """Another process is writing there."""


@contextmanager
def folder_lock(folder: Path, work: str) -> Iterator[None]:
    """Be the only writer of a folder. It is made if it is not there, with its parents; what stays empty is removed.

    Args:
        folder: Where to write.
        work: What is done there, for the message that a second writer gets: train, report, convert.

    Raises:
        InUseError: Another process holds it; its pid, host and beginning are named.
        DictlabError: It is a file, or cannot be written.
    """
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DictlabError(f"{folder}: cannot be made a folder to write in ({error}). Choose another.") from error
    try:
        with exclusive(folder / LOCK, str(folder), work):
            yield
    finally:
        with suppress(OSError):  # it holds something, or somebody else has removed it
            for path in absent:
                path.rmdir()


@contextmanager
def file_lock(path: Path, work: str) -> Iterator[None]:
    """Be the only writer of a file; see `folder_lock`."""
    with exclusive(path.with_name(f".{path.name}.lock"), str(path), work):
        yield


@contextmanager
def exclusive(lock: Path, target: str, work: str) -> Iterator[None]:
    """Hold a lock file.

    Args:
        lock: The file; made, and removed at the end.
        target: What it protects, for messages.
        work: What is done there.

    Raises:
        InUseError: Another process holds it.
        DictlabError: The file cannot be made, or is a symbolic link.
    """
    descriptor = _acquired(lock, target)
    try:
        record = {"pid": os.getpid(), "host": socket.gethostname(), "since": _present(), "work": work}
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(record).encode())
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is still held: the next one makes a new file
        os.close(descriptor)


def _acquired(lock: Path, target: str) -> int:
    """The descriptor of the lock file that stands under its name, locked."""
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            why = "is a symbolic link, and nothing is written through one" if error.errno == errno.ELOOP else str(error)
            raise DictlabError(
                f"{target}: the lock {lock} cannot be taken ({why}). Remove it, if it is yours."
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same_file(descriptor, lock):
                return descriptor
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise InUseError(f"{target}: {holder}. Wait for it, stop it, or write elsewhere.") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                os.close(descriptor)
                raise
            warnings.warn(
                f"{target}: this file system has no locks ({error}); let nobody else write there.", stacklevel=2
            )
            return descriptor
        os.close(descriptor)  # its holder removed it between our opening and our locking: again


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    """Who holds a lock, in words; it may not have said yet."""
    try:
        record = json.loads(os.pread(descriptor, RECORD_BYTES, 0))
        pid, host, since, work = (record[key] for key in ("pid", "host", "since", "work"))
        return f"process {int(pid)} on {host} has been writing there since {since} ({work})"
    except (ValueError, TypeError, KeyError, RecursionError):
        return "another process is writing there"


def _present() -> str:
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
