"""Which of two dictionaries is explained better, and by how much?

Latents of two dictionaries have nothing to do with each other, so each mean over latents is resampled by itself:

    difference = mean_a - mean_b,    ratio = mean_a / mean_b,    of precision, recall and F1

Losses of the spliced model are paired: both dictionaries are measured on the same sequences, resampled together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.features.explanations_tables import MEASURES, Explained, rates
from dictlab import seeds
from dictlab.statistics import interval, mean_draws, ratio_draws

COLUMNS = ("dictionary", "against", "measure", "difference", "low", "high", "ratio", "ratio low", "ratio high", "unit")
RECOVERED, SIMULATED = "recovered", "CE increase, simulated"


class Drawn(NamedTuple):
    """A number, and the same in each bootstrap resample."""

    value: float
    draws: NDArray[np.float64]
    unit: str


def differences(found: Sequence[Explained]) -> pd.DataFrame:
    """One row a pair of dictionaries and measure: the later less the earlier, and over it."""
    measured = [(one.dictionary.name, _measured(one)) for one in found]
    rows = [
        (name, other, measure, *_compared(mine[measure], theirs[measure]), mine[measure].unit)
        for (other, theirs), (name, mine) in combinations(measured, 2)
        for measure in mine
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _measured(one: Explained) -> dict[str, Drawn]:
    each = np.array([rates(own.score) for own in one.latents]).reshape(-1, len(MEASURES))
    means = {
        name: _mean(column, seeds.generator(one.seed, f"{name} of {one.dictionary.name}").initial_seed())
        for name, column in zip(MEASURES, each.T, strict=True)
    }
    sums = one.sums
    gained, possible = sums["zeroed"] - sums["simulated"], sums["zeroed"] - sums["reconstruction"]
    means[RECOVERED] = _ratio(gained, possible, one.seed, "share of the cross-entropy")
    means[SIMULATED] = _ratio(sums["simulated"] - sums["clean"], sums["predicted"], one.seed, "nats a token")
    return means


def _mean(column: NDArray[np.float64], seed: int) -> Drawn:
    """Over the latents that have a value."""
    known, unit = column[np.isfinite(column)], "share of tokens"
    if len(known) < 2:
        return Drawn(float(known.mean()) if len(known) else float("nan"), np.full(1, np.nan), unit)
    return Drawn(float(known.mean()), mean_draws(known, seed), unit)


def _ratio(over: NDArray[np.float64], under: NDArray[np.float64], seed: int, unit: str) -> Drawn:
    with np.errstate(divide="ignore", invalid="ignore"):
        return Drawn(float(over.sum() / under.sum()), ratio_draws(over, under, seed), unit)


def _compared(one: Drawn, other: Drawn) -> tuple[float, ...]:
    """Difference and ratio, with intervals each."""
    with np.errstate(divide="ignore", invalid="ignore"):
        difference, ratio = one.draws - other.draws, one.draws / other.draws
        quotient = float(np.divide(one.value, other.value))
    return (one.value - other.value, *interval(difference), quotient, *interval(ratio))
