"""What was measured of refinement and of other rules, and the tables made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dictlab.dictionary import Dictionary
from dictlab.statistics import BySequence, Formula

AS_TRAINED, REFINED, TOPK, THRESHOLD = "as trained", "refined", "largest k", "threshold"
Sums = Mapping[str, NDArray[np.float64]]
FORMULAS: dict[str, Formula] = {
    "L0": lambda s: s["l0"] / s["tokens"],
    "normalised MSE": lambda s: s["squared_error"] / s["variance"],
    "CE increase": lambda s: s["ce"] / s["predicted"],
}


def formulas(one: Measured) -> dict[str, Formula]:
    """Those that were measured: without a model no CE increase."""
    return {name: formula for name, formula in FORMULAS.items() if name != "CE increase" or "ce" in one.sums}


class Version(NamedTuple):
    """A way of choosing activations: the rule, and its k' or threshold."""

    rule: str
    setting: float = float("nan")


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of one dictionary.

    Attributes:
        dictionary: Which.
        versions: What was tried; the first is as trained, the second refined.
        sums: By sequence and version, `[sequences, versions]`, or `[sequences, 1]` where all share it.
        ratios: Refined over plain activation of every active latent at every token.
        seed: Of the resampling.
    """

    dictionary: Dictionary
    versions: tuple[Version, ...]
    sums: Sums
    ratios: NDArray[np.float32]
    seed: int

    @cached_property
    def by_sequence(self) -> BySequence:
        """The sums, to be resampled."""
        return BySequence(self.sums, self.seed)

    @property
    def name(self) -> str:
        """The dictionary's name."""
        return self.dictionary.name


def overview(found: Sequence[Measured]) -> pd.DataFrame:
    """One row a dictionary: what refinement changes."""
    rows = []
    for one in found:
        row: dict[str, Any] = {"dictionary": one.name, "L0": float(one.by_sequence.value(FORMULAS["L0"])[0])}
        row |= _estimate("size", one, lambda s: s["strength"][..., 1] / s["strength"][..., 0])
        row["grown"], row["silenced"] = float((one.ratios > 1).mean()), float((one.ratios == 0).mean())
        for name, formula in formulas(one).items():
            if name == "L0":
                continue
            row[name] = float(one.by_sequence.value(formula)[0])
            row[f"{name} refined"] = float(one.by_sequence.value(formula)[1])
            row |= _estimate(f"{name} change", one, _changed(formula))
        rows.append(row)
    return pd.DataFrame(rows)


def recovery(found: Sequence[Measured]) -> pd.DataFrame:
    """One row a dictionary and rule."""
    rows = []
    for one in found:
        values = {name: (one.by_sequence.value(f), *one.by_sequence.interval(f)) for name, f in formulas(one).items()}
        for i, version in enumerate(one.versions):
            if version.rule == REFINED:
                continue
            row: dict[str, Any] = {"dictionary": one.name, "rule": version.rule, "setting": version.setting}
            for name, (value, low, high) in values.items():
                row[name] = value[i]
                if name != "L0":
                    row[f"{name} low"], row[f"{name} high"] = low[i], high[i]
            row["trained"] = version.rule == AS_TRAINED
            rows.append(row)
    return pd.DataFrame(rows)


def summary(frame: pd.DataFrame, recovered: pd.DataFrame) -> str:
    """What refinement does to activations and error, and where the best L0 is."""
    said = []
    for row in frame.to_dict("records") if len(frame) <= 2 else _extremes(frame):
        relative = row["normalised MSE change"] / row["normalised MSE"]
        said.append(
            f"{row['dictionary']}: refined activations are {row['size']:.3f} [{row['size low']:.3f}, "
            f"{row['size high']:.3f}] times as large, the MSE changes by {relative:+.1%}{_suffered(row)}."
        )
    names = recovered["dictionary"].unique()
    if len(names) == 1 and (recovered["rule"] == TOPK).any():
        some = recovered[recovered["rule"] == TOPK]
        best = some.loc[some["normalised MSE"].idxmin()]
        trained = recovered[recovered["trained"]].iloc[0]
        said.append(
            f"By the largest k' its MSE is least at k' = {best['setting']:.0f} ({best['normalised MSE']:.3f}; as "
            f"trained {trained['normalised MSE']:.3f} at L0 {trained['L0']:.1f})."
        )
    return " ".join(said).replace("%", " %")


def _suffered(row: Mapping[Any, Any]) -> str:
    if "CE increase" not in row:
        return ""
    return f", the CE increase from {row['CE increase']:.3f} to {row['CE increase refined']:.3f} nats a token"


def _extremes(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    """The dictionaries that were shrunk least and most."""
    ordered = frame.sort_values("size")
    return [ordered.iloc[0].to_dict(), ordered.iloc[-1].to_dict()]


def _changed(formula: Formula) -> Formula:
    """Refined less plain."""

    def change(sums: Sums) -> NDArray[np.float64]:
        found: NDArray[np.float64] = formula(sums)[..., 1] - formula(sums)[..., 0]
        return found

    return change


def _estimate(name: str, one: Measured, formula: Formula) -> dict[str, float]:
    low, high = one.by_sequence.interval(formula)
    return {name: float(one.by_sequence.value(formula)), f"{name} low": float(low), f"{name} high": float(high)}
