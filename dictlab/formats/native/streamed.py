"""dictlab's own file, written some latents at a time: nobody holds the whole dictionary.

A safetensors file is the length of its header (8 bytes), the header (JSON), and the tensors one after the other. Room
for all of them is made first; each group of latents is then put where it belongs: rows of `W_dec`, columns of `W_enc`,
entries of everything that has one for each latent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.formats.native import native_file as native
from dictlab.runtime import atomic_files

FLOAT32 = 4  # bytes
ALIGNED = 8  # bytes that the first tensor's place is a multiple of
LATENTS = {"W_enc": 1, "b_pre": None, "b_out": None, "W_skip": None}  # which dimension; the first of all others

Room = Mapping[str, np.memmap]


def save(groups: Iterable[Dictionary], n_latents: int, path: Path) -> Path:
    """Write a dictionary whose latents come in groups, whole or not at all; in float32.

    Args:
        groups: Dictionaries of some latents each, in order; they agree in all else.
        n_latents: Of all groups.
        path: Ends in `.safetensors`; an existing file is replaced.

    Raises:
        DictlabError: The groups do not add up, or hold values that are no numbers.
        OSError: The disk is full, or gone.
    """
    rest = iter(groups)
    first = next(rest)
    with atomic_files.new_file(path) as partial:
        room, done = _room(first, n_latents, partial), 0
        for group in chain([first], rest):
            for name, tensor in native.tensors(group).items():
                room[name][_place(name, done, done + group.n_latents)] = tensor.float().numpy()
            done += group.n_latents
        if done != n_latents:
            raise DictlabError(f"{path}: not saved: {done} latents came of {n_latents}.")
        native.check_written(native.header(first), {name: torch.from_numpy(t) for name, t in room.items()}, path)
        for mapped in room.values():
            mapped.flush()
    return path


def _room(first: Dictionary, n_latents: int, path: Path) -> Room:
    """A file with the header that the whole dictionary has, and its tensors, to be filled."""
    shapes = {name: _whole(name, t, n_latents) for name, t in sorted(native.tensors(first).items())}
    entries: dict[str, Any] = {"__metadata__": {"dictlab": native.header(first)}}
    starts, end = {}, 0
    for name, shape in shapes.items():
        starts[name], end = end, end + FLOAT32 * int(np.prod(shape))
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [starts[name], end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % ALIGNED)
    begins = 8 + len(header)
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        os.posix_fallocate(file.fileno(), 0, begins + end)  # a disk that is too small says so here
    return {
        name: np.memmap(path, dtype=np.float32, mode="r+", offset=begins + starts[name], shape=tuple(shape))
        for name, shape in shapes.items()
    }


def _whole(name: str, tensor: Tensor, n_latents: int) -> list[int]:
    """The shape of a tensor for all latents."""
    shape, dimension = list(tensor.shape), LATENTS.get(name, 0)
    if dimension is not None:
        shape[dimension] = n_latents
    return shape


def _place(name: str, start: int, end: int) -> tuple[slice, ...]:
    """Where a group's part of a tensor goes."""
    dimension = LATENTS.get(name, 0)
    return () if dimension is None else (*[slice(None)] * dimension, slice(start, end))
