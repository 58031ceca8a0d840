"""A training run: what it leaves in its folder (`dictlab.runs`), and how it is stopped."""

from __future__ import annotations

import json
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
from dictlab.runtime.atomic_files import refuse_links, replace_text
from dictlab.training.config import TrainConfig

LOGGERS = ("tensorboard", "wandb")  # folders that loggers make


@dataclass(frozen=True)
class Run:
    """A training run, complete or not.

    Attributes:
        folder: Where it is.
        config: Its settings.
        dictionaries: The trained dictionaries; without metrics where it was stopped twice.
        stopped: Why it ended before its last token; None if it did not.
        diverged: The step at which a member was given up because its loss was not finite, by member.
        signal: The signal that stopped it, if one did.
    """

    folder: Path
    config: TrainConfig
    dictionaries: tuple[Dictionary, ...]
    stopped: str | None = None
    diverged: Mapping[str, int] = field(default_factory=dict)
    signal: int | None = None

    @property
    def interrupted(self) -> bool:
        """Whether it ended before its last token."""
        return self.stopped is not None

    @property
    def exit_code(self) -> int:
        """What a command that trains exits with: 130 after SIGINT, 143 after SIGTERM, as shells have it; else 0."""
        return 0 if self.signal is None else 128 + self.signal

    def metrics(self) -> list[dict[str, Any]]:
        """The log: one record a member and logged step."""
        return runs.records(self.folder / runs.METRICS)


def write_record(folder: Path, about: Mapping[str, Any]) -> None:
    """Write run.json."""
    replace_text(folder / runs.ABOUT, json.dumps(about, indent=2) + "\n")


def check_free(folder: Path, names: Sequence[str], force: bool) -> None:
    """Refuse, before any work is done, a folder that holds a run, a file that would be overwritten, or links.

    Raises:
        DictlabError: It does, and `force` was not given; or it is a file; or something in it that a run writes is a
            symbolic link.
    """
    if folder.exists() and not folder.is_dir():
        raise DictlabError(f"{folder}: this is a file; the output is a folder. Choose another with `out=...`.")
    check_links(folder)
    if force:
        return
    if any((folder / name).exists() for name in (runs.CONFIG, "config.json")):
        raise DictlabError(
            f"{folder}: already holds a training run; go on with it (dictlab train --resume {folder}), "
            f"choose another `out=...`, "
            "or give `force=True`."
        )
    there = [name for name in names if (folder / f"{name}.safetensors").exists()]
    if there:
        raise DictlabError(
            f"{folder}: already holds {there[0]}.safetensors; choose another `out=...`, or give `force=True`."
        )


def check_links(folder: Path) -> None:
    """Refuse a folder in which something that a run writes is a symbolic link.

    Raises:
        DictlabError: It is named.
    """
    files = (runs.CONFIG, runs.ABOUT, runs.METRICS, runs.TABLE, runs.STATE, "config.json", *LOGGERS)
    written = [
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name in files or path.name.startswith((".", "state.rows.")) or path.suffix == ".safetensors"
    ]
    refuse_links(written, "a training run")


class StopSignal:
    """The signal that asked a run to stop, if one did.

    Attributes:
        number: SIGINT or SIGTERM; None so far.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def receive(self, number: int, frame: Any) -> None:
        """The first signal asks; a second one breaks in, as it would have without this handler.

        Raises:
            KeyboardInterrupt: A second SIGINT.
            SystemExit: A second SIGTERM.
        """
        if self.number is None:
            self.number = number
        elif number == signal.SIGTERM:
            raise SystemExit(128 + number)
        else:
            raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[StopSignal]:
    """Within the block Ctrl-C or SIGTERM sets the signal's number instead of breaking into a step."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread alone
        return
    before = {number: signal.signal(number, stop.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
