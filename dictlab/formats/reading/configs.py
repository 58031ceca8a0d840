"""Configurations, out of JSON and YAML: a tree of plain values that holds no surprise.

Nothing in it is shared, too deep, or too large to be printed, written as JSON or walked through.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import yaml

from dictlab.errors import DictlabError

# A file larger than this is no configuration. YAML is read at half a megabyte a second.
BYTES = {".json": 4 << 20, ".yaml": 512 << 10, ".yml": 512 << 10}
DEPTH = 40
VALUES = 200_000
LITERAL = 64  # characters of a number
INTEGERS = range(-(1 << 63), 1 << 64)


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object or YAML mapping.

    Raises:
        DictlabError: The file holds something else, is damaged, or is too large to be a configuration.
    """
    limit = BYTES[path.suffix]
    try:
        if path.stat().st_size > limit:
            raise ValueError(f"it is larger than {limit} bytes")
        text = path.read_text("utf-8-sig")
        content = plain(json.loads(text) if path.suffix == ".json" else yaml.load(text, _NoAliases))
    except (OSError, ValueError, RecursionError, OverflowError, yaml.YAMLError) as error:
        raise DictlabError(f"{path}: no readable configuration ({line(error)}).") from error
    if not isinstance(content, dict):
        raise DictlabError(f"{path}: it holds a {type(content).__name__}; expected fields with names.")
    return content


def configs_in(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The configurations in a folder by name, and what is wrong with those that cannot be read."""
    found, damaged = {}, {}
    try:
        paths = sorted(p for p in folder.iterdir() if p.suffix in BYTES and p.is_file())
    except OSError:  # nobody may look
        return {}, {}
    for path in paths:
        try:
            found[path.name] = read_config(path)
        except DictlabError as error:
            damaged[path.name] = str(error).removeprefix(f"{path}: ")
    return found, damaged


def plain(value: Any, leaves: tuple[type, ...] = ()) -> Any:
    """The same as a tree of dicts with texts as names, lists, and single values.

    Args:
        value: What a parser made.
        leaves: Further types whose values stay as they are.

    Raises:
        ValueError: It is too deep or too large, or holds something that JSON cannot.
    """
    return _plain(value, leaves, DEPTH, [VALUES])


def _plain(value: Any, leaves: tuple[type, ...], depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if not depth or not left[0] > 0:
        raise ValueError(f"it is deeper than {DEPTH} levels" if not depth else f"it holds more than {VALUES} values")
    if leaves and isinstance(value, leaves):  # before the tuples: torch.Size is one
        return value
    if isinstance(value, dict):
        named = {_text(str(name)): _plain(inner, leaves, depth - 1, left) for name, inner in value.items()}
        if len(named) < len(value):
            raise ValueError("two of its names are spelt alike")
        return named
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner, leaves, depth - 1, left) for inner in value]
    return _single(value)


def _single(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, datetime.date):  # a datetime is one
        return value.isoformat()
    if type(value) is int and value not in INTEGERS:
        raise ValueError("it holds a number of more than 64 bits")
    if value is None or type(value) in (bool, int, float):
        return value
    raise ValueError(f"it holds a {type(value).__name__}")


def _text(value: str) -> str:
    value.encode()  # half of a surrogate pair cannot be printed or written
    return value


class _NoAliases(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without references, as nested ones can stand for more than memory holds, and without endless numbers."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("it refers to parts of itself")
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith((":int", ":float")) and len(node.value) > LITERAL:
            raise yaml.YAMLError(f"it holds a number of more than {LITERAL} characters")
        return node


def line(error: BaseException) -> str:
    """What an error says, on one line."""
    text = " ".join(str(error).split())[:160]
    return text or type(error).__name__
