"""How does a loss fall with width, active latents or compute? Laws, fitted to runs.

    L(N)    = exp(a - alpha ln N)  [+ exp(z)]
    L(C)    = exp(a - alpha ln C)  [+ exp(z)]
    L(N, K) = exp(a + b_k ln K + b_n ln N + g ln K ln N)  [+ exp(z + h ln K)]          Gao et al. 2024, joint law

each with and without the irreducible term in brackets, by least squares of ln L (SciPy, from several starts). They are
compared by AIC, corrected for few runs, and by how they predict runs that were held out of the fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.optimize import least_squares

from dictlab.numerics.statistics import FIT_RESAMPLES, resampled_runs

Array = NDArray[np.float64]
Columns = Mapping[str, Array]
DRAWS_PER_FIT = 20  # resamples tried for each that is fitted
STEPS = 500  # of a fit: where no irreducible loss is seen, its logarithm falls without end
WARM_START_EVALUATIONS = 12  # of a fit that starts near its end
STARTS = (0.3, 0.7, 0.95)  # of the irreducible loss, as a share of the least loss seen


@dataclass(frozen=True)
class Law:
    """A formula for ln L.

    Attributes:
        name: What it is called.
        variables: Columns it reads.
        parameters: What is fitted, in order.
        of: ln L of parameters and logarithms of the columns.
        linear: The same without an irreducible term, as the columns of a linear model.
        irreducible: Which parameters make that term; none of them in a law without.
    """

    name: str
    variables: tuple[str, ...]
    parameters: tuple[str, ...]
    of: Callable[[Array, Columns], Array]
    linear: Callable[[Columns], Array]
    irreducible: int = 0

    @property
    def needed(self) -> int:
        """Runs with different settings that a fit needs: one more than parameters."""
        return len(self.parameters) + 1


def _power(variable: str) -> Callable[[Columns], Array]:
    return lambda x: np.stack([np.ones_like(x[variable]), -x[variable]], axis=1)


def _joint(x: Columns) -> Array:
    return np.stack([np.ones_like(x["k"]), x["k"], x["width"], x["k"] * x["width"]], axis=1)


def _simple(
    name: str, variables: tuple[str, ...], parameters: tuple[str, ...], linear: Callable[[Columns], Array]
) -> Law:
    return Law(name, variables, parameters, lambda p, x: linear(x) @ p, linear)


def _with_irreducible(
    name: str,
    variables: tuple[str, ...],
    parameters: tuple[str, ...],
    linear: Callable[[Columns], Array],
    rest: Callable[[Columns], Array],
    more: int,
) -> Law:
    """The same with a term that no width and no compute takes away."""

    def of(p: Array, x: Columns) -> Array:
        found: Array = np.logaddexp(linear(x) @ p[:-more], rest(x) @ p[-more:])
        return found

    return Law(name, variables, parameters, of, linear, more)


def _constant(x: Columns) -> Array:
    return np.ones((len(next(iter(x.values()))), 1))


def _of_k(x: Columns) -> Array:
    return np.stack([np.ones_like(x["k"]), x["k"]], axis=1)


LAWS = (
    _simple("L(N)", ("width",), ("a", "alpha"), _power("width")),
    _with_irreducible("L(N) + irreducible", ("width",), ("a", "alpha", "z"), _power("width"), _constant, 1),
    _simple("L(N, K)", ("width", "k"), ("a", "b_k", "b_n", "g"), _joint),
    _with_irreducible("L(N, K) + irreducible", ("width", "k"), ("a", "b_k", "b_n", "g", "z", "h"), _joint, _of_k, 2),
    _simple("L(C)", ("flops",), ("a", "alpha"), _power("flops")),
    _with_irreducible("L(C) + irreducible", ("flops",), ("a", "alpha", "z"), _power("flops"), _constant, 1),
)


@dataclass(frozen=True, eq=False)
class LawFit:
    """A law fitted to some runs.

    Attributes:
        law: Which.
        values: Of its parameters.
        residuals: ln L measured less fitted, of each run.
    """

    law: Law
    values: Array
    residuals: Array

    @property
    def aic(self) -> float:
        """Akaike's criterion with the correction for few runs; the spread counts as a parameter. NaN with too few."""
        n, p = len(self.residuals), len(self.values) + 1
        if n - p - 1 <= 0:
            return float("nan")
        spread = max(float(np.mean(self.residuals**2)), 1e-300)
        return n * float(np.log(spread)) + 2 * p + 2 * p * (p + 1) / (n - p - 1)

    def predict(self, x: Columns) -> Array:
        """Losses of other runs."""
        return np.exp(self.law.of(self.values, logarithms(self.law, x)))


def logarithms(law: Law, x: Columns) -> Columns:
    """What a law reads."""
    return {name: np.log(np.asarray(x[name], dtype=float)) for name in law.variables}


def settings(law: Law, x: Columns) -> int:
    """Different settings among some runs; runs that differ in their seed alone are one."""
    return len(np.unique(np.stack([np.asarray(x[name], dtype=float) for name in law.variables], axis=1), axis=0))


def enough(law: Law, x: Columns) -> bool:
    """Whether the runs can tell the parameters of a law: settings enough, and two or more values of each variable."""
    varied = all(len(np.unique(x[name])) >= 2 for name in law.variables)
    return (
        varied and settings(law, x) >= law.needed and len(np.unique(x[law.variables[0]])) >= 2 + bool(law.irreducible)
    )


def fit(law: Law, x: Columns, loss: Float[Array, " runs"], *, start: Array | None = None) -> LawFit:
    """The parameters with the least squares of ln L.

    Args:
        law: Which.
        x: What it reads, by name, of each run; positive.
        loss: Of each run, positive.
        start: Where to begin; by default at several irreducible losses.
    """
    logs, wanted = logarithms(law, x), np.log(loss)
    if not law.irreducible:
        values: Array = np.linalg.lstsq(law.linear(logs), wanted, rcond=None)[0].astype(np.float64)
        return LawFit(law, values, wanted - law.of(values, logs))
    starts = [start] if start is not None else [_start(law, logs, loss, share) for share in STARTS]
    evaluations = STEPS if start is None else WARM_START_EVALUATIONS
    found = [
        least_squares(lambda p: law.of(p, logs) - wanted, one, x_scale="jac", max_nfev=evaluations) for one in starts
    ]
    best = min(found, key=lambda one: float(one.cost))
    return LawFit(law, best.x, wanted - law.of(best.x, logs))


def _start(law: Law, logs: Columns, loss: Array, share: float) -> Array:
    """The fit of what a guess of the irreducible loss leaves."""
    rest = share * loss.min()
    linear = np.linalg.lstsq(law.linear(logs), np.log(loss - rest), rcond=None)[0]
    return np.concatenate([linear, [np.log(rest)], np.zeros(law.irreducible - 1)])


def bootstrap(fitted: LawFit, x: Columns, loss: Array, seed: int) -> Float[Array, "resamples parameters"]:
    """Parameters in `FIT_RESAMPLES` resamples of the runs; resamples that cannot tell them are drawn again, up to
    `DRAWS_PER_FIT` for each. NaN where too few could be fitted, and everywhere if only the whole of the runs could:
    every resample would be that one, and look like certainty.
    """
    parameters = np.full((FIT_RESAMPLES, len(fitted.values)), np.nan)
    if settings(fitted.law, x) <= fitted.law.needed:
        return parameters
    resamples = islice(resampled_runs(len(loss), seed, "runs of a scaling law"), DRAWS_PER_FIT * FIT_RESAMPLES)
    chosen_columns = ((rows, {name: np.asarray(x[name])[rows] for name in fitted.law.variables}) for rows in resamples)
    fittable = ((rows, columns) for rows, columns in chosen_columns if enough(fitted.law, columns))
    for number, (rows, columns) in enumerate(islice(fittable, FIT_RESAMPLES)):
        parameters[number] = fit(fitted.law, columns, loss[rows], start=fitted.values).values
    return parameters


def held_out_predictions(law: Law, x: Columns, loss: Array) -> list[tuple[int, float]]:
    """Each run at the largest value of the law's first variable, as the runs below it predict it: (run, prediction)."""
    first = np.asarray(x[law.variables[0]], dtype=float)
    beyond = first == first.max()
    below = {name: np.asarray(x[name])[~beyond] for name in law.variables}
    if not enough(law, below):
        return []
    found = fit(law, below, loss[~beyond])
    predicted = found.predict({name: np.asarray(x[name])[beyond] for name in law.variables})
    return list(zip(np.flatnonzero(beyond).tolist(), predicted.tolist(), strict=True))


def pareto_front(cost: Sequence[float], loss: Sequence[float]) -> NDArray[np.bool_]:
    """Runs that no other beats with as little compute and as little loss."""
    c, value = np.asarray(cost, dtype=float), np.asarray(loss, dtype=float)
    beaten = (c[:, None] >= c) & (value[:, None] >= value) & ((c[:, None] > c) | (value[:, None] > value))
    found: NDArray[np.bool_] = np.logical_not(beaten.any(axis=1))
    return found
