"""Which regions of the space of directions does one dictionary fill and the other leave empty?

The alive decoder directions of A and B lie together on the unit sphere. Among the k nearest of latent i, by cosine, are
m_A latents of A and m_B of B; of the others altogether, n_A and n_B. The ratio of densities around i is

    ratio_i = ((m_A + s_A) / n_A) / ((m_B + s_B) / n_B)        s_A = n_A / (n_A + n_B), s_B = 1 - s_A

where s is one neighbour of no particular dictionary, so that nothing is divided by 0. If directions did not depend on
the dictionary, labels could be shuffled: m_A is then hypergeometric. A latent of A is *full* where m_A lies in the
upper 2 % of that, and so for B; full latents of a dictionary that are among each other's k nearest are one region.

Some latents are always full by chance. So are regions of several, since neighbours share their neighbours. The test is
therefore on the region: its p-value is the share of shuffles whose largest region, of either dictionary, is at least
as large (a max-statistic: right for all regions of the pair at once), times the number of pairs compared (Bonferroni).

Nothing here looks at a map. Source: density ratio by nearest neighbours, and a permutation test on the size of clusters
as in neuroimaging (Nichols and Holmes 2002). Braun et al. 2024 ask the question, and draw boxes on a map by hand.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import sparse, stats
from torch import Tensor, cat

from analyses.common.neighbours import Neighbours
from dictlab.numerics import seeds

NEIGHBOURS = 15  # k: the resolution; a region of fewer latents has neighbours outside of itself
FULL = 0.02  # tail from which the surroundings of a latent count as full
ALPHA = 0.05  # p-value, corrected, up to which a region is reported
ROUNDING = 1e-6  # of a cosine
CELLS = 1 << 22  # labels of neighbours that are held at once

Labels = NDArray[np.bool_]
Indices = NDArray[np.int64]


class Pool(NamedTuple):
    """The latents of two dictionaries together, A's first.

    Attributes:
        neighbours: The k nearest of each, itself apart, nearest first.
        cosine: Their cosines.
        n_a: How many are A's.
    """

    neighbours: Int[NDArray[np.int64], "n k"]
    cosine: Float[NDArray[np.float32], "n k"]
    n_a: int

    @property
    def in_a(self) -> Bool[NDArray[np.bool_], " n"]:
        """Which are A's."""
        return np.arange(len(self.neighbours)) < self.n_a


class Region(NamedTuple):
    """Adjacent latents in surroundings that are full of one of two dictionaries.

    Attributes:
        of_a: Whether A fills it.
        members: Latents of the pool.
        ratio: Density of the dictionary that fills it over that of the other; geometric mean over the members.
        p: Share of shuffles whose largest region is at least as large.
    """

    of_a: bool
    members: Int[NDArray[np.int64], " members"]
    ratio: float
    p: float


def pooled(aa: Neighbours, ab: Neighbours, ba: Neighbours, bb: Neighbours, k: int) -> Pool:
    """The k nearest in A and B together, from the k nearest in each: of A's latents (aa, ab) and of B's (ba, bb)."""
    n_a, n_b = len(ab.rows), len(ba.rows)
    k = min(k, n_a + n_b - 1)
    (rows_a, near_a), (rows_b, near_b) = (_merged(own, other, k, n_a) for own, other in ((aa, ab), (ba, bb)))
    return Pool(cat([rows_a, rows_b]).numpy(), cat([near_a, near_b]).numpy(), n_a)


def regions(pool: Pool, *, permutations: int = 1000, seed: int = 0) -> list[Region]:
    """All regions of either dictionary, largest first, with p-values for the pair of dictionaries.

    Args:
        pool: Who is next to whom.
        permutations: Shuffles of the labels.
        seed: Of the shuffles.
    """
    edges = adjacent(pool)
    least = _thresholds(pool)
    found = [(of_a, members) for of_a, members in _regions(pool, edges, least)]
    if not found:
        return []
    null = _largest_by_chance(pool, edges, least, permutations, seed)
    ratios = np.log(density_ratio(pool))
    made = [
        Region(
            of_a,
            members,
            float(np.exp(ratios[members].mean() * (1 if of_a else -1))),
            float((1 + (null >= len(members)).sum()) / (1 + permutations)),
        )
        for of_a, members in found
    ]
    return sorted(made, key=lambda region: -len(region.members))


def density_ratio(pool: Pool) -> Float[NDArray[np.float64], " n"]:
    """Density of A over density of B around each latent."""
    n, k = pool.neighbours.shape
    in_a = pool.in_a
    near_a = in_a[pool.neighbours].sum(axis=1)
    others_a, others_b = pool.n_a - in_a, n - pool.n_a - ~in_a
    share = others_a / (n - 1)
    ratio: NDArray[np.float64] = ((near_a + share) * np.maximum(others_b, 1)) / (
        (k - near_a + 1 - share) * np.maximum(others_a, 1)
    )
    return ratio


def adjacent(pool: Pool) -> Int[NDArray[np.int64], "edges 2"]:
    """Pairs i, j that are among each other's k nearest; more than k can be, of several that are equally near."""
    n, k = pool.neighbours.shape
    rows, columns, cosine = np.repeat(np.arange(n), k), pool.neighbours.ravel(), pool.cosine.ravel()
    both = cosine >= pool.cosine[columns, -1] - ROUNDING
    return np.stack([rows[both], columns[both]], axis=1)


def _merged(first: Neighbours, second: Neighbours, k: int, n_a: int) -> tuple[Tensor, Tensor]:
    """Of neighbours in A and neighbours in B, the nearest k; B's latents are numbered after A's."""
    cosine, order = cat([first.cosine, second.cosine], dim=1).topk(k, dim=1)
    return cat([first.rows, second.rows + n_a], dim=1).gather(1, order), cosine


class _Least(NamedTuple):
    """Neighbours of A from which a latent of A is full, and up to which a latent of B is."""

    a: int
    b: int


def _thresholds(pool: Pool) -> _Least:
    n, k = pool.neighbours.shape
    counts = np.arange(k + 1)
    # One label is the latent's own, and is not among its neighbours.
    of_a, of_b = stats.hypergeom(n - 1, pool.n_a - 1, k), stats.hypergeom(n - 1, pool.n_a, k)
    full_a, full_b = counts[of_a.sf(counts - 1) <= FULL], counts[of_b.cdf(counts) <= FULL]
    return _Least(int(full_a.min(initial=k + 1)), int(full_b.max(initial=-1)))


def _full(labels: Labels, neighbours: Indices, least: _Least) -> tuple[Labels, Labels]:
    """Latents of A that are full of A, and of B that are full of B; labels [shuffles, n]."""
    n, k = neighbours.shape
    at = (np.ones(n * k, dtype=np.float32), neighbours.ravel(), np.arange(0, n * k + 1, k))
    near = (sparse.csr_array(at, shape=(n, n)) @ labels.T.astype(np.float32)).T  # far faster than indexing
    return labels & (near >= least.a), ~labels & (near <= least.b)


def _components(full: Labels, edges: Indices) -> tuple[Indices, Indices]:
    """Full latents, numbered through all shuffles, and the region each is in."""
    shuffle, edge = np.nonzero(full[:, edges[:, 0]] & full[:, edges[:, 1]])
    nodes = np.flatnonzero(full)
    place = np.zeros(full.size, dtype=np.int64)
    place[nodes] = np.arange(len(nodes))
    ends = place[shuffle[:, None] * full.shape[1] + edges[edge]]
    graph = sparse.coo_array((np.ones(len(ends), dtype=np.int8), (ends[:, 0], ends[:, 1])), shape=(len(nodes),) * 2)
    return nodes, sparse.csgraph.connected_components(graph, directed=False)[1]


def _regions(pool: Pool, edges: Indices, least: _Least) -> list[tuple[bool, Indices]]:
    found = []
    for of_a, full in zip((True, False), _full(pool.in_a[None], pool.neighbours, least), strict=True):
        if full.any():
            nodes, region = _components(full, edges)
            found += [(of_a, nodes[region == number]) for number in range(region.max() + 1)]
    return found


def _largest_by_chance(pool: Pool, edges: Indices, least: _Least, permutations: int, seed: int) -> Indices:
    """The size of the largest region in each shuffle of the labels."""
    generator = seeds.numpy_generator(seed, "shuffled labels of regions")
    largest = np.zeros(permutations, dtype=np.int64)
    step = max(1, CELLS // pool.neighbours.size)
    for start in range(0, permutations, step):
        count = min(step, permutations - start)
        labels = generator.permuted(np.tile(pool.in_a, (count, 1)), axis=1)
        for full in _full(labels, pool.neighbours, least):
            if full.any():
                nodes, region = _components(full, edges)
                size = np.bincount(region)
                np.maximum.at(largest, start + nodes // full.shape[1], size[region])
    return largest
