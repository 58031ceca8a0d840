"""The files of a training run's folder.

config.toml          what was asked for; `dictlab train config.toml` does it again
run.json             what became of it: state, steps, seconds, versions, members
metrics.jsonl        a record for each member and logged step, as it goes
metrics.parquet      the same as a table, once the run is complete
state.safetensors    the state that an incomplete run goes on from
state.rows.N/        a part of that, where its latents are those of several processes
NAME.safetensors     the dictionaries
.dictlab.lock        who is writing, while somebody is
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
    """A run as its folder records it.

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
        """Whether it has taken all of its steps and was measured."""
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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise DictlabError(f"{path / CONFIG}: cannot be read as TOML ({error}).") from error
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8")) if (path / ABOUT).is_file() else {}
    except (ValueError, OSError, RecursionError) as error:
        raise DictlabError(f"{path / ABOUT}: cannot be read as JSON ({error}).") from error
    _check_about(path / ABOUT, about)
    return RunFolder(path, config, about)


ABOUT_KINDS: dict[str, type] = {  # fields of run.json
    "id": str,
    "state": str,
    "members": list,
    "sittings": list,
    "diverged": dict,
    "flops": dict,
    "steps": int,
    "tokens": int,
}


def _check_about(path: Path, about: Any) -> None:
    """Refuse a run.json whose fields are of other kinds than a run writes.

    Raises:
        DictlabError: One is named.
    """
    if not isinstance(about, dict):
        raise DictlabError(f"{path}: holds {type(about).__name__}; expected an object with the fields of a run.")
    for name, kind in ABOUT_KINDS.items():
        if name in about and type(about[name]) is not kind:
            raise DictlabError(f"{path}: {name} is {str(about[name])[:60]!r}; expected {kind.__name__}.")
    inside = {"members": str, "sittings": dict}
    for name, kind in inside.items():
        if not all(isinstance(entry, kind) for entry in about.get(name, ())):
            raise DictlabError(f"{path}: {name} is {str(about[name])[:60]!r}; expected a list of {kind.__name__}.")
    if not all(type(step) is int for step in about.get("diverged", {}).values()):
        raise DictlabError(f"{path}: diverged is {str(about['diverged'])[:60]!r}; expected steps by member.")
    if any("/" in name or "\\" in name or name in ("", ".", "..") for name in about.get("members", ())):
        raise DictlabError(
            f"{path}: members are {str(about['members'])[:60]!r}; expected names of files in this folder."
        )


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last line that is being written, or was when the run was killed, is left out.

    Raises:
        DictlabError: There is no such file, or a line is no record in JSON.
    """
    if not path.is_file():
        raise DictlabError(f"{path}: no such file; the run has logged nothing yet.")
    entries = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DictlabError(f"{path}: line {number} is damaged ({error}).") from error
        if not isinstance(entry, dict):
            raise DictlabError(f"{path}: line {number} is damaged (it is no record).")
        entries.append(entry)
    return entries
