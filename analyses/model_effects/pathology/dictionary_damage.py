"""What replacing a dictionary's activations does to the model's output, token by token, and means with intervals of it.

Everything is a ratio of sums over tokens, kept by sequence: a mean has the number of tokens below, a ratio of means
another mean (they are paired). Intervals are bootstrap intervals over sequences, and all share their resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analyses.model_effects.pathology.replacement_damage import Arrays
from analyses.model_effects.pathology.replacements import NAMES, RECONSTRUCTION
from dictlab.dictionary import Dictionary
from dictlab.numerics.statistics import Array, Estimate, ratio


@dataclass(frozen=True, eq=False)
class DictionaryDamage:
    """What was measured of one dictionary.

    Attributes:
        dictionary: Which.
        arrays: As `replacement_damage.measure_damage` gives them; NaN at tokens that do not count.
        spread: Root mean square distance of the site's activations from their mean.
        seed: Of the resampling.
    """

    dictionary: Dictionary
    arrays: Arrays
    spread: float
    seed: int

    @property
    def name(self) -> str:
        """The dictionary's name."""
        return self.dictionary.name

    @property
    def sequences(self) -> int:
        """Sequences measured."""
        return len(self.arrays["kl"])

    def kl(self, intervention: str, first: bool = True) -> Array:
        """KL under an intervention, mean over draws, `[sequences, positions]`; `first`: with the first position."""
        return np.asarray(self.arrays["kl"][:, NAMES.index(intervention), 0 if first else 1 :])

    def ce(self, intervention: str, first: bool = True) -> Array:
        """CE increase under an intervention, `[sequences, positions]`."""
        return np.asarray(self.arrays["ce"][:, NAMES.index(intervention), 0 if first else 1 :])

    def mean(self, values: Array) -> Estimate:
        """Mean of `[sequences, tokens]`; NaN entries are left out."""
        return ratio(np.nansum(values, axis=1), np.isfinite(values).sum(axis=1).astype(float), self.seed)

    def over(self, intervention: str, first: bool = True, what: str = "kl") -> Estimate:
        """Mean damage of the reconstruction over that of an intervention."""
        read = self.kl if what == "kl" else self.ce
        over, under = (np.nansum(read(name, first), axis=1) for name in (RECONSTRUCTION, intervention))
        return ratio(over, under, self.seed)

    @cached_property
    def z(self) -> Array:
        """How many standard deviations the reconstruction's KL lies above the cloud's, `[points, clouds]`."""
        cloud = self.arrays["cloud"]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((self.arrays["point"][:, None] - cloud.mean(axis=2)) / cloud.std(axis=2))

    @cached_property
    def n_tokens(self) -> int:
        """Tokens that count and have a next one."""
        return int(np.isfinite(self.arrays["epsilon"]).sum())

    def average(self, name: str) -> float:
        """The mean of an array over the tokens that count."""
        return float(np.nanmean(self.arrays[name]))
