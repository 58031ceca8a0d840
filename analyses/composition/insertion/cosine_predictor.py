"""How well does the cosine predict which latents are novel, and from which threshold on?

A latent is *novel* where its measured effect says so (`insertion_effects`); the cosine rule says novel below a
threshold. What it achieves over all thresholds is in `cosine_curves`. Each latent counts once, or as much as its effect
is large, |change in MSE|: by number, rare latents whose effect is nearly 0 decide.

Intervals are 95 % bootstrap intervals over latents. That the class of a latent is itself uncertain they do not know;
the rows of *certain* latents, more than two standard errors from 0, leave the doubtful ones out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from analyses.composition.insertion.cosine_curves import (
    LabelledCosines,
    WeightsBelow,
    areas,
    areas_of,
    best_thresholds,
    candidate_thresholds,
    counts,
    resampled_weights,
    rule_rates,
    share_novel,
)
from analyses.composition.insertion.single_insertions import LatentEffects
from dictlab.dictionary.activation_functions import Activation
from dictlab.dictionary.union import Union
from dictlab.numerics.statistics import Estimate, interval

CERTAIN = 2.0  # standard errors
UNWEIGHTED, WEIGHTED_BY_EFFECT = WEIGHTINGS = ("plain", "by effect")  # how latents count
ALL = "all"  # the group of all alive latents
GIVEN, BEST_YOUDEN = "given", "best J"
NAN = float("nan")


class PredictionAreas(NamedTuple):
    """How well the cosine predicts novelty in one group of latents, each weighted in one way.

    Attributes:
        group: Which latents.
        weighting: How they count.
        n: Latents.
        n_novel: Novel ones by measured effect.
        share_novel: Their share of the weight: the precision of chance.
        roc: Estimate under the ROC curve; NaN with a single class.
        novel: Under the precision-recall curve with novel as the positive class.
        reconstruction: Likewise with reconstruction.
    """

    group: str
    weighting: str
    n: int
    n_novel: int
    share_novel: float
    roc: Estimate
    novel: Estimate
    reconstruction: Estimate


class Confusion(NamedTuple):
    """Latents by their measured class and what the rule calls them."""

    novel_called_novel: int
    novel_called_reconstruction: int
    reconstruction_called_novel: int
    reconstruction_called_reconstruction: int


class ThresholdRule(NamedTuple):
    """One threshold in one group of latents, each weighted in one way, and what it achieves.

    Attributes:
        group: Which latents.
        weighting: How they count.
        rule: GIVEN, or by which measure it is the best.
        threshold: Cosine below which latents are called novel.
        low: Lower end of its 95 % bootstrap interval over latents.
        high: Upper end.
        confusion: In latents, whatever the weighting.
        rates: Of weights, by name; see `rule_rates`.
    """

    group: str
    weighting: str
    rule: str
    threshold: float
    low: float
    high: float
    confusion: Confusion
    rates: dict[str, float]


def labelled(latents: LatentEffects, weighting: str) -> LabelledCosines:
    """Alive latents as they are classified; each counts once, or by its effect."""
    weight = np.abs(latents.change) if weighting == WEIGHTED_BY_EFFECT else np.ones(len(latents.change))
    return LabelledCosines(latents.cosine, latents.novel, weight)


def groups(alive: LatentEffects, kinds: Sequence[str]) -> dict[str, LatentEffects]:
    """Alive latents: all, the certain ones, and those of each activation function if LARGE has several.

    Args:
        alive: Those of LARGE that were active.
        kinds: The activation function of each of LARGE's latents, by name.
    """
    certain = np.abs(alive.change) > CERTAIN * alive.error
    parts = {ALL: alive, f"certain (> {CERTAIN:g} s.e.)": alive.at(certain)}
    several = sorted(set(kinds)) if len(set(kinds)) > 1 else []
    kind_of = np.array(kinds)[alive.latent]
    return parts | {f"{kind} latents": alive.at(kind_of == kind) for kind in several}


def kinds_of(activation: Activation, n_latents: int) -> list[str]:
    """The activation function of each latent, by name; a stitched dictionary has those of its donors."""
    if isinstance(activation, Union):
        return [kind for width, own in activation.parts for kind in kinds_of(own, width)]
    return [activation.kind] * n_latents


def prediction_areas(parts: Mapping[str, LatentEffects], seed: int) -> list[PredictionAreas]:
    """The areas for each group of latents and weighting, with intervals.

    Args:
        parts: Of `groups`.
        seed: Of the resampling.
    """
    results = []
    for group, part in parts.items():
        for weighting in WEIGHTINGS:
            given = labelled(part, weighting)
            intervals = [(NAN, NAN)] * 3
            if given.two_classes:
                draws = [areas_of(weights) for weights in resampled_weights(given, seed)]
                intervals = [interval(np.concatenate(kind)) for kind in zip(*draws, strict=True)]
            found = [Estimate(value, *ends) for value, ends in zip(areas(given), intervals, strict=True)]
            n_novel = int(given.novel.sum())
            results.append(PredictionAreas(group, weighting, len(part.latent), n_novel, share_novel(given), *found))
    return results


def threshold_rules(parts: Mapping[str, LatentEffects], threshold: float, seed: int) -> list[ThresholdRule]:
    """The given threshold and the best by each of OPTIMA, for each group and weighting that has two classes.

    Args:
        parts: Of `groups`.
        threshold: The given one.
        seed: Of the resampling, for the intervals of the best ones.
    """
    rules = []
    for group, part in parts.items():
        for weighting in WEIGHTINGS:
            given = labelled(part, weighting)
            if not given.two_classes:
                continue
            once, at = counts(given, np.ones((1, len(part.latent)))), candidate_thresholds(given.cosine)
            draws = [best_thresholds(c, at) for c in resampled_weights(given, seed)]
            rules.append(_rule(given, threshold, group, weighting, GIVEN, (threshold, threshold)))
            for name, value in best_thresholds(once, at).items():
                low_high = interval(np.concatenate([draw[name] for draw in draws]))
                rules.append(_rule(given, float(value[0]), group, weighting, f"best {name}", low_high))
    return rules


def _rule(
    given: LabelledCosines, threshold: float, group: str, weighting: str, rule: str, low_high: tuple[float, float]
) -> ThresholdRule:
    below, novel = given.cosine < threshold, given.novel
    cells = (below & novel, ~below & novel, below & ~novel, ~below & ~novel)
    sums = [float(given.weight[mask].sum()) for mask in (cells[0], cells[2], novel, ~novel)]
    achieved = rule_rates(WeightsBelow(*(np.array([[total]]) for total in sums)))
    return ThresholdRule(
        group,
        weighting,
        rule,
        threshold,
        *low_high,
        Confusion(*(int(mask.sum()) for mask in cells)),
        {name: float(values[0, 0]) for name, values in achieved.items()},
    )
