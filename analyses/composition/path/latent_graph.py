"""Which latents of two dictionaries belong together, and what became of each group?

A bipartite graph: an edge joins a latent of SMALL and one of LARGE whose decoder directions have a cosine of at least
the threshold. Its connected components are what can be swapped as a whole (Leask et al. 2025); by what is in them:

    kind      SMALL : LARGE
    same          1 : 1
    split         1 : several
    merge   several : 1
    tangled several : several
    novel         0 : 1
    orphan        1 : 0

A low threshold percolates: everything hangs together in one giant component, and a swap of it is no step any more. For
that the graph is looked at over all thresholds. Its components at every threshold are those of a maximum spanning
forest, which is all that is kept of the cosines, a block of them at a time: no n x m matrix, no list of all edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph
from torch import Tensor
from torch.nn.functional import normalize

from analyses.common.neighbours import absolute_where_signed
from dictlab.runtime.progress import track

KINDS = ("same", "split", "merge", "tangled", "novel", "orphan")
THRESHOLDS = tuple(round(0.2 + 0.05 * i, 2) for i in range(16))  # of the percolation curve
PERCOLATES = 0.1  # a component with more than this share of all alive latents is a giant
BLOCK = 2048  # the cosine matrix is looked at in blocks of its square
EDGES = 1 << 22  # so many edges may gather before they are cut down to a forest


@dataclass(frozen=True, eq=False)
class Graph:
    """What is kept of the cosines of two dictionaries.

    Attributes:
        small: The latent of SMALL at each edge of a maximum spanning forest.
        large: The latent of LARGE there.
        cosine: Their cosine.
        alive_small: Which latents of SMALL take part.
        alive_large: Which of LARGE.
        nearest_small: Max cosine of each latent of SMALL with an alive one of LARGE; NaN without one.
        nearest_large: Max cosine of each latent of LARGE with an alive one of SMALL.
        weakest: Smallest cosine of each latent of LARGE with those it has edges with at the threshold; inf without any.
        threshold: Of the edges; the forest goes down to the lowest of the curve.
    """

    small: NDArray[np.int64]
    large: NDArray[np.int64]
    cosine: NDArray[np.float64]
    alive_small: NDArray[np.bool_]
    alive_large: NDArray[np.bool_]
    nearest_small: NDArray[np.float64]
    nearest_large: NDArray[np.float64]
    weakest: NDArray[np.float64]
    threshold: float


@dataclass(frozen=True, eq=False)
class Components:
    """The connected components of a graph at one threshold.

    Attributes:
        of_small: The component of each latent of SMALL; -1 for a dead one.
        of_large: The component of each latent of LARGE; -1 for a dead one.
        n_small: Latents of SMALL in each component.
        n_large: Latents of LARGE in each component.
        kind: One of KINDS for each component.
    """

    of_small: NDArray[np.int64]
    of_large: NDArray[np.int64]
    n_small: NDArray[np.int64]
    n_large: NDArray[np.int64]
    kind: NDArray[np.str_]

    @property
    def largest(self) -> int:
        """Latents in the largest component; 0 if there is none."""
        return int((self.n_small + self.n_large).max(initial=0))


@torch.no_grad()
def graph(
    small: Float[Tensor, "n d"],
    large: Float[Tensor, "m d"],
    threshold: float,
    alive_small: Bool[Tensor, " n"],
    alive_large: Bool[Tensor, " m"],
    *,
    signed: tuple[Bool[Tensor, " n"] | None, Bool[Tensor, " m"] | None] = (None, None),
    block: int = BLOCK,
) -> Graph:
    """The graph of two decoders, in one pass over blocks of their cosines. A zero row has the cosine 0 with everything.

    Args:
        small: Decoder directions of SMALL, of any length.
        large: Those of LARGE.
        threshold: Cosine from which two latents are joined.
        alive_small: Latents of SMALL that take part.
        alive_large: Latents of LARGE that take part.
        signed: Latents of SMALL, and of LARGE, that emit values of either sign: their cosines are absolute.
        block: Its square is the number of cosines held at once.
    """
    rows, columns = (_blocks(alive, block) for alive in (alive_small, alive_large))
    lowest = min(threshold, THRESHOLDS[0])
    near_small, near_large = np.full(len(small), np.nan), np.full(len(large), np.nan)
    weakest = np.full(len(large), np.inf)
    found: list[NDArray[np.float64]] = [np.zeros((3, 0))]
    gathered = 0
    for own in track(rows, "components"):
        a = _unit(small, own)
        for other in columns:
            masks = (_of(signed[0], own), _of(signed[1], other))
            cosine = absolute_where_signed(a @ _unit(large, other).T, *masks).clamp(-1, 1).cpu().numpy()
            near_small[own] = np.fmax(near_small[own], cosine.max(axis=1))
            near_large[other] = np.fmax(near_large[other], cosine.max(axis=0))
            joined = np.where(cosine < threshold, np.inf, cosine).min(axis=0)
            weakest[other] = np.minimum(weakest[other], joined)
            i, j = np.nonzero(cosine >= lowest)
            found.append(np.stack([own[i], other[j], cosine[i, j]]).astype(np.float64))
            gathered += len(i)
            if gathered > EDGES:
                found = [_forest(np.concatenate(found, axis=1), len(small), len(large))]
                gathered = 0
    i, j, cosines = _forest(np.concatenate(found, axis=1), len(small), len(large))
    return Graph(
        i.astype(np.int64),
        j.astype(np.int64),
        cosines,
        alive_small.cpu().numpy(),
        alive_large.cpu().numpy(),
        near_small,
        near_large,
        weakest,
        threshold,
    )


def components(graph: Graph, threshold: float | None = None) -> Components:
    """The connected components at a threshold.

    Args:
        graph: Of `graph`.
        threshold: By default the graph's own; not below the lowest that its forest goes down to.
    """
    kept = graph.cosine >= (graph.threshold if threshold is None else threshold)
    n, m = len(graph.alive_small), len(graph.alive_large)
    edges = (np.ones(int(kept.sum())), (graph.small[kept], n + graph.large[kept]))
    _, labels = csgraph.connected_components(sparse.coo_array(edges, shape=(n + m, n + m)), directed=False)
    alive = np.concatenate([graph.alive_small, graph.alive_large])
    used, numbers = np.unique(labels[alive], return_inverse=True)
    label = np.full(n + m, -1)
    label[alive] = numbers
    of_small, of_large = label[:n], label[n:]
    n_small, n_large = (np.bincount(of[of >= 0], minlength=len(used)) for of in (of_small, of_large))
    return Components(of_small, of_large, n_small, n_large, _kinds(n_small, n_large))


class ComponentCount(NamedTuple):
    """How many components of one kind there are, and how many latents of each dictionary they and the largest hold."""

    kind: str
    components: int
    of_small: int
    of_large: int
    largest: int


class PercolationPoint(NamedTuple):
    """The components at one threshold.

    Attributes:
        threshold: Cosine from which two latents are joined.
        largest: Latents in the largest component.
        share: The same as a share of all alive latents.
        counts: Components of each of KINDS.
    """

    threshold: float
    largest: int
    share: float
    counts: dict[str, int]


def count_components(found: Components) -> list[ComponentCount]:
    """Components of each of KINDS."""
    counts = []
    for kind in KINDS:
        mask = found.kind == kind
        n_small, n_large = found.n_small[mask], found.n_large[mask]
        largest = int((n_small + n_large).max(initial=0))
        counts.append(ComponentCount(kind, int(mask.sum()), int(n_small.sum()), int(n_large.sum()), largest))
    return counts


def percolation(graph: Graph, thresholds: Sequence[float] = THRESHOLDS) -> list[PercolationPoint]:
    """The largest component and the number of components of each kind at each threshold, the graph's own among them."""
    alive = int(graph.alive_small.sum() + graph.alive_large.sum())
    points = []
    for threshold in sorted({*thresholds, graph.threshold}):
        found = components(graph, threshold)
        counts = {kind: int((found.kind == kind).sum()) for kind in KINDS}
        points.append(PercolationPoint(threshold, found.largest, found.largest / max(1, alive), counts))
    return points


def percolates(found: Components) -> bool:
    """Whether one component holds so many latents that swapping it is no step but a jump."""
    alive = int(found.n_small.sum() + found.n_large.sum())
    return found.largest > max(2, PERCOLATES * alive)


def _blocks(alive: Bool[Tensor, " n"], block: int) -> list[NDArray[np.int64]]:
    """The numbers of the latents that take part, in blocks."""
    latents = np.flatnonzero(alive.cpu().numpy())
    return [latents[start : start + block] for start in range(0, len(latents), block)]


def _unit(directions: Tensor, latents: NDArray[np.int64]) -> Tensor:
    return normalize(directions[torch.from_numpy(latents).to(directions.device)].float(), dim=1)


def _of(signed: Tensor | None, latents: NDArray[np.int64]) -> Tensor | None:
    return None if signed is None else signed[torch.from_numpy(latents).to(signed.device)]


def _forest(edges: NDArray[np.float64], n: int, m: int) -> NDArray[np.float64]:
    """The edges (small, large, cosine) of a maximum spanning forest."""
    # 32 bits: scipy 1.15's spanning tree takes no others, and an array of sparse entries keeps what it is given.
    place = (edges[0].astype(np.int32), n + edges[1].astype(np.int32))
    weights = sparse.coo_array((2 - edges[2], place), shape=(n + m, n + m))  # from 1 to 3: none is missing as a zero
    tree = csgraph.minimum_spanning_tree(weights.tocsr()).tocoo()
    low, high = np.minimum(tree.row, tree.col), np.maximum(tree.row, tree.col)
    return np.stack([low, high - n, 2 - tree.data]).astype(np.float64)


def _kinds(n_small: NDArray[np.int64], n_large: NDArray[np.int64]) -> NDArray[np.str_]:
    several = (n_small > 1) & (n_large > 1)
    cases = [n_small == 0, n_large == 0, several, n_large > 1, n_small > 1]
    return np.select(cases, ["novel", "orphan", "tangled", "split", "merge"], "same")
