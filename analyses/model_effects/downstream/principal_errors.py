"""What do errors along principal directions, and along groups of them, amount to?

Everything follows from sums by sequence, with intervals. Definitions are those of `principal_directions.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from analyses.model_effects.downstream.principal_directions import (
    REPAIRED,
    RESAMPLED,
    WRONG,
    Group,
    correlation,
    lost_mask,
    not_reconstructed,
)
from dictlab.numerics.statistics import Array, BySequence, Estimate, Formula


class DirectionErrors(NamedTuple):
    """Errors of one dictionary along each principal direction, largest variance first.

    Attributes:
        variance: Share of the variance that each direction has, `[d_in]`.
        not_reconstructed: Share of that variance that is not reconstructed.
        correlation: Of original and reconstruction along it, `[d_in]`; NaN where either is constant.
        lost: Directions of which more is lost than kept, `[d_in]`.
    """

    variance: Array
    not_reconstructed: list[Estimate]
    correlation: Array
    lost: np.ndarray


class GroupErrors(NamedTuple):
    """Errors of one dictionary in each group of principal directions, and what they cost the model, `[groups]` each.

    Attributes:
        variance: Share of the variance that each group has.
        not_reconstructed: Share of that variance that is not reconstructed.
        error: Share of the squared error.
        kl_wrong: KL of the output where only this group is wrong, nats a token.
        kl_repaired: KL where this group is repaired.
        kl_removed: What the repair takes from the KL.
        kl_resampled: KL where the group's component is taken from another token.
    """

    variance: Array
    not_reconstructed: list[Estimate]
    error: list[Estimate]
    kl_wrong: list[Estimate]
    kl_repaired: list[Estimate]
    kl_removed: list[Estimate]
    kl_resampled: list[Estimate]


def direction_errors(along: BySequence) -> DirectionErrors:
    """From the sums of `sums_along`."""
    return DirectionErrors(
        _shares(along.value(lambda s: s["variance"])),
        along.estimates(not_reconstructed),
        along.value(correlation),
        lost_mask(along),
    )


def group_errors(groups: Sequence[Group], along: BySequence, kl: BySequence, worth: BySequence) -> GroupErrors:
    """Errors in groups.

    Args:
        groups: The groups.
        along: The sums of `sums_along`.
        kl: KL summed by sequence, `[sequences, groups]`, under WRONG and REPAIRED, and `[sequences, 1]` under "all
            wrong"; `tokens` likewise.
        worth: KL summed by sequence under RESAMPLED, and `tokens`.
    """
    member = np.zeros((groups[-1].stop, len(groups)))  # which direction is in which group
    for index, group in enumerate(groups):
        member[group.start : group.stop, index] = 1
    return GroupErrors(
        _shares(along.value(lambda s: s["variance"]) @ member),
        along.estimates(lambda s: (s["error"] @ member) / (s["variance"] @ member)),
        along.estimates(lambda s: (s["error"] @ member) / _positive(s["error"].sum(-1, keepdims=True))),
        kl.estimates(_mean_of(WRONG)),
        kl.estimates(_mean_of(REPAIRED)),
        kl.estimates(lambda s: (s["all wrong"] - s[REPAIRED]) / s["tokens"]),
        worth.estimates(_mean_of(RESAMPLED)),
    )


def _mean_of(key: str) -> Formula:
    return lambda s: s[key] / s["tokens"]


def _positive(total: Array) -> Array:
    """Nothing at all is wrong with a perfect dictionary: its shares are 0."""
    return np.maximum(total, np.finfo(float).tiny)


def _shares(values: Array) -> Array:
    return np.asarray(values / _positive(values.sum()))
