"""What further training makes of a stitched dictionary and of its controls: the result, its table and its sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analyses.composition.trained_frontier import ERRORS
from analyses.quality.measured_points import Point
from dictlab.evaluation.metrics import METRICS
from dictlab.numerics.statistics import Estimate, interval
from dictlab.reports.report import Table


@dataclass(frozen=True, eq=False)
class Continuation:
    """Dictionaries after further training, at one k and on the same tokens.

    Attributes:
        result: What began as the stitched dictionary.
        parent: What began as the best parent.
        controls: The parent, the union of all latents, and a fresh dictionary.
        tokens: That they were trained on.
        k: Active latents a token.
    """

    result: Point
    parent: Point
    controls: Sequence[Point]
    tokens: int
    k: int

    def ratio(self, point: Point, metric: str) -> Estimate:
        """An error over that of the parent, with its paired interval; NaN for a single sequence."""
        value = point.value(metric) / self.parent.value(metric)
        if point.evaluation.n_sequences < 2:
            return Estimate(value)
        return Estimate(value, *interval(point.evaluation.draws(metric) / self.parent.evaluation.draws(metric)))


def continuation_table(continuation: Continuation) -> Table:
    """One row a dictionary."""
    rows = []
    for point in [*continuation.controls, continuation.result]:
        percent = [100 * (end - 1) for end in continuation.ratio(point, "mse")]
        errors = {METRICS[key].label: point.value(key) for key in ("l0", *point.evaluation.among(ERRORS))}
        rows.append(
            {
                "dictionary": point.name,
                "tokens": continuation.tokens,
                "latents": point.dictionary.n_emitting,
                **errors,
                "MSE less the parent's (%)": percent[0],
                "low": percent[1],
                "high": percent[2],
            }
        )
    caption = (
        f"After {continuation.tokens:,} more tokens (the fresh one after so many in all), each with the "
        f"{continuation.k} largest latents of a token. Measured on {continuation.result.evaluation.size}; the last "
        f"columns are the MSE beside that of {continuation.parent.name}, with a paired 95 % bootstrap interval over "
        "sequences."
    )
    return Table(pd.DataFrame(rows), caption)


def continuation_sentence(continuation: Continuation) -> str:
    """How the continued result compares with the best parent after the same training."""
    result, parts = continuation.result, []
    for metric in result.evaluation.among(ERRORS):
        value, low, high = (100 * (end - 1) for end in continuation.ratio(result, metric))
        parts.append(f"{METRICS[metric].label} {value:+.1f} % [{low:+.1f}, {high:+.1f}]")
    ratio = continuation.ratio(result, "mse")
    verdict = "WORSE than" if ratio.value > 1 else "better than"
    noise = "" if ratio.low > 1 or ratio.high < 1 else ", within the noise"
    return (
        f"Trained on for {continuation.tokens:,} tokens at k {continuation.k}, the stitched dictionary "
        f"({result.dictionary.n_emitting} latents) is {verdict} {continuation.parent.name} "
        f"({continuation.parent.dictionary.n_emitting} latents){noise}: {', '.join(parts)}."
    )
