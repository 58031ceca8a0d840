"""The best few entries of each line of a matrix that passes by in tiles; lines are rows, or columns.

The maxima of eight rows at a time bound rows and columns alike. What lies behind one is looked at only where it beats
the last of the best that a line has so far.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

GROUP = 8  # lines, or entries of a line, that share a maximum
JOINED = 4096  # lines that are joined at once


class RunningTopK:
    """The best few so far of each line; lines are rows of the cosine matrix, or its columns."""

    def __init__(self, n: int, top: int, dtype: torch.dtype, device: torch.device) -> None:
        self.cosine = torch.full((n, top), -torch.inf, dtype=dtype, device=device)
        self.index = torch.zeros(n, top, dtype=torch.long, device=device)

    def found(self) -> tuple[Float[Tensor, "n top"], Int[Tensor, "n top"]]:
        """Cosines and numbers, best first."""
        return self.cosine.clamp_(-1, 1), self.index  # rounding can pass 1

    def empty_like(self, n: int) -> RunningTopK:
        """For n other lines, of which nothing is known."""
        return RunningTopK(n, self.cosine.shape[1], self.cosine.dtype, self.cosine.device)

    def join(self, first: int, parts: Sequence[RunningTopK]) -> None:
        """Take in what was found of the lines from `first` on, by several workers."""
        for at in range(0, len(parts[0].cosine), JOINED):
            piece = slice(at, at + JOINED)
            value = torch.cat([part.cosine[piece] for part in parts], dim=1)
            index = torch.cat([part.index[piece] for part in parts], dim=1)
            self._merge(slice(first + at, first + at + len(value)), value, index)

    def see_rows(self, tile: Tensor, maxima: Tensor, first: int, offset: int, lines: int) -> None:
        """Take notice of a tile whose rows are lines.

        Args:
            tile: The cosines.
            maxima: Of eight rows at a time.
            first: The line of its first row.
            offset: The number of its first column.
            lines: Rows of the tile that are lines; the others are padding.
        """
        if not self.cosine.shape[1]:
            return
        bar = self._bar(first, lines, len(tile))
        lowest = bar.view(-1, GROUP).amin(1)
        wide = tile.shape[1] // GROUP
        group, place = (maxima.view(-1, GROUP, wide).amax(1) > lowest[:, None]).nonzero().unbind(1)
        if len(group) * 4 > len(maxima) * wide:  # nearly nothing is known yet
            value, column = _best_of_rows(tile[:lines], self.cosine.shape[1])
            self._merge(slice(first, first + lines), value, offset + column)
            return
        steps = torch.arange(GROUP, device=tile.device)
        column = place[:, None] + wide * steps
        hot = maxima[group[:, None], column] > lowest[group][:, None]
        column, group = column[hot], group[:, None].expand_as(hot)[hot]
        line = GROUP * group[:, None] + steps
        value = tile[line, column[:, None]]
        hot = value > bar[line]
        self._insert(first + line[hot], value[hot], offset + column[:, None].expand_as(hot)[hot])

    def see_columns(self, tile: Tensor, maxima: Tensor, first: int, offset: int, lines: int) -> None:
        """The same for a tile whose columns are lines; `offset` is the number of its first row."""
        bar = self._bar(first, lines, tile.shape[1])
        coarse = maxima.view(-1, GROUP, tile.shape[1]).amax(1)
        group, line = (coarse > bar).nonzero().unbind(1)
        if len(line) > lines * self.cosine.shape[1] * 3 // 4:
            value, row = _best_of_columns([coarse, maxima, tile], self.cosine.shape[1], lines)
            self._merge(slice(first, first + lines), value, offset + row)
            return
        steps = torch.arange(GROUP, device=tile.device)
        for finer in (maxima, tile):
            row = GROUP * group[:, None] + steps
            value = finer[row, line[:, None]]
            hot = value > bar[line][:, None]
            group, line = row[hot], line[:, None].expand_as(hot)[hot]
        self._insert(first + line, value[hot], offset + group)

    def _bar(self, first: int, lines: int, padded: int) -> Tensor:
        """What an entry of each line must beat; nothing beats that of padding."""
        bar = self.cosine.new_full((padded,), torch.inf)
        bar[:lines] = self.cosine[first : first + lines, -1]
        return bar

    def _insert(self, line: Tensor, value: Tensor, index: Tensor) -> None:
        """Take in single entries, several of a line perhaps."""
        if not len(line):
            return
        order = value.argsort(descending=True)
        order = order[line[order].argsort(stable=True)]
        lines, where, counts = line[order].unique_consecutive(return_inverse=True, return_counts=True)
        rank = torch.arange(len(line), device=line.device) - (counts.cumsum(0) - counts)[where]
        order, where, rank = (x[rank < self.cosine.shape[1]] for x in (order, where, rank))
        widest = int(rank.max()) + 1
        table = value.new_full((len(lines), widest), -torch.inf)
        numbers = torch.zeros(len(lines), widest, dtype=torch.long, device=line.device)
        table[where, rank], numbers[where, rank] = value[order], index[order]
        self._merge(lines, table, numbers)

    def _merge(self, lines: Tensor | slice, value: Tensor, index: Tensor) -> None:
        value, index = torch.cat([self.cosine[lines], value], dim=1), torch.cat([self.index[lines], index], dim=1)
        kept, order = value.topk(self.cosine.shape[1], dim=1)
        self.cosine[lines], self.index[lines] = kept, index.gather(1, order)


def _best_of_rows(tile: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The best of each row, and their columns: they lie in the groups with the largest maxima."""
    wide = tile.shape[1] // GROUP
    place = tile.view(len(tile), GROUP, wide).amax(1).topk(min(top, wide), dim=1, sorted=False).indices
    column = (place[:, :, None] + wide * torch.arange(GROUP, device=tile.device)).flatten(1)
    value, order = tile.gather(1, column).topk(min(top, column.shape[1]), dim=1, sorted=False)
    return value, column.gather(1, order)


def _best_of_columns(levels: list[Tensor], top: int, lines: int) -> tuple[Tensor, Tensor]:
    """The best of each column, and their rows: they lie in the groups with the largest maxima, and so on down."""
    coarse = levels[0][:, :lines].T
    value, row = coarse.topk(min(top, coarse.shape[1]), dim=1, sorted=False)
    line = torch.arange(lines, device=coarse.device)[:, None]
    steps = torch.arange(GROUP, device=coarse.device)
    for finer in levels[1:]:
        row = (GROUP * row[:, :, None] + steps).flatten(1)
        value = finer[row, line]
        value, order = value.topk(min(top, value.shape[1]), dim=1, sorted=False)
        row = row.gather(1, order)
    return value, row
