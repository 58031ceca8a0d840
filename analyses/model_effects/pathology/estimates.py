"""How much damage does each replacement do, where, and how far must one go at random to do as much?

Estimates with bootstrap intervals over sequences, from the damage of each token (`DictionaryDamage`). They are what the
tables, plots and words of a pathology report are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from analyses.model_effects.pathology.dictionary_damage import DictionaryDamage
from analyses.model_effects.pathology.replacements import BASELINES, NAMES, RECONSTRUCTION, STEPS
from analyses.model_effects.pathology.step_curves import CLASSES, MULTIPLES, REFERENCES, SCALES, effective_length
from dictlab.numerics.statistics import ENDS, NAN, Array, Estimate, bootstrap_weights, ratio

FAR = 3.0  # standard deviations beyond which a reconstruction is counted as far out


class DamageRatios(NamedTuple):
    """One dictionary: its damage, beside that of each baseline, and the size of its error.

    Attributes:
        damage: What was measured of it.
        kl: Of the reconstruction, nats a token.
        ce: CE increase, nats a token.
        error_norm: |x_hat - x|, in the activation's units.
        over: Mean KL over that of each baseline, by name.
        l0: Active latents a token.
        median_z: Of the reconstruction's KL among random points, in their standard deviations; NaN where not asked.
        share_far: Share of tokens beyond z = FAR.
    """

    damage: DictionaryDamage
    kl: Estimate
    ce: Estimate
    error_norm: Estimate
    over: dict[str, Estimate]
    l0: float
    median_z: float
    share_far: float


class InterventionDamage(NamedTuple):
    """One replacement of all tokens: KL and CE increase in nats a token, and the reconstruction's damage over its own.

    `first`: whether first positions are among the tokens. `kl_median` and `kl_extreme` (99.9 %) are over single draws.
    """

    dictionary: str
    first: bool
    intervention: str
    kl: Estimate
    kl_median: float
    kl_extreme: float
    ce: Estimate
    kl_ratio: Estimate
    ce_ratio: Estimate


class PositionDamage(NamedTuple):
    """KL of one replacement at positions from `start` to below `stop`, all tokens replaced."""

    dictionary: str
    intervention: str
    start: int
    stop: int
    kl: Estimate


class SingleTokenDamage(NamedTuple):
    """KL so many positions after the only token that is replaced, and the reconstruction's over it."""

    dictionary: str
    intervention: str
    positions_after: int
    kl: Estimate
    ratio: Estimate


class StepDamage(NamedTuple):
    """KL along a direction at one length: `length` times the error's norm, or times the spread of activations."""

    dictionary: str
    direction: str
    length: float
    kl: Estimate


class EqualDamage(NamedTuple):
    """The multiple of the error's norm at which a baseline does the reconstruction's damage; 0 or infinite outside."""

    dictionary: str
    direction: str
    target: float
    length: Estimate

    @property
    def outside(self) -> str:
        """Which multiples it lies beyond, if it does."""
        if self.length.value == 0:
            return f"below {MULTIPLES[0]:g}"
        return f"above {MULTIPLES[-1]:g}" if np.isinf(self.length.value) else ""


class PathologyEstimates(NamedTuple):
    """All of them; what was not asked for is empty.

    Attributes:
        comparison: One a dictionary.
        interventions: One a dictionary and replacement, with and without first positions.
        positions: One a dictionary, replacement and bin of positions that has tokens.
        single_token: One a dictionary, replacement and position after.
        equal_damage: One a dictionary and baseline.
        lengths: One a dictionary, baseline and multiple of the error's norm.
        sensitivity: One a dictionary, class of directions and multiple of the spread.
    """

    comparison: list[DamageRatios]
    interventions: list[InterventionDamage]
    positions: list[PositionDamage]
    single_token: list[SingleTokenDamage]
    equal_damage: list[EqualDamage]
    lengths: list[StepDamage]
    sensitivity: list[StepDamage]


def pathology_estimates(damages: Sequence[DictionaryDamage]) -> PathologyEstimates:
    """Every estimate of some dictionaries that were measured together."""
    alone = [one for one in damages if "alone" in one.arrays]
    swept = [one for one in damages if "reach" in one.arrays]
    return PathologyEstimates(
        [_comparison(one) for one in damages],
        [intervention for one in damages for intervention in _interventions(one)],
        [position for one in damages for position in _positions(one)],
        [damage for one in alone for damage in _single_token(one)],
        [damage for one in swept for damage in _equal_damage(one)],
        [damage for one in swept for damage in _lengths(one)],
        [damage for one in swept for damage in _sensitivity(one)],
    )


def _comparison(one: DictionaryDamage) -> DamageRatios:
    z = one.z[:, 0] if "cloud" in one.arrays else np.zeros(0)
    z = z[np.isfinite(z)]
    return DamageRatios(
        one,
        one.mean(one.kl(RECONSTRUCTION)),
        one.mean(one.ce(RECONSTRUCTION)),
        one.mean(one.arrays["epsilon"]),
        {name: one.over(name) for name in BASELINES},
        one.average("l0"),
        float(np.median(z)) if len(z) else NAN,
        float((z > FAR).mean()) if len(z) else NAN,
    )


def _interventions(one: DictionaryDamage) -> list[InterventionDamage]:
    damages = []
    for first in (True, False):
        for name in NAMES:
            once = one.arrays["kl_once"][:, NAMES.index(name), 0 if first else 1 :]
            once = once[np.isfinite(once)]
            median, extreme = np.quantile(once, (0.5, 0.999)) if len(once) else (NAN, NAN)
            kl, ce = one.mean(one.kl(name, first)), one.mean(one.ce(name, first))
            ratios = one.over(name, first), one.over(name, first, "ce")
            damages.append(InterventionDamage(one.name, first, name, kl, float(median), float(extreme), ce, *ratios))
    return damages


def edges(positions: int) -> list[int]:
    """Where bins of positions begin: 0, 1, 2, 4, ... and the end."""
    starts = [0, *(2**i for i in range(20) if 2**i < positions)]
    return [*starts, positions]


def _positions(one: DictionaryDamage) -> list[PositionDamage]:
    ends = edges(one.arrays["kl"].shape[2])
    damages = [
        PositionDamage(one.name, name, start, stop, one.mean(one.kl(name)[:, start:stop]))
        for name in NAMES
        for start, stop in pairwise(ends)
    ]
    return [damage for damage in damages if np.isfinite(damage.kl.value)]


def _single_token(one: DictionaryDamage) -> list[SingleTokenDamage]:
    kl = one.arrays["alone"]
    reconstruction = np.nan_to_num(kl[:, NAMES.index(RECONSTRUCTION)])
    return [
        SingleTokenDamage(
            one.name,
            name,
            after,
            one.mean(kl[:, index, after, None]),
            ratio(reconstruction[:, after], np.nan_to_num(kl[:, index, after]), one.seed),
        )
        for index, name in enumerate(NAMES)
        for after in range(kl.shape[2])
    ]


def _sensitivity(one: DictionaryDamage) -> list[StepDamage]:
    damages = [
        StepDamage(one.name, name, scale, one.mean(one.arrays[key][:, index, at, None]))
        for key, names in (("sensitivity", CLASSES), ("references", REFERENCES))
        for index, name in enumerate(names)
        for at, scale in enumerate(SCALES)
    ]
    return [damage for damage in damages if np.isfinite(damage.kl.value)]


def _lengths(one: DictionaryDamage) -> list[StepDamage]:
    return [
        StepDamage(one.name, name, multiple, one.mean(one.arrays["reach"][:, index, at, None]))
        for index, name in enumerate(STEPS)
        for at, multiple in enumerate(MULTIPLES)
    ]


def _equal_damage(one: DictionaryDamage) -> list[EqualDamage]:
    curve, target = one.arrays["reach"], _by_sequence(one.kl(RECONSTRUCTION)[: len(one.arrays["reach"])])
    known = np.isfinite(target)
    curve, target = curve[known], target[known]
    if not len(target):
        return []
    weight = bootstrap_weights(len(target), one.seed)
    damages = []
    for index, name in enumerate(STEPS):
        value = float(effective_length(curve[:, index].mean(axis=0), np.asarray(target.mean())))
        drawn = effective_length(weight @ curve[:, index] / len(target), weight @ target / len(target))
        low, high = np.quantile(drawn, ENDS, method="inverted_cdf")  # some are infinite
        length = Estimate(value, float(low), float(high))
        damages.append(EqualDamage(one.name, name, float(target.mean()), length))
    return damages


def _by_sequence(values: Array) -> Array:
    """The mean of each sequence over the tokens that count; NaN where none does."""
    count = np.isfinite(values).sum(axis=1)
    return np.asarray(np.where(count > 0, np.nansum(values, axis=1) / np.maximum(count, 1), np.nan))
