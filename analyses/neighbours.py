"""The nearest rows of two matrices, both ways, in one pass over tiles of their cosine matrix.

    c_ij = a_i . b_j / (|a_i| |b_j|)

A tile of c serves its rows (nearest b of each a) and its columns (nearest a of each b), and is then forgotten. It is
small enough to stay in the cache, where one look at each entry costs little beside the d multiplications that made it:
the maxima of eight rows at a time. They bound rows and columns alike, so the rest is looked into only where a maximum
beats the running `top`-th best of a line (a row or a column), and that becomes rare.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.products import Product, workers_for
from dictlab.errors import DictlabError, check_at_least

TILE = (4096, 1024)  # rows of a and of b whose cosines are held at once
CUDA_TILE = (8192, 8192)
GROUP = 8  # lines, or entries of a line, that share a maximum
RESIDENT_BYTES = 1 << 27  # of the rows of a at unit length that are held while all of b streams by
PIECE = 4096  # rows that are brought to unit length at once


class Neighbours(NamedTuple):
    """The nearest rows of another matrix, best first."""

    cosine: Float[Tensor, "n top"]
    rows: Int[Tensor, "n top"]


def neighbours(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "m d"],
    *,
    top: int = 8,
    of_a: Int[Tensor, " some_a"] | None = None,
    of_b: Int[Tensor, " some_b"] | None = None,
    tile: tuple[int, int] | None = None,
    device: str | torch.device | None = None,
) -> tuple[Neighbours, Neighbours]:
    """For each row of a the `top` rows of b with the largest cosine, and for each row of b those of a.

    Exact. Matrices may lie in a file (`dictlab.formats.loading.mapped`), in any precision: slices are read and computed
    with in float32 (float64 if one of them is). Rows need not have unit length; a zero row has the cosine 0 with
    everything. Memory beside inputs and result is bounded: less than 512 MB, whatever n and m.

    Args:
        a: Rows of the one.
        b: Rows of the other.
        top: How many neighbours; all there are if there are fewer.
        of_a: The rows of a that take part; all by default. Neighbours are numbered among those.
        of_b: The same for b.
        tile: Rows of a and of b whose cosines are held at once, rounded up to multiples of 64 and 8; by default such
            that they fit a cache.
        device: Where to compute; by default where a is.

    Raises:
        DictlabError: A row holds NaN or infinities, or no number asked for is positive.
    """
    forward, backward = _searched(a, b, top, of_a, of_b, tile, device, both=True, itself=True)
    return forward, backward


def nearest(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "m d"],
    *,
    top: int = 1,
    itself: bool = True,
    of_b: Int[Tensor, " some_b"] | None = None,
    tile: tuple[int, int] | None = None,
) -> Neighbours:
    """For each row of a, the `top` rows of b with the largest cosine: `neighbours` one way.

    Args:
        a: Rows to find neighbours of.
        b: Candidates.
        top: How many.
        itself: False if a and b are the same rows, and a row is no neighbour of itself.
        of_b: The rows of b that take part; all by default. Neighbours are numbered among those.
        tile: Rows of a and of b whose cosines are held at once.
    """
    return _searched(a, b, top, None, of_b, tile, None, both=False, itself=itself)[0]


def _searched(
    a: Tensor,
    b: Tensor,
    top: int,
    of_a: Tensor | None,
    of_b: Tensor | None,
    tile: tuple[int, int] | None,
    device: str | torch.device | None,
    *,
    both: bool,
    itself: bool,
) -> list[Neighbours]:
    where = torch.device(device) if device is not None else a.device
    dtype = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
    one, other = _Rows(a, of_a, dtype, where), _Rows(b, of_b, dtype, where)
    n, m = len(one), len(other)
    high, wide = tile if tile is not None else CUDA_TILE if where.type == "cuda" else TILE
    check_at_least(1, top=top, tile=min(high, wide))
    high, wide = _up(min(high, n), GROUP * GROUP), _up(min(wide, m), GROUP)
    forward = _Best(n, min(top, m if itself else m - 1), dtype, where)
    backward = _Best(m, min(top, n), dtype, where) if both else None
    resident = min(n, max(high, RESIDENT_BYTES // (a.shape[1] * dtype.itemsize) // high * high))
    held = torch.empty(resident, a.shape[1], dtype=dtype, device=where)
    with workers_for(where, float(n) * m * a.shape[1]) as workers:
        for first in range(0, n, resident):
            rows = one.unit(first, held)
            columns = iter(range(0, m, wide))  # each worker takes the next ones when it is ready
            work = partial(_one_worker, rows, first, other, columns, (high, wide), forward, backward, itself)
            parts = workers.each(work)
            forward.join(first, parts)
    return [forward.found()] if backward is None else [forward.found(), backward.found()]


def _one_worker(
    rows: Tensor,
    first: int,
    other: _Rows,
    columns: Iterator[int],
    shape: tuple[int, int],
    forward: _Best,
    backward: _Best | None,
    itself: bool,
    product: Product,
) -> _Best:
    """The best of the rows held among some columns. Nobody else has these columns, so theirs are put in place."""
    (high, wide), own = shape, forward.empty_like(len(rows))
    held = rows.new_empty(high, wide)
    held_columns = rows.new_empty(min(wide, len(other)), rows.shape[1])
    for column in columns:
        some = other.unit(column, held_columns)
        for start in range(0, len(rows), high):
            part = rows[start : start + high]
            cosine = _tile(part, some, held, product)
            if not itself:
                _forget_itself(cosine, first + start - column)
            maxima = cosine.view(-1, GROUP, wide).amax(1)
            own.see_rows(cosine, maxima, start, column, len(part))
            if backward is not None:
                backward.see_columns(cosine, maxima, column, first + start, len(some))
    return own


def _up(n: int, multiple: int) -> int:
    return max(1, -(-n // multiple)) * multiple


class _Rows(NamedTuple):
    """Rows of a matrix, which may lie in a file."""

    x: Tensor
    of: Tensor | None
    dtype: torch.dtype
    device: torch.device

    def __len__(self) -> int:
        return len(self.x) if self.of is None else len(self.of)

    def unit(self, start: int, held: Tensor) -> Tensor:
        """As many rows from `start` on as `held` takes, written into it at unit length."""
        rows = held[: min(len(held), len(self) - start)]
        for at in range(0, len(rows), PIECE):
            piece = slice(start + at, start + min(at + PIECE, len(rows)))
            part = self.x[piece] if self.of is None else self.x[self.of[piece].to(self.x.device)]
            part = part.to(self.device, self.dtype)
            torch.div(part, part.norm(dim=1, keepdim=True).clamp_min_(1e-12), out=rows[at : at + PIECE])
        if not torch.isfinite(rows.sum()):
            bad = start + int((~torch.isfinite(rows).all(dim=1)).nonzero()[0])
            raise DictlabError(f"row {bad} of a matrix to be compared holds NaN or infinities; cosines need numbers.")
        return rows


def _tile(rows: Tensor, columns: Tensor, held: Tensor, product: Product) -> Float[Tensor, "high wide"]:
    """Cosines of rows with columns; -inf below and right of them."""
    if len(rows) == held.shape[0] and len(columns) == held.shape[1]:
        product(rows, columns, held)
        return held
    high = _up(len(rows), GROUP * GROUP)
    edge = torch.full((high, held.shape[1]), -torch.inf, dtype=held.dtype, device=held.device)
    edge[: len(rows), : len(columns)] = rows @ columns.T
    return edge


def _forget_itself(tile: Tensor, offset: int) -> None:
    """The entries of row i and column i + offset become -inf."""
    high, wide = tile.shape
    row = torch.arange(max(0, -offset), max(0, -offset, min(high, wide - offset)), device=tile.device)
    tile[row, row + offset] = -torch.inf


class _Best:
    """The best few so far of each line; lines are rows of the cosine matrix, or its columns."""

    def __init__(self, n: int, top: int, dtype: torch.dtype, device: torch.device) -> None:
        self.cosine = torch.full((n, top), -torch.inf, dtype=dtype, device=device)
        self.index = torch.zeros(n, top, dtype=torch.long, device=device)

    def found(self) -> Neighbours:
        return Neighbours(self.cosine.clamp_(-1, 1), self.index)  # rounding can pass 1

    def empty_like(self, n: int) -> _Best:
        """For n other lines, of which nothing is known."""
        return _Best(n, self.cosine.shape[1], self.cosine.dtype, self.cosine.device)

    def join(self, first: int, parts: Sequence[_Best]) -> None:
        """Take in what was found of the lines from `first` on, by several workers."""
        value, index = (torch.cat(both, dim=1) for both in ([p.cosine for p in parts], [p.index for p in parts]))
        self._merge(slice(first, first + len(value)), value, index)

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
