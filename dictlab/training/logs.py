"""Where metrics go while a run is going: JSON lines in its folder always, other libraries' loggers where asked for."""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from dictlab import runs
from dictlab.errors import DictlabError
from dictlab.training.config import TrainConfig

WHERE = ("member", "step", "tokens")  # what a record is about; everything else is a metric


class Logger(Protocol):
    """Somebody who is told each record."""

    def write(self, record: Mapping[str, Any]) -> None:
        """One record: member, step, tokens, and metrics."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


class JsonLines:
    """The run's own log. It is cut back to where the state was saved, so that resuming repeats no line.

    Args:
        folder: The run's.
        size: Bytes to keep of a log that is there; all that follows was logged after the state that is gone on from.
    """

    def __init__(self, folder: Path, size: int = 0) -> None:
        self.path = folder / runs.METRICS
        self._file = self.path.open("r+b" if self.path.exists() else "w+b")
        self._file.truncate(size)
        self._file.seek(size)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line; what is no number is written as null."""
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
        """The whole log as a Parquet file beside it."""
        frame = pd.DataFrame(runs.records(self.path))
        partial = self.path.with_name(f".{runs.TABLE}.partial")
        frame.to_parquet(partial, index=False)
        os.replace(partial, self.path.with_name(runs.TABLE))


class Silent:
    """The log of a process that writes nothing."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Nowhere."""

    def synchronise(self) -> int:
        """Nothing was written."""
        return 0

    def close(self) -> None:
        """There is nothing to close."""

    def table(self) -> None:
        """Nor to put in a table."""


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
    return {name: value for name, value in record.items() if name not in WHERE}


def _installed(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DictlabError(
            f"log {extra}: {module} is not installed ({error}). Install it with `pip install 'dictlab[{extra}]'`, "
            "or leave it out: metrics are in the run's folder in any case."
        ) from error
