"""The nearest rows of two matrices, both ways, in one pass over blocks of their cosine matrix.

    c_ij = a_i . b_j / (|a_i| |b_j|)

A block of c serves its rows (nearest b of each a) and its columns (nearest a of each b), and is then forgotten. Beside
a product of d multiplications an entry, a pass that looks at every entry is dear, so there are two, and cheap ones: the
maxima of groups of entries, and of groups of those. Only a group whose maximum beats the running `top`-th best of its
row is looked into.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from dictlab.errors import DictlabError, check_at_least

BLOCK = 6144  # the cosine matrix is held in blocks of its square
TALL = 2  # ... but twice as high and half as wide: fewer columns start anew
BLOCK_BYTES = 1 << 26  # of the rows of b at unit length that are held
RESIDENT_BYTES = 1 << 26  # of the rows of a at unit length that are held while all of b streams by
GROUPS = (8, 4, 4)  # entries that share a maximum, maxima that share one, ...
WORTH_A_RACE = 1e11  # multiplications from which it pays to see which product is faster


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
    block: int = BLOCK,
) -> tuple[Neighbours, Neighbours]:
    """For each row of a the `top` rows of b with the largest cosine, and for each row of b those of a.

    Exact. Matrices may lie in a file (`dictlab.formats.loading.mapped`), in any precision: slices are read and computed
    with in float32 (float64 if one of them is). Rows need not have unit length; a zero row has the cosine 0 with
    everything. Memory beside inputs and result is bounded: less than 512 MB, whatever n and m.

    Args:
        a: Rows of the one.
        b: Rows of the other, on the same device.
        top: How many neighbours; all there are if there are fewer.
        of_a: The rows of a that take part; all by default. Neighbours are numbered among those.
        of_b: The same for b.
        block: Its square is the number of cosines held at once.

    Raises:
        DictlabError: A row holds NaN or infinities, or no number asked for is positive.
    """
    forward, backward = _searched(a, b, top, of_a, of_b, block, both=True, itself=True)
    return forward, backward


def nearest(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "m d"],
    *,
    top: int = 1,
    itself: bool = True,
    of_b: Int[Tensor, " some_b"] | None = None,
    block: int = BLOCK,
) -> Neighbours:
    """For each row of a, the `top` rows of b with the largest cosine: `neighbours` one way.

    Args:
        a: Rows to find neighbours of.
        b: Candidates.
        top: How many.
        itself: False if a and b are the same rows, and a row is no neighbour of itself.
        of_b: The rows of b that take part; all by default. Neighbours are numbered among those.
        block: Its square is the number of cosines held at once.
    """
    return _searched(a, b, top, None, of_b, block, both=False, itself=itself)[0]


def _searched(
    a: Tensor, b: Tensor, top: int, of_a: Tensor | None, of_b: Tensor | None, block: int, *, both: bool, itself: bool
) -> list[Neighbours]:
    check_at_least(1, top=top, block=block)
    dtype = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
    n, m = (len(x) if of is None else len(of) for x, of in ((a, of_a), (b, of_b)))
    row_bytes = a.shape[1] * dtype.itemsize
    height = min(n, max(1, min(TALL * block, RESIDENT_BYTES // row_bytes)))
    width = min(m, max(1, min(max(block // TALL, 1), BLOCK_BYTES // row_bytes)))
    fast = a.device.type == "cpu" and float(n) * m * a.shape[1] >= WORTH_A_RACE and _numpy_is_faster()
    forward = _Best(n, min(top, m if itself else m - 1), dtype, a.device)
    backward = _Best(m, min(top, n), dtype, a.device) if both else None
    for row, rows in _unit_rows(a, of_a, dtype, height):
        for column, columns in _unit_rows(b, of_b, dtype, width):
            cosine = _tiles(rows, columns, fast)
            if not itself:
                _forget_itself(cosine, row - column)
            forward.see(cosine, row, column, len(columns), dim=2)
            if backward is not None:
                backward.see(cosine, column, row, len(columns), dim=1)
    return [forward.found()] if backward is None else [forward.found(), backward.found()]


def _unit_rows(x: Tensor, of: Tensor | None, dtype: torch.dtype, block: int) -> Iterator[tuple[int, Tensor]]:
    """Blocks of rows at unit length, each with the number of its first."""
    for start in range(0, len(x) if of is None else len(of), block):
        part = x[start : start + block] if of is None else x[of[start : start + block].to(x.device)]
        unit = normalize(part.to(dtype), dim=1)
        if not torch.isfinite(unit.sum()):
            bad = start + int((~torch.isfinite(part.to(dtype)).all(dim=1)).nonzero()[0])
            raise DictlabError(f"row {bad} of a matrix to be compared holds NaN or infinities; cosines need numbers.")
        yield start, unit


def _tiles(rows: Tensor, columns: Tensor, with_numpy: bool) -> Float[Tensor, "tile rows wide"]:
    """Cosines; column j lies in tile j // wide at j % wide, so that maxima over tiles are those of long vectors."""
    wide = -(-len(columns) // GROUPS[0])
    tiles = rows.new_empty(-(-len(columns) // wide), len(rows), wide)
    for tile, some in zip(tiles, columns.split(wide), strict=True):
        if len(some) < wide:
            tile.fill_(-torch.inf)
            tile[:, : len(some)] = rows @ some.T
        else:
            _multiply(rows, some, tile, with_numpy)
    return tiles


def _multiply(rows: Tensor, columns: Tensor, out: Tensor, with_numpy: bool) -> None:
    if with_numpy:
        np.matmul(rows.numpy(), columns.numpy().T, out=out.numpy())
    else:
        torch.mm(rows, columns.T, out=out)


@cache
def _numpy_is_faster() -> bool:
    """Which of the two libraries' products is faster on this machine: up to 1.35 times apart, either way."""
    rows, out = torch.full((1024, 768), 0.5), torch.empty(1024, 1024)
    spent: dict[bool, list[float]] = {True: [], False: []}
    for which in (True, False) * 4:
        began = time.perf_counter()
        _multiply(rows, rows, out, which)
        spent[which].append(time.perf_counter() - began)
    return min(spent[True]) < min(spent[False])


def _forget_itself(tiles: Tensor, offset: int) -> None:
    """The entries of row i and column i + offset become -inf."""
    for number, tile in enumerate(tiles):
        shift = offset - number * tile.shape[1]
        row = torch.arange(max(0, -shift), max(0, -shift, min(len(tile), tile.shape[1] - shift)), device=tile.device)
        tile[row, row + shift] = -torch.inf


class _Best:
    """The best few so far of each line; lines are rows of the cosine matrix, or its columns."""

    def __init__(self, n: int, top: int, dtype: torch.dtype, device: torch.device) -> None:
        self.cosine = torch.full((n, top), -torch.inf, dtype=dtype, device=device)
        self.index = torch.zeros(n, top, dtype=torch.long, device=device)

    def found(self) -> Neighbours:
        return Neighbours(self.cosine.clamp_(-1, 1), self.index)  # rounding can pass 1

    def see(self, tiles: Tensor, first: int, offset: int, columns: int, dim: int) -> None:
        """Take notice of a block.

        Args:
            tiles: The block.
            first: The line that its lines begin at.
            offset: What its entries' positions along a line begin at.
            columns: Columns of the block.
            dim: 2 where lines are rows, 1 where they are columns.
        """
        lines, top = tiles.shape[1] if dim == 2 else columns, self.cosine.shape[1]
        if top == 0:
            return
        levels = [tiles, tiles.amax(0, keepdim=True) if dim == 2 else _group_maxima(tiles, GROUPS[0], dim)]
        for group in GROUPS[1:]:
            levels.append(_group_maxima(levels[-1], group, dim))
        bar = self.cosine[first : first + lines, -1]
        line, index = _above(levels[-1], bar, dim)
        if len(line) * 4 > lines * top * 3:
            line, value, index = _of_all_lines(levels, top, lines, dim)
        else:
            line, value, index = _of_hot_groups(levels, bar, top, line, index, dim)
        if len(line):
            self._merge(first + line, value, offset + index)

    def _merge(self, line: Tensor, value: Tensor, index: Tensor) -> None:
        value, index = torch.cat([self.cosine[line], value], dim=1), torch.cat([self.index[line], index], dim=1)
        kept, order = value.topk(self.cosine.shape[1], dim=1)
        self.cosine[line], self.index[line] = kept, index.gather(1, order)


def _above(maxima: Tensor, bar: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The groups whose maximum is above the bar of their line: lines, and groups."""
    if dim == 2:
        line, group = (maxima[0] > bar.unsqueeze(1)).nonzero().unbind(1)
        return line, group
    bars = bar.new_full((len(maxima) * maxima.shape[2],), torch.inf)  # columns past the last are no lines
    bars[: len(bar)] = bar
    tile, group, place = (maxima > bars.view(len(maxima), 1, -1)).nonzero().unbind(1)
    return tile * maxima.shape[2] + place, group


def _group_maxima(tiles: Tensor, group: int, dim: int) -> Tensor:
    """Maxima of the entries i, i + width, i + 2 width, ... of each line: vectors, not single numbers, are compared."""
    length = tiles.shape[dim]
    width = -(-length // group)
    layers = length // width
    maxima: Tensor = tiles.narrow(dim, 0, layers * width).unflatten(dim, (layers, width)).amax(dim)
    rest = length - layers * width
    if rest:
        head = maxima.narrow(dim, 0, rest)
        torch.maximum(head, tiles.narrow(dim, layers * width, rest), out=head)
    return maxima


def _of_all_lines(levels: list[Tensor], top: int, lines: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best `top` of each line: they lie in the groups with the largest maxima, and so on down."""
    coarse = levels[-1][0] if dim == 2 else levels[-1].transpose(1, 2).flatten(0, 1)[:lines]
    line = torch.arange(len(coarse), device=coarse.device)
    value, index = coarse.topk(min(top, coarse.shape[1]), dim=1, sorted=False)
    for fine, above in zip(levels[-2::-1], levels[:0:-1], strict=True):
        value, index = _members(fine, line.repeat_interleave(index.shape[1]), index.flatten(), above, dim)
        value, index = value.view(len(line), -1), index.view(len(line), -1)
        value, order = value.topk(min(top, value.shape[1]), dim=1, sorted=False)
        index = index.gather(1, order)
    return line, value, index


def _of_hot_groups(
    levels: list[Tensor], bar: Tensor, top: int, line: Tensor, index: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What beats the bar of its line: the lines that have such entries, and the best `top` of each, padded."""
    value = bar.new_zeros(0)
    for fine, above in zip(levels[-2::-1], levels[:0:-1], strict=True):
        values, indices = _members(fine, line, index, above, dim)
        better = values > bar[line].unsqueeze(1)
        line = line.repeat_interleave(better.sum(dim=1))
        value, index = values[better], indices[better]
    order = value.argsort(descending=True)
    order = order[line[order].argsort(stable=True)]
    lines, where, counts = line[order].unique_consecutive(return_inverse=True, return_counts=True)
    rank = torch.arange(len(line), device=line.device) - (counts.cumsum(0) - counts)[where]
    kept = rank < top
    table = value.new_full((len(lines), top), -torch.inf)
    table_index = torch.zeros(len(lines), top, dtype=torch.long, device=line.device)
    table[where[kept], rank[kept]] = value[order[kept]]
    table_index[where[kept], rank[kept]] = index[order[kept]]
    return lines, table, table_index


def _members(tiles: Tensor, line: Tensor, group: Tensor, maxima: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The entries of groups and their positions along the line; -inf past its end."""
    number, high, wide = tiles.shape
    length, width = (number * wide if dim == 2 else high), maxima.shape[dim]
    index = group.unsqueeze(1) + width * torch.arange(-(-length // width), device=tiles.device)
    inside = index.clamp_max(length - 1)
    if dim == 1:
        place = (line // wide * (high * wide) + line % wide).unsqueeze(1) + inside * wide
    elif number > 1:
        place = line.unsqueeze(1) * wide + inside // wide * (high * wide) + inside % wide
    else:
        place = line.unsqueeze(1) * wide + inside
    value: Tensor = tiles.flatten().take(place)
    return value.masked_fill_(index >= length, -torch.inf), inside
