"""The codes of a dictionary on a sample of text, on disk: by token, and by latent.

While the sample is run through the model, entries (token, latent, activation) are appended token by token. Sorted by
latent afterwards, they give any latent's activations on the whole sample, exactly, without any of the others:

    by token   offsets [tokens + 1], latents [entries] int32, activations [entries] float32
    by latent  starts [n_latents + 1], tokens [entries] int32, activations [entries] float32

Memory is bounded by `SORTED_AT_ONCE` entries, whatever the sample and the dictionary; disk: 16 bytes an entry. Tokens
are counted through all sequences: token t of sequence s is s * context + t. Tokens that do not count have no entries.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

SORTED_AT_ONCE = 1 << 23  # entries that are sorted by latent at once: about 400 MB while that is done
READ_AT_ONCE = 1 << 22  # entries that are looked through at once


class Column(NamedTuple):
    """Where one latent is active.

    Attributes:
        tokens: Indices of the tokens, ascending.
        activations: Its activation at each of them, in the units of the codes; never 0.
    """

    tokens: Int[NDArray[np.int32], " active"]
    activations: Float[NDArray[np.float32], " active"]


class CodeWriter:
    """Appends the codes of one dictionary to files, sequence by sequence.

    Args:
        folder: Where its files are; made if need be.
        n_latents: Of the dictionary.
        entries: Entries of an earlier writer's files to go on from; what it wrote after these is dropped.
        tokens: Tokens that these entries are of, those that do not count included.
    """

    def __init__(self, folder: Path, n_latents: int, entries: int = 0, tokens: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.entries, self.tokens = entries, tokens
        self._latents = _opened_at(folder / "latents.i32", 4 * entries)
        self._activations = _opened_at(folder / "activations.f32", 4 * entries)
        self._counts = _opened_at(folder / "counts.i64", 8 * tokens)  # entries of each token
        self.active = np.zeros(n_latents, dtype=np.int64)  # tokens at which each latent is active
        earlier = _mapped(folder / "latents.i32", np.int32)
        for start in range(0, entries, READ_AT_ONCE):
            self.active += np.bincount(earlier[start : start + READ_AT_ONCE], minlength=n_latents)

    def append(
        self, token: Int[Tensor, " nnz"], latent: Int[Tensor, " nnz"], activation: Float[Tensor, " nnz"], n_tokens: int
    ) -> None:
        """Add the entries of some whole sequences; those of activation 0 are left out.

        Args:
            token: Of each entry, its index among the tokens of these sequences.
            latent: Of each entry.
            activation: Of each entry.
            n_tokens: Tokens of these sequences, those that do not count included.
        """
        active = (activation != 0).nonzero().squeeze(1)
        order = active[torch.argsort(token[active], stable=True)]
        latents = latent[order].cpu().numpy().astype(np.int32)
        self._latents.write(latents.tobytes())
        self._activations.write(activation[order].float().cpu().numpy().tobytes())
        self._counts.write(np.bincount(token[order].cpu().numpy(), minlength=n_tokens).astype(np.int64).tobytes())
        self.entries += len(latents)
        self.tokens += n_tokens
        self.active += np.bincount(latents, minlength=len(self.active))

    def skip(self, n_tokens: int) -> None:
        """Add tokens of which none counts."""
        self._counts.write(np.zeros(n_tokens, dtype=np.int64).tobytes())
        self.tokens += n_tokens

    def flush(self) -> None:
        """Have what was appended on the disk."""
        for file in (self._latents, self._activations, self._counts):
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> StoredCodes:
        """Sort what was appended by latent, and open it."""
        for file in (self._latents, self._activations, self._counts):
            file.close()
        offsets = np.concatenate([[0], np.cumsum(_mapped(self.folder / "counts.i64", np.int64))])
        by_token = _ByToken(
            offsets,
            _mapped(self.folder / "latents.i32", np.int32),
            _mapped(self.folder / "activations.f32", np.float32),
        )
        starts = np.concatenate([[0], np.cumsum(self.active)])
        _sort_by_latent(self.folder, by_token, starts)
        return StoredCodes(self.folder, by_token, starts)


def _opened_at(path: Path, size: int) -> BinaryIO:
    """A file to append to, of which the first bytes are kept."""
    path.touch()
    file = path.open("r+b")
    file.truncate(size)
    file.seek(size)
    return file


class _ByToken(NamedTuple):
    offsets: Int[NDArray[np.int64], " tokens+1"]
    latents: NDArray[np.int32]
    activations: NDArray[np.float32]


class StoredCodes:
    """The codes of one dictionary on a sample, in files that are read where they are asked for.

    Args:
        folder: Of the files that a `CodeWriter` wrote.
        by_token: Entries by token.
        starts: Where the entries of each latent begin, sorted by latent.
    """

    def __init__(self, folder: Path, by_token: _ByToken, starts: Int[NDArray[np.int64], " n_latents+1"]) -> None:
        self.offsets, self.latents, self.activations = by_token
        self.starts = starts
        self._tokens = _mapped(folder / "sorted_tokens.i32", np.int32)
        self._sorted = _mapped(folder / "sorted_activations.f32", np.float32)

    @property
    def n_tokens(self) -> int:
        """Tokens of the sample, those that do not count included."""
        return len(self.offsets) - 1

    @property
    def active(self) -> Int[NDArray[np.int64], " n_latents"]:
        """Tokens at which each latent is active."""
        return np.diff(self.starts)

    def column(self, latent: int) -> Column:
        """Where a latent is active."""
        part = slice(self.starts[latent], self.starts[latent + 1])
        return Column(np.asarray(self._tokens[part]), np.asarray(self._sorted[part]))


def _mapped(path: Path, dtype: type[np.generic]) -> NDArray[Any]:
    """An array in a file, read where it is asked for; an empty file cannot be mapped."""
    if path.stat().st_size == 0:
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def _sort_by_latent(folder: Path, codes: _ByToken, starts: Int[NDArray[np.int64], " n_latents+1"]) -> None:
    """Write the entries sorted by latent, and by token within one: a range of latents at a time."""
    n = len(starts) - 1
    with (folder / "sorted_tokens.i32").open("wb") as tokens, (folder / "sorted_activations.f32").open("wb") as values:
        first = 0
        while first < n:
            last = max(first + 1, int(np.searchsorted(starts, starts[first] + SORTED_AT_ONCE, side="right")) - 1)
            found = _entries_of(codes, first, last)
            order = np.argsort(found[1], kind="stable")
            tokens.write(found[0][order].tobytes())
            values.write(found[2][order].tobytes())
            first = last


def _entries_of(
    codes: _ByToken, first: int, last: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """Tokens, latents and activations of a range of latents, by token."""
    parts = []
    for start in range(0, len(codes.latents), READ_AT_ONCE):
        end = min(start + READ_AT_ONCE, len(codes.latents))
        latents = np.asarray(codes.latents[start:end])
        chosen = np.flatnonzero((latents >= first) & (latents < last))
        token = np.searchsorted(codes.offsets, chosen + start, side="right") - 1
        parts.append((token.astype(np.int32), latents[chosen], np.asarray(codes.activations[start:end])[chosen]))
    if not parts:
        return np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32)
    tokens, latents, activations = (np.concatenate(part) for part in zip(*parts, strict=True))
    return tokens, latents, activations
