"""The tables of the scaling analysis: fits, predictions, runs, and laws that could not be fitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analyses.quality.scaling.fits import FittedLaw, NotFitted, Prediction
from analyses.quality.scaling.runs import ScalingRun, losses_of
from dictlab.numerics.statistics import estimate_columns


def fits_table(fitted: Sequence[FittedLaw]) -> pd.DataFrame:
    """One row a law, loss and set of runs: the parameters that the law has, with intervals."""
    rows, differences = [], []
    for one in fitted:
        row: dict[str, Any] = {"runs of": one.runs_of, "loss": one.loss, "law": one.law.name, "runs": len(one.runs)}
        row |= {"AIC": one.fit.aic, "error": one.error}
        for name, estimate in one.parameters.items():
            row |= estimate_columns(name, estimate)
        if one.irreducible_loss is not None:
            row |= estimate_columns("irreducible loss", one.irreducible_loss)
        rows.append(row)
        differences.append(one.aic_difference)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = {name: [row.get(name) for row in rows] for name in columns}
    return pd.DataFrame(table | {"ΔAIC": differences})


def predictions_table(predictions: Sequence[Prediction]) -> pd.DataFrame:
    """One row a law, loss and run that was kept out of the fit."""
    rows = [
        (one.runs_of, one.loss, one.law.name, one.run.name, one.measured, one.predicted, one.ratio)
        for one in predictions
    ]
    return pd.DataFrame(rows, columns=["runs of", "loss", "law", "dictionary", "measured", "predicted", "ratio"])


def runs_table(runs: Sequence[ScalingRun]) -> pd.DataFrame:
    """One row a run: what it is, what it cost, and its losses."""
    losses = losses_of(runs)
    columns: dict[str, Any] = {
        "dictionary": [run.name for run in runs],
        "family": [run.family for run in runs],
        "width": [run.width for run in runs],
        "k": pd.array([run.k for run in runs], dtype="Int64"),
        "L0": [run.l0 for run in runs],
        "tokens": pd.array([run.dictionary.metadata.tokens for run in runs], dtype="Int64"),
        "FLOPs": pd.Series([run.flops for run in runs], dtype=float),
    }
    columns |= {loss: [run.losses[loss].value for run in runs] for loss in losses}
    columns["dead"] = pd.Series([run.dead for run in runs], dtype=float)
    columns["seed"] = pd.array([run.dictionary.metadata.seed for run in runs], dtype="Int64")
    for loss in losses:
        columns[f"{loss} low"] = [run.losses[loss].low for run in runs]
        columns[f"{loss} high"] = [run.losses[loss].high for run in runs]
    return pd.DataFrame(columns)


def not_fitted_table(not_fitted: Sequence[NotFitted]) -> pd.DataFrame:
    """One row a law that some runs cannot tell, and why."""
    return pd.DataFrame(not_fitted, columns=["runs of", "loss", "law", "why"])
