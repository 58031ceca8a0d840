"""Cross-reconstruction: how much of each latent's activation do all activations of another dictionary tell?

Ridge regression, in closed form, from the codes G of B to the codes F of A on the first sequences of a sample:

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

from analyses.similarity.matching.coactivation import spread, varying
from analyses.similarity.matching.code_sample import Matrix, firings
from dictlab.numerics import seeds
from dictlab.numerics.significance import permutation_p
from dictlab.numerics.statistics import STANDARD_ERRORS, Array, BySequence, Formula

LARGEST = 6144  # latents of B that predict; of more, those that fire most often
TARGETS = 256  # latents of A that are predicted at once
SHUFFLED = 32  # latents of A whose prediction is shuffled
HELD_OUT = 4  # one sequence in four


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
