"""Do two latents fire on the same tokens, and as strongly?

With f and g the activations of two latents over the same tokens, F and G the sets of tokens where they are active:

    r = cov(f, g) / (sd f sd g)          |F & G| / |F | G|          P(F | G) = |F & G| / |G|          P(G | F)

All joint sums are sparse products of codes, in blocks of latents. Intervals resample whole sequences; a latent that
fires less than a few dozen times has no correlation worth the name, and gets none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import sparse

from analyses.similarity.matching.code_sample import Matrix, firings
from dictlab.numerics import seeds
from dictlab.numerics.significance import permutation_p
from dictlab.numerics.statistics import RESAMPLES, STANDARD_ERRORS, Array, BySequence, intervals

CELLS = 1 << 24  # joint sums of a block of latents with all of the other's
SHUFFLED = 1024  # pairs that take part in a shuffle
CONSTANT = 1e-10  # share of its mean square up to which the variance of a latent is rounding
PAIRS = 256  # pairs whose sums by sequence are held at once
Signed = tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None]  # latents of a, and of b, of either sign
NAMES = ("correlation", "Jaccard", "P(A fires | B fires)", "P(B fires | A fires)")


class Alike(NamedTuple):
    """How alike pairs of latents fire.

    Attributes:
        value: The measures of `NAMES`, by pair; NaN where one of the two fires too seldom.
        low: Lower ends of their 95 % bootstrap intervals over sequences.
        high: Upper ends.
        mean: The means over pairs that have a value.
        mean_low: Lower ends of the intervals of the means: 1.96 bootstrap standard errors.
        mean_high: Upper ends.
    """

    value: Float[np.ndarray, "pairs 4"]
    low: Float[np.ndarray, "pairs 4"]
    high: Float[np.ndarray, "pairs 4"]
    mean: Float[np.ndarray, " 4"]
    mean_low: Float[np.ndarray, " 4"]
    mean_high: Float[np.ndarray, " 4"]

    @property
    def n(self) -> int:
        """Pairs that have a value."""
        return int(np.isfinite(self.value[:, 0]).sum())


class Partners(NamedTuple):
    """For each latent the one of the other dictionary that it correlates with most; -1 and NaN where there is none."""

    latent: Int[np.ndarray, " n"]
    correlation: Float[np.ndarray, " n"]


def joint(a: Matrix, b: Matrix, cells: int = CELLS) -> Iterator[tuple[int, Matrix]]:
    """Blocks of sum_t f_ti g_tj, sparse: (number of the first latent of a, latents of the block x latents of b)."""
    columns, step = a.tocsc(), max(1, cells // b.shape[1])
    for start in range(0, a.shape[1], step):
        yield start, (columns[:, start : start + step].T @ b).tocsr()


def best_partners(a: Matrix, b: Matrix, fewest: int, signed: Signed = (None, None)) -> tuple[Partners, Partners]:
    """For each latent of a the latent of b with the largest correlation, and for each of b the one of a.

    Only latents that fire together somewhere are candidates: others have a correlation of 0 or less.

    Args:
        a: Codes of the one.
        b: Codes of the other, on the same tokens.
        fewest: Tokens at which both must be active.
        signed: Latents of a, and of b, whose activation has either sign: their correlations are absolute.
    """
    tokens = a.shape[0]
    often_a, often_b = firings(a) >= fewest, firings(b) >= fewest
    mean_a, mean_b = (np.asarray(x.sum(axis=0, dtype=np.float64)) / tokens for x in (a, b))
    spread_a, spread_b = (spread(x) for x in (a, b))
    of_a, of_b = (Partners(np.full(x.shape[1], -1), np.full(x.shape[1], np.nan)) for x in (a, b))
    for start, block in joint(a, b):
        entries = block.tocoo()
        i, j = entries.row + start, entries.col
        kept = often_a[i] & often_b[j]
        i, j, products = i[kept], j[kept], entries.data[kept].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            r = (products / tokens - mean_a[i] * mean_b[j]) / (spread_a[i] * spread_b[j])
        r = np.where(either_signed(signed, i, j), np.abs(r), r)
        known = np.isfinite(r)  # a latent that is constant on the sample correlates with nothing
        i, j, r = i[known], j[known], r[known]
        _improve(of_a, i, j, r)
        _improve(of_b, j, i, r)
    return of_a, of_b


def spread(codes: Matrix) -> NDArray[np.float64]:
    """Standard deviation of each latent over tokens; 0 where it is constant but for rounding."""
    tokens = codes.shape[0]
    mean = np.asarray(codes.sum(axis=0, dtype=np.float64)) / tokens
    squares = np.bincount(codes.indices, np.square(codes.data, dtype=np.float64), codes.shape[1]) / tokens
    return np.sqrt(np.nan_to_num(varying(squares - mean**2, squares)))


def varying(variance: Array, squares: Array) -> Array:
    """A variance that was taken as a difference of mean squares; NaN where it is no more than their rounding."""
    return np.asarray(np.where(variance > CONSTANT * squares, variance, np.nan))


def alike(
    a: Matrix,
    b: Matrix,
    of_a: Int[np.ndarray, " pairs"],
    of_b: Int[np.ndarray, " pairs"],
    sequence: Int[np.ndarray, " tokens"],
    *,
    fewest: int,
    seed: int,
    signed: Signed = (None, None),
) -> Alike:
    """How alike latent of_a[p] of a and latent of_b[p] of b fire, for every pair p.

    Args:
        a: Codes of the one.
        b: Codes of the other, on the same tokens.
        of_a: Latents of a.
        of_b: Latents of b.
        sequence: Which sequence each token is of; sequences are resampled.
        fewest: Tokens at which both must be active.
        seed: Of the resampling.
        signed: Latents of a, and of b, whose activation has either sign: their correlations are absolute.
    """
    kept = np.flatnonzero((firings(a)[of_a] >= fewest) & (firings(b)[of_b] >= fewest))
    value, low, high = (np.full((len(of_a), len(NAMES)), np.nan) for _ in range(3))
    if not len(kept):
        nothing = np.full(len(NAMES), np.nan)
        return Alike(value, low, high, nothing, nothing, nothing)
    total, counted = np.zeros((2, RESAMPLES, len(NAMES)))
    for block in np.array_split(kept, -(-len(kept) // PAIRS)):
        sums = BySequence(_sums(a, b, of_a[block], of_b[block], sequence), seed)
        draws = sums.draws(_measures)
        value[block] = sums.value(_measures)
        flipped = either_signed(signed, of_a[block], of_b[block]) & (value[block, 0] < 0)
        value[block, 0] = np.where(flipped, -value[block, 0], value[block, 0])
        draws[..., 0] = np.where(flipped, -draws[..., 0], draws[..., 0])
        low[block], high[block] = intervals(draws)
        total += np.nansum(draws, axis=1)
        counted += np.isfinite(draws).sum(axis=1)
    known = np.isfinite(value)
    mean = np.where(known, value, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
    spread = (total / np.maximum(counted, 1)).std(axis=0)
    # The correlation of rare latents is smaller in resamples, so the interval of a mean stands about the mean itself.
    return Alike(value, low, high, mean, mean - STANDARD_ERRORS * spread, mean + STANDARD_ERRORS * spread)


def values(
    a: Matrix,
    b: Matrix,
    of_a: Int[np.ndarray, " pairs"],
    of_b: Int[np.ndarray, " pairs"],
    *,
    fewest: int,
    signed: Signed = (None, None),
) -> Float[np.ndarray, "pairs 4"]:
    """The measures of `alike` alone, without intervals."""
    found = np.full((len(of_a), len(NAMES)), np.nan)
    kept = np.flatnonzero((firings(a)[of_a] >= fewest) & (firings(b)[of_b] >= fewest))
    together = np.zeros(a.shape[0], dtype=np.int64)
    for block in np.array_split(kept, -(-len(kept) // PAIRS) or 1):
        found[block] = BySequence(_sums(a, b, of_a[block], of_b[block], together), 0).value(_measures)
    found[:, 0] = np.where(either_signed(signed, of_a, of_b), np.abs(found[:, 0]), found[:, 0])
    return found


def shuffled_means(
    a: Matrix,
    b: Matrix,
    of_a: Int[np.ndarray, " pairs"],
    of_b: Int[np.ndarray, " pairs"],
    *,
    fewest: int,
    permutations: int,
    seed: int,
    signed: Signed = (None, None),
) -> tuple[Float[np.ndarray, " 4"], Float[np.ndarray, " 4"]]:
    """What pairs would measure if partners were dealt out anew: the mean over shuffles, and one-sided p-values.

    Of more than `SHUFFLED` pairs that fire often enough, a sample is shuffled. p = (1 + shuffles with a mean at least
    as large as the pairs' own) / (1 + shuffles).
    """
    kept = np.flatnonzero((firings(a)[of_a] >= fewest) & (firings(b)[of_b] >= fewest))
    generator = seeds.numpy_generator(seed, "shuffled pairs of latents")
    if len(kept) < 2:
        return np.full(len(NAMES), np.nan), np.full(len(NAMES), np.nan)
    kept = np.sort(generator.permutation(kept)[:SHUFFLED])
    table = _all_measures(a[:, of_a[kept]], b[:, of_b[kept]])
    table[0] = np.where(either_signed(signed, of_a[kept][:, None], of_b[kept][None]), np.abs(table[0]), table[0])
    table = np.nan_to_num(table, nan=0.0)  # constant on the sample: correlated with nothing
    own = np.diagonal(table, axis1=1, axis2=2).mean(axis=1)
    rows = np.arange(len(kept))
    drawn = np.stack([table[:, rows, generator.permutation(rows)].mean(axis=1) for _ in range(permutations)])
    return drawn.mean(axis=0), permutation_p(own, drawn)


def _all_measures(a: Matrix, b: Matrix) -> Float[np.ndarray, "4 n m"]:
    """The measures of every latent with every other."""

    def sum_of(x: Matrix) -> Array:
        return np.asarray(x.sum(axis=0), dtype=np.float64)

    on_a, on_b = (x.astype(bool).astype(np.float64) for x in (a, b))
    a, b = a.astype(np.float64), b.astype(np.float64)
    sums = {"a": sum_of(on_a)[:, None], "b": sum_of(on_b)[None], "ab": (on_a.T @ on_b).toarray()}
    sums |= {"f": sum_of(a)[:, None], "g": sum_of(b)[None], "fg": (a.T @ b).toarray()}
    sums |= {"ff": sum_of(a.multiply(a))[:, None], "gg": sum_of(b.multiply(b))[None]}
    sums["tokens"] = np.float64(a.shape[0])
    return np.moveaxis(_measures(sums), -1, 0)


def _sums(a: Matrix, b: Matrix, of_a: Array, of_b: Array, sequence: Array) -> dict[str, Array]:
    """By sequence and pair: firings, activations, their squares, and their products."""
    one, other = (x[:, of].tocsc().astype(np.float64) for x, of in ((a, of_a), (b, of_b)))
    tokens = len(sequence)
    of = sparse.csr_array((np.ones(tokens), (sequence, np.arange(tokens))), shape=(int(sequence[-1]) + 1, tokens))
    both = one.multiply(other)
    parts = {"a": one != 0, "b": other != 0, "ab": (one != 0).multiply(other != 0)}
    parts |= {"f": one, "g": other, "ff": one.multiply(one), "gg": other.multiply(other), "fg": both}
    sums = {name: (of @ part.astype(np.float64)).toarray() for name, part in parts.items()}
    counted = np.bincount(sequence).astype(np.float64)
    return sums | {"tokens": np.repeat(counted[:, None], len(of_a), axis=1)}


def _measures(s: Mapping[str, Array]) -> Array:
    """The measures of NAMES along the last axis; NaN where a latent is silent."""
    n = s["tokens"]
    with np.errstate(divide="ignore", invalid="ignore"):
        of_f, of_g = (varying(s[2 * k] / n - (s[k] / n) ** 2, s[2 * k] / n) for k in ("f", "g"))
        variance = of_f * of_g
        r = (s["fg"] / n - s["f"] * s["g"] / n**2) / np.sqrt(variance)
        return np.stack(
            np.broadcast_arrays(r, s["ab"] / (s["a"] + s["b"] - s["ab"]), s["ab"] / s["b"], s["ab"] / s["a"]), axis=-1
        )


def either_signed(signed: Signed, of_a: Array, of_b: Array) -> NDArray[np.bool_]:
    """Whether one latent of each pair emits values of either sign: a pair's correlation then has no sign of its own."""
    one, other = (
        np.zeros(np.shape(of), dtype=bool) if mask is None else mask[of]
        for mask, of in zip(signed, (of_a, of_b), strict=True)
    )
    either: NDArray[np.bool_] = one | other
    return either


def _improve(found: Partners, line: Array, other: Array, r: Array) -> None:
    """Keep the largest r of each line, if it is larger than what is held."""
    order = np.lexsort((r, line))
    last = np.flatnonzero(np.diff(line[order], append=-1))
    lines, best = line[order][last], order[last]
    better = ~(found.correlation[lines] >= r[best])
    found.latent[lines[better]], found.correlation[lines[better]] = other[best[better]], r[best[better]]
