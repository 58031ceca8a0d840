"""The nearest rows of two matrices, both ways, in one pass over tiles of their cosine matrix.

    c_ij = a_i . b_j / (|a_i| |b_j|)

A tile of c serves its rows (nearest b of each a) and its columns (nearest a of each b), and is then forgotten. It is
small enough to stay in the cache, where one look at each entry costs little beside the d multiplications that made it:
the maxima of eight rows at a time. They bound rows and columns alike, so the rest is looked into only where a maximum
beats the running `top`-th best of a line (a row or a column), and that becomes rare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from threading import Lock
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.common import distributed_search
from analyses.common.matmul_backends import Product, workers_for
from analyses.common.running_top_k import GROUP, RunningTopK
from dictlab.errors import DictlabError, check_at_least
from dictlab.runtime.progress import Phase

TILE = (4096, 2048)  # rows of a and of b whose cosines are held at once
TILES_BYTES = 1 << 27  # of the tiles of all workers, where there are many
CUDA_TILE = (8192, 8192)
RESIDENT_BYTES = 1 << 27  # of the rows of a at unit length that are held while all of b streams by
WORTH_SHOWING = 1e11  # multiplications from which a search has a line of progress
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
    signed_a: Bool[Tensor, " n"] | None = None,
    signed_b: Bool[Tensor, " m"] | None = None,
    tile: tuple[int, int] | None = None,
    device: str | torch.device | None = None,
) -> tuple[Neighbours, Neighbours]:
    """For each row of a the `top` rows of b with the largest cosine, and for each row of b those of a.

    Exact. Matrices may lie in a file (`dictlab.formats.loading.mapped`), in any precision: slices are read and computed
    with in float32 (float64 if one of them is). Rows need not have unit length; a zero row has the cosine 0 with
    everything. Memory beside inputs and result is bounded: less than 512 MB, whatever n and m. Where a process group
    has been started (`torchrun`), its ranks share the rows of a, and each of them returns the whole.

    Args:
        a: Rows of the one.
        b: Rows of the other.
        top: How many neighbours; all there are if there are fewer.
        of_a: The rows of a that take part; all by default. Neighbours are numbered among those.
        of_b: The same for b.
        signed_a: Rows of a whose opposites are the same to the caller: their cosines are absolute. None of them by
            default.
        signed_b: The same for b.
        tile: Rows of a and of b whose cosines are held at once, rounded up to multiples of 64 and 8; by default such
            that they fit a cache.
        device: Where to compute; by default where a is.

    Raises:
        DictlabError: A row holds NaN or infinities, or no number asked for is positive.
    """
    signed = (signed_a, signed_b)
    search = partial(_searched, a, b, top, of_b=of_b, signed=signed, tile=tile, device=device, both=True, itself=True)
    if distributed_search.count() > 1:
        return _over_ranks(search, len(a), of_a, top)
    forward, backward = search(of_a)
    return forward, backward


def nearest(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "m d"],
    *,
    top: int = 1,
    itself: bool = True,
    of_b: Int[Tensor, " some_b"] | None = None,
    signed_a: Bool[Tensor, " n"] | None = None,
    signed_b: Bool[Tensor, " m"] | None = None,
    tile: tuple[int, int] | None = None,
) -> Neighbours:
    """For each row of a, the `top` rows of b with the largest cosine: `neighbours` one way.

    Args:
        a: Rows to find neighbours of.
        b: Candidates.
        top: How many.
        itself: False if a and b are the same rows, and a row is no neighbour of itself.
        of_b: The rows of b that take part; all by default. Neighbours are numbered among those.
        signed_a: Rows of a whose cosines are absolute.
        signed_b: The same for b.
        tile: Rows of a and of b whose cosines are held at once.
    """
    signed = (signed_a, signed_b)
    return _searched(a, b, top, None, of_b=of_b, signed=signed, tile=tile, device=None, both=False, itself=itself)[0]


def _over_ranks(
    search: Callable[[Tensor], list[Neighbours]], n: int, of_a: Tensor | None, top: int
) -> tuple[Neighbours, Neighbours]:
    """Both ways, from a search of this rank's part of the rows of a."""
    n = n if of_a is None else len(of_a)
    own, first = distributed_search.rows_of_rank(n, of_a)
    found = search(own)
    each, m = -(-n // distributed_search.count()), len(found[1].rows)
    forward = Neighbours(*(torch.cat(distributed_search.all_gather_padded(part, each, 0))[:n] for part in found[0]))
    cosine = torch.full((m, top), -torch.inf, dtype=found[1].cosine.dtype)  # a rank may have fewer rows than `top`
    rows = torch.zeros(m, top, dtype=torch.long)
    cosine[:, : found[1].cosine.shape[1]], rows[:, : found[1].rows.shape[1]] = found[1].cosine, found[1].rows + first
    both = [torch.cat(distributed_search.all_gather_padded(part, m, 0), dim=1) for part in (cosine, rows)]
    kept, order = both[0].topk(min(top, n), dim=1)
    return forward, Neighbours(kept, both[1].gather(1, order))


def _searched(
    a: Tensor,
    b: Tensor,
    top: int,
    of_a: Tensor | None,
    *,
    of_b: Tensor | None,
    signed: tuple[Tensor | None, Tensor | None],
    tile: tuple[int, int] | None,
    device: str | torch.device | None,
    both: bool,
    itself: bool,
) -> list[Neighbours]:
    where = torch.device(device) if device is not None else a.device
    dtype = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
    one, other = _Rows(a, of_a, signed[0], dtype, where), _Rows(b, of_b, signed[1], dtype, where)
    n, m = len(one), len(other)
    high, wide = tile if tile is not None else _default_tile(where, dtype)
    check_at_least(1, top=top, tile=min(high, wide))
    high, wide = _up(min(high, n), GROUP * GROUP), _up(min(wide, m), GROUP)
    forward = RunningTopK(n, min(top, m if itself else m - 1), dtype, where)
    backward = RunningTopK(m, min(top, n), dtype, where) if both else None
    resident = min(n, max(high, RESIDENT_BYTES // (a.shape[1] * dtype.itemsize) // high * high))
    held = torch.empty(resident, a.shape[1], dtype=dtype, device=where)
    label = f"nearest of {n:,} and {m:,} directions" if both else f"nearest of {m:,} to {n:,} directions"
    tiles, large = -(-n // resident) * -(-m // wide), float(n) * m * a.shape[1] >= WORTH_SHOWING
    with (
        Phase(label, tiles, unit="tiles", shown=large) as phase,
        workers_for(where, float(n) * m * a.shape[1]) as workers,
    ):
        for first in range(0, n, resident):
            rows = one.unit(first, held)
            columns = iter(range(0, m, wide))  # each worker takes the next ones when it is ready
            work = partial(
                _one_worker, rows, first, one, other, columns, (high, wide), forward, backward, itself, _counter(phase)
            )
            parts = workers.each(work)
            forward.join(first, parts)
    return [Neighbours(*best.found()) for best in (forward, backward) if best is not None]


def _default_tile(device: torch.device, dtype: torch.dtype) -> tuple[int, int]:
    if device.type == "cuda":
        return CUDA_TILE
    high, wide = TILE
    return high, min(wide, max(GROUP, TILES_BYTES // (torch.get_num_threads() * dtype.itemsize * high)))


def _one_worker(
    rows: Tensor,
    first: int,
    one: _Rows,
    other: _Rows,
    columns: Iterator[int],
    shape: tuple[int, int],
    forward: RunningTopK,
    backward: RunningTopK | None,
    itself: bool,
    count: Callable[[], None],
    product: Product,
) -> RunningTopK:
    """The best of the rows held among some columns. Nobody else has these columns, so theirs are put in place.

    `count` is called after each tile of columns.
    """
    (high, wide), own = shape, forward.empty_like(len(rows))
    held = rows.new_empty(high, wide)
    held_columns = rows.new_empty(min(wide, len(other)), rows.shape[1])
    for column in columns:
        some = other.unit(column, held_columns)
        for start in range(0, len(rows), high):
            part = rows[start : start + high]
            signed = (one.signed_from(first + start, len(part)), other.signed_from(column, len(some)))
            cosine = _tile(part, some, signed, held, product)
            if not itself:
                _forget_itself(cosine, first + start - column)
            maxima = cosine.view(-1, GROUP, wide).amax(1)
            own.see_rows(cosine, maxima, start, column, len(part))
            if backward is not None:
                backward.see_columns(cosine, maxima, column, first + start, len(some))
        count()
    return own


def _counter(phase: Phase) -> Callable[[], None]:
    """What several threads call when one more is done."""
    lock = Lock()

    def count() -> None:
        with lock:
            phase.advance()

    return count


def _up(n: int, multiple: int) -> int:
    return max(1, -(-n // multiple)) * multiple


class _Rows(NamedTuple):
    """Rows of a matrix, which may lie in a file."""

    x: Tensor
    of: Tensor | None
    signed: Tensor | None
    dtype: torch.dtype
    device: torch.device

    def __len__(self) -> int:
        return len(self.x) if self.of is None else len(self.of)

    def signed_from(self, start: int, count: int) -> Tensor | None:
        """Which of `count` rows from `start` on are signed; None if none is."""
        if self.signed is None:
            return None
        piece = slice(start, start + count)
        signed = self.signed[piece if self.of is None else self.of[piece].to(self.signed.device)]
        return signed.to(self.device) if bool(signed.any()) else None

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


def _tile(
    rows: Tensor, columns: Tensor, signed: tuple[Tensor | None, Tensor | None], held: Tensor, product: Product
) -> Float[Tensor, "high wide"]:
    """Cosines of rows with columns, absolute where one of the two is signed; -inf below and right of them."""
    if len(rows) == held.shape[0] and len(columns) == held.shape[1]:
        product(rows, columns, held)
        return absolute_where_signed(held, *signed)
    high = _up(len(rows), GROUP * GROUP)
    edge = torch.full((high, held.shape[1]), -torch.inf, dtype=held.dtype, device=held.device)
    edge[: len(rows), : len(columns)] = absolute_where_signed(rows @ columns.T, *signed)
    return edge


def absolute_where_signed(
    cosine: Float[Tensor, "n m"], signed_rows: Bool[Tensor, " n"] | None, signed_columns: Bool[Tensor, " m"] | None
) -> Float[Tensor, "n m"]:
    """Absolute cosines in place where the row or the column is signed: its opposite is the same latent."""
    if any(signed is not None and bool(signed.all()) for signed in (signed_rows, signed_columns)):
        return cosine.abs_()
    if signed_rows is not None:
        cosine[signed_rows] = cosine[signed_rows].abs()
    if signed_columns is not None:
        cosine[:, signed_columns] = cosine[:, signed_columns].abs()
    return cosine


def _forget_itself(tile: Tensor, offset: int) -> None:
    """The entries of row i and column i + offset become -inf."""
    high, wide = tile.shape
    row = torch.arange(max(0, -offset), max(0, -offset, min(high, wide - offset)), device=tile.device)
    tile[row, row + offset] = -torch.inf
