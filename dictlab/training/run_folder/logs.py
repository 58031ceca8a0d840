"""Where the metrics of a run are logged: JSON lines in its folder always, other libraries' loggers where asked for."""

from __future__ import annotations

import importlib
import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from dictlab import runs
from dictlab.errors import DictlabError
from dictlab.runtime import progress
from dictlab.runtime.atomic_files import new_file, synchronise_folder
from dictlab.training.config import TrainConfig

KEYS = ("member", "step", "tokens")  # what a record is about; everything else is a metric


class Logger(Protocol):
    """What each record is written to."""

    def write(self, record: Mapping[str, Any]) -> None:
        """One record: member, step, tokens, and metrics."""
        ...

    def close(self) -> None:
        """No more records follow."""
        ...


class JsonLines:
    """The run's own log, cut back to where the state was saved, so that resuming repeats no line.

    A log that is lost or damaged costs no more than its own lines: those that are whole are kept, what is missing is
    said, and the log goes on.

    Args:
        folder: The run's.
        size: Bytes of the log when the state was saved that the run goes on from; 0 for a new run.

    Raises:
        DictlabError: It is a link, or no regular file.
    """

    def __init__(self, folder: Path, size: int = 0) -> None:
        self.path = folder / runs.METRICS
        if size:
            self._repair(size)
        self._file = os.fdopen(_opened(self.path), "r+b")
        self._file.truncate(min(size, os.fstat(self._file.fileno()).st_size))
        self._file.seek(0, os.SEEK_END)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line; a value that is not finite is written as null."""
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write((json.dumps(values, allow_nan=False) + "\n").encode())
        self._file.flush()

    def synchronise(self) -> int:
        """Wait until it is on the disk; returns its size in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def table(self) -> None:
        """Write the whole log as a Parquet file beside it."""
        frame = pd.DataFrame(runs.records(self.path))
        with new_file(self.path.with_name(runs.TABLE), alone=True) as partial:
            frame.to_parquet(partial, index=False)

    def _repair(self, size: int) -> None:
        """Keep the whole lines of a log that is not as long as it was, or has others among them."""
        with os.fdopen(_opened(self.path), "rb") as file:
            kept = file.read(min(size, os.fstat(file.fileno()).st_size))
        lines = kept.splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n") and _is_record(line)]
        if len(kept) == size and len(whole) == len(lines):
            return
        missing = f"{size - len(kept):,} of {size:,} bytes are gone" if len(kept) < size else "it is damaged"
        progress.write(
            f"dictlab: {self.path}: {missing}, and {len(lines) - len(whole)} of its {len(lines)} lines are none of a "
            f"log; they are left out, and the log goes on. The run itself is whole.\n"
        )
        with new_file(self.path, alone=True) as partial:
            partial.write_bytes(b"".join(whole))


def _opened(path: Path) -> int:
    """A descriptor of a regular file, made if it is not there; never of what a link points to.

    Raises:
        DictlabError: It is a link, or no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise DictlabError(f"{path}: cannot be written ({error}); a log is written to a regular file.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DictlabError(f"{path}: this is no regular file; a log is not written to it. Remove it.")
    synchronise_folder(path.parent)
    return descriptor


def _is_record(line: bytes) -> bool:
    """Whether a line is one that `write` can have written."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(record, dict) or not isinstance(record.get("member", ""), str):
        return False
    numbers = [value for key, value in record.items() if key != "member"]
    return type(record.get("step")) is int and all(value is None or type(value) in (int, float) for value in numbers)


class NoLog:
    """The log of a process that writes none."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Write nothing."""

    def synchronise(self) -> int:
        """Wait for nothing; the size is 0."""
        return 0

    def close(self) -> None:
        """Close nothing."""

    def table(self) -> None:
        """Write no table."""


class TensorBoard:
    """One TensorBoard run a member, below `tensorboard/` in the run's folder; the abscissa is tokens."""

    def __init__(self, folder: Path) -> None:
        _installed("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._open, self._folder, self._writers = SummaryWriter, folder / "tensorboard", dict[str, Any]()

    def write(self, record: Mapping[str, Any]) -> None:
        """Each metric as a scalar."""
        name = record["member"]
        if name not in self._writers:
            # What a killed session logged behind this point is hidden.
            self._writers[name] = self._open(str(self._folder / name), purge_step=record["tokens"])
        for metric, value in _metrics(record).items():
            self._writers[name].add_scalar(metric, value, record["tokens"])

    def close(self) -> None:
        """Write out what is buffered."""
        for writer in self._writers.values():
            writer.close()


class WeightsAndBiases:
    """One run of wandb, named after the folder; metrics are MEMBER/METRIC over `tokens`."""

    def __init__(self, folder: Path, config: TrainConfig, identity: str) -> None:
        wandb = _installed("wandb", "wandb")
        self._run = wandb.init(
            project="dictlab", name=folder.name, id=identity, resume="allow", dir=str(folder), config=asdict(config)
        )
        self._run.define_metric("*", step_metric="tokens")

    def write(self, record: Mapping[str, Any]) -> None:
        """The metrics under the member's name."""
        named = {f"{record['member']}/{metric}": value for metric, value in _metrics(record).items()}
        self._run.log(named | {"tokens": record["tokens"]})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def open_loggers(config: TrainConfig, folder: Path, identity: str) -> Sequence[Logger]:
    """The loggers that are asked for besides the run's own.

    Raises:
        DictlabError: One of them is not installed.
    """
    made: list[Logger] = []
    for name in config.log:
        made.append(TensorBoard(folder) if name == "tensorboard" else WeightsAndBiases(folder, config, identity))
    return made


def check_loggers(config: TrainConfig) -> None:
    """Refuse, before any work is done, a logger that is not installed.

    Raises:
        DictlabError: One of them is not.
    """
    for name in config.log:
        _installed(name, name)


def _metrics(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in KEYS}


def _installed(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DictlabError(
            f"log {extra}: {module} is not installed ({error}). Install it with `pip install 'dictlab[{extra}]'`, "
            "or leave it out: metrics are in the run's folder in any case."
        ) from error
