"""Which latents of the other dictionaries are like a latent, by direction and by where they are active?

For latents i of A and j of B over the tokens of the sample, with F the tokens at which a latent is active:

    cosine       d_i . d_j / (|d_i| |d_j|)              of the decoder directions
    correlation  cov(f_i, f_j) / (sd f_i sd f_j)
    Jaccard      |F_i & F_j| / |F_i | F_j|
    absorbed     |F_i & F_j - F_g|, with g the nearest latent of B to i

Absorbed tokens are those at which i is active and g silent, while j is active in g's place (feature absorption; Chanin
et al. 2024, arXiv:2409.14507, there with a probe in the place of i).

Joint sums of all pairs that are active together somewhere are sparse products of codes, in blocks of latents. The
twins that are kept of a latent are the nearest by cosine and the one with the largest correlation; and of the latents
that it is such a twin of, those most like it, so that a pair can be seen from both sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import sparse

from analyses.common.neighbours import neighbours
from analyses.explorer.code_store import StoredCodes
from dictlab.dictionary import Dictionary

NEAREST = 3  # by cosine, kept of each latent in each other dictionary
RETURNED = 6  # latents that a latent is a twin of, kept besides
COSINES = 1 << 16  # pairs whose cosines are computed at once
CELLS = 1 << 24  # joint sums of a block of latents with all of the other's

Array = NDArray[np.float64]
Matrix: TypeAlias = sparse.csr_array  # tokens x latents


class Twins(NamedTuple):
    """Pairs of latents of two dictionaries A and B; each pair once, ordered by the latent of A.

    Attributes:
        a: The latent of A.
        b: The latent of B.
        cosine: Of the decoder directions; its size, where one of the two latents is signed.
        correlation: Of the activations over all counted tokens; NaN where one of the two never changes.
        both: Tokens at which both are active.
        absorbed: Of these, tokens at which the nearest latent of B to the latent of A is silent; 0 where that is b.
        absorbed_back: The same from the other side: tokens at which the nearest latent of A to b is silent.
    """

    a: Int[NDArray[np.int64], " pairs"]
    b: Int[NDArray[np.int64], " pairs"]
    cosine: Float[Array, " pairs"]
    correlation: Float[Array, " pairs"]
    both: Int[NDArray[np.int64], " pairs"]
    absorbed: Int[NDArray[np.int64], " pairs"]
    absorbed_back: Int[NDArray[np.int64], " pairs"]

    def swapped(self) -> Twins:
        """The same pairs, ordered by the latent of B."""
        turned = self._replace(a=self.b, b=self.a, absorbed=self.absorbed_back, absorbed_back=self.absorbed)
        return turned.at(np.lexsort((self.a, self.b)))

    def at(self, which: Int[NDArray[np.int64], " some"] | slice) -> Twins:
        """Some of the pairs."""
        return self._replace(**{name: column[which] for name, column in self._asdict().items()})

    def of(self, latent: int) -> Twins:
        """The pairs of one latent of A."""
        return self.at(slice(*np.searchsorted(self.a, [latent, latent + 1]).tolist()))


class TopPartner(NamedTuple):
    """The one latent of B that each latent of A is most like, by one measure; -1 and NaN where there is none."""

    latent: Int[NDArray[np.int64], " n"]
    value: Float[Array, " n"]


class DictionaryPair(NamedTuple):
    """What two dictionaries A and B have in common.

    Attributes:
        twins: Pairs that are shown at latents of A.
        measured: All pairs that were measured, whichever side they are shown at.
        nearest: For each latent of A the nearest alive one of B by cosine.
        correlated: For each latent of A the one of B with the largest correlation.
    """

    twins: Twins
    measured: Twins
    nearest: TopPartner
    correlated: TopPartner


def compare_pair(
    a: Dictionary, b: Dictionary, codes_a: StoredCodes, codes_b: StoredCodes, n_counted: int
) -> tuple[DictionaryPair, DictionaryPair]:
    """Twins of two dictionaries, seen from either.

    Args:
        a: A dictionary.
        b: Another one, of the same site.
        codes_a: The codes of A on a sample.
        codes_b: Those of B on the same sample.
        n_counted: Tokens of the sample that count.
    """
    cosine_a, cosine_b = _nearest_by_cosine(a, b, codes_a, codes_b)
    moments_a, moments_b = _Moments.of(codes_a, n_counted), _Moments.of(codes_b, n_counted)
    matrix_a, matrix_b = as_matrix(codes_a), as_matrix(codes_b)
    correlated_a = _best_correlated(matrix_a, matrix_b, moments_a, moments_b, n_counted)
    correlated_b = _best_correlated(matrix_b, matrix_a, moments_b, moments_a, n_counted)
    listed_a, listed_b = _listed(cosine_a, correlated_a), _listed(cosine_b, correlated_b)[:, ::-1]
    pairs = np.unique(np.concatenate([listed_a, listed_b]), axis=0)
    cosine = _cosines(a, b, pairs)
    correlation, both = _joint_statistics(pairs, codes_a, codes_b, moments_a, moments_b, n_counted)
    absorbed = absorbed_tokens(pairs, codes_a, codes_b, _first(cosine_a).latent)
    back = absorbed_tokens(pairs[:, ::-1], codes_b, codes_a, _first(cosine_b).latent)
    every = Twins(pairs[:, 0], pairs[:, 1], cosine, correlation, both, absorbed, back)
    shown_a, shown_b = (_shown(pairs, listed, cosine, side) for side, listed in enumerate((listed_a, listed_b)))
    return (
        DictionaryPair(every.at(shown_a), every, _first(cosine_a), correlated_a),
        DictionaryPair(every.at(shown_b).swapped(), every.swapped(), _first(cosine_b), correlated_b),
    )


class _Cosines(NamedTuple):
    latent: Int[NDArray[np.int64], "n top"]
    cosine: Float[Array, "n top"]


class _Moments(NamedTuple):
    """Mean and standard deviation of each latent's activation over all counted tokens."""

    mean: Array
    sd: Array

    @classmethod
    def of(cls, codes: StoredCodes, n: int) -> _Moments:
        total, square = np.zeros(len(codes.starts) - 1), np.zeros(len(codes.starts) - 1)
        for start in range(0, len(codes.latents), CELLS):
            latents = codes.latents[start : start + CELLS]
            values = np.asarray(codes.activations[start : start + CELLS], dtype=np.float64)
            total += np.bincount(latents, weights=values, minlength=len(total))
            square += np.bincount(latents, weights=values**2, minlength=len(total))
        mean = total / n
        return cls(mean, np.sqrt(np.maximum(square / n - mean**2, 0)))


def as_matrix(codes: StoredCodes) -> Matrix:
    """Codes as a sparse matrix, tokens x latents, that lies in its files."""
    shape = (codes.n_tokens, len(codes.starts) - 1)
    return sparse.csr_array((codes.activations, codes.latents, codes.offsets), shape=shape)


def _nearest_by_cosine(a: Dictionary, b: Dictionary, codes_a: StoredCodes, codes_b: StoredCodes) -> list[_Cosines]:
    """The nearest latents of the other that are active on the sample, both ways."""
    alive_a, alive_b = (np.flatnonzero(codes.active) for codes in (codes_a, codes_b))
    if not len(alive_a) or not len(alive_b):
        return [_Cosines(np.zeros((d.n_latents, 0), np.int64), np.zeros((d.n_latents, 0))) for d in (a, b)]
    every_a, every_b = torch.arange(a.n_latents), torch.arange(b.n_latents)
    search = partial(neighbours, a.W_dec, b.W_dec, top=NEAREST, signed_a=a.signed, signed_b=b.signed)
    forward, _ = search(of_a=every_a, of_b=torch.from_numpy(alive_b))
    _, backward = search(of_a=torch.from_numpy(alive_a), of_b=every_b)
    return [
        _Cosines(alive[found.rows.cpu().numpy()], found.cosine.double().cpu().numpy())
        for alive, found in ((alive_b, forward), (alive_a, backward))
    ]


def _first(found: _Cosines) -> TopPartner:
    if not found.latent.shape[1]:
        return TopPartner(np.full(len(found.latent), -1), np.full(len(found.latent), np.nan))
    return TopPartner(found.latent[:, 0], found.cosine[:, 0])


def _best_correlated(a: Matrix, b: Matrix, of_a: _Moments, of_b: _Moments, n: int) -> TopPartner:
    """For each latent of A the latent of B with the largest correlation, among those active together somewhere."""
    latent, value = np.full(a.shape[1], -1), np.full(a.shape[1], np.nan)
    for first, sums in _joint_sums(a, b):
        rows = np.repeat(np.arange(first, first + sums.shape[0]), np.diff(sums.indptr))
        correlation = _correlation(sums.data / n, of_a, of_b, rows, sums.indices)
        kept = np.flatnonzero(np.isfinite(correlation))
        order = kept[np.lexsort((sums.indices[kept], -correlation[kept], rows[kept]))]
        found, where = np.unique(rows[order], return_index=True)
        latent[found], value[found] = sums.indices[order[where]], correlation[order[where]]
    return TopPartner(latent, value)


def _joint_sums(a: Matrix, b: Matrix) -> Iterator[tuple[int, Matrix]]:
    """Blocks of sum_t f_ti g_tj: (number of the first latent of A, latents of the block x latents of B)."""
    columns, step = a.tocsc(), max(1, CELLS // b.shape[1])
    for start in range(0, a.shape[1], step):
        yield start, (columns[:, start : start + step].T.astype(np.float64) @ b).tocsr()


def _correlation(mean: Array, of_a: _Moments, of_b: _Moments, i: NDArray[np.int64], j: NDArray[np.int64]) -> Array:
    """From the means of f_i g_j over counted tokens; NaN where one of the two never changes."""
    spread = of_a.sd[i] * of_b.sd[j]
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation: Array = np.where(spread > 0, (mean - of_a.mean[i] * of_b.mean[j]) / spread, np.nan)
    return np.clip(correlation, -1, 1)


def _listed(cosines: _Cosines, correlated: TopPartner) -> NDArray[np.int64]:
    """Pairs (latent, twin): the nearest by cosine, and the one most correlated."""
    n, top = cosines.latent.shape
    nearest = np.stack([np.repeat(np.arange(n), top), cosines.latent.ravel()], axis=1)
    known = np.flatnonzero(correlated.latent >= 0)
    return np.concatenate([nearest, np.stack([known, correlated.latent[known]], axis=1)])


def _cosines(a: Dictionary, b: Dictionary, pairs: NDArray[np.int64]) -> Array:
    one, other = a.directions.double().cpu().numpy(), b.directions.double().cpu().numpy()
    signed = a.signed.cpu().numpy()[pairs[:, 0]] | b.signed.cpu().numpy()[pairs[:, 1]]
    parts = np.array_split(pairs, 1 + len(pairs) // COSINES)
    cosine = np.concatenate([np.einsum("pd,pd->p", one[part[:, 0]], other[part[:, 1]]) for part in parts])
    return np.where(signed, np.abs(cosine), cosine)


def _shown(pairs: NDArray[np.int64], listed: NDArray[np.int64], cosine: Array, side: int) -> NDArray[np.int64]:
    """Which pairs are shown at the latents of one side: its own twins, and up to `RETURNED` that it is a twin of."""
    width = int(pairs.max(initial=0)) + 1
    own = np.isin(pairs @ [width, 1], listed @ [width, 1])
    returned = np.flatnonzero(~own)
    order = returned[np.lexsort((-cosine[returned], pairs[returned, side]))]
    _, start, count = np.unique(pairs[order, side], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(start, count)
    return np.sort(np.concatenate([np.flatnonzero(own), order[rank < RETURNED]]))


def _joint_statistics(
    pairs: NDArray[np.int64],
    codes_a: StoredCodes,
    codes_b: StoredCodes,
    of_a: _Moments,
    of_b: _Moments,
    n: int,
) -> tuple[Array, NDArray[np.int64]]:
    """Correlation, and tokens at which both are active, of some pairs."""
    mean, both = np.zeros(len(pairs)), np.zeros(len(pairs), dtype=np.int64)
    held, column = -1, codes_a.column(0)
    for k, (i, j) in enumerate(pairs.tolist()):
        if i != held:
            held, column = i, codes_a.column(i)
        other = codes_b.column(j)
        at = np.searchsorted(other.tokens, column.tokens)
        found = np.flatnonzero(at < len(other.tokens))
        found = found[other.tokens[at[found]] == column.tokens[found]]
        both[k] = len(found)
        mean[k] = float(column.activations[found].astype(np.float64) @ other.activations[at[found]]) / n
    return _correlation(mean, of_a, of_b, pairs[:, 0], pairs[:, 1]), both


def absorbed_tokens(
    pairs: Int[NDArray[np.int64], "pairs 2"],
    codes_a: StoredCodes,
    codes_b: StoredCodes,
    nearest: Int[NDArray[np.int64], " n_a"],
) -> Int[NDArray[np.int64], " pairs"]:
    """Tokens at which both latents of a pair are active and the nearest latent of B to that of A is silent.

    Args:
        pairs: A latent of A and one of B each.
        codes_a: The codes of A.
        codes_b: Those of B.
        nearest: Of each latent of A its nearest one of B, or -1.
    """
    absorbed, held = np.zeros(len(pairs), dtype=np.int64), -1
    left: NDArray[np.int32] = np.zeros(0, dtype=np.int32)  # tokens of the latent of A at which its nearest is silent
    for k in np.argsort(pairs[:, 0], kind="stable").tolist():
        i, j = pairs[k].tolist()
        if i != held:
            held, left = i, codes_a.column(i).tokens
            if nearest[i] >= 0:
                left = np.setdiff1d(left, codes_b.column(int(nearest[i])).tokens, assume_unique=True)
        absorbed[k] = len(np.intersect1d(left, codes_b.column(j).tokens, assume_unique=True))
    return absorbed
