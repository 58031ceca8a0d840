"""A training run: what it leaves in its folder (`dictlab.runs`), and how it is stopped."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dictlab import runs
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.training.config import TrainConfig


@dataclass(frozen=True)
class Run:
    """A training run, finished or not.

    Attributes:
        folder: Where it is.
        config: What it was asked to do.
        dictionaries: What it made; without metrics where it was stopped twice.
        stopped: Why it ended before its last token; None if it did not.
        diverged: The step at which a member was given up because its loss was no number, by member.
    """

    folder: Path
    config: TrainConfig
    dictionaries: tuple[Dictionary, ...]
    stopped: str | None = None
    diverged: Mapping[str, int] = field(default_factory=dict)

    @property
    def interrupted(self) -> bool:
        """Whether it ended before its last token."""
        return self.stopped is not None

    def metrics(self) -> list[dict[str, Any]]:
        """The log: one record a member and logged step."""
        return runs.records(self.folder / runs.METRICS)


def replace_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def tell(folder: Path, about: Mapping[str, Any]) -> None:
    """Write what became of a run."""
    replace_text(folder / runs.ABOUT, json.dumps(about, indent=2) + "\n")


def check_free(folder: Path, names: Sequence[str], force: bool) -> None:
    """Refuse, before any work is done, a folder that holds a run, or a file that would be overwritten.

    Raises:
        DictlabError: It does, and `force` was not given; or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise DictlabError(f"{folder}: this is a file; the output is a folder. Choose another with --out.")
    if force:
        return
    if any((folder / name).exists() for name in (runs.CONFIG, "config.json")):
        raise DictlabError(
            f"{folder}: already holds a training run; go on with it (--resume {folder}), choose another --out, "
            "or give --force."
        )
    there = [name for name in names if (folder / f"{name}.safetensors").exists()]
    if there:
        raise DictlabError(f"{folder}: already holds {there[0]}.safetensors; choose another --out, or give --force.")


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Ctrl-C, or a polite kill, sets the event instead of breaking into a step; a second one breaks in after all."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals reach the main thread alone
        return

    def ask(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
