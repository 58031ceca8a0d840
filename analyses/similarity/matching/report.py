"""What the comparison of dictionaries says: tables with their captions, plots, title, summary and warnings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analyses.common.seed_floor import Similarity, mean_known, relation_table, similarity_table, without_floor
from analyses.similarity.matching.coactivation_report import Fired, firing_columns
from analyses.similarity.matching.direction_similarities import OrderedPair, Stratum, ThresholdShares
from analyses.similarity.matching.direction_tables import (
    assignment_table,
    neighbour_table,
    overview_table,
    pair_table,
    strata_table,
    threshold_table,
)
from analyses.similarity.matching.latent_pairs import Pair
from analyses.similarity.matching.plots import histogram, matrix, quadrant_plots, strata_plot, threshold_curves
from analyses.similarity.matching.representation_report import ComparedSpaces, space_plot
from dictlab.dictionary import Dictionary
from dictlab.reports.report import Plot, Table

DETAILED = 6  # pairs of dictionaries whose latents are listed: all of four dictionaries'


@dataclass(frozen=True, eq=False)
class MatchingResult:
    """Everything that was measured.

    Attributes:
        dictionaries: In the order given.
        pairs: Nearest neighbours and one-to-one pairs of every two of them.
        similarities: All of them, with intervals, chance levels and seed floors.
        both_ways: Mean max cosines of every ordered pair.
        shares: Shares of latents above each cosine, by pair.
        strata: MCC by decile of the firing rate, by pair whose rates are known.
        rate_source: Where the firing rates are from.
        firing: How the pairs are active together; empty without activations.
        spaces: How well each dictionary's codes predict the other's, and CKA, by pair.
        threshold: Cosine from which two latents count as the same.
        correlation_threshold: Correlation from which they have the same trigger.
        min_active_tokens: Tokens at which a latent must be active to be compared by its activations.
        n_tokens: Tokens of the sample; None without activations.
    """

    dictionaries: Sequence[Dictionary]
    pairs: Sequence[Pair]
    similarities: Sequence[Similarity]
    both_ways: Sequence[OrderedPair]
    shares: Sequence[ThresholdShares]
    strata: Sequence[Sequence[Stratum]]
    rate_source: str
    firing: Sequence[Fired]
    spaces: Sequence[ComparedSpaces]
    threshold: float
    correlation_threshold: float
    min_active_tokens: int
    n_tokens: int | None


def matching_tables(result: MatchingResult) -> dict[str, Table]:
    """All tables, with their captions."""
    tables = {
        "overview": Table(overview_table(result.both_ways), _OVERVIEW),
        "similarities": Table(similarity_table(result.similarities), _SIMILARITIES),
        "relations": Table(relation_table(result.similarities), _RELATIONS),
        "assignment": Table(assignment_table(result.pairs), _ASSIGNMENT),
        "thresholds": Table(threshold_table(result.shares), _THRESHOLDS),
    }
    if result.strata:
        deciles = [stratum for pair in result.strata for stratum in pair]
        tables["strata"] = Table(strata_table(deciles), f"{_STRATA} Firing rates {result.rate_source}.")
    predicted = [space.latents for space in result.spaces]
    return tables | _details(result.pairs, result.firing, predicted, result.correlation_threshold)


def matching_plots(result: MatchingResult) -> dict[str, Plot]:
    """All plots."""
    plots: dict[str, Plot] = {}
    if len(result.dictionaries) > 2:
        plots["matrix"] = matrix(result.dictionaries, result.both_ways)
    plots["cosines"] = histogram(result.pairs, result.both_ways)
    plots["thresholds"] = threshold_curves(result.shares)
    plots["spaces"] = space_plot(result.similarities)
    if result.strata:
        plots["strata"] = strata_plot(result.strata, result.rate_source)
    if result.n_tokens is not None:
        sample = f"{result.n_tokens} tokens, latents active at {result.min_active_tokens} or more"
        points = [pair.points for pair in result.firing]
        plots |= quadrant_plots(points, result.threshold, result.correlation_threshold, sample)
    return plots


def matching_title(opened: Sequence[Dictionary]) -> str:
    """The question that the report answers."""
    if len(opened) == 2:
        return f"Which latents do {opened[0].name} and {opened[1].name} share?"
    return f"Which latents do {len(opened)} dictionaries share?"


def matching_summary(result: MatchingResult) -> str:
    """The mean max cosines, the one-to-one pairs and their correlations, beside chance."""
    opened, both_ways, similarities = result.dictionaries, result.both_ways, result.similarities
    if len(opened) == 2:
        first, second = both_ways
        sentence = (
            f"A latent of {first.mmcs.of} has a mean max cosine of {first.mmcs.value:.3f} with {first.mmcs.to} "
            f"(chance: {first.mmcs.isotropic:.3f}, shaped {first.mmcs.shaped:.3f}), the other way "
            f"{second.mmcs.value:.3f}; {first.share_above_threshold:.0%} lie above {result.threshold:g}, and "
            f"{first.n_mutual} pairs are each other's nearest. "
        )
    else:
        grouped: dict[tuple[str, str], list[float]] = {}
        for one in both_ways:
            grouped.setdefault((one.mmcs.relation, one.mmcs.seeds), []).append(one.mmcs.value)
        means = [f"{name} ({s} seeds) {mean_known(v):.3f} in {len(v)}" for (name, s), v in grouped.items()]
        sentence = f"Mean max cosine: {'; '.join(means)} ordered pairs. "
    for measure, name in _NAMED.items():
        measured = [s for s in similarities if s.measure == measure]
        values = [s.value for s in measured if not math.isnan(s.value)]
        chance = [s.shaped for s in measured if not math.isnan(s.shaped)]
        if values:
            what = f"{name} {mean_known(values):.3f}" + (" on average" if len(values) > 1 else "")
            sentence += f"{what[0].upper()}{what[1:]}"
            sentence += f" (chance, shaped: {mean_known(chance):.3f}). " if chance else ". "
        elif measured:
            sentence += "No pair of latents is active often enough, and varies, for a correlation. "
    return sentence.strip()


def matching_warnings(result: MatchingResult) -> list[str]:
    """What the tables leave out, and similarities that have no seed floor."""
    pairs, warnings = result.pairs, [*without_floor([one.mmcs.relation for one in result.both_ways])]
    if not result.strata:
        warnings.append("No firing rates are known, so the one-to-one pairs are not told apart by them.")
    if len(pairs) > DETAILED:
        warnings.append(
            f"Latents are listed for the first {DETAILED} of {len(pairs)} pairs of dictionaries; "
            "give fewer dictionaries for the others."
        )
    return warnings


_OF = {"latent": "from", "partner": "to"}  # the columns that name the dictionaries of a pair of latents


def _details(
    pairs: Sequence[Pair], firing: Sequence[Fired], predicted: Sequence[pd.DataFrame | None], correlation: float
) -> dict[str, Table]:
    """Tables of latents, of the first `DETAILED` pairs of dictionaries."""
    shown, joint = pairs[:DETAILED], firing[:DETAILED]
    listed = [pair_table(pair) for pair in shown]
    if joint:
        listed = [
            pd.concat([one, firing_columns(activity.matched)], axis=1)
            for one, activity in zip(listed, joint, strict=True)
        ]
    tables = {"pairs": Table(pd.concat(listed, ignore_index=True), _PAIRS, named_in=_OF)}
    if joint:
        caption = (
            f"Latents whose direction and trigger part ways, those furthest from a correlation of {correlation:g} "
            "first; each latent with its nearest by direction and by correlation. Clear: the 95 % bootstrap interval "
            "over sequences lies on the same side."
        )
        off = pd.concat([pair.listed for pair in joint], ignore_index=True)
        tables["off_diagonal"] = Table(off, caption, named_in=_OF)
    known = [table for table in predicted[:DETAILED] if table is not None]
    if known:
        tables["reconstruction"] = Table(
            pd.concat(known, ignore_index=True), _RECONSTRUCTION, named_in={"latent": "from"}
        )
    near = pd.concat([neighbour_table(pair) for pair in shown], ignore_index=True)
    tables["latents"] = Table(
        near,
        "The nearest latents of the other dictionary, for each alive one.",
        named_in={"latent": "from", "neighbour": "to"},
    )
    return tables


_OVERVIEW = (
    "One row an ordered pair. Mean max cosine similarity of the latents of the first with the second, 95 % bootstrap "
    "interval over latents, and what random directions reach; seed floor: the same with the first in its other seeds. "
    "One to one: mean cosine of the assignment; its chance level and floor are among the similarities."
)
_SIMILARITIES = (
    "Every similarity with its 95 % interval, the values that random latents reach (directions uniform, or shaped like "
    "the other dictionary's own; firing as often), the mean over shuffles of who belongs to whom and the one-sided "
    "p-value against them, and the seed floor: the mean over pairs that differ in seed alone and share a dictionary "
    "with this one."
)
_RELATIONS = "Means of the similarities over the pairs of each relation; those of one seed apart."
_ASSIGNMENT = "One-to-one assignment by cosine, of decoders and of encoders. No assignment's mean exceeds the bound."
_THRESHOLDS = (
    "Share of the smaller dictionary's latents (of each, for max cosines) by the cosine from which two are the same. "
    "Aligned: decoder and encoder assignments agree, and both cosines reach it."
)
_STRATA = (
    "PW-MCC (signed mean cosine of one-to-one pairs) by decile of the firing rate of the smaller dictionary's latent; "
    "95 % bootstrap intervals over latents."
)
_PAIRS = (
    "The one-to-one pairs by decoder. Correlation of activations, Jaccard index and conditionals of firing sets with "
    "95 % bootstrap intervals over sequences, where both latents fire often enough."
)
_RECONSTRUCTION = (
    "Cross-reconstruction: share of the variance of each latent of the first, on sequences that were not fitted, that "
    "ridge regression predicts from the second's codes; worst predicted first, 95 % bootstrap interval over sequences."
)
_NAMED = {
    "MCC, decoder": "one to one, the mean cosine of pairs is",
    "correlation, matched pairs": "the mean correlation of their activations is",
}
