"""Which latent of one dictionary is which latent of another?

By direction, without a model. Max cosine similarity between decoder directions (Braun et al. 2024, section 4.2; MMCS in
Sharkey et al. 2022):

    nearest_A(i) = argmax_j cos(a_i, b_j)          MMCS(A -> B) = mean_i max_j cos(a_i, b_j)

signed, many to one, and not symmetric: MMCS(A -> B) asks how much of A is in B. One-to-one assignment of latents, whose
mean cosine does not grow with duplicates (Paulo and Belrose 2025; Song et al. 2025, signed here), of the decoder's
directions and apart from that of the encoder's, and by deciles of the firing rate.

By activation, on the same tokens: correlation, Jaccard index and conditionals of the pairs (`firing`), and where
direction and firing part ways. As whole spaces: `spaces`.

Every similarity stands beside the values that chance gives, and beside the seed floor: the same between dictionaries
that differ in seed alone. Dead latents are left out first, and counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, TypeVar

import pandas as pd

from analyses.common.chance import chance_levels, comparison_notes
from analyses.common.compatibility import check_same_place
from analyses.common.distributed_search import ranks
from analyses.common.inputs import DataLike
from analyses.common.opening import DictionaryLike, ModelLike, TextLike, open_dictionaries
from analyses.common.seed_floor import (
    Similarity,
    mean_known,
    relation_table,
    similarity_table,
    with_seed_floors,
    without_floor,
)
from analyses.similarity.matching.coactivation_report import Fired, fired, firing_columns
from analyses.similarity.matching.code_sample import Sample, sampled, with_firing_rates
from analyses.similarity.matching.latent_pairs import Pair, matching_cost, paired
from analyses.similarity.matching.plots import histogram, matrix, quadrant_plots, strata_plot, threshold_curves
from analyses.similarity.matching.report import (
    OrderedPair,
    Stratum,
    assignment_table,
    direction_similarities,
    neighbour_table,
    ordered_pairs,
    overview_table,
    pair_table,
    strata,
    strata_table,
    threshold_shares,
    threshold_table,
)
from analyses.similarity.matching.representation_report import compared_spaces, space_plot
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError, check_at_least
from dictlab.reports.report import Plot, Report, Table
from dictlab.runtime.progress import track

T = TypeVar("T")
DETAILED = 6  # pairs of dictionaries whose latents are listed: all of four dictionaries'


def matching(
    dictionaries: Sequence[DictionaryLike],
    *,
    neighbours: int = 3,
    threshold: float = 0.7,
    correlation_threshold: float = 0.5,
    min_active_tokens: int = 50,
    ridge: float = 0.01,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    data: DataLike | None = None,
    tokens: int = 65_536,
    permutations: int = 100,
    seed: int = 0,
    device: str = "cpu",
    token_selection: str | None = None,
) -> Report:
    """Which latent of one dictionary is which latent of another, by direction and by what it fires on?

    Args:
        dictionaries: Two or more at the same site.
        neighbours: Nearest latents listed for each latent.
        threshold: Cosine of decoder directions from which two latents count as the same.
        correlation_threshold: Correlation of activations from which two latents have the same trigger.
        min_active_tokens: Tokens at which a latent must be active for its activations to be compared.
        ridge: Of the prediction of codes from codes, as a share of the mean variance of a latent.
        model: The language model; by default the one that the dictionaries name. Where it is out of
            reach, directions alone are compared.
        text: Where tokens come from. Its training split is used.
        data: Activations in place of model and text: an array, or a .npy or .safetensors file.
        tokens: Training tokens to sample. 0 to compare no activations and open no model.
        permutations: Shuffles behind each p-value.
        seed: Seed of everything that is drawn at random.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.

    Returns:
        A report with these tables; in brackets what is there only where there is such a thing.

        overview: from; to; MMCS; low; high; chance (isotropic); chance (shaped); seed floor; share above threshold;
            mutual nearest; share mutual; one to one, decoder; one to one, encoder; alive latents; dead latents;
            relation; seeds
        similarities: relation; seeds; measure; from; to; value; low; high; chance (isotropic); chance (shaped); seed
            floor; shuffled, mean; shuffled, p; over
        relations: measure; relation; seeds; mean; lowest; highest; rows
        assignment: from; to; matrix; latents of; pairs; MCC; bound; exact; same pair in the other matrix; cosine of
            decoder pairs
        thresholds: from; to; threshold; max cosine, A in B; max cosine, B in A; mutual nearest; assigned, decoder;
            assigned, both; aligned; aligned, chance (shaped)
        [strata]: relation; seeds; from; to; decile; rate from; rate to; MCC; low; high; chance (isotropic); chance
            (shaped); seed floor; over
        pairs: from; to; latent; partner; cosine; encoder cosine; same pair by encoder; mutual nearest; [correlation];
            [correlation, low]; [correlation, high]; [Jaccard]; [Jaccard, low]; [Jaccard, high]; [P(A fires | B fires)];
            [P(A fires | B fires), low]; [P(A fires | B fires), high]; [P(B fires | A fires)]; [P(B fires | A fires),
            low]; [P(B fires | A fires), high]
        [off_diagonal]: from; to; quadrant; latent; partner; nearest by; cosine; correlation; low; high; clear; Jaccard;
            P(A fires | B fires); P(B fires | A fires)
        [reconstruction]: from; to; latent; R²; low; high
        latents: from; to; latent; rank; neighbour; cosine; mutual

    Example:
        dictlab report matching a.safetensors b.safetensors c.safetensors --neighbours 5
        dictlab report matching a.safetensors b.safetensors --data activations.npy
    """
    check_at_least(1, neighbours=neighbours, permutations=permutations)
    check_at_least(2, min_active_tokens=min_active_tokens)
    check_at_least(0, seed=seed, tokens=tokens)
    _check_levels(threshold=threshold, correlation_threshold=correlation_threshold)
    if not 0 < ridge < math.inf:
        raise DictlabError(f"ridge is {ridge:g}; expected more than 0.")
    given = open_dictionaries(
        dictionaries, analysis="matching", least=2, in_place=True, token_selection=token_selection
    )
    check_same_place(given, model)
    sample, warnings = sampled(given, model, text, tokens, seed, device, data)
    opened = [dictionary.to("cpu") for dictionary in with_firing_rates(given, sample)]
    with ranks():
        matching_cost(opened).announce()
        pairs = [
            paired(a, b, top=neighbours, seed=seed) for a, b in _progress(list(combinations(opened, 2)), "directions")
        ]
    levels = {d.name: chance_levels(d, seed) for d in opened}
    found = [s for pair in pairs for s in direction_similarities(pair, levels, threshold, seed)]
    firing: list[Fired] = []
    if sample is not None:
        how: Any = {"fewest": min_active_tokens, "permutations": permutations, "seed": seed}
        marks: Any = {"cosine": threshold, "correlation": correlation_threshold}
        firing = [fired(pair, sample, **marks, **how) for pair in _progress(pairs, "activations")]
        found += [s for one in firing for s in one.similarities]
    spaces = [
        compared_spaces(pair, sample, ridge=ridge, fewest=min_active_tokens, permutations=permutations, seed=seed)
        for pair in _progress(pairs, "spaces")
    ]
    similarities = with_seed_floors([*found, *(s for one in spaces for s in one.similarities)], opened)
    both_ways, shares = ordered_pairs(similarities, pairs, threshold), [threshold_shares(pair) for pair in pairs]
    by_rate, rates = _strata(pairs, opened, sample, seed)
    tables = {
        "overview": Table(overview_table(both_ways), _OVERVIEW),
        "similarities": Table(similarity_table(similarities), _SIMILARITIES),
        "relations": Table(relation_table(similarities), _RELATIONS),
        "assignment": Table(assignment_table(pairs), _ASSIGNMENT),
        "thresholds": Table(threshold_table(shares), _THRESHOLDS),
    }
    plots: dict[str, Plot] = {"matrix": matrix(opened, both_ways)} if len(opened) > 2 else {}
    plots |= {"cosines": histogram(pairs, both_ways), "thresholds": threshold_curves(shares)}
    plots["spaces"] = space_plot(similarities)
    if by_rate:
        tables["strata"] = Table(
            strata_table([one for own in by_rate for one in own]), f"{_STRATA} Firing rates {rates}."
        )
        plots["strata"] = strata_plot(by_rate, rates)
    if sample is not None:
        n = f"{sample.n_tokens} tokens, latents active at {min_active_tokens} or more"
        plots |= quadrant_plots([one.points for one in firing], threshold, correlation_threshold, n)
    settings: dict[str, Any] = {"neighbours": neighbours, "threshold": threshold}
    settings |= {"correlation_threshold": correlation_threshold, "min_active_tokens": min_active_tokens, "ridge": ridge}
    settings |= {"tokens": 0} if sample is None else sample.about
    return Report(
        title=_title(opened),
        summary=_summary(opened, both_ways, similarities, threshold),
        tables=tables | _details(pairs, firing, [one.latents for one in spaces], correlation_threshold),
        plots=plots,
        settings=settings | {"permutations": permutations, "seed": seed},
        inputs=tuple(opened),
        warnings=(
            *warnings,
            *comparison_notes(given, {} if sample is None else sample.dead()),
            *without_floor([one.mmcs.relation for one in both_ways]),
            *_left_out(pairs, by_rate),
        ),
    )


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
_TOLD = (
    "Cross-reconstruction: share of the variance of each latent of the first, on sequences that were not fitted, that "
    "the second's codes tell by ridge regression; worst told first, 95 % bootstrap interval over sequences."
)


def _check_levels(**levels: float) -> None:
    for name, level in levels.items():
        if not -1 <= level <= 1:
            raise DictlabError(f"{name} is {level:g}; expected -1 to 1.")


def _progress(pairs: list[T], what: str) -> Iterator[T]:
    yield from track(pairs, what, unit="pairs")


def _strata(
    pairs: Sequence[Pair], opened: Sequence[Dictionary], sample: Sample | None, seed: int
) -> tuple[list[list[Stratum]], str]:
    """MCC by decile of the firing rate, and where the rates are from: measured if there is a sample, else the files."""
    if sample is not None:
        rates, source = sample.rates(), f"measured on {sample.n_tokens} tokens"
    else:
        rates, source = {d.name: d.firing_rate for d in opened if d.firing_rate is not None}, "from the files"
    known = [pair for pair in pairs if pair.small.name in rates]
    by_pair = [strata(pair, rates, seed) for pair in known]
    floored = iter(with_seed_floors([one.mcc for deciles in by_pair for one in deciles], opened))
    return [[one._replace(mcc=next(floored)) for one in deciles] for deciles in by_pair], source


_OF = {"latent": "from", "partner": "to"}  # the columns that name the dictionaries of a pair of latents


def _details(
    pairs: Sequence[Pair], firing: Sequence[Fired], told: Sequence[pd.DataFrame | None], correlation: float
) -> dict[str, Table]:
    """Tables of latents, of the first `DETAILED` pairs of dictionaries."""
    shown, fired_too = pairs[:DETAILED], firing[:DETAILED]
    listed = [pair_table(pair) for pair in shown]
    if fired_too:
        listed = [
            pd.concat([one, firing_columns(own.matched)], axis=1) for one, own in zip(listed, fired_too, strict=True)
        ]
    tables = {"pairs": Table(pd.concat(listed, ignore_index=True), _PAIRS, named_in=_OF)}
    if fired_too:
        caption = (
            f"Latents whose direction and trigger part ways, those furthest from a correlation of {correlation:g} "
            "first; each latent with its nearest by direction and by correlation. Clear: the 95 % bootstrap interval "
            "over sequences lies on the same side."
        )
        off = pd.concat([own.listed for own in fired_too], ignore_index=True)
        tables["off_diagonal"] = Table(off, caption, named_in=_OF)
    known = [one for one in told[:DETAILED] if one is not None]
    if known:
        tables["reconstruction"] = Table(pd.concat(known, ignore_index=True), _TOLD, named_in={"latent": "from"})
    near = pd.concat([neighbour_table(pair) for pair in shown], ignore_index=True)
    tables["latents"] = Table(
        near,
        "The nearest latents of the other dictionary, for each alive one.",
        named_in={"latent": "from", "neighbour": "to"},
    )
    return tables


def _left_out(pairs: Sequence[Pair], by_rate: Sequence[Sequence[Stratum]]) -> list[str]:
    said = []
    if not by_rate:
        said.append("No firing rates are known, so the one-to-one pairs are not told apart by them.")
    if len(pairs) > DETAILED:
        said.append(
            f"Latents are listed for the first {DETAILED} of {len(pairs)} pairs of dictionaries; "
            "give fewer dictionaries for the others."
        )
    return said


def _title(opened: Sequence[Dictionary]) -> str:
    if len(opened) == 2:
        return f"Which latents do {opened[0].name} and {opened[1].name} share?"
    return f"Which latents do {len(opened)} dictionaries share?"


def _summary(
    opened: Sequence[Dictionary],
    both_ways: Sequence[OrderedPair],
    similarities: Sequence[Similarity],
    threshold: float,
) -> str:
    if len(opened) == 2:
        first, second = both_ways
        sentence = (
            f"A latent of {first.mmcs.of} has a mean max cosine of {first.mmcs.value:.3f} with {first.mmcs.to} "
            f"(chance: {first.mmcs.isotropic:.3f}, shaped {first.mmcs.shaped:.3f}), the other way "
            f"{second.mmcs.value:.3f}; {first.share_above_threshold:.0%} lie above {threshold:g}, and "
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


_NAMED = {
    "MCC, decoder": "one to one, the mean cosine of pairs is",
    "correlation, matched pairs": "the mean correlation of their activations is",
}
