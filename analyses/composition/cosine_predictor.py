"""How well does the cosine foretell which latents are novel, and from which threshold on?

A latent is *novel* where its measured effect says so (`insertion`); the cosine rule says novel below a threshold t:

    sensitivity(t)   share of the novel latents with cosine < t
    specificity(t)   share of the others with cosine >= t
    precision(t)     share of novel ones among latents with cosine < t
    J(t)             sensitivity + specificity - 1                                   Youden 1950
    F1(t)            harmonic mean of precision and sensitivity

over all t: areas under the ROC and the precision-recall curve (average precision, steps and no interpolation), the
latter both ways round, since it depends on which class is called positive. Each latent counts once, or as much as its
effect is large, |change in MSE|: by number, rare latents whose effect is nearly 0 decide.

Intervals are 95 % bootstrap intervals over latents. That the class of a latent is itself uncertain they do not know;
the rows of *certain* latents, more than two standard errors from 0, leave the doubtful ones out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from dictlab import seeds
from dictlab.dictionary.activation_functions import Activation, Union
from dictlab.statistics import RESAMPLES, interval

CELLS = 1 << 22  # weights of resampled latents held at once
CERTAIN = 2.0  # standard errors
BOTH, ONCE, BY_EFFECT = ("plain", "by effect"), "plain", "by effect"

Array = NDArray[np.float64]

PREDICTION = (
    "The cosine as a predictor of novelty, with 95 % bootstrap intervals over latents. PR AUC: average precision, with "
    "either class as the positive one; its chance level is the share of that class. By effect: latents weighted by "
    "|change in MSE|. Empty with a single class."
)
THRESHOLDS = (
    "Cosine below which latents are called novel: the given threshold, and the best by Youden's J and by F1, with 95 % "
    "bootstrap intervals over latents. Confusions count latents; rates are of weights."
)


class Labelled(NamedTuple):
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


class Counts(NamedTuple):
    """Weights of latents with cosines below each threshold, `[resamples, thresholds]`, and of all, `[resamples, 1]`."""

    novel_below: Array
    others_below: Array
    novel: Array
    others: Array


def labelled(latents: pd.DataFrame, weighting: str) -> Labelled:
    """The rows of a table of alive latents; each counts once, or by its effect."""
    effect = latents["change in MSE"].to_numpy(dtype=float)
    weight = np.abs(effect) if weighting == BY_EFFECT else np.ones(len(effect))
    return Labelled(latents["max cosine"].to_numpy(dtype=float), (latents["class"] == "novel").to_numpy(), weight)


def groups(latents: pd.DataFrame, kinds: list[str]) -> dict[str, pd.DataFrame]:
    """Alive latents: all, the certain ones, and those of each activation function if LARGE has several."""
    alive = latents[latents["class"] != "dead"]
    found = {"all": alive, f"certain (> {CERTAIN:g} s.e.)": alive[_certain(alive)]}
    several = sorted(set(kinds)) if len(set(kinds)) > 1 else []
    return found | {f"{kind} latents": alive[alive["latent"].map(lambda i: kinds[i]) == kind] for kind in several}


def _certain(latents: pd.DataFrame) -> pd.Series:
    return latents["change in MSE"].abs() > CERTAIN * latents["standard error"]


def kinds_of(activation: Activation, n_latents: int) -> list[str]:
    """The activation function of each latent, by name; a stitched dictionary has those of its donors."""
    if isinstance(activation, Union):
        return [kind for width, own in activation.parts for kind in kinds_of(own, width)]
    return [activation.kind] * n_latents


def areas(given: Labelled) -> tuple[float, float, float]:
    """The three areas of `Areas` in the sample itself; NaN with a single class."""
    if not given.two_classes:
        return float("nan"), float("nan"), float("nan")
    score, weight = -given.cosine, given.weight
    return (
        float(roc_auc_score(given.novel, score, sample_weight=weight)),
        float(average_precision_score(given.novel, score, sample_weight=weight)),
        float(average_precision_score(~given.novel, -score, sample_weight=weight)),
    )


def thresholds(cosine: Float[Array, " n"]) -> Float[Array, " thresholds"]:
    """Every threshold that makes a difference: below all cosines, between each two neighbours, above all."""
    values = np.unique(cosine)
    return np.concatenate([[values[0]], (values[:-1] + values[1:]) / 2, [np.nextafter(values[-1], np.inf)]])


def counts(given: Labelled, times: Float[Array, "resamples n"]) -> Counts:
    """What lies below each of `thresholds`, with each latent drawn so many times."""
    order = np.argsort(given.cosine, kind="stable")
    last = np.flatnonzero(np.diff(given.cosine[order], append=np.inf) > 0)  # the last of each group of equal cosines
    weight = (times * given.weight)[:, order]
    both = []
    for one in (given.novel[order], ~given.novel[order]):
        below = np.cumsum(weight * one, axis=1)[:, last]
        both.append(np.concatenate([np.zeros((len(below), 1)), below], axis=1))
    return Counts(*both, *(below[:, -1:] for below in both))


@np.errstate(divide="ignore", invalid="ignore")
def areas_of(found: Counts) -> Areas:
    """The areas in each resample; NaN where it has a single class."""
    recall, fall_out = found.novel_below / found.novel, found.others_below / found.others
    roc = (np.diff(fall_out) * (recall[:, 1:] + recall[:, :-1]) / 2).sum(axis=1)
    precision = found.novel_below / (found.novel_below + found.others_below)
    above = found.others - found.others_below
    kept = above / (above + found.novel - found.novel_below)  # precision of "cosine >= t"
    novel = np.nansum(np.diff(recall) * precision[:, 1:], axis=1)
    reconstruction = np.nansum(np.diff(fall_out) * kept[:, :-1], axis=1)
    single = (found.novel[:, 0] == 0) | (found.others[:, 0] == 0)
    return Areas(*(np.where(single, np.nan, area) for area in (roc, novel, reconstruction)))


@np.errstate(divide="ignore", invalid="ignore")
def rates(found: Counts) -> dict[str, Array]:
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


OPTIMA = ("J", "F1 (novel)", "F1 (reconstruction)")


def best(found: Counts, at: Float[Array, " thresholds"]) -> dict[str, Array]:
    """The threshold that is best by each of OPTIMA, in each resample; NaN where it has a single class."""
    known = rates(found)
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


def prediction_table(latents: Mapping[str, pd.DataFrame], seed: int) -> pd.DataFrame:
    """One row a group of latents and weighting: the areas with intervals, and what chance gives."""
    rows = []
    for group, part in latents.items():
        for weighting in BOTH:
            given = labelled(part, weighting)
            row: dict[str, object] = {"latents": group, "weighting": weighting, "n": len(part)}
            row |= {"novel": int(given.novel.sum()), "share novel": share_novel(given)}
            draws = _joined(areas_of(c) for c in resampled(given, seed)) if given.two_classes else None
            for i, name in enumerate(("ROC AUC", "PR AUC (novel)", "PR AUC (reconstruction)")):
                low, high = (float("nan"),) * 2 if draws is None else interval(draws[i])
                row |= {name: areas(given)[i], f"{name} low": low, f"{name} high": high}
            rows.append(row)
    return pd.DataFrame(rows)


def threshold_table(latents: Mapping[str, pd.DataFrame], threshold: float, seed: int) -> pd.DataFrame:
    """One row a group, weighting and rule: the threshold, the confusion of latents, and the rates that follow.

    The confusion counts latents; the rates are of their weights. Intervals are those of the best threshold.
    """
    rows = []
    for group, part in latents.items():
        for weighting in BOTH:
            given = labelled(part, weighting)
            if not given.two_classes:
                continue
            found, at = counts(given, np.ones((1, len(part)))), thresholds(given.cosine)
            draws = [best(c, at) for c in resampled(given, seed)]
            rows.append(_at(given, threshold, group, weighting, "given", (threshold, threshold)))
            for name, value in best(found, at).items():
                own = interval(np.concatenate([one[name] for one in draws]))
                rows.append(_at(given, float(value[0]), group, weighting, f"best {name}", own))
    columns = ["latents", "weighting", "rule", "threshold", "low", "high"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)


def _at(
    given: Labelled, threshold: float, group: str, weighting: str, rule: str, low_high: tuple[float, float]
) -> dict[str, object]:
    below, novel = given.cosine < threshold, given.novel
    sums = [float(given.weight[which].sum()) for which in (below & novel, below & ~novel, novel, ~novel)]
    achieved = rates(Counts(*(np.array([[one]]) for one in sums)))
    return {
        "latents": group,
        "weighting": weighting,
        "rule": rule,
        "threshold": threshold,
        "low": low_high[0],
        "high": low_high[1],
        "novel, called novel": int((below & novel).sum()),
        "novel, called reconstruction": int((~below & novel).sum()),
        "reconstruction, called novel": int((below & ~novel).sum()),
        "reconstruction, called reconstruction": int((~below & ~novel).sum()),
    } | {name: float(values[0, 0]) for name, values in achieved.items()}


def share_novel(given: Labelled) -> float:
    """Share of the weight that novel latents have: the precision of chance."""
    total = float(given.weight.sum())
    return float(given.weight[given.novel].sum()) / total if total > 0 else float("nan")


def resampled(given: Labelled, seed: int) -> Iterator[Counts]:
    """Counts in bootstrap resamples of the latents, some at a time; equal seeds draw equal latents."""
    n = len(given.cosine)
    generator, step = seeds.numpy_generator(seed, "latents of a prediction"), max(1, CELLS // max(1, n))
    for start in range(0, RESAMPLES, step):
        drawn = generator.multinomial(n, np.full(n, 1 / n), size=min(step, RESAMPLES - start))
        yield counts(given, drawn.astype(float))


def _joined(parts: Iterator[Areas]) -> Areas:
    return Areas(*(np.concatenate(one) for one in zip(*parts, strict=True)))
