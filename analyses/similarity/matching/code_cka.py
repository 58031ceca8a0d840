"""Linear CKA of the codes of two dictionaries on the same tokens, by sparse sums alone.

HSIC needs |F_A^T F_B|^2, which joint sums in blocks give, and row sums of the two kernels, which need no joint sums.
The interval leaves out one group of sequences at a time: |P - P_g|^2, with P_g the sums over the group. The null
shuffles tokens, of a sample of them that lie far apart, since neighbouring tokens are not exchangeable.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from analyses.similarity.matching.coactivation import CELLS, spread
from analyses.similarity.matching.code_sample import Matrix, firings
from analyses.similarity.matching.representation import GROUPS, Tested, hsic, hsic_parts
from dictlab.numerics import seeds
from dictlab.numerics.significance import jackknife_interval, permutation_p

SHUFFLED_TOKENS = 1024


def code_cka(a: Matrix, b: Matrix, sequence: Int[np.ndarray, " tokens"], *, permutations: int, seed: int) -> Tested:
    """Linear CKA (unbiased HSIC) of codes.

    Args:
        a: Codes of the one, tokens x latents.
        b: Codes of the other.
        sequence: Which sequence each token is of; the jackknife leaves out groups of them.
        permutations: Shuffles of tokens.
        seed: Of the shuffles.
    """
    generator = seeds.numpy_generator(seed, "shuffled tokens")
    groups = min(GROUPS, int(sequence[-1]) + 1)
    group = generator.permutation(int(sequence[-1]) + 1)[sequence] % groups
    values = _ckas(a.astype(np.float64), b.astype(np.float64), group, groups)
    value, bounds = float(values[0]), jackknife_interval(float(values[0]), values[1:])
    if not permutations:
        return Tested(value, *bounds, float("nan"), float("nan"), a.shape[0])
    kept = np.sort(generator.permutation(a.shape[0])[:SHUFFLED_TOKENS])
    own, drawn = _shuffled_ckas(a[kept], b[kept], generator, permutations)
    return Tested(value, *bounds, float(drawn.mean()), permutation_p(own, drawn), a.shape[0])


def code_cka_value(a: Matrix, b: Matrix) -> float:
    """The same without interval and null."""
    return float(_ckas(a.astype(np.float64), b.astype(np.float64), np.zeros(a.shape[0], dtype=np.int64), 0)[0])


def seldom(codes: Matrix, most: float) -> Matrix:
    """The codes of latents that are active at some tokens, and at no more than a share of them."""
    counts = firings(codes)
    return codes[:, np.flatnonzero((counts > 0) & (counts <= most * codes.shape[0]))]


def _ckas(a: Matrix, b: Matrix, group: Int[np.ndarray, " tokens"], groups: int) -> Float[np.ndarray, " 1+groups"]:
    """CKA of all tokens, and without each group; NaN where an HSIC with itself is not positive."""
    if not (spread(a).any() and spread(b).any()):
        return np.full(1 + groups, np.nan)
    cross, own, other = (_hsics(x, y, group, groups) for x, y in ((a, b), (a, a), (b, b)))
    scale = np.sqrt(np.maximum(own, 0) * np.maximum(other, 0))
    similarities: NDArray[np.float64] = np.divide(cross, scale, out=np.full(1 + groups, np.nan), where=scale > 0)
    return similarities


def _hsics(a: Matrix, b: Matrix, group: Int[np.ndarray, " tokens"], groups: int) -> Float[np.ndarray, " 1+groups"]:
    overlaps = _overlaps(a, b, group, groups)
    found = []
    for left_out in range(-1, groups):
        kept = group != left_out
        x, y = (a, b) if kept.all() else (a[kept], b[kept])
        parts = [hsic_parts(m, np.asarray(m.sum(axis=0))) for m in (x, y)]
        found.append(hsic(overlaps[left_out + 1], *parts))
    return np.array(found)


def _overlaps(a: Matrix, b: Matrix, group: Int[np.ndarray, " tokens"], groups: int) -> Float[np.ndarray, " 1+groups"]:
    """|A^T B|^2 over all tokens, and over those of no group but one."""
    parts = [(a[group == g].tocsc(), b[group == g]) for g in range(max(1, groups))]
    step = max(1, CELLS // b.shape[1])
    found = np.zeros(1 + groups)
    for start in range(0, a.shape[1], step):
        products = [(x[:, start : start + step].T @ y).tocsr() for x, y in parts]
        total = sum(products[1:], start=products[0])
        whole = float(np.square(total.data).sum())
        found[0] += whole
        for g, own in enumerate(products[:groups]):
            found[1 + g] += whole - 2 * float(total.multiply(own).sum()) + float(np.square(own.data).sum())
    return found


def _shuffled_ckas(
    a: Matrix, b: Matrix, generator: np.random.Generator, permutations: int
) -> tuple[float, Float[np.ndarray, " permutations"]]:
    """CKA of some tokens as they are, and with those of b in other orders."""
    kernels = [_centred((x @ x.T).toarray().astype(np.float64)) for x in (a, b)]
    norm = float(np.sqrt(np.square(kernels[0]).sum() * np.square(kernels[1]).sum()))
    if not norm:
        return float("nan"), np.full(permutations, np.nan)
    order = np.arange(a.shape[0])
    drawn = []
    for _ in range(permutations):
        shuffle = generator.permutation(order)
        drawn.append(float((kernels[0] * kernels[1][np.ix_(shuffle, shuffle)]).sum()) / norm)
    return float((kernels[0] * kernels[1]).sum()) / norm, np.array(drawn)


def _centred(kernel: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """U-centred: no diagonal, rows and columns of sum 0 (Szekely and Rizzo 2014); its products are unbiased HSICs."""
    n = len(kernel)
    np.fill_diagonal(kernel, 0)
    sums = kernel.sum(axis=0)
    kernel -= sums[None] / (n - 2) + sums[:, None] / (n - 2) - sums.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(kernel, 0)
    return kernel
