"""A TrainConfig as TOML, in either direction. What it does not know it refuses, with the nearest word that it knows."""

from __future__ import annotations

import difflib
import tomllib
import types
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tomli_w

from dictlab.__about__ import VERSION
from dictlab.errors import DictlabError
from dictlab.training.config import TrainConfig

HEAD = "# Written by dictlab "
BEFORE_SELECTIONS = {"token_selection": "all"}
BEFORE_RECIPES = {"recipe": "dictlab-0.1", "schedule": "cosine", "decay": 0.2}
COMMAND_LINE_ONLY = "trust_remote_code"  # a file that somebody else wrote must not have code run


def read(path: str | Path) -> dict[str, Any]:
    """The settings in a TOML file, in the types of TrainConfig's fields.

    Raises:
        DictlabError: There is no such file, it is no TOML, or a key or value is none of TrainConfig's.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        entries = tomllib.loads(text)
    except FileNotFoundError:
        raise DictlabError(f"{path}: no such file; expected a TOML file of training settings.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise DictlabError(f"{path}: cannot be read as TOML ({error}).") from error
    return checked(of_run(entries) if text.startswith(HEAD) else entries, str(path))


def of_run(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run has written, with what it meant by those that there were not when it began."""
    return BEFORE_SELECTIONS | ({} if "recipe" in entries else BEFORE_RECIPES) | dict(entries)


def checked(entries: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings in the types of TrainConfig's fields.

    Raises:
        DictlabError: A key or value is none of TrainConfig's; `where` is named.
    """
    kinds = {name: kind for name, kind in get_type_hints(TrainConfig).items() if name in known()}
    return {_known(name, where): _fitting(value, kinds[name], f"{where}: {name}") for name, value in entries.items()}


def known() -> list[str]:
    """The names of all settings that a file can hold."""
    return [field.name for field in fields(TrainConfig) if field.name != COMMAND_LINE_ONLY]


def settings(config: TrainConfig) -> dict[str, Any]:
    """The settings as a file holds them: without those left to their default, with lists for tuples."""
    return tomllib.loads(dumped(config))


def dumped(config: TrainConfig) -> str:
    """The text of a file that gives the same settings back. What is None, and so left to its default, is left out."""
    entries = {
        name: list(v) if isinstance(v, tuple) else v
        for name, v in asdict(config).items()
        if v not in (None, ()) and name != COMMAND_LINE_ONLY
    }
    head = f"{HEAD}{VERSION}. The same again: dictlab train FILE; flags win over what stands here.\n\n"
    return head + tomli_w.dumps(entries)


def _known(name: str, where: str) -> str:
    if name == COMMAND_LINE_ONLY:
        raise DictlabError(f"{where}: no file decides that code of a model is run; give `trust_remote_code=True`.")
    if name not in known():
        near = difflib.get_close_matches(name.replace("-", "_"), known(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known())}."
        raise DictlabError(f"{where}: no setting is called {name!r}; {hint}")
    return name


def _fitting(value: Any, kind: Any, where: str) -> Any:
    """The value as a kind of field wants it: one value where several may stand is a tuple of one."""
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for option in options:
        found = _as(value, option)
        if found is not None:
            return found
    raise DictlabError(f"{where} is {value!r}; expected {_spelt(kind)}.")


def _as(value: Any, kind: Any) -> Any:
    """The value as one kind, or None where it is no such thing."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is tuple:
        values = value if isinstance(value, list) else [value]
        wanted = [inside[0]] * len(values) if inside[-1] is Ellipsis else list(inside)
        parts = [_as(v, k) for v, k in zip(values, wanted, strict=False)]
        return tuple(parts) if len(values) == len(wanted) and None not in parts else None
    if origin is Literal:
        return value if value in inside else None
    if origin is dict:
        return value if isinstance(value, dict) else None
    if kind is float and type(value) is int:
        return float(value)
    return value if isinstance(kind, type) and type(value) is kind else None


def _spelt(kind: Any) -> str:
    """A kind of value in words."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_spelt(one) for one in inside if one is not type(None)))
    if origin is tuple:
        return f"a list of {_spelt(inside[0])}" if inside[-1] is Ellipsis else f"[{', '.join(map(_spelt, inside))}]"
    if origin is Literal:
        return " or ".join(f'"{one}"' for one in inside)
    names = {str: "a text", int: "an integer", float: "a number", bool: "true or false"}
    return names.get(kind, str(kind))
