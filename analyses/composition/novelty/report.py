"""What the report of novelty says: tables with their captions, sentences and warnings. Its plots: `novelty_plots`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from analyses.common.seed_floor import relation
from analyses.composition.insertion.cosine_predictor import (
    ALL,
    BEST_YOUDEN,
    CERTAIN,
    GIVEN,
    UNWEIGHTED,
    PredictionAreas,
    ThresholdRule,
)
from analyses.composition.insertion.insertion_in_model import CHANGES, changes, of_small
from analyses.composition.insertion.insertion_tables import (
    agreement_table,
    classes,
    effects_caption,
    latent_table,
    latents_of,
)
from analyses.composition.insertion.seed_control import NoveltyShares, control_warnings, excess, is_control
from analyses.composition.insertion.single_insertions import TWIN, SingleInsertions
from dictlab.numerics.statistics import BySequence, Estimate, estimate_columns
from dictlab.reports.report import Table

SHRUNK = 1.02  # SMALL's reconstruction is too short from this factor on
_SHARES = (
    "Active latents that are novel, by measured effect and by the cosine rule, with 95 % bootstrap intervals over "
    f"latents. Certain: more than {CERTAIN:g} standard errors from 0; carries something: best scale above 0; best "
    "decrease: of the most useful one, as a share of the MSE; twin: another novel one with a cosine above "
    f"{TWIN:g}."
)
_PREDICTION = (
    "The cosine as a predictor of novelty, with 95 % bootstrap intervals over latents. PR AUC: average precision, with "
    "either class as the positive one; its chance level is the share of that class. By effect: latents weighted by "
    "|change in MSE|. Empty with a single class."
)
_THRESHOLDS = (
    "Cosine below which latents are called novel: the given threshold, and the best by Youden's J and by F1, with 95 % "
    "bootstrap intervals over latents. Confusions count latents; rates are of weights."
)


@dataclass(frozen=True, eq=False)
class NoveltyResult:
    """Everything that was measured.

    Attributes:
        pair: LARGE's latents inserted into SMALL.
        floor: Those of the control into the dictionary of its width, if there is one.
        shares: How many are novel, of the pair and of the floor.
        prediction: How well the cosine predicts that.
        thresholds: What thresholds of the cosine achieve; none with a single class.
        behaviour_of: Latents that were run in the model.
        behaviour: What was measured of them there.
    """

    pair: SingleInsertions
    floor: Sequence[SingleInsertions]
    shares: Sequence[NoveltyShares]
    prediction: Sequence[PredictionAreas]
    thresholds: Sequence[ThresholdRule]
    behaviour_of: Sequence[int] = ()
    behaviour: BySequence | None = None


def novelty_tables(result: NoveltyResult) -> dict[str, Table]:
    """All tables but that of the cards."""
    pair = result.pair
    tables = {
        "latents": Table(latent_table(pair), effects_caption(pair), latents_of(pair)),
        "shares": Table(_share_table(result), _SHARES),
    }
    if result.behaviour is not None:
        small = pair.small.name
        tables["behaviour"] = Table(
            behaviour_table(pair, result.behaviour_of, result.behaviour),
            _behaviour_caption(result.behaviour, small),
            {"latent": [pair.large.name] * len(result.behaviour_of)},
        )
    return tables


def prediction_tables(result: NoveltyResult) -> dict[str, Table]:
    """How well the cosine predicts the measured class."""
    agreed = f"Active latents by measured effect and by the cosine rule at {result.pair.threshold:g}."
    return {
        "prediction": Table(prediction_table(result.prediction), _PREDICTION),
        "thresholds": Table(threshold_table(result.thresholds), _THRESHOLDS),
        "agreement": Table(agreement_table(result.pair), agreed),
    }


def _share_table(result: NoveltyResult) -> pd.DataFrame:
    """One row a pair: how many latents are novel, by effect and by cosine, and how certain that is."""
    rows = []
    for one, shares in zip((result.pair, *result.floor), result.shares, strict=True):
        row: dict[str, object] = {
            "inserted": one.name,
            "relation": relation(one.small, one.large),
            "activations": f"{one.small.activation.kind}, {one.large.activation.kind}",
            "active": shares.active,
            "dead": shares.dead,
            "novel": shares.novel,
        }
        row |= estimate_columns("share novel", shares.by_effect) | estimate_columns("share by cosine", shares.by_cosine)
        row |= {
            "certainly novel": shares.certainly_novel,
            "certainly not": shares.certainly_not,
            "carries something": shares.carries_something,
            "best decrease": shares.best_decrease,
            "novel with a twin": shares.with_a_twin,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def prediction_table(prediction: Sequence[PredictionAreas]) -> pd.DataFrame:
    """One row a group of latents and weighting: the areas with intervals, and what chance gives."""
    return pd.DataFrame(
        [
            {
                "latents": one.group,
                "weighting": one.weighting,
                "n": one.n,
                "novel": one.n_novel,
                "share novel": one.share_novel,
            }
            | estimate_columns("ROC AUC", one.roc)
            | estimate_columns("PR AUC (novel)", one.novel)
            | estimate_columns("PR AUC (reconstruction)", one.reconstruction)
            for one in prediction
        ]
    )


def threshold_table(rules: Sequence[ThresholdRule]) -> pd.DataFrame:
    """One row a group, weighting and rule: the threshold, the confusion of latents, and the rates that follow."""
    rows = [
        {
            "latents": rule.group,
            "weighting": rule.weighting,
            "rule": rule.rule,
            "threshold": rule.threshold,
            "low": rule.low,
            "high": rule.high,
            "novel, called novel": rule.confusion.novel_called_novel,
            "novel, called reconstruction": rule.confusion.novel_called_reconstruction,
            "reconstruction, called novel": rule.confusion.reconstruction_called_novel,
            "reconstruction, called reconstruction": rule.confusion.reconstruction_called_reconstruction,
        }
        | rule.rates
        for rule in rules
    ]
    empty = ["latents", "weighting", "rule", "threshold", "low", "high"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=empty)


def behaviour_table(pair: SingleInsertions, latents: Sequence[int], found: BySequence) -> pd.DataFrame:
    """One row a latent run in the model: its change in MSE where it was chosen, and its changes here with intervals."""
    columns: dict[str, Any] = {"latent": list(latents), "class": classes(pair)[list(latents)]}
    columns["change in MSE"] = pair.latents.change[list(latents)]
    for what in CHANGES:
        name, change = "held-out change in MSE" if what == "MSE" else f"change in {what}", changes(found, what)
        columns |= {name: change.value, f"{name} low": change.low, f"{name} high": change.high}
    return pd.DataFrame(columns | {"sequences active": (found.sums["firings"] > 0).sum(axis=0)})


def _behaviour_caption(found: BySequence, small: str) -> str:
    own = {}
    for what in ("CE", "KL"):
        low, high = found.interval(of_small(what))
        own[what] = f"{float(found.value(of_small(what))[0]):.3g} [{float(low[0]):.3g}, {float(high[0]):.3g}]"
    return (
        f"Each inserted alone into {small}, on {found.n_sequences} held-out sequences "
        f"({int(found.sums['tokens'].sum())} tokens): paired changes with 95 % bootstrap intervals over sequences, CE "
        f"and KL in nats a token. {small} itself: CE increase {own['CE']}, KL {own['KL']}. The first change in MSE is "
        "that of the training sample, by which latents were chosen."
    )


# Sentences


def novelty_title(pair: SingleInsertions) -> str:
    """The question."""
    small, large = pair.small.name, pair.large.name
    if is_control(pair.small, pair.large):
        return f"How much is novel between two seeds? {large} and {small}"
    return f"What does {large} know that {small} does not?"


def novelty_summary(result: NoveltyResult, seed: int) -> str:
    """How much is novel, how well the cosine predicts it, how far that is above the floor, and what the model says."""
    pair, shares = result.pair, result.shares[0]
    kind = (
        "This is the seed control: the two differ in their seed alone, so these shares are the floor. "
        if is_control(pair.small, pair.large)
        else ""
    )
    sentences = [
        f"{kind}Inserted alone, {shares.by_effect.value:.0%} of {shares.active} active latents of {pair.large.name} "
        f"lower the error of {pair.small.name} (novel); the cosine rule at {pair.threshold:g} calls "
        f"{shares.by_cosine.value:.0%} novel.",
        _predicts(result),
    ]
    for floor, its_shares in zip(result.floor, result.shares[1:], strict=True):
        sentences.append(_above_floor(pair, floor, its_shares, excess(pair, floor, seed)))
    if result.behaviour is not None:
        sentences.append(_behaviour_sentence(result.behaviour))
    return " ".join(sentences)


def _predicts(result: NoveltyResult) -> str:
    rules = {rule.rule: rule for rule in result.thresholds if (rule.group, rule.weighting) == (ALL, UNWEIGHTED)}
    if not rules:
        return "All are of one class, so there is nothing for cosine to predict."
    area = next(one.roc for one in result.prediction if (one.group, one.weighting) == (ALL, UNWEIGHTED))
    given, best = rules[GIVEN], rules[BEST_YOUDEN]
    return (
        f"As a predictor of the measured effect, cosine has an area under the ROC curve of {area.value:.2f} "
        f"[{area.low:.2f}, {area.high:.2f}]; it is right for {given.rates['accuracy']:.0%} of latents at "
        f"{given.threshold:g} and for {best.rates['accuracy']:.0%} at {best.threshold:.2f}, the best by Youden's J."
    )


def _above_floor(pair: SingleInsertions, floor: SingleInsertions, shares: NoveltyShares, more: Estimate) -> str:
    level = shares.by_effect
    return (
        f"Of the control's latents, {level.value:.0%} [{level.low:.0%}, {level.high:.0%}] are novel to "
        f"{floor.small.name}; {pair.large.name} has {100 * more.value:.0f} [{100 * more.low:.0f}, "
        f"{100 * more.high:.0f}] points more than this floor."
    )


def _behaviour_sentence(found: BySequence) -> str:
    """How many of the latents make the model better or worse, beyond doubt."""
    parts = []
    for what in ("CE", "KL"):
        change = changes(found, what)
        better, worse = int((change.high < 0).sum()), int((change.low > 0).sum())
        parts.append(f"{what} falls for {better} and rises for {worse}")
    n = len(changes(found, "CE").value)
    return f"Of {n} latents run in the model, {' and '.join(parts)} beyond their intervals."


def novelty_warnings(result: NoveltyResult) -> tuple[str, ...]:
    """Equal weights, a reconstruction that is too short, directions of length 0, and a control that is none."""
    pair, warnings = result.pair, []
    small, large, effects = pair.small, pair.large, pair.effects
    if small.W_dec.shape == large.W_dec.shape and torch.equal(small.W_dec, large.W_dec):
        warnings.append(
            f"{large.name} and {small.name} have the same decoder: this is a test of the measurement, not of novelty."
        )
    if effects.stretch > SHRUNK:
        warnings.append(
            f"{small.name} shrinks: its reconstruction would serve best {effects.stretch:.2f} times as long. A latent "
            "that only lengthens it lowers the error too, and counts as novel. Hold the share against `control=...`."
        )
    empty = int((effects.dead & (effects.firing_rate > 0)).sum())
    if empty:
        warnings.append(
            f"{empty} latents of {large.name} are active but have a decoder direction of length 0: counted as dead."
        )
    return (*warnings, *(w for floor in result.floor for w in control_warnings(floor.small, floor.large)))
