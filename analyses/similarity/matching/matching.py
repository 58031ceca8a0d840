"""Which latent of one dictionary is which latent of another?

By direction, without a model. Max cosine similarity between decoder directions (Braun et al. 2024, section 4.2; MMCS in
Sharkey et al. 2022):

    nearest_A(i) = argmax_j cos(a_i, b_j)          MMCS(A -> B) = mean_i max_j cos(a_i, b_j)

signed, many to one, and not symmetric: MMCS(A -> B) asks how much of A is in B. One-to-one assignment of latents, whose
mean cosine does not grow with duplicates (Paulo and Belrose 2025; Song et al. 2025, signed here), of the decoder's
directions and apart from that of the encoder's, and by deciles of the firing rate.

By activation, on the same tokens: correlation, Jaccard index and conditionals of the pairs (`coactivation`), and where
direction and firing part ways. As whole spaces: `representation`, `code_cka`, `cross_reconstruction`.

Every similarity stands beside the values that chance gives, and beside the seed floor: the same between dictionaries
that differ in seed alone. Dead latents are left out first, and counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, TypeVar

from analyses.common.chance import chance_levels, comparison_notes
from analyses.common.compatibility import check_same_place
from analyses.common.distributed_search import ranks
from analyses.common.inputs import DataLike
from analyses.common.opening import DictionaryLike, ModelLike, TextLike, open_dictionaries
from analyses.common.seed_floor import with_seed_floors
from analyses.similarity.matching.coactivation_report import Fired, fired
from analyses.similarity.matching.code_sample import Sample, sampled, with_firing_rates
from analyses.similarity.matching.direction_similarities import (
    Stratum,
    direction_similarities,
    ordered_pairs,
    strata,
    threshold_shares,
)
from analyses.similarity.matching.latent_pairs import Pair, matching_cost, paired
from analyses.similarity.matching.report import (
    MatchingResult,
    matching_plots,
    matching_summary,
    matching_tables,
    matching_title,
    matching_warnings,
)
from analyses.similarity.matching.representation_report import compared_spaces
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError, check_at_least
from dictlab.reports.report import Report
from dictlab.runtime.progress import track

T = TypeVar("T")


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
    similarities = [s for pair in pairs for s in direction_similarities(pair, levels, threshold, seed)]
    firing: list[Fired] = []
    if sample is not None:
        how: Any = {"fewest": min_active_tokens, "permutations": permutations, "seed": seed}
        marks: Any = {"cosine": threshold, "correlation": correlation_threshold}
        firing = [fired(pair, sample, **marks, **how) for pair in _progress(pairs, "activations")]
        similarities += [s for pair in firing for s in pair.similarities]
    spaces = [
        compared_spaces(pair, sample, ridge=ridge, fewest=min_active_tokens, permutations=permutations, seed=seed)
        for pair in _progress(pairs, "spaces")
    ]
    similarities = with_seed_floors([*similarities, *(s for space in spaces for s in space.similarities)], opened)
    by_rate, rate_source = _strata(pairs, opened, sample, seed)
    result = MatchingResult(
        dictionaries=opened,
        pairs=pairs,
        similarities=similarities,
        both_ways=ordered_pairs(similarities, pairs, threshold),
        shares=[threshold_shares(pair) for pair in pairs],
        strata=by_rate,
        rate_source=rate_source,
        firing=firing,
        spaces=spaces,
        threshold=threshold,
        correlation_threshold=correlation_threshold,
        min_active_tokens=min_active_tokens,
        n_tokens=None if sample is None else sample.n_tokens,
    )
    settings: dict[str, Any] = {"neighbours": neighbours, "threshold": threshold}
    settings |= {"correlation_threshold": correlation_threshold, "min_active_tokens": min_active_tokens, "ridge": ridge}
    settings |= {"tokens": 0} if sample is None else sample.about
    return Report(
        title=matching_title(opened),
        summary=matching_summary(result),
        tables=matching_tables(result),
        plots=matching_plots(result),
        settings=settings | {"permutations": permutations, "seed": seed},
        inputs=tuple(opened),
        warnings=(
            *warnings,
            *comparison_notes(given, {} if sample is None else sample.dead()),
            *matching_warnings(result),
        ),
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
