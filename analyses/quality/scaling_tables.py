"""Fits of every law to every family of runs, and how well they predict the largest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analyses.quality import scaling_laws
from analyses.quality.scaling_laws import LAWS, Law
from analyses.quality.scaling_runs import LOSSES, losses_of
from dictlab.statistics import intervals

COLUMN = {"width": "width", "k": "k", "flops": "FLOPs"}


def fitted(runs: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Fits, predictions of the largest runs, and laws that could not be fitted with the reason."""
    fits, predictions, why = [], [], []
    for family, own in runs.groupby("family", sort=False):
        if own["k"].isna().all():
            why.append((family, "all", "all", "these runs have no k: they differ in sparsity as well as in width"))
            continue
        for law in LAWS:
            for name, some in _parts(law, own):
                label = f"{family}{name}"
                for loss in losses_of(runs):
                    kept = some[(some[loss] > 0) & some[[COLUMN[v] for v in law.variables]].notna().all(axis=1)]
                    x = {v: kept[COLUMN[v]].to_numpy(dtype=float) for v in law.variables}
                    if not len(kept) or not scaling_laws.enough(law, x):
                        why.append((label, loss, law.name, _why(law, x, len(kept))))
                        continue
                    fits.append(_row(label, loss, law, x, kept[loss].to_numpy(dtype=float), seed))
                    predictions += _held_out_rows(label, loss, law, x, kept)
    frame = pd.DataFrame(fits)
    if not frame.empty:
        group = frame["law"].str.partition(" +")[0]
        frame["ΔAIC"] = frame["AIC"] - frame.groupby(["runs of", "loss", group])["AIC"].transform("min")
    columns = ["runs of", "loss", "law", "dictionary", "measured", "predicted", "ratio"]
    reasons = pd.DataFrame(why, columns=["runs of", "loss", "law", "why"])
    return frame, pd.DataFrame(predictions, columns=columns), reasons


def _parts(law: Law, own: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """What a law is fitted to: one k at a time where it knows no k; of compute, the runs that no other beats."""
    if "k" in law.variables:
        return [("", own)]
    parts = [(f", k = {k}", some) for k, some in own.groupby("k")]
    if "flops" not in law.variables:
        return parts
    known = [(name, some[some["FLOPs"].notna()]) for name, some in parts]
    return [(name, some[scaling_laws.pareto_front(some["FLOPs"], some["normalised MSE"])]) for name, some in known]


def _why(law: Law, x: scaling_laws.Columns, runs: int) -> str:
    found = scaling_laws.settings(law, x) if runs else 0
    least = 2 + bool(law.irreducible)
    values = [len(np.unique(x[v])) for v in law.variables] if runs else [0] * len(law.variables)
    seen = " and ".join(f"{n} of {COLUMN[v]}" for n, v in zip(values, law.variables, strict=True))
    return (
        f"{found} different settings ({seen}); {law.needed} are needed, {least} or more of {COLUMN[law.variables[0]]}"
    )


def _row(label: str, loss: str, law: Law, x: scaling_laws.Columns, values: np.ndarray, seed: int) -> dict[str, Any]:
    found = scaling_laws.fit(law, x, values)
    draws = scaling_laws.bootstrap(found, x, values, seed)
    low, high = intervals(draws)
    row: dict[str, Any] = {"runs of": label, "loss": loss, "law": law.name, "runs": len(values), "AIC": found.aic}
    row["error"] = float(np.sqrt(np.mean(found.residuals**2)))
    for i, name in enumerate(law.parameters):
        row[name], row[f"{name} low"], row[f"{name} high"] = found.values[i], low[i], high[i]
    if law.irreducible == 1:
        row["irreducible loss"] = float(np.exp(found.values[-1]))
        row["irreducible loss low"], row["irreducible loss high"] = float(np.exp(low[-1])), float(np.exp(high[-1]))
    return row


def _held_out_rows(
    label: str, loss: str, law: Law, x: scaling_laws.Columns, kept: pd.DataFrame
) -> list[tuple[Any, ...]]:
    found = []
    for run, predicted in scaling_laws.held_out_predictions(law, x, kept[loss].to_numpy(dtype=float)):
        row = kept.iloc[run]
        found.append((label, loss, law.name, row["dictionary"], row[loss], predicted, predicted / row[loss]))
    return found


def summary(fits: pd.DataFrame, predictions: pd.DataFrame) -> str:
    """Exponents of the normalised MSE, which law the criterion prefers, and how it predicts."""
    said = []
    own = fits[(fits["loss"] == LOSSES[0]) & fits["law"].isin(["L(N)", "L(C)", "L(N, K)"])]
    for row in own.head(4).to_dict("records"):
        rest = fits[
            (fits["runs of"] == row["runs of"]) & (fits["loss"] == row["loss"])
            & (fits["law"] == f"{row['law']} + irreducible")
        ]  # fmt: skip
        name = "g" if row["law"] == "L(N, K)" else "alpha"
        ends = f"[{row[f'{name} low']:.3f}, {row[f'{name} high']:.3f}]"
        text = f"{row['runs of']}: {row['law']} has {name} = {row[name]:.3f} {ends}"
        if len(rest) and np.isfinite(gain := row["AIC"] - rest["AIC"].iloc[0]):
            better = "better with" if gain > 0 else "better without"
            text += f", by AIC {better} an irreducible term (by {abs(gain):.1f})"
        same = (predictions[["runs of", "loss", "law"]] == [row["runs of"], row["loss"], row["law"]]).all(axis=1)
        predicted = predictions[same]
        if len(predicted):
            text += f"; it predicts the largest runs at {predicted['ratio'].mean():.3f} times their loss"
        said.append(text + ".")
    return "Normalised MSE. " + " ".join(said) if said else "Only some laws could be fitted; see the table of fits."
