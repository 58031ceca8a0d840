"""What a training run's folder holds, for whoever writes and whoever reads it.

config.toml          what was asked for; `dictlab train config.toml` does it again
run.json             what became of it: state, steps, seconds, versions, members
metrics.jsonl        a record for each member and logged step, as it goes
metrics.parquet      the same as a table, in the end
state.safetensors    what an unfinished run goes on from
state.rows.N/        a part of that, where its latents are those of several processes
NAME.safetensors     the dictionaries
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dictlab.errors import DictlabError

CONFIG, ABOUT, METRICS, TABLE, STATE = (
    "config.toml",
    "run.json",
    "metrics.jsonl",
    "metrics.parquet",
    "state.safetensors",
)


@dataclass(frozen=True)
class RunFolder:
    """A run as its folder tells it.

    Attributes:
        path: The folder.
        config: Its config.toml.
        about: Its run.json; empty of a run that has barely begun.
    """

    path: Path
    config: dict[str, Any]
    about: dict[str, Any]

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.path.absolute().name

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return self.about.get("state") == "finished"

    def metrics(self) -> pd.DataFrame:
        """One row a member and logged step; of a run that is going on, as far as it is.

        Raises:
            DictlabError: There is no log, or it is damaged.
        """
        return pd.DataFrame(records(self.path / METRICS))


def open_run(folder: str | Path) -> RunFolder:
    """Read a run's folder.

    Raises:
        DictlabError: It is no run's folder, or what it says cannot be read.
    """
    path = Path(folder)
    if not (path / CONFIG).is_file():
        raise DictlabError(f"{folder}: holds no training run (no {CONFIG}). Give the folder that was --out of `train`.")
    try:
        config = tomllib.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise DictlabError(f"{path / CONFIG}: cannot be read as TOML ({error}).") from error
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8")) if (path / ABOUT).is_file() else {}
    except (ValueError, OSError) as error:
        raise DictlabError(f"{path / ABOUT}: cannot be read as JSON ({error}).") from error
    return RunFolder(path, config, about)


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last line that is being written, or was when the run was killed, is left out.

    Raises:
        DictlabError: There is no such file, or a line is no JSON.
    """
    if not path.is_file():
        raise DictlabError(f"{path}: no such file; the run has logged nothing yet.")
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise DictlabError(f"{path}: line {number} is damaged ({error}).") from error
    return found
