"""How does the loss fall with width, active latents and compute: captions, summary and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from analyses.quality.scaling import plots, tables
from analyses.quality.scaling.fits import FittedLaw, ScalingFits
from analyses.quality.scaling.runs import LOSSES, LoggedDead, ScalingRun, losses_of
from dictlab.numerics.statistics import interval_words
from dictlab.reports.report import Plot, Report, Table

NORMALISER = "The normaliser of the normalised MSE is the error of predicting the mean activation of the sample."
PLOTS = dict(zip(LOSSES, ("laws", "laws_ce"), strict=True))  # names of plots
EXPONENTS = {"L(N)": "alpha", "L(C)": "alpha", "L(N, K)": "g"}  # that the summary gives, of laws without a rest
IN_SUMMARY = 4  # laws
FEW = 12  # runs, below which intervals over them are rough


def scaling_report(
    runs: Sequence[ScalingRun],
    fits: ScalingFits,
    log: Sequence[LoggedDead],
    settings: dict[str, Any],
    warnings: Sequence[str],
) -> Report:
    """The report of laws fitted to runs: tables with their captions, plots, summary and warnings."""
    rough = f"{len(runs)} runs: intervals over so few runs are rough, and an irreducible term can seldom be told."
    return Report(
        title="How does the loss fall with width, active latents and compute?",
        summary=_summary(fits),
        tables=_tables(runs, fits),
        plots=_plots(runs, fits, log),
        settings=settings | {"losses": losses_of(runs)},
        inputs=tuple(run.dictionary for run in runs),
        warnings=(*warnings, rough) if len(runs) < FEW else tuple(warnings),
    )


def _tables(runs: Sequence[ScalingRun], fits: ScalingFits) -> dict[str, Table]:
    described = {
        "fits": Table(
            tables.fits_table(fits.fitted),
            f"{NORMALISER} {interval_words('runs')}. AIC: corrected for few runs, of one family and loss the smaller "
            "the better, and unknown where they are too few for the correction; ΔAIC: above the best law of the same "
            "variables; error: root mean square of ln L.",
        ),
        "predictions": Table(
            tables.predictions_table(fits.predictions),
            "The runs with the largest width (or compute), kept out of the fit; ratio: predicted / measured.",
        ),
        "runs": Table(
            tables.runs_table(runs),
            f"{NORMALISER} FLOPs: of the dictionary's own training, computed from width, d_in, tokens and active "
            "latents (`dictlab.numerics.flops`). dead: share of latents that were never active.",
        ),
    }
    if fits.not_fitted:
        table = tables.not_fitted_table(fits.not_fitted)
        described["not_fitted"] = Table(table, "Laws that these runs cannot tell, and why.")
    return described


def _plots(runs: Sequence[ScalingRun], fits: ScalingFits, log: Sequence[LoggedDead]) -> dict[str, Plot]:
    lines = "Points: runs. Lines: fits to runs of one k, beyond them as well; dashed with an irreducible term."
    shown = {name: loss for loss, name in PLOTS.items() if plots.drawable(runs, loss)}
    dead = "Share of latents that were never active; over training where there are logs."
    return {
        **{name: Plot(plots.laws(runs, fits.fitted, loss), lines) for name, loss in shown.items()},
        "dead": Plot(plots.dead(runs, log), dead),
    }


def _summary(fits: ScalingFits) -> str:
    """Exponents of the normalised MSE, which law the criterion prefers, and how it predicts."""
    shown = [one for one in fits.fitted if one.loss == LOSSES[0] and one.law.name in EXPONENTS][:IN_SUMMARY]
    if not shown:
        return "Only some laws could be fitted; see the table of fits."
    return "Normalised MSE. " + " ".join(_sentence(one, fits) for one in shown)


def _sentence(one: FittedLaw, fits: ScalingFits) -> str:
    """What one law without an irreducible term says."""
    exponent = EXPONENTS[one.law.name]
    sentence = f"{one.runs_of}: {one.law.name} has {exponent} = {one.parameters[exponent].words('.3f')}"
    for other in fits.fitted:
        alike = (other.runs_of, other.loss, other.law.variables) == (one.runs_of, one.loss, one.law.variables)
        if alike and other.law.irreducible and np.isfinite(gain := one.fit.aic - other.fit.aic):
            better = "better with" if gain > 0 else "better without"
            sentence += f", by AIC {better} an irreducible term (by {abs(gain):.1f})"
    ratios = [
        p.ratio for p in fits.predictions if (p.runs_of, p.loss, p.law.name) == (one.runs_of, one.loss, one.law.name)
    ]
    if ratios:
        sentence += f"; it predicts the largest runs at {np.mean(ratios):.3f} times their loss"
    return sentence + "."
