"""Every law fitted to every family of runs: parameters with intervals, and how well the largest runs are predicted.

A family is what differs in width, k and tokens alone: one objective and activation function. A law without k is fitted
to the runs of one k; a law of compute to those of them that no other beats with as little compute and loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from analyses.quality.scaling import laws as scaling_laws
from analyses.quality.scaling.laws import LAWS, Columns, Law, LawFit
from analyses.quality.scaling.runs import LOSSES, VARIABLES, ScalingRun, losses_of
from dictlab.numerics.statistics import NAN, Estimate, intervals


class FittedLaw(NamedTuple):
    """One law, fitted to one loss of some runs.

    Attributes:
        runs_of: What the runs have in common: family, and k where the law has none.
        loss: Which loss, of LOSSES.
        runs: The runs fitted to.
        fit: The law with its parameters.
        low: Lower end of each parameter's 95 % interval over runs; NaN where there is none.
        high: Upper end.
        aic_difference: AIC above that of the better of the law with and without an irreducible term; NaN where unknown.
    """

    runs_of: str
    loss: str
    runs: tuple[ScalingRun, ...]
    fit: LawFit
    low: Float[NDArray[np.float64], " parameters"]
    high: Float[NDArray[np.float64], " parameters"]
    aic_difference: float = NAN

    @property
    def law(self) -> Law:
        """The law."""
        return self.fit.law

    @property
    def error(self) -> float:
        """Root mean square of ln L measured less fitted."""
        return float(np.sqrt(np.mean(self.fit.residuals**2)))

    @property
    def parameters(self) -> dict[str, Estimate]:
        """Each parameter with its interval, by name."""
        parts = zip(self.fit.values.tolist(), self.low.tolist(), self.high.tolist(), strict=True)
        return {name: Estimate(*part) for name, part in zip(self.law.parameters, parts, strict=True)}

    @property
    def irreducible_loss(self) -> Estimate | None:
        """exp(z) with its interval; None of a law without such a term, or with one that depends on k."""
        if self.law.irreducible != 1:
            return None
        z = self.parameters[self.law.parameters[-1]]
        return Estimate(*(float(np.exp(value)) for value in z))


class Prediction(NamedTuple):
    """The loss of a run that was held out of the fit, as the smaller runs predict it."""

    runs_of: str
    loss: str
    law: Law
    run: ScalingRun
    measured: float
    predicted: float

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.measured


class NotFitted(NamedTuple):
    """A law that some runs cannot tell, and the reason; `loss` and `law` are "all" where it is the same for all."""

    runs_of: str
    loss: str
    law: str
    why: str


class ScalingFits(NamedTuple):
    """Everything that was fitted, predicted, and could not be fitted."""

    fitted: list[FittedLaw]
    predictions: list[Prediction]
    not_fitted: list[NotFitted]


def fit_laws(runs: Sequence[ScalingRun], seed: int) -> ScalingFits:
    """Fits every law to every family, and predicts its largest runs."""
    result = ScalingFits([], [], [])
    for family in dict.fromkeys(run.family for run in runs):
        members = [run for run in runs if run.family == family]
        if all(run.k is None for run in members):
            reason = "these runs have no k: they differ in sparsity as well as in width"
            result.not_fitted.append(NotFitted(family, "all", "all", reason))
            continue
        for law in LAWS:
            for label, part in _parts(family, law, members):
                for loss in losses_of(runs):
                    _fit_one(result, label, loss, law, part, seed)
    return result._replace(fitted=_with_aic_differences(result.fitted))


def _parts(family: str, law: Law, members: Sequence[ScalingRun]) -> list[tuple[str, list[ScalingRun]]]:
    """What a law is fitted to: one k at a time where it knows no k; of compute, the runs that no other beats."""
    if "k" in law.variables:
        return [(family, list(members))]
    ks = sorted({run.k for run in members if run.k is not None})
    parts = [(f"{family}, k = {k}", [run for run in members if run.k == k]) for k in ks]
    return [(label, _front(part)) for label, part in parts] if "flops" in law.variables else parts


def _front(runs: Sequence[ScalingRun]) -> list[ScalingRun]:
    """Those of known compute that no other beats with as little compute and as little normalised MSE."""
    known = [run for run in runs if run.flops is not None]
    mask = scaling_laws.pareto_front(
        [run.value("flops") for run in known], [run.losses[LOSSES[0]].value for run in known]
    )
    return [run for run, on_front in zip(known, mask, strict=True) if on_front]


def _fit_one(result: ScalingFits, label: str, loss: str, law: Law, part: Sequence[ScalingRun], seed: int) -> None:
    """Adds the fit of one law to one loss, and its predictions; or why there is none."""
    runs = [run for run in part if run.losses[loss].value > 0 and all(run.known(name) for name in law.variables)]
    x = {name: np.array([run.value(name) for run in runs], dtype=np.float64) for name in law.variables}
    if not runs or not scaling_laws.enough(law, x):
        result.not_fitted.append(NotFitted(label, loss, law.name, _why_not(law, x, len(runs))))
        return
    losses = np.array([run.losses[loss].value for run in runs], dtype=np.float64)
    fit = scaling_laws.fit(law, x, losses)
    low, high = intervals(scaling_laws.bootstrap(fit, x, losses, seed))
    result.fitted.append(FittedLaw(label, loss, tuple(runs), fit, low, high))
    result.predictions.extend(
        Prediction(label, loss, law, runs[i], float(losses[i]), predicted)
        for i, predicted in scaling_laws.held_out_predictions(law, x, losses)
    )


def _why_not(law: Law, x: Columns, n_runs: int) -> str:
    n_settings = scaling_laws.settings(law, x) if n_runs else 0
    least = 2 + bool(law.irreducible)
    values = [len(np.unique(x[name])) for name in law.variables] if n_runs else [0] * len(law.variables)
    counts = " and ".join(f"{n} of {VARIABLES[name]}" for n, name in zip(values, law.variables, strict=True))
    return (
        f"{n_settings} different settings ({counts}); {law.needed} are needed, {least} or more of "
        f"{VARIABLES[law.variables[0]]}"
    )


def _with_aic_differences(fitted: Sequence[FittedLaw]) -> list[FittedLaw]:
    """AIC compares laws of the same variables, fitted to the same loss of the same runs."""
    best: dict[tuple[str, str, tuple[str, ...]], float] = {}
    for one in fitted:
        group = (one.runs_of, one.loss, one.law.variables)
        best[group] = float(np.fmin(best.get(group, NAN), one.fit.aic))
    return [one._replace(aic_difference=one.fit.aic - best[one.runs_of, one.loss, one.law.variables]) for one in fitted]
