"""How sure is a number that was measured on these sequences?

Tokens of one sequence are not independent, so sums are kept by sequence and whole sequences are resampled. Everything
resampled with the same seed and number of sequences draws the same ones: differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dictlab.evaluation.evaluate import COVERAGE, resamples

Array = NDArray[np.float64]
Formula = Callable[[Mapping[str, Array]], Array]


def interval(draws: Array) -> tuple[Array, Array]:
    """The central 95 % of bootstrap draws, over their first dimension."""
    low, high = np.quantile(draws, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=0)
    return low, high


@dataclass(frozen=True, eq=False)
class BySequence:
    """Sums over the tokens of each sequence, and whatever follows from them.

    Attributes:
        sums: By name, `[sequences, ...]`.
        seed: Of the resampling.
    """

    sums: Mapping[str, Array]
    seed: int

    @property
    def n_sequences(self) -> int:
        """Sequences measured."""
        return len(next(iter(self.sums.values())))

    def value(self, of: Formula) -> Array:
        """A formula of the sums over all sequences."""
        return of({name: values.sum(axis=0) for name, values in self.sums.items()})

    def draws(self, of: Formula) -> Array:
        """The formula in each bootstrap resample of the sequences, `[RESAMPLES, ...]`."""
        weights = resamples(self.n_sequences, self.seed)
        return of({name: np.tensordot(weights, values, axes=1) for name, values in self.sums.items()})

    def interval(self, of: Formula) -> tuple[Array, Array]:
        """95 % percentile bootstrap interval over sequences; NaN for a single sequence."""
        if self.n_sequences < 2:
            unknown = np.full_like(self.value(of), np.nan)
            return unknown, unknown
        return interval(self.draws(of))
