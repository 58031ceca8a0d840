"""How well are the latents of a dictionary explained, and what is their simulation worth: means with intervals.

Precision, recall and F1 are means over latents, with bootstrap intervals over latents; losses of the spliced model are
ratios of sums over tokens, with intervals over sequences. Latents of two dictionaries have nothing to do with each
other, so that means over them are resampled separately; losses of two dictionaries are paired: both are measured on the
same sequences, resampled together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from analyses.features.explanations.n2g_trie import Pattern, distinct_patterns
from analyses.features.explanations.simulation import LEVELS, MEASURES, ExplainedDictionary, Score, rates
from dictlab.numerics import seeds
from dictlab.numerics.statistics import NAN, Estimate, interval, mean_draws, mean_interval, ratio, ratio_draws

RECOVERED, SIMULATED = "recovered", "CE increase, simulated"


class PatternStatistics(NamedTuple):
    """Of the patterns of a dictionary, means; NaN where it has none.

    Attributes:
        a_latent: Distinct patterns a latent.
        tokens: Tokens a pattern.
        wildcards: Share of these that are wildcards.
        at_start: Share of patterns that count only at the beginning of a context.
        unreached: Share of examples of whose activation the last tokens alone give less than half.
    """

    a_latent: float
    tokens: float
    wildcards: float
    at_start: float
    unreached: float


class ExplanationEstimates(NamedTuple):
    """One dictionary.

    Attributes:
        explained: What was measured of it.
        rates: Precision, recall and F1, means over the latents that have one, by name.
        chance: Mean share of tokens at which a latent is active: the precision of a guess.
        clean: Cross-entropy of the next token without a dictionary, nats a token.
        losses: Its increase with each of LEVELS in the place of activations, by name.
        zeroing_cost: Increase of the cross-entropy where the explained latents are 0, over the reconstruction's.
        recovered: Share of the cross-entropy that zeroing the explained latents costs, and their simulation gives back.
        less_bigram: `losses["simulated"]` less that of the bigram model.
        patterns: What its patterns are like.
    """

    explained: ExplainedDictionary
    rates: dict[str, Estimate]
    chance: float
    clean: Estimate
    losses: dict[str, Estimate]
    zeroing_cost: Estimate
    recovered: Estimate
    less_bigram: Estimate
    patterns: PatternStatistics

    @property
    def name(self) -> str:
        """The dictionary's name."""
        return self.explained.dictionary.name


class ExplanationDifference(NamedTuple):
    """A measure of one dictionary less that of an earlier one, and over it."""

    dictionary: str
    against: str
    measure: str
    difference: Estimate
    ratio: Estimate
    unit: str


class _Resampled(NamedTuple):
    """A number, and the same in each bootstrap resample."""

    value: float
    draws: NDArray[np.float64]
    unit: str


def estimate_explanations(explained: ExplainedDictionary) -> ExplanationEstimates:
    """Everything that is said of one dictionary."""
    sums, seed = explained.sums, explained.seed
    values = zip(*(rates(latent.score) for latent in explained.latents), strict=True)
    active = np.mean([latent.score.active.sum() for latent in explained.latents])
    return ExplanationEstimates(
        explained,
        {name: _mean(column, seed) for name, column in zip(MEASURES, values, strict=True)},
        float(active) / float(sums["tokens"].sum()),
        ratio(sums["clean"], sums["predicted"], seed),
        {name: ratio(sums[name] - sums["clean"], sums["predicted"], seed) for name in LEVELS},
        ratio(sums["zeroed"] - sums["reconstruction"], sums["predicted"], seed),
        ratio(sums["zeroed"] - sums["simulated"], sums["zeroed"] - sums["reconstruction"], seed),
        ratio(sums["simulated"] - sums["bigram"], sums["predicted"], seed),
        _pattern_statistics(explained),
    )


def measures(score: Score, seed: int) -> dict[str, Estimate]:
    """Precision, recall and F1 of one latent, with intervals over sequences; NaN with nothing to measure on."""
    fired, active, both = score
    estimates = ratio(both, fired, seed), ratio(both, active, seed), ratio(2 * both, fired + active, seed)
    return dict(zip(MEASURES, estimates, strict=True))


def explanation_differences(explained: Sequence[ExplainedDictionary]) -> list[ExplanationDifference]:
    """Every pair of dictionaries and measure: the later less the earlier, and over it."""
    measured = [(one.dictionary.name, _resampled_measures(one)) for one in explained]
    return [
        ExplanationDifference(name, other, measure, *_compared(own[measure], theirs[measure]), own[measure].unit)
        for (other, theirs), (name, own) in combinations(measured, 2)
        for measure in own
    ]


def _pattern_statistics(explained: ExplainedDictionary) -> PatternStatistics:
    every: list[Pattern] = [pattern for latent in explained.latents for pattern in latent.patterns]
    return PatternStatistics(
        float(np.mean([len(distinct_patterns(latent.patterns)) for latent in explained.latents])),
        _share([len(pattern.tokens) for pattern in every]),
        _share([not kept for pattern in every for kept in pattern.kept]),
        _share([pattern.at_start for pattern in every]),
        _share([not pattern.reached for pattern in every]),
    )


def _share(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else NAN


def _mean(values: Sequence[float], seed: int) -> Estimate:
    """Mean over the latents that have a value, with an interval over latents."""
    known = torch.tensor([value for value in values if value == value], dtype=torch.double)
    if not len(known):
        return Estimate(NAN)
    return Estimate(float(known.mean()), *mean_interval(known, seed))


def _resampled_measures(one: ExplainedDictionary) -> dict[str, _Resampled]:
    each = np.array([rates(latent.score) for latent in one.latents]).reshape(-1, len(MEASURES))
    means = {
        name: _resampled_mean(column, seeds.generator(one.seed, f"{name} of {one.dictionary.name}").initial_seed())
        for name, column in zip(MEASURES, each.T, strict=True)
    }
    sums = one.sums
    gained, possible = sums["zeroed"] - sums["simulated"], sums["zeroed"] - sums["reconstruction"]
    means[RECOVERED] = _resampled_ratio(gained, possible, one.seed, "share of the cross-entropy")
    means[SIMULATED] = _resampled_ratio(sums["simulated"] - sums["clean"], sums["predicted"], one.seed, "nats a token")
    return means


def _resampled_mean(column: NDArray[np.float64], seed: int) -> _Resampled:
    """Over the latents that have a value."""
    known, unit = column[np.isfinite(column)], "share of tokens"
    if len(known) < 2:
        return _Resampled(float(known.mean()) if len(known) else NAN, np.full(1, np.nan), unit)
    return _Resampled(float(known.mean()), mean_draws(known, seed), unit)


def _resampled_ratio(over: NDArray[np.float64], under: NDArray[np.float64], seed: int, unit: str) -> _Resampled:
    with np.errstate(divide="ignore", invalid="ignore"):
        return _Resampled(float(over.sum() / under.sum()), ratio_draws(over, under, seed), unit)


def _compared(one: _Resampled, other: _Resampled) -> tuple[Estimate, Estimate]:
    """Difference and ratio, each with its interval."""
    with np.errstate(divide="ignore", invalid="ignore"):
        difference, quotient = one.draws - other.draws, one.draws / other.draws
        value = float(np.divide(one.value, other.value))
    return Estimate(one.value - other.value, *interval(difference)), Estimate(value, *interval(quotient))
