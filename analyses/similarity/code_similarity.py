"""How alike are the codes of two dictionaries on the same tokens, whatever latent is called which?

Linear CKA, by sparse sums alone: HSIC needs |F_A^T F_B|^2, which joint sums in blocks give, and row sums of the two
kernels, which need no joint sums. The interval leaves out one group of sequences at a time: |P - P_g|^2, with P_g the
sums over the group. The null shuffles tokens, of a sample of them that lie far apart, since neighbouring tokens are not
exchangeable.

Cross-reconstruction: how much of each latent's activation do all activations of another dictionary tell? Ridge
regression, in closed form, from the codes G of B to the codes F of A on the first sequences of a sample:

    W = (cov(G, G) + lambda I)^-1 cov(G, F)          lambda: a share of the mean variance of a latent of B

and on the sequences left out

    R2_i = 1 - sum_t (f_ti - f_hat_ti)^2 / sum_t (f_ti - mean f_i)^2

which is at most 1, and below 0 where the mean would have told more. No pairing of latents and no basis is involved.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from analyses.similarity.coactivation import CELLS, spread, varying
from analyses.similarity.code_sample import Matrix, firings
from analyses.similarity.representation import GROUPS, Tested, hsic, hsic_parts
from dictlab import seeds
from dictlab.statistics import STANDARD_ERRORS, Array, BySequence, Formula, jackknife_interval, permutation_p

SHUFFLED_TOKENS = 1024
LARGEST = 6144  # latents of B that predict; of more, those that fire most often
TARGETS = 256  # latents of A that are predicted at once
SHUFFLED = 32  # latents of A whose prediction is shuffled
HELD_OUT = 4  # one sequence in four


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


class CrossFit(NamedTuple):
    """How well B's codes predict A's.

    Attributes:
        latents: Of A: those that are active often enough in what is fitted and in what is left out.
        r2: Of each, on the sequences left out.
        low: Lower ends of the 95 % bootstrap intervals over those sequences.
        high: Upper ends.
        median: Over latents, with its interval: 1.96 bootstrap standard errors.
        total: One minus the ratio of sums over all of them, with its interval.
        shuffled: Median and total of `SHUFFLED` latents where tokens of B are dealt out anew; means over shuffles.
        p: Share of those shuffles at least as large as the real ones.
        sequences: Left out.
        predictors: Latents of B that predict.
    """

    latents: Int[np.ndarray, " some"]
    r2: Float[np.ndarray, " some"]
    low: Float[np.ndarray, " some"]
    high: Float[np.ndarray, " some"]
    median: tuple[float, float, float]
    total: tuple[float, float, float]
    shuffled: tuple[float, float]
    p: tuple[float, float]
    sequences: int
    predictors: int


class _Fit(NamedTuple):
    """What is needed to predict any latent: sums over the tokens that are fitted, and a factor of the normal matrix."""

    fitted: Matrix
    left: Matrix
    mean: Tensor
    factor: Tensor


def cross_fit(
    a: Matrix,
    b: Matrix,
    sequence: Int[np.ndarray, " tokens"],
    *,
    ridge: float,
    fewest: int,
    permutations: int,
    seed: int,
) -> CrossFit | None:
    """Predict the codes of a from those of b; None where no latent of a is active often enough.

    Args:
        a: Codes to predict, tokens x latents.
        b: Codes to predict from.
        sequence: Which sequence each token is of; the last quarter is left out of the fit.
        ridge: As a share of the mean variance of the latents of b.
        fewest: Tokens at which a latent must be active to take part, in each part of the sequences in proportion.
        permutations: Shuffles of tokens; 0 for no null.
        seed: Of the shuffles and intervals.
    """
    fit_on = sequence < (int(sequence[-1]) + 1) * (HELD_OUT - 1) // HELD_OUT
    latents = np.flatnonzero(_often(a[fit_on], a.shape[0], fewest) & _often(a[~fit_on], a.shape[0], fewest))
    predictors = np.sort(np.argsort(-firings(b[fit_on]), kind="stable")[:LARGEST])
    predictors = predictors[firings(b[fit_on])[predictors] > 0]
    varies = spread(b[fit_on][:, predictors]) > 0
    predictors = predictors[varies]
    if not len(latents) or not len(predictors) or int(sequence[~fit_on][-1]) == int(sequence[~fit_on][0]):
        return None
    fit = _prepared(b[:, predictors].astype(np.float64), fit_on, ridge)
    if fit is None:
        return None
    left = sequence[~fit_on] - sequence[~fit_on][0]
    targets = a[:, latents].tocsc().astype(np.float64)
    fitted, held = targets[np.flatnonzero(fit_on)], targets[np.flatnonzero(~fit_on)]
    by = BySequence(_errors(fit, fitted, held, left), seed)
    low, high = by.interval(_r2)
    shuffled, p = _shuffled_r2(fit, fitted, held, left, permutations, seed)
    r2 = by.value(_r2)
    return CrossFit(
        latents, r2, low, high, _with_interval(by, _median), _with_interval(by, _total), shuffled, p,
        by.n_sequences, len(predictors)
    )  # fmt: skip


def _often(part: Matrix, tokens: int, fewest: int) -> NDArray[np.bool_]:
    often: NDArray[np.bool_] = firings(part) >= max(2, fewest * part.shape[0] / tokens)
    return often


def _prepared(b: Matrix, fit_on: NDArray[np.bool_], ridge: float) -> _Fit | None:
    """None where what the predictors vary by is no more than rounding, so that there is no normal matrix to solve."""
    fitted, left = b[np.flatnonzero(fit_on)], b[np.flatnonzero(~fit_on)]
    mean = torch.from_numpy(np.asarray(fitted.mean(axis=0), dtype=np.float64))
    gram = torch.from_numpy((fitted.T @ fitted).toarray()) / fitted.shape[0] - torch.outer(mean, mean)
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(gram)
    return None if int(failed) else _Fit(fitted, left, mean, factor)


def _predicted(fit: _Fit, fitted: Matrix, held: Matrix, order: Array | None = None) -> tuple[Array, Array]:
    """What is left out, and its prediction; `order` deals out the tokens of the predictors that are fitted anew."""
    own = torch.from_numpy(np.asarray(fitted.mean(axis=0), dtype=np.float64))
    predictors = fit.fitted if order is None else fit.fitted[order]
    moment = torch.from_numpy((predictors.T @ fitted).toarray()) / fitted.shape[0] - torch.outer(fit.mean, own)
    weights = torch.cholesky_solve(moment, fit.factor)
    return held.toarray(), fit.left @ weights.numpy() + (own - fit.mean @ weights).numpy()


def _errors(fit: _Fit, fitted: Matrix, held: Matrix, left: Int[np.ndarray, " tokens"]) -> dict[str, Array]:
    """By sequence and latent: squared errors, and the sums that a variance is made of."""
    parts: list[dict[str, Array]] = []
    starts = np.flatnonzero(np.diff(left, prepend=-1))
    for some in _blocks(fitted.shape[1]):
        truth, guess = _predicted(fit, fitted[:, some], held[:, some])
        sums = {"error": (truth - guess) ** 2, "f": truth, "ff": truth**2}
        parts.append({name: np.add.reduceat(values, starts, axis=0) for name, values in sums.items()})
    tokens = np.bincount(left).astype(np.float64)
    found = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
    return found | {"tokens": tokens[:, None]}


def _blocks(n: int) -> Iterator[slice]:
    for start in range(0, n, TARGETS):
        yield slice(start, start + TARGETS)


def _variance(s: Mapping[str, Array]) -> Array:
    return np.nan_to_num(varying(s["ff"] - s["f"] ** 2 / s["tokens"], s["ff"]))


def _r2(s: Mapping[str, Array]) -> Array:
    """R2 of each latent; NaN in a resample in which it is silent."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(_variance(s) > 0, 1 - s["error"] / _variance(s), np.nan)


def _median(s: Mapping[str, Array]) -> Array:
    return np.asarray(_median_of(_r2(s)))


def _median_of(r2: Array) -> Any:
    """Over the last dimension; NaN where no latent varies."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All-NaN slice")
        return np.nanmedian(r2, axis=-1)


def _total(s: Mapping[str, Array]) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(1 - s["error"].sum(axis=-1) / _variance(s).sum(axis=-1))


def _with_interval(by: BySequence, of: Formula) -> tuple[float, float, float]:
    """R2 is smaller in resamples of few firings, so the interval stands about the value itself."""
    value, error = float(by.value(of)), float(by.draws(of).std())
    return value, value - STANDARD_ERRORS * error, value + STANDARD_ERRORS * error


def _shuffled_r2(
    fit: _Fit, fitted: Matrix, held: Matrix, left: Int[np.ndarray, " tokens"], permutations: int, seed: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Median and total R2 of a few latents where tokens of B were dealt out anew, before the fit and after it."""
    unknown = float("nan")
    if not permutations:
        return (unknown, unknown), (unknown, unknown)
    generator = seeds.numpy_generator(seed, "shuffled regression of codes")
    some = np.sort(generator.permutation(fitted.shape[1])[:SHUFFLED])
    fitted, held = fitted[:, some], held[:, some]

    def r2(order: Array | None, after: Array) -> tuple[float, float]:
        truth, guess = _predicted(fit, fitted, held, order)
        error = ((truth - guess[after]) ** 2).sum(axis=0)
        variance = np.nan_to_num(varying(((truth - truth.mean(axis=0)) ** 2).sum(axis=0), (truth**2).sum(axis=0)))
        with np.errstate(divide="ignore", invalid="ignore"):
            each = np.where(variance > 0, 1 - error / variance, np.nan)
            return _median_of(each), float(1 - error.sum() / variance.sum())

    tokens, after = fitted.shape[0], np.arange(held.shape[0])
    own = r2(None, after)
    drawn = np.array([r2(generator.permutation(tokens), generator.permutation(after)) for _ in range(permutations)])
    p = permutation_p(np.array(own), drawn)
    means = drawn.mean(axis=0)
    return (float(means[0]), float(means[1])), (float(p[0]), float(p[1]))
