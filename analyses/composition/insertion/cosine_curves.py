"""Curves of a cosine that is to tell novel latents from others, on bare arrays: areas, best thresholds, and resamples.

With the rule that calls a latent novel where its cosine is below a threshold t:

    sensitivity(t)   share of the novel latents with cosine < t
    specificity(t)   share of the others with cosine >= t
    precision(t)     share of novel ones among latents with cosine < t
    J(t)             sensitivity + specificity - 1                                   Youden 1950
    F1(t)            harmonic mean of precision and sensitivity

over all t: areas under the ROC and the precision-recall curve (average precision, steps and no interpolation), the
latter both ways round, since it depends on which class is called positive. Shares are of the latents' weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from dictlab.numerics.statistics import latent_counts

OPTIMA = ("J", "F1 (novel)", "F1 (reconstruction)")

Array = NDArray[np.float64]


class LabelledCosines(NamedTuple):
    """Latents with a cosine, a class, and a weight, `[n]` each."""

    cosine: Float[Array, " n"]
    novel: Bool[NDArray[np.bool_], " n"]
    weight: Float[Array, " n"]

    @property
    def two_classes(self) -> bool:
        """Whether there is something to tell apart."""
        return bool((self.weight[self.novel] > 0).any() and (self.weight[~self.novel] > 0).any())


class Areas(NamedTuple):
    """Under the ROC curve, and under the precision-recall curves with either class as the positive one."""

    roc: Array
    novel: Array
    reconstruction: Array


class WeightsBelow(NamedTuple):
    """Weights of latents with cosines below each threshold, `[resamples, thresholds]`, and of all, `[resamples, 1]`."""

    novel_below: Array
    others_below: Array
    novel: Array
    others: Array


def areas(given: LabelledCosines) -> tuple[float, float, float]:
    """The three areas of `Areas` in the sample itself; NaN with a single class."""
    if not given.two_classes:
        return float("nan"), float("nan"), float("nan")
    score, weight = -given.cosine, given.weight
    return (
        float(roc_auc_score(given.novel, score, sample_weight=weight)),
        float(average_precision_score(given.novel, score, sample_weight=weight)),
        float(average_precision_score(~given.novel, -score, sample_weight=weight)),
    )


def share_novel(given: LabelledCosines) -> float:
    """Share of the weight that novel latents have: the precision of chance."""
    total = float(given.weight.sum())
    return float(given.weight[given.novel].sum()) / total if total > 0 else float("nan")


def candidate_thresholds(cosine: Float[Array, " n"]) -> Float[Array, " thresholds"]:
    """Every threshold that makes a difference: below all cosines, between each two neighbours, above all."""
    values = np.unique(cosine)
    return np.concatenate([[values[0]], (values[:-1] + values[1:]) / 2, [np.nextafter(values[-1], np.inf)]])


def counts(given: LabelledCosines, times: Float[Array, "resamples n"]) -> WeightsBelow:
    """What lies below each of `candidate_thresholds`, with each latent drawn so many times."""
    order = np.argsort(given.cosine, kind="stable")
    last = np.flatnonzero(np.diff(given.cosine[order], append=np.inf) > 0)  # the last of each group of equal cosines
    weight = (times * given.weight)[:, order]
    both = []
    for one in (given.novel[order], ~given.novel[order]):
        below = np.cumsum(weight * one, axis=1)[:, last]
        both.append(np.concatenate([np.zeros((len(below), 1)), below], axis=1))
    return WeightsBelow(*both, *(below[:, -1:] for below in both))


@np.errstate(divide="ignore", invalid="ignore")
def areas_of(found: WeightsBelow) -> Areas:
    """The areas in each resample; NaN where it has a single class."""
    recall, false_positive_rate = found.novel_below / found.novel, found.others_below / found.others
    roc = (np.diff(false_positive_rate) * (recall[:, 1:] + recall[:, :-1]) / 2).sum(axis=1)
    precision = found.novel_below / (found.novel_below + found.others_below)
    above = found.others - found.others_below
    kept = above / (above + found.novel - found.novel_below)  # precision of "cosine >= t"
    novel = np.nansum(np.diff(recall) * precision[:, 1:], axis=1)
    reconstruction = np.nansum(np.diff(false_positive_rate) * kept[:, :-1], axis=1)
    single = (found.novel[:, 0] == 0) | (found.others[:, 0] == 0)
    return Areas(*(np.where(single, np.nan, area) for area in (roc, novel, reconstruction)))


@np.errstate(divide="ignore", invalid="ignore")
def rule_rates(found: WeightsBelow) -> dict[str, Array]:
    """What the rule achieves at each threshold, by name."""
    missed, cleared = found.novel - found.novel_below, found.others - found.others_below
    total = found.novel + found.others
    sensitivity, specificity = found.novel_below / found.novel, cleared / found.others
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": found.novel_below / (found.novel_below + found.others_below),
        "J": sensitivity + specificity - 1,
        "F1 (novel)": 2 * found.novel_below / (2 * found.novel_below + missed + found.others_below),
        "F1 (reconstruction)": 2 * cleared / (2 * cleared + missed + found.others_below),
        "accuracy": (found.novel_below + cleared) / total,
    }


def best_thresholds(found: WeightsBelow, at: Float[Array, " thresholds"]) -> dict[str, Array]:
    """The threshold that is best by each of OPTIMA, in each resample; NaN where it has a single class."""
    known = rule_rates(found)
    single = (found.novel[:, 0] == 0) | (found.others[:, 0] == 0)
    return {name: np.where(single, np.nan, _middle(np.nan_to_num(known[name], nan=-1), at)) for name in OPTIMA}


def _middle(values: Array, at: Float[Array, " thresholds"]) -> Array:
    """The middle of the first run of thresholds with the largest value: latents not drawn make no difference."""
    largest = values == values.max(axis=1, keepdims=True)
    first = largest.argmax(axis=1)
    after = ~largest & (np.arange(values.shape[1]) > first[:, None])
    last = np.where(after.any(axis=1), after.argmax(axis=1) - 1, values.shape[1] - 1)
    middle: Array = (at[first] + at[last]) / 2
    return middle


def resampled_weights(given: LabelledCosines, seed: int) -> Iterator[WeightsBelow]:
    """WeightsBelow in bootstrap resamples of the latents, some at a time; equal seeds draw equal latents."""
    for drawn in latent_counts(len(given.cosine), seed, "latents of a prediction"):
        yield counts(given, drawn)
