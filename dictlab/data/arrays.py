"""Activations that are an array: a tensor, a NumPy array, a `.npy` or a safetensors file; no language model at all.

Rows `[n, d]`, or sequences `[sequences, context, d]`. Files are mapped, not read: only rows that are asked for come
into memory, and those are checked for NaN. Intervals come from resampling sequences; rows without sequences are taken
in blocks of consecutive ones instead, for neighbouring rows are seldom independent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dictlab.data.mapped_file import MappedFile
from dictlab.errors import DictlabError, check_at_least
from dictlab.numerics import seeds
from dictlab.token_selection import ALL, TokenSelection, rectangles

Values: TypeAlias = Tensor | NDArray[Any]
ArrayLike: TypeAlias = Values | str | Path

BLOCK = 128  # rows that stand for a sequence, where the data has none
LEAST_BLOCKS = 64  # shorter blocks rather than fewer
HELD_OUT_SHARE = 10  # one sequence in ten is never trained on
ROWS_AT_ONCE = 8192
FLOATS = {"float16", "bfloat16", "float32", "float64"}


@dataclass(frozen=True, eq=False)
class ArrayActivations:
    """An array as a source of activations; make one with `open_array`.

    Attributes:
        name: What metadata and reports call it.
        values: The array, `[n, d]` or `[sequences, context, d]`; perhaps mapped from a file.
        context: Rows of a sequence, or of a block that stands for one.
        sequences: Numbers of the sequences of this split.
        split: "all", "train" or "heldout".
        whole: Never split: training and measurement are on all of it.
        device: Where its activations are wanted.
        selection: Which rows count in samples: by their positions in sequences, or by their norms. A stream of rows
            (`RowStream`) takes all.
        file: That `values` are mapped from, if they are.
    """

    name: str
    values: Values
    context: int
    sequences: NDArray[np.int64]
    split: str = "all"
    whole: bool = False
    device: str = "cpu"
    selection: TokenSelection = ALL
    file: MappedFile | None = None
    counted: ClassVar[str] = "rows"

    def __post_init__(self) -> None:
        """Refuse a selection that an array cannot follow.

        Raises:
            DictlabError: It asks what the tokens are, or for positions where there are no sequences.
        """
        selection = self.selection
        if selection.by_tokens or (self.values.ndim == 2 and (selection.first, selection.stop) != (0, None)):
            raise DictlabError(
                f"data {self.name}: rows cannot be selected by {selection}; an array does not say which tokens its "
                "rows are of, nor, without sequences, at which positions. Take them out, or give a model and a text."
            )

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return int(self.values.shape[-1])

    @property
    def n_rows(self) -> int:
        """Rows of this split."""
        return len(self.sequences) * self.context

    @property
    def in_blocks(self) -> bool:
        """Whether blocks of rows stand for sequences."""
        return self.values.ndim == 2

    @property
    def unit(self) -> str:
        """What intervals are resampled over."""
        if not self.in_blocks:
            return "sequences"
        return f"blocks of {self.context} rows" if self.context > 1 else "rows"

    @property
    def fingerprint(self) -> str:
        """Equal for equal arrays: SHA-256 over shape, type and up to 1,024 of the rows, taken from all over it."""
        n = _rows_of(self.values)
        some = self._fetch(np.unique(np.linspace(0, n - 1, min(n, 1024)).astype(np.int64)))
        described = f"{tuple(self.values.shape)} {_type_of(self.values)}"
        return hashlib.sha256(described.encode() + some.cpu().numpy().tobytes()).hexdigest()[:16]

    def record(self) -> dict[str, Any]:
        """What a report's settings and a dictionary's metadata say of it."""
        about = {"data": self.name, "data_fingerprint": self.fingerprint, "data_unit": self.unit}
        return about | {"token_selection": str(self.selection)}

    def as_split(self, split: str) -> ArrayActivations:
        """Nine sequences in ten ("train"), or the tenth that training never sees ("heldout").

        Raises:
            DictlabError: There are too few sequences for two splits.
        """
        if self.whole or split == self.split:
            return self
        if self.split != "all":
            raise DictlabError(f"data {self.name}: this is its {self.split} split already; give the whole of it.")
        mixed = (self.sequences.astype(np.uint64) * np.uint64(2654435761)) % np.uint64(1 << 32) >> np.uint64(16)
        held = mixed % HELD_OUT_SHARE == HELD_OUT_SHARE - 1
        if len(held) >= 2 and not held.any():
            held[-1] = True
        chosen = self.sequences[held if split == "heldout" else ~held]
        if not len(chosen):
            raise DictlabError(f"data {self.name}: {len(held)} {self.unit} are too few to hold one in ten out.")
        return replace(self, sequences=chosen, split=split)

    def sample(self, tokens: int, *, seed: int = 0) -> Iterator[Float[Tensor, "batch context d_in"]]:
        """Sequences drawn from all over it, about `tokens` rows of them; in float32."""
        drawn = self.drawn(tokens, seed)
        per = max(1, ROWS_AT_ONCE // self.context)
        for at in range(0, len(drawn), per):
            numbers = drawn[at : at + per]
            rows = (numbers[:, None] * self.context + np.arange(self.context)).reshape(-1)
            x = self._fetch(rows).reshape(len(numbers), self.context, self.d_in)
            yield from rectangles(x, self.selection.mask([x]))

    def drawn(self, tokens: int, seed: int = 0) -> NDArray[np.int64]:
        """Numbers of the sequences that `sample` gives, in its order."""
        check_at_least(1, tokens=tokens)
        count = min(len(self.sequences), max(1, tokens // self.context))
        order = torch.randperm(len(self.sequences), generator=seeds.generator(seed, "sample of sequences"))
        numbers: NDArray[np.int64] = self.sequences[order[:count].numpy()]
        return numbers

    def rows(self, indices: NDArray[np.int64]) -> Float[Tensor, "rows d_in"]:
        """Rows of this split by their number in it, in float32.

        Raises:
            DictlabError: One of them holds NaN or infinite values.
        """
        return self._fetch(self.sequences[indices // self.context] * self.context + indices % self.context)

    def _fetch(self, rows: NDArray[np.int64]) -> Float[Tensor, "rows d_in"]:
        """Rows of the whole array."""
        with self.file.unchanged() if self.file is not None else nullcontext():
            x = _rows(self.values, rows)
        finite = torch.isfinite(x).all(dim=1)
        if not finite.all():
            row = int(rows[int((~finite).nonzero()[0, 0])])
            raise DictlabError(f"data {self.name}: row {row} holds NaN or infinite values; take such rows out.")
        return x.to(self.device)


class RowStream:
    """Rows of an array in random order, going round it in another order each time; it can be resumed anywhere.

    Args:
        data: The array.
        batch: Rows a batch. One may reach over the end of a turn into the next.
        seed: Decides the order.
        turns: Times to go round; None for ever.
        start: `position()` of an earlier stream of the same settings.
    """

    def __init__(
        self,
        data: ArrayActivations,
        *,
        batch: int,
        seed: int,
        turns: int | None = None,
        start: Mapping[str, Any] | None = None,
    ) -> None:
        self._data, self._batch, self._seed, self._turns = data, batch, seed, turns
        self._used = int(start["rows"]) if start is not None else 0

    def position(self) -> dict[str, Any]:
        """Rows handed out."""
        return {"rows": self._used}

    def __iter__(self) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Batches."""
        n = self._data.n_rows
        turn, order = -1, np.empty(0, dtype=np.int64)
        while self._turns is None or self._used + self._batch <= self._turns * n:
            wanted, parts = self._batch, []
            while wanted:
                at = self._used % n
                if turn != self._used // n:
                    turn = self._used // n
                    generator = seeds.generator(self._seed, f"order of rows, turn {turn}")
                    order = torch.randperm(n, generator=generator).numpy()
                taken = order[at : at + wanted]
                parts.append(taken)
                self._used += len(taken)
                wanted -= len(taken)
            yield self._data.rows(np.concatenate(parts))


def open_array(
    given: ArrayLike | ArrayActivations, name: str | None = None, *, whole: bool = False
) -> ArrayActivations:
    """Activations from a tensor, a NumPy array, or the name of a file.

    Args:
        given: `[n, d]` or `[sequences, context, d]`, of floating-point numbers; or a `.npy` file; or a `.safetensors`
            file, as FILE#TENSOR where it holds several.
        name: What to call it; the file's name by default.
        whole: Never hold anything out; each row is its own sequence where there are none.

    Raises:
        DictlabError: There is no such file, it is no array of these shapes, or its numbers are no floating-point ones.
    """
    if isinstance(given, ArrayActivations):
        return given
    if isinstance(given, str | Path):
        (values, file), label = _from_file(str(given)), name or str(given)
    else:
        values, file, label = given, None, name or "array"
    _check(values, label)
    n = _rows_of(values)
    block = 1 if whole else max(1, min(BLOCK, n // LEAST_BLOCKS))
    context = int(values.shape[1]) if values.ndim == 3 else block
    return ArrayActivations(label, values, context, np.arange(n // context), whole=whole, file=file)


def _check(values: Values, label: str) -> None:
    shape, kind = tuple(values.shape), _type_of(values)
    if len(shape) not in (2, 3):
        raise DictlabError(f"data {label}: shape {shape}; expected [n, d], or [sequences, context, d].")
    if 0 in shape:
        raise DictlabError(f"data {label}: shape {shape}; there is nothing in it.")
    if kind not in FLOATS:
        raise DictlabError(
            f"data {label}: numbers of type {kind}; expected one of {', '.join(sorted(FLOATS))}. Convert it first, "
            "for instance with .astype('float32')."
        )


def _from_file(spec: str) -> tuple[Values, MappedFile]:
    name, _, part = spec.partition("#")
    path = Path(name)
    if not path.is_file():
        raise DictlabError(f"data {name}: no such file.")
    file = _watched(path)
    if path.suffix == ".npy":
        if part:
            raise DictlabError(f"data {spec}: a .npy file holds one array; leave out #{part}.")
        try:
            values: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise DictlabError(f"data {name}: no .npy array, or damaged ({error}).") from error
        return values, file
    if path.suffix == ".safetensors":
        return _from_safetensors(path, part), file
    raise DictlabError(f"data {name}: expected a .npy or .safetensors file. Save the array with numpy.save.")


def _watched(path: Path) -> MappedFile:
    try:
        return MappedFile(path, "data")
    except OSError as error:
        raise DictlabError(f"data {path}: cannot be read ({error}).") from error


def _from_safetensors(path: Path, part: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if not part and len(names) != 1:
                raise DictlabError(f"data {path}: holds {', '.join(names[:8]) or 'nothing'}; say which: {path}#TENSOR.")
            if part and part not in names:
                raise DictlabError(f"data {path}: no tensor {part!r}; it holds {', '.join(names[:8])}.")
            tensor: Tensor = file.get_tensor(part or names[0])
            return tensor
    except (SafetensorError, OSError) as error:
        raise DictlabError(f"data {path}: no safetensors file, or damaged ({error}).") from error


def _rows(values: Values, rows: NDArray[np.int64]) -> Float[Tensor, "rows d_in"]:
    """Copies of some rows, in float32."""
    at = (rows,) if values.ndim == 2 else divmod(rows, values.shape[1])
    if isinstance(values, Tensor):
        return values[tuple(torch.from_numpy(index).to(values.device) for index in at)].float()
    return torch.from_numpy(np.ascontiguousarray(values[at], dtype=np.float32))


def _rows_of(values: Values) -> int:
    return int(np.prod(values.shape[:-1]))


def _type_of(values: Values) -> str:
    return str(values.dtype).removeprefix("torch.").lstrip("<=")
