"""How alike are two sets of vectors as wholes, row by row paired (Kornblith et al. 2019; Raghu et al. 2017; Lan et al.
2024), whatever the basis?

    linear CKA    HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)), HSIC by its unbiased estimator (Song et al. 2012)
    SVCCA         mean canonical correlation of the principal components that hold 99 % of the variance
    RSA           Spearman correlation of the two sets of distances (1 - correlation) between rows
    Procrustes    min over rotations R of |X R - Y| / |Y|; 0 is identity, and smaller is more alike

Each is prepared once, and then asked for any order of Y's rows: the identity gives the similarity, shuffles its null.
Intervals are of the delete-a-group jackknife: a bootstrap would draw rows twice, and a row is alike to itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.stats import rankdata

from dictlab.numerics import seeds
from dictlab.numerics.significance import jackknife_interval, permutation_p

Rows: TypeAlias = Float[np.ndarray, "n d"]
Order: TypeAlias = Int[np.ndarray, " n"]
Ordered: TypeAlias = Callable[[Order], float]  # the similarity with Y's rows in that order
Measure: TypeAlias = Callable[[Rows, Rows], Ordered]

VARIANCE = 0.99  # share of the variance that SVCCA keeps
GROUPS = 20  # of the jackknife
ROWS, RSA_ROWS = 8192, 512  # rows that are compared; of more, a sample


class Tested(NamedTuple):
    """A similarity, its 95 % interval, and what shuffles of who belongs to whom give."""

    value: float
    low: float
    high: float
    shuffled: float
    p: float
    n: int


def with_null(
    measure: Measure, x: Rows, y: Rows, *, permutations: int, seed: int, smaller_is_alike: bool = False
) -> Tested:
    """A similarity of paired rows with its interval and permutation null.

    Args:
        measure: One of `cka`, `svcca`, `rsa`, `procrustes`.
        x: Rows of the one.
        y: Rows of the other, in the same order.
        permutations: Shuffles.
        seed: Of the shuffles and of the jackknife's groups.
        smaller_is_alike: Whether a small value means likeness.
    """
    generator = seeds.numpy_generator(seed, "shuffled rows")
    x, y = _at_most(RSA_ROWS if measure is rsa else ROWS, x, y, generator)
    order = np.arange(len(x))
    ordered = measure(x, y)
    value = ordered(order)
    drawn = np.array([ordered(generator.permutation(order)) for _ in range(permutations)])
    sign = -1 if smaller_is_alike else 1
    p = permutation_p(sign * value, sign * drawn)
    group = generator.permutation(order) % min(GROUPS, len(x))
    without = [
        measure(x[group != g], y[group != g])(np.arange(int((group != g).sum()))) for g in range(group.max() + 1)
    ]
    return Tested(value, *jackknife_interval(value, np.array(without)), float(drawn.mean()), p, len(x))


def value_of(measure: Measure, x: Rows, y: Rows, *, seed: int) -> float:
    """The similarity alone, of as many rows as `with_null` takes."""
    x, y = _at_most(RSA_ROWS if measure is rsa else ROWS, x, y, seeds.numpy_generator(seed, "shuffled rows"))
    return measure(x, y)(np.arange(len(x)))


def _at_most(most: int, x: Rows, y: Rows, generator: np.random.Generator) -> tuple[Rows, Rows]:
    if len(x) <= most:
        return x, y
    kept = generator.permutation(len(x))[:most]
    return x[kept], y[kept]


def cka(x: Rows, y: Rows) -> Ordered:
    """Linear CKA, unbiased for few rows."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    norm = np.sqrt(np.maximum(_hsic(x, x), 0) * np.maximum(_hsic(y, y), 0))
    return lambda order: _hsic(x, y[order]) / norm if norm > 0 else float("nan")


def svcca(x: Rows, y: Rows) -> Ordered:
    """Mean canonical correlation of principal components. It tends to 1 where rows are not many more than columns."""
    u, v = principal(x), principal(y)
    return lambda order: float(np.linalg.svd(u.T @ v[order], compute_uv=False).sum()) / min(u.shape[1], v.shape[1])


def principal(x: Rows, share: float = VARIANCE) -> Rows:
    """Left singular vectors of the centred rows, as few as hold a share of the variance."""
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    energy = np.cumsum(s**2)
    kept = 1 + int(np.searchsorted(energy / energy[-1], share)) if energy[-1] > 0 else 1
    found: Rows = u[:, : min(kept, len(s))]
    return found


def rsa(x: Rows, y: Rows) -> Ordered:
    """Spearman correlation of the distances between rows."""
    a, b = _ranked_distances(x), _ranked_distances(y)
    norm = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return lambda order: float((a * b[np.ix_(order, order)]).sum()) / norm if norm else float("nan")


def procrustes(x: Rows, y: Rows) -> Ordered:
    """What no rotation or reflection of X takes away of its distance to Y, relative to Y."""
    squares, norm = float((x**2).sum() + (y**2).sum()), float(np.linalg.norm(y))

    def residual(order: Order) -> float:
        overlap = float(np.linalg.svd(x.T @ y[order], compute_uv=False).sum())
        return float(np.sqrt(max(0.0, squares - 2 * overlap))) / norm

    return residual


def _hsic(x: Rows, y: Rows) -> float:
    """n (n - 3) times the unbiased estimate, in the time of x^T y."""
    k, own = hsic_parts(x, x.sum(axis=0)), hsic_parts(y, y.sum(axis=0))
    return hsic(float(np.square(x.T @ y).sum()), k, own)


def hsic_parts(x: Rows, total: Float[np.ndarray, " d"]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The diagonal of the kernel x x^T, and its row sums without the diagonal."""
    diagonal = np.asarray((x * x).sum(axis=1), dtype=np.float64)
    return diagonal, x @ total - diagonal


def hsic(
    overlap: float,
    one: tuple[NDArray[np.float64], NDArray[np.float64]],
    other: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> float:
    """Unbiased HSIC of linear kernels without their diagonals, times n (n - 3).

    Args:
        overlap: Squared Frobenius norm of x^T y.
        one: `hsic_parts` of x.
        other: `hsic_parts` of y.
    """
    (k, sums), (own, own_sums) = one, other
    n = len(k)
    if n < 4:  # the estimator divides by n - 3
        return float("nan")
    trace = overlap - float(k @ own)
    middle = float(sums.sum()) * float(own_sums.sum()) / ((n - 1) * (n - 2))
    return trace + middle - 2 / (n - 2) * float(sums @ own_sums)


def _ranked_distances(x: Rows) -> Float[np.ndarray, "n n"]:
    """Ranks of the distances above the diagonal, centred, mirrored below it; 0 on it."""
    centred = x - x.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.where(norms > 0, norms, 1)
    upper = np.triu_indices(len(x), 1)
    ranks = rankdata(np.round(1 - (unit @ unit.T)[upper], 12))
    table = np.zeros((len(x), len(x)), dtype=np.float32)
    table[upper] = ranks - ranks.mean()
    return table + table.T
