"""One-to-one assignment of rows by cosine: who is whose, if nobody may be taken twice.

    maximise the sum of cos(a_i, b_pi(i)) over one-to-one pi

Exact (Hungarian method) while the cosine matrix is small. Above that, edges are the nearest neighbours alone, and each
row may also stay alone at the price of its last neighbour's cosine. No edge that was left out has a larger cosine, so
that relaxed optimum is at least the true one: it bounds what the assignment found can lack.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor
from torch.nn.functional import normalize

from analyses.common.neighbours import Neighbours, absolute_where_signed, neighbours
from dictlab.runtime.progress import Phase

EXACT = 1 << 24  # entries of the cosine matrix up to which the assignment is exact: 4,096 latents each
CANDIDATES = 8  # neighbours of each row that are edges, above that
BLOCK = 1024  # pairs whose rows are read at once
ROUNDS = 8  # times that the rows left over are assigned in the same way
TIE = 1e-6  # how much staying alone costs beyond the last neighbour's cosine, so that ties make pairs

Signed = tuple[Tensor | None, Tensor | None]  # rows of a and of b whose opposites are the same


class Assignment(NamedTuple):
    """Pairs, each row in at most one; all rows of the smaller matrix are in one.

    Attributes:
        rows: Of a, ascending.
        partners: Of b, in the order of `rows`.
        cosine: Of each pair.
        bound: What the mean cosine cannot exceed, whatever the assignment; its own mean where it is exact.
        exact: Whether it is the best there is.
    """

    rows: Int[Tensor, " pairs"]
    partners: Int[Tensor, " pairs"]
    cosine: Float[Tensor, " pairs"]
    bound: float
    exact: bool

    @property
    def mean(self) -> float:
        """Mean cosine of the pairs (the mean correlation coefficient, MCC, of Song et al. 2025, signed)."""
        return float(self.cosine.double().mean())


def assignment(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "m d"],
    *,
    of_a: Int[Tensor, " some_a"] | None = None,
    of_b: Int[Tensor, " some_b"] | None = None,
    signed_a: Bool[Tensor, " n"] | None = None,
    signed_b: Bool[Tensor, " m"] | None = None,
    exact: int = EXACT,
) -> Assignment:
    """The one-to-one pairs of rows with the largest sum of cosines.

    Args:
        a: Rows of the one; may lie in a file.
        b: Rows of the other.
        of_a: The rows of a that take part; all by default. Pairs are numbered among those.
        of_b: The same for b.
        signed_a: Rows of a whose opposites are the same to the caller: their cosines are absolute.
        signed_b: The same for b.
        exact: Entries of the cosine matrix up to which it is held whole, and the assignment is exact.
    """
    of_a, of_b = (torch.arange(len(x)) if of is None else of for x, of in ((a, of_a), (b, of_b)))
    if len(of_a) > len(of_b):
        other = assignment(b, a, of_a=of_b, of_b=of_a, signed_a=signed_b, signed_b=signed_a, exact=exact)
        order = other.partners.argsort()
        return other._replace(rows=other.partners[order], partners=other.rows[order], cosine=other.cosine[order])
    signed = (signed_a, signed_b)
    if len(of_a) * len(of_b) <= exact:
        rows, partners = _hungarian(a, b, of_a, of_b, signed)
        bound = None
    else:
        rows, partners, bound = _by_neighbours(a, b, of_a, of_b, signed, exact)
    cosine = pair_cosines(a, b, of_a[rows], of_b[partners], signed_a, signed_b)
    mean = float(cosine.double().mean())
    return Assignment(rows, partners, cosine, mean if bound is None else max(bound, mean), bound is None)


def pair_cosines(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "m d"],
    rows: Int[Tensor, " pairs"],
    partners: Int[Tensor, " pairs"],
    signed_a: Bool[Tensor, " n"] | None = None,
    signed_b: Bool[Tensor, " m"] | None = None,
) -> Float[Tensor, " pairs"]:
    """Cosine of row rows[p] of a with row partners[p] of b, absolute where one is signed; 0 where one is zero."""
    parts = [
        (normalize(a[i].float(), dim=1) * normalize(b[j].float(), dim=1)).sum(dim=1)
        for i, j in zip(rows.split(BLOCK), partners.split(BLOCK), strict=True)
    ]
    cosine = torch.cat(parts).clamp(-1, 1)
    for signed, of in ((signed_a, rows), (signed_b, partners)):
        if signed is not None:
            cosine = torch.where(signed[of], cosine.abs(), cosine)
    return cosine


def _hungarian(a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor, signed: Signed) -> tuple[Tensor, Tensor]:
    one, other = (normalize(x[of].float(), dim=1) for x, of in ((a, of_a), (b, of_b)))
    masks = (None if mask is None else mask[of] for mask, of in zip(signed, (of_a, of_b), strict=True))
    rows, partners = linear_sum_assignment(absolute_where_signed(one @ other.T, *masks).numpy(), maximize=True)
    return torch.from_numpy(rows), torch.from_numpy(partners)


def _by_neighbours(
    a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor, signed: Signed, exact: int
) -> tuple[Tensor, Tensor, float]:
    """Assign along the edges to neighbours, then those left over among themselves; and the bound of the first round."""
    pairs: list[tuple[Tensor, Tensor]] = []
    left_a, left_b = torch.arange(len(of_a)), torch.arange(len(of_b))
    bound = float("nan")
    for turn in range(ROUNDS):
        if len(left_a) * len(left_b) <= exact:
            break
        which: dict[str, Any] = {"of_a": of_a[left_a], "of_b": of_b[left_b]}
        found = neighbours(a, b, top=CANDIDATES, signed_a=signed[0], signed_b=signed[1], **which)
        with Phase(f"one-to-one pairs of {len(left_a):,} and {len(left_b):,} latents"):
            rows, partners, most = along_edges(*found)
        bound = most if turn == 0 else bound
        pairs.append((left_a[rows], left_b[partners]))
        left_a, left_b = _without(left_a, rows), _without(left_b, partners)
    if len(left_a) and len(left_a) * len(left_b) <= exact:
        rows, partners = _hungarian(a, b, of_a[left_a], of_b[left_b], signed)
        pairs.append((left_a[rows], left_b[partners]))
    elif len(left_a):  # only where latents are alike by the thousand; the bound says what that costs
        pairs.append((left_a, left_b[: len(left_a)]))
    rows, partners = (torch.cat(part) for part in zip(*pairs, strict=True))
    order = rows.argsort()
    return rows[order], partners[order], bound


def along_edges(forward: Neighbours, backward: Neighbours) -> tuple[Tensor, Tensor, float]:
    """The best assignment along edges to neighbours, where a row may stay alone, and the mean that bounds any other."""
    n, m = len(forward.rows), len(backward.rows)
    rows = torch.cat([torch.arange(n).repeat_interleave(forward.rows.shape[1]), backward.rows.flatten()])
    columns = torch.cat([forward.rows.flatten(), torch.arange(m).repeat_interleave(backward.rows.shape[1])])
    cosine = torch.cat([forward.cosine.flatten(), backward.cosine.flatten()]).double()
    key, first = np.unique((rows * m + columns).numpy(), return_index=True)
    alone = forward.cosine[:, -1].double() - TIE
    cost = 2 - np.concatenate([cosine.numpy()[first], alone.numpy()])  # above 0: a sparse matrix keeps no zeros
    places = (np.concatenate([key // m, np.arange(n)]), np.concatenate([key % m, m + np.arange(n)]))
    graph = csr_array((cost, places), shape=(n, m + n))
    row, column = min_weight_full_bipartite_matching(graph)
    most = float((2 - np.asarray(graph[row, column])).mean()) + TIE
    paired = column < m
    return torch.from_numpy(row[paired]).long(), torch.from_numpy(column[paired]).long(), most


def _without(numbers: Tensor, taken: Tensor) -> Tensor:
    kept = torch.ones(len(numbers), dtype=torch.bool)
    kept[taken] = False
    return numbers[kept]
