"""How strongly is a latent active where it is? Counts in bins of equal width, from 0 to its largest activation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

BINS = 24


class Histogram(NamedTuple):
    """Counts of active tokens by the size of the activation.

    Attributes:
        width: Of a bin; bin i is from i * width to (i + 1) * width, the last one with its upper end.
        counts: Active tokens of each bin.
    """

    width: float
    counts: Int[NDArray[np.int64], " bins"]


def activation_histogram(activations: Float[NDArray[np.float32], " active"], bins: int = BINS) -> Histogram:
    """The histogram of one latent's non-zero activations, by size; all counts are 0 where there is none."""
    strength = np.abs(activations).astype(np.float64)
    largest = float(strength.max(initial=0.0))
    if largest == 0:
        return Histogram(0.0, np.zeros(bins, dtype=np.int64))
    number = np.minimum((strength / largest * bins).astype(np.int64), bins - 1)
    return Histogram(largest / bins, np.bincount(number, minlength=bins))
