"""Is a saved state one that this run can go on from? Checked like a dictionary, before anything is made of it.

The record (JSON) and the tensors are compared with their digests, the record with ranges and with the run's settings,
each tensor with the name, shape and dtype that a fresh learner has, and for finite values. Everything that does not fit
is refused in a sentence.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from dictlab.errors import DictlabError
from dictlab.training.configfile import of_run

# Settings that say who does the work and where it is kept, not what it is: they may differ when a run goes on.
MAY_CHANGE = {"device", "shards", "save_minutes", "log", "cache", "cache_gb"}
SAMPLE = {"n": torch.int64, "mean": torch.float32, "centre": torch.float32}


def digest(record: Mapping[str, Any]) -> str:
    """A hash of a record's values."""
    text = json.dumps({k: v for k, v in record.items() if k != "digest"}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class TensorsDigest:
    """A hash of tensors: their names, dtypes, shapes and bytes, in the order of their names."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, name: str, tensor: Tensor) -> None:
        """Take in the next tensor."""
        self._hash.update(f"{name}:{tensor.dtype}:{list(tensor.shape)};".encode())
        self._hash.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

    def value(self) -> str:
        """The hash so far."""
        return self._hash.hexdigest()

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> str:
        """The hash of all of these."""
        whole = cls()
        for name in sorted(tensors):
            whole.add(name, tensors[name])
        return whole.value()


def refuse(path: Path, what: str) -> NoReturn:
    """Raise the error of a state that cannot be gone on from."""
    raise DictlabError(
        f"{path}: not a state of a training run, or damaged ({what}). Put back a copy of it, or train anew."
    )


def check_settings(path: Path, record: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse a state of a run whose config.toml says something else now.

    Raises:
        DictlabError: A setting differs; the values are named.
    """
    begun = record.get("settings")
    if not isinstance(begun, dict):
        refuse(path, f"its settings are {_shown(begun)}")
    begun = of_run(begun)
    for name in sorted(begun.keys() | settings.keys()):
        before, given = begun.get(name), settings.get(name)
        if before != given and name not in MAY_CHANGE:
            raise DictlabError(
                f"{path.parent / 'config.toml'}: {name} is {_shown(given)}, and this run began with {_shown(before)}. "
                f"A run goes on with its own settings: put it back, or train anew in another folder."
            )


def check_record(
    path: Path, record: Mapping[str, Any], steps: Sequence[int], batch: int, members: Sequence[str]
) -> None:
    """Refuse a record with values out of range, or that do not fit each other.

    Args:
        path: The state's file.
        record: What it says.
        steps: Of each part of the run.
        batch: Tokens a step.
        members: Names of all dictionaries of the run.

    Raises:
        DictlabError: What is wrong is named.
    """
    if record.get("digest") != digest(record):
        refuse(path, "its record does not have the digest that was written with it")
    step = _whole(path, record, "step", sum(steps))
    position = record.get("position")
    if not isinstance(position, dict) or position.keys() != {"part", "taken", "stream"}:
        refuse(path, f"its position is {_shown(position)}")
    part = _whole(path, position, "part", len(steps) - 1)
    taken = _whole(path, position, "taken", steps[part])
    if sum(steps[:part]) + taken != step:
        refuse(path, f"its position is behind {sum(steps[:part]) + taken} steps, and it has taken {step}")
    if not _counts_only(position["stream"]):
        refuse(path, f"the position of its stream is {_shown(position['stream'])}")
    _whole(path, record, "log", 1 << 53)
    _check_members(path, record, step, members)


def _check_members(path: Path, record: Mapping[str, Any], step: int, members: Sequence[str]) -> None:
    diverged, optimized = record.get("diverged"), record.get("optimized")
    if not isinstance(diverged, dict) or not set(diverged) < set(members):
        refuse(path, f"diverged is {_shown(diverged)}, and its dictionaries are {', '.join(members)}")
    for name in diverged:
        _whole(path, diverged, name, step)
    if not isinstance(optimized, dict) or set(optimized) != set(members) - set(diverged):
        refuse(path, f"it has moments of {_shown(optimized)}, and its dictionaries are {', '.join(members)}")
    seconds = record.get("seconds")
    if (
        not isinstance(seconds, dict)
        or seconds.keys() != {"members", "total"}
        or not isinstance(seconds["members"], dict)
    ):
        refuse(path, f"its seconds are {_shown(seconds)}")
    if set(seconds["members"]) != set(members):
        refuse(path, f"its seconds are of {', '.join(seconds['members'])}")
    for pair in (seconds["total"], *seconds["members"].values()):
        if not (isinstance(pair, list) and len(pair) == 2 and all(_is_duration(value) for value in pair)):
            refuse(path, f"seconds of {_shown(pair)}; expected two numbers")


def check_sample(path: Path, tensors: Mapping[str, Tensor], variances: Any, sites: int) -> None:
    """Refuse statistics of the sample that are missing or are no statistics.

    Raises:
        DictlabError: What is wrong is named.
    """
    if (
        not isinstance(variances, list)
        or len(variances) != sites
        or not all(_is_duration(v) and v > 0 for v in variances)
    ):
        refuse(path, f"the variances of its {sites} sites are {_shown(variances)}")
    for i in range(sites):
        there = {name: tensors.get(f"start/{i}/{name}") for name in SAMPLE}
        for name, dtype in SAMPLE.items():
            tensor = there[name]
            if tensor is None or tensor.dtype != dtype or tensor.dim() != (name != "n"):
                refuse(path, f"start/{i}/{name} is {_kind(tensor)}")
            _check_finite(path, f"start/{i}/{name}", tensor)
        mean, centre, n = there["mean"], there["centre"], there["n"]
        assert mean is not None and centre is not None and n is not None
        if len(mean) != len(centre) or not len(mean) or n < 1:
            refuse(path, f"start/{i} has a mean of {len(mean)} coordinates, a centre of {len(centre)}, {int(n)} tokens")


def check_tensors(path: Path, name: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse tensors of a dictionary that have not the names, shapes and dtypes of its learner, or are not finite.

    Args:
        path: The state's file.
        name: Of the dictionary.
        tensors: Those in the file.
        expected: Those of a learner like it.

    Raises:
        DictlabError: One of them is named.
    """
    if tensors.keys() != expected.keys():
        missing, more = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
        refuse(path, f"{name} lacks {', '.join(missing) or 'nothing'}, and has {', '.join(more) or 'nothing'} too many")
    for key, tensor in tensors.items():
        like = expected[key]
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            refuse(path, f"{name}/{key} is {_kind(tensor)}; expected {_kind(like)}")
        _check_finite(path, f"{name}/{key}", tensor)
        counted = (
            key == "since_fired" or key.startswith(("firings.", "counter.")) or key.endswith((".exp_avg_sq", ".step"))
        )
        if counted and bool((tensor < 0).any()):
            refuse(path, f"{name}/{key} has negative values")


def _check_finite(path: Path, name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        refuse(path, f"{name} has NaN or infinite values")


def _whole(path: Path, record: Mapping[str, Any], name: str, largest: int) -> int:
    """A whole number of 0 to `largest`."""
    value = record.get(name)
    if type(value) is not int or not 0 <= value <= largest:
        refuse(path, f"{name} is {_shown(value)}; expected a whole number of 0 to {largest}")
    return value


def _counts_only(value: Any) -> bool:
    """Whether there is nothing but whole numbers of 0 or more, in lists and under names."""
    if isinstance(value, dict):
        return all(_counts_only(entry) for entry in value.values())
    if isinstance(value, list):
        return all(_counts_only(entry) for entry in value)
    return value is None or (type(value) is int and value >= 0)


def _is_duration(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _shown(value: Any) -> str:
    text = "not there" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _kind(tensor: Tensor | None) -> str:
    return "not there" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
