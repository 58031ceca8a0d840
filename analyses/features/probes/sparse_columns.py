"""Features of many tokens, column by column, each column to be summed over: sparse codes, or a matrix.

The two kinds answer the same questions, so that what is computed of columns is written once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictlab.dictionary.codes import Codes

ENTRIES = 1 << 18  # looked at together: they fit a processor's cache


class Sparse(NamedTuple):
    """Features that are mostly 0, column by column: column j owns the next `lengths[j]` entries.

    Attributes:
        values: Entries, none of them 0.
        rows: The token of each.
        lengths: Entries of each column.
        n_rows: Tokens.
    """

    values: Float[Tensor, " nnz"]
    rows: Int[Tensor, " nnz"]
    lengths: Int[Tensor, " columns"]
    n_rows: int

    @classmethod
    def of(cls, codes: Codes) -> Sparse:
        """The latents of codes, those that are never active with no entry."""
        on = codes.values != 0
        values, indices, rows = codes.values[on], codes.indices[on], codes.rows[on]
        order = torch.argsort(indices, stable=True)
        lengths = torch.bincount(indices, minlength=codes.n_latents)
        return cls(values[order].double(), rows[order], lengths, codes.n_tokens)

    def each(self, of_columns: Tensor) -> Tensor:
        """Something known of each column, for each of its entries."""
        return torch.repeat_interleave(of_columns, self.lengths, output_size=len(self.values))

    def sums(self, of_entries: Tensor) -> Float[Tensor, " columns"]:
        """Of something known of each entry, by column."""
        return torch.segment_reduce(of_entries, "sum", lengths=self.lengths)

    def at(self, labels: Tensor) -> Tensor:
        """What is known of each token, for each entry."""
        return labels[self.rows]

    def only(self, kept: Tensor) -> Sparse:
        """Some of the columns, by a mask."""
        entries = self.each(kept)
        return Sparse(self.values[entries], self.rows[entries], self.lengths[kept], self.n_rows)

    def blocks(self) -> Iterator[Sparse]:
        """Neighbouring columns of at most ENTRIES entries together, one column at least."""
        ends, begin = self.lengths.cumsum(0), 0
        while begin < len(self.lengths):
            before = int(ends[begin - 1]) if begin else 0
            end = max(begin + 1, int(torch.searchsorted(ends, before + ENTRIES, right=True)))
            own = slice(before, int(ends[end - 1]))
            yield Sparse(self.values[own], self.rows[own], self.lengths[begin:end], self.n_rows)
            begin = end


class Dense(NamedTuple):
    """Features that are nowhere 0, such as the coordinates of activations; `Sparse` for such.

    Attributes:
        values: Rows are columns here, so that each is in one piece.
    """

    values: Float[Tensor, "columns tokens"]

    @property
    def lengths(self) -> Int[Tensor, " columns"]:
        """Entries of each column: all tokens."""
        return torch.full(self.values.shape[:1], self.n_rows, device=self.values.device)

    @property
    def n_rows(self) -> int:
        """Tokens."""
        return self.values.shape[1]

    def each(self, of_columns: Tensor) -> Tensor:
        """As of `Sparse`."""
        return of_columns[:, None]

    def sums(self, of_entries: Tensor) -> Float[Tensor, " columns"]:
        """As of `Sparse`."""
        return of_entries.expand(self.values.shape).sum(dim=1)

    def at(self, labels: Tensor) -> Tensor:
        """As of `Sparse`."""
        return labels.expand(self.values.shape)

    def only(self, kept: Tensor) -> Dense:
        """As of `Sparse`."""
        return Dense(self.values[kept])

    def blocks(self) -> Iterator[Dense]:
        """As of `Sparse`."""
        return (Dense(some) for some in self.values.split(max(1, ENTRIES // self.n_rows)))


Columns: TypeAlias = Sparse | Dense
