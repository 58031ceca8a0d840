"""What it is going to cost to compare every direction of large dictionaries with every other, measured on a part."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from analyses.common import distributed_search
from dictlab.runtime.cost_estimate import CostEstimate, seconds_of
from dictlab.runtime.progress import Phase

PROBED = 4096  # directions of each dictionary that are compared to see how long that takes

Directions = Float[Tensor, "latents d"]


def search_cost(
    work: str,
    pairs: Sequence[tuple[Directions, Directions]],
    compare: Callable[[Directions, Directions], object],
    *,
    times: int = 1,
    note: str = "",
) -> CostEstimate:
    """The cost of comparing pairs of matrices row by row: that of their first rows, times the ratio of the cosines.

    Args:
        work: What it is called.
        pairs: What is compared; small ones are not counted.
        compare: What is done with a pair, whose cost grows as the number of cosines.
        times: How often it is done.
        note: What else is to be said.
    """
    large = [(a, b) for a, b in pairs if len(a) * len(b) > 4 * PROBED**2]
    seconds = 0.0
    if large:
        a, b = (rows[:PROBED] for rows in large[0])
        with Phase("estimate the cost"):
            spent = seconds_of(lambda: compare(a, b))
        cosines = sum(len(one) * len(other) for one, other in large)
        seconds = times * spent * cosines / (len(a) * len(b)) / distributed_search.count()
    return CostEstimate(work, 0, 0, seconds, note=note)
