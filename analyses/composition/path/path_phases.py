"""What does each phase of a path do to error and L0, and how evenly? Numbers of a traced path, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from analyses.composition.path.path_error import Bias, PathTrace
from dictlab.numerics.statistics import interval, intervals, mean_draws

NAN = float("nan")


class PathPhase(NamedTuple):
    """One phase of one stage of a path, between two of its points. Errors are MSE, in activation².

    Attributes:
        stage: The number of the dictionary that the stage starts from.
        phase: One of `path_steps.PHASES`.
        steps: How many.
        latents: Before and after.
        mse: Before and after.
        l0: Active latents a token, before and after.
        change_interval: Paired 95 % bootstrap interval of the change in MSE over sequences; NaN for a single one.
        rising: Share of steps that raise the MSE.
        rising_random: The same, mean over paths in random order; NaN without any.
        highest_mse: At any of its points, the first among them.
    """

    stage: int
    phase: str
    steps: int
    latents: tuple[int, int]
    mse: tuple[float, float]
    l0: tuple[float, float]
    change_interval: tuple[float, float]
    rising: float
    rising_random: float
    highest_mse: float

    @property
    def change(self) -> float:
        """Change in MSE."""
        return self.mse[1] - self.mse[0]


def measure_phases(trace: PathTrace, random: Sequence[PathTrace], bias: Bias, seed: int) -> list[PathPhase]:
    """Every phase of every stage, in order.

    Args:
        trace: The path, the ends of its phases among its marks.
        random: The same path in random orders.
        bias: The output bias on the way.
        seed: Of the bootstrap.
    """
    schedule, mse, l0 = trace.schedule, trace.mse(bias), trace.l0()
    latents, ends = schedule.n_latents(), schedule.phase_ends()
    random_mse = [other.mse(bias) for other in random]
    draws = _draws(trace, bias, seed)
    mark_of = {int(point): i for i, point in enumerate(trace.marks)}
    phases = []
    for a, b in zip(ends.tolist(), ends[1:].tolist(), strict=False):
        rising = [float((np.diff(curve[a : b + 1]) > 0).mean()) for curve in random_mse]
        phases.append(
            PathPhase(
                stage=int(schedule.stage[b - 1]),
                phase=str(schedule.phase[b - 1]),
                steps=b - a,
                latents=(int(latents[a]), int(latents[b])),
                mse=(float(mse[a]), float(mse[b])),
                l0=(float(l0[a]), float(l0[b])),
                change_interval=(NAN, NAN) if draws is None else interval(draws[:, mark_of[b]] - draws[:, mark_of[a]]),
                rising=float((np.diff(mse[a : b + 1]) > 0).mean()),
                rising_random=float(np.mean(rising)) if rising else NAN,
                highest_mse=float(mse[a : b + 1].max()),
            )
        )
    return phases


def mse_intervals(trace: PathTrace, bias: Bias, seed: int) -> Float[np.ndarray, "marks 2"]:
    """95 % bootstrap intervals of the MSE over sequences at each mark of a path; NaN for a single sequence."""
    draws = _draws(trace, bias, seed)
    if draws is None:
        return np.full((len(trace.marks), 2), np.nan)
    return np.stack(intervals(draws), axis=1)


def _draws(trace: PathTrace, bias: Bias, seed: int) -> NDArray[np.float64] | None:
    """The MSE at each mark in each resample of the sequences; None for a single sequence."""
    sums = trace.sequences(bias)
    return None if len(sums) < 2 else mean_draws(sums, seed)
