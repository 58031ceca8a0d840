"""A training run's folder: `config.json`, `metrics.jsonl` as it goes, and the dictionaries it made."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.train.config import TrainConfig


@dataclass(frozen=True)
class Run:
    """A finished, or interrupted, training run.

    Attributes:
        folder: Where it is.
        config: What it was asked to do.
        dictionaries: What it made.
        interrupted: Whether it was stopped before its last token.
        diverged: Members that were stopped because their loss was no number any more, with what was said of each. They
            leave no dictionary.
    """

    folder: Path
    config: TrainConfig
    dictionaries: tuple[Dictionary, ...]
    interrupted: bool
    diverged: Mapping[str, str] = field(default_factory=dict)

    def metrics(self) -> list[dict[str, Any]]:
        """The log: one record a member and logged step."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


class Log:
    """Opens a run's folder and writes its metrics line by line."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
        self.path = folder / "metrics.jsonl"
        self.path.write_text("")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record."""
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def check_free(folder: Path, names: Sequence[str], force: bool) -> None:
    """Refuse, before any work is done, a folder that holds a run, or a file that would be overwritten.

    Raises:
        DictlabError: It does, and `force` was not given; or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise DictlabError(f"{folder}: this is a file; the output is a folder. Choose another with --out.")
    if force:
        return
    if (folder / "config.json").exists():
        raise DictlabError(f"{folder}: already holds a training run; choose another --out, or give --force.")
    there = [name for name in names if (folder / f"{name}.safetensors").exists()]
    if there:
        raise DictlabError(f"{folder}: already holds {there[0]}.safetensors; choose another --out, or give --force.")


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of breaking into a step; a second one breaks in after all."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals reach the main thread alone
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
