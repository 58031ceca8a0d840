"""What would a pickle do, before it is allowed to?

A file of torch.save is a pickle that names storages and calls a function to make tensors of them. Under its option
weights_only, torch.load calls nothing that could run a program, but some things that can take any amount of memory:
`bytearray(n)`, or a codec called again and again. So the pickle's steps are read first, without taking them. Expected
is what state dicts are made of, and no storage larger than the file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pickletools import genops
from typing import IO, Any

import torch

LEGACY_PARTS = 5  # magic number, protocol, system, content, keys of storages
BYTES = 4 << 20  # a state dict's pickle has some hundred bytes a tensor
WORK = 1 << 28  # calls times steps: each call might copy a container that took that many steps to fill
REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
KNOWN = {
    "collections OrderedDict",
    "builtins set",
    "__builtin__ set",
    "torch Size",
    "torch device",
    "torch.storage UntypedStorage",
    *(f"torch._utils {name}" for name in REBUILD),
    *(f"torch {name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
    *(f"torch {name}" for name in vars(torch) if name.endswith("Storage") and not name.startswith("_")),
}
PUTS = ("BINPUT", "LONG_BINPUT", "MEMOIZE")
NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1")


def check_pickle(file: IO[bytes]) -> None:
    """Read the steps of one pickle, and refuse those that no state dict needs.

    Raises:
        ValueError: It would call or make something else; or it is damaged.
    """
    steps = calls = 0
    for name, argument in _steps(file):
        steps, calls = steps + 1, calls + (name in ("REDUCE", "NEWOBJ", "BUILD"))
        if name == "GLOBAL" and argument not in KNOWN:
            raise ValueError(f"it would call or name {str(argument).replace(' ', '.')}")
        if name in ("INST", "OBJ", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
            raise ValueError(f"it has a step {name}, which torch.save does not write")
        if calls * steps > WORK:
            raise ValueError(f"it makes {calls} calls in {steps} steps: more than a dictionary's tensors need")


def check_legacy(file: IO[bytes], size: int) -> None:
    """The same for a file of torch.save before version 1.6: pickles one after another, then the numbers.

    Raises:
        ValueError: As for `check_pickle`; or a storage claims to be larger than the file.
    """
    begin = io.BytesIO(file.read(BYTES))  # a file would take memory for as many bytes as a step claims to have
    for _ in range(LEGACY_PARTS):
        start = begin.tell()
        check_pickle(begin)
        begin.seek(start)
        _check_claims(begin, size)


def _check_claims(file: IO[bytes], size: int) -> None:
    """A storage is named by a tuple that ends in its length and None: memory for it is taken before it is read."""
    before: list[tuple[str, Any]] = []
    for name, argument in _steps(file):
        if name == "BINPERSID":
            shape = [step for step, _ in before]
            if shape[1:] != ["NONE", "TUPLE"] or shape[0] not in NUMBERS or not 0 <= before[0][1] <= size:
                raise ValueError("a storage in it claims to be larger than the file, or is named in an unknown way")
        if name not in PUTS:
            before = [*before[-2:], (name, argument)]


def _steps(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    for opcode, argument, _ in genops(file):
        yield opcode.name, argument
