"""Is the error worse than others of its size: tables with their captions, the summary, and warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from analyses.model_effects.pathology import plots, step_plots, tables
from analyses.model_effects.pathology.dictionary_damage import DictionaryDamage
from analyses.model_effects.pathology.estimates import DamageRatios, PathologyEstimates, pathology_estimates
from analyses.model_effects.pathology.replacement_damage import DamageSettings
from analyses.model_effects.pathology.replacements import COVARIANCE, ISOTROPIC
from dictlab.dictionary import Dictionary
from dictlab.evaluation.sites import site_of
from dictlab.numerics.statistics import Array
from dictlab.reports.report import Plot, Report, Table


class TokensMeasured(NamedTuple):
    """Tokens that occur: how each is shown, its share of the text, and how often it must occur for a row of its own."""

    words: Mapping[int, str]
    frequency: Array
    occurrences: int


def pathology_report(
    damages: Sequence[DictionaryDamage],
    dictionaries: Sequence[Dictionary],
    damage_settings: DamageSettings,
    tokens: TokensMeasured,
    settings: dict[str, Any],
    warnings: Sequence[str],
) -> Report:
    """The report of a measurement."""
    estimates = pathology_estimates(damages)
    return Report(
        title="Is the error of a reconstruction worse than others of its size?",
        summary=summary(estimates.comparison),
        tables=_tables(damages, estimates, damage_settings, tokens),
        plots=_plots(damages, estimates, damage_settings),
        settings=settings,
        inputs=tuple(dictionaries),
        warnings=(*_cautions(damages, damage_settings), *warnings),
    )


def _tables(
    damages: Sequence[DictionaryDamage],
    estimates: PathologyEstimates,
    settings: DamageSettings,
    tokens: TokensMeasured,
) -> dict[str, Table]:
    sample = plots.sample_of(damages[0])
    made = {
        "comparison": Table(
            tables.comparison(estimates.comparison),
            f"KL and CE increase in nats a token, ratios of mean KL (reconstruction over baseline); {sample}. A ratio "
            "alone misleads: it is small where the damage is small, and also where the error is large.",
        ),
        "interventions": Table(
            tables.interventions(estimates.interventions),
            "Mean damage of each replacement (nats a token; median and 99.9 % over single draws), and the "
            f"reconstruction's mean damage over it; {sample}.",
        ),
        "positions": Table(tables.positions(estimates.positions), "Mean KL by position, all tokens replaced."),
        "when": Table(
            tables.when(damages, tokens.frequency),
            f"Rank correlation over tokens of the gap, KL of the reconstruction less that of {ISOTROPIC}, and of the "
            "KL itself, with what is known of a token. Intervals keep the ranks of the whole sample.",
        ),
        "tokens": Table(
            tables.by_token(damages, tokens.occurrences, tokens.words),
            f"Tokens with {tokens.occurrences} occurrences or more, by the gap: KL of the reconstruction less "
            f"{ISOTROPIC}'s.",
        ),
    }
    if settings.positions_after:
        made["single_token"] = Table(
            tables.single_token(estimates.single_token),
            f"Only the token at position {settings.position} replaced; KL there and after it.",
        )
    if settings.random_points:
        made["far_out"] = Table(
            tables.far_out(damages, settings.position, tokens.words),
            f"The token at position {settings.position} replaced alone: KL of its reconstruction among "
            f"{settings.random_points} random points at the same distance; z in their standard deviations, "
            "percentile among them.",
        )
    if settings.sweep_contexts:
        swept = f"{len(damages[0].arrays['reach'])} sequences"
        made["equal_damage"] = Table(
            tables.equal_damage(estimates.equal_damage),
            f"At which multiple of the error's norm each direction does the reconstruction's damage; {swept}. Outside "
            "the multiples that were tried it is 0 or infinite.",
        )
        made["lengths"] = Table(tables.lengths(estimates.lengths), f"KL at multiples of the error's norm; {swept}.")
        made["sensitivity"] = Table(
            tables.sensitivity(estimates.sensitivity, damages), f"KL along unit directions times a length; {swept}."
        )
    related = tables.family(damages)
    if len(related):
        made["parents"] = Table(
            related,
            "Each dictionary beside those it was made from: difference of KL (nats a token), and its ratio to a "
            "baseline over the parent's. Below 1: less pathological than the parent.",
        )
    return made


def _plots(
    damages: Sequence[DictionaryDamage], estimates: PathologyEstimates, settings: DamageSettings
) -> dict[str, Plot]:
    drawn = {
        "ratios": plots.ratios(estimates.comparison),
        "interventions": plots.interventions(estimates.interventions, damages),
        "histograms": plots.histograms(damages),
        "positions": plots.positions(estimates.positions, damages),
    }
    if settings.positions_after:
        drawn["single_token"] = plots.single_token(estimates.single_token, damages, settings.position)
    if settings.random_points and any(math.isfinite(one.median_z) for one in estimates.comparison):
        drawn["far_out"] = step_plots.far_out(damages)
    if settings.sweep_contexts:
        drawn["equal_damage"] = step_plots.equal_damage(estimates.lengths, estimates.equal_damage, damages)
        drawn["sensitivity"] = step_plots.sensitivity(estimates.sensitivity, damages)
    if len({site_of(one.dictionary) for one in damages}) > 1:
        drawn["sites"] = plots.sites(estimates.comparison)
    return drawn


def summary(comparison: Sequence[DamageRatios]) -> str:
    """KL of the reconstruction, in nats and beside random errors of its size."""
    sentences = [_sentence(one) for one in comparison] if len(comparison) <= 2 else [_range(comparison)]
    if len({one.damage.dictionary.metadata.objective or "unknown" for one in comparison}) > 1:
        sentences.append(
            "Objectives differ, and so does the size of their errors: compare the absolute KL before the ratios."
        )
    return " ".join(sentences)


def _sentence(one: DamageRatios) -> str:
    parts = [
        f"{one.over[name].words('.2f')} times {name}"
        for name in (ISOTROPIC, COVARIANCE)
        if math.isfinite(one.over[name].value)
    ]
    ratios = f", {' and '.join(parts)} at the same distance" if parts else ""
    return f"{one.damage.name}: KL {one.kl.words('.3g')} nats a token{ratios}."


def _range(comparison: Sequence[DamageRatios]) -> str:
    parts = []
    for name in (ISOTROPIC, COVARIANCE):
        known = [(one.over[name].value, one.damage.name) for one in comparison if math.isfinite(one.over[name].value)]
        if known:
            (low, least), (high, most) = min(known), max(known)
            parts.append(f"from {low:.2f} ({least}) to {high:.2f} ({most}) times {name}")
    if not parts:
        return "No reconstruction has an error to compare with others of its size."
    return f"KL of reconstructions at the same distance: {', and '.join(parts)}."


def _cautions(damages: Sequence[DictionaryDamage], settings: DamageSettings) -> list[str]:
    """What the numbers cannot say."""
    cautions = []
    exact = [one.name for one in damages if not (one.arrays["epsilon"] > 0).any()]
    if exact:
        cautions.append(f"{', '.join(exact)}: no error at all, so no ratios.")
    constant = sorted({site_of(one.dictionary) for one in damages if one.spread == 0})
    if constant:
        cautions.append(
            f"Activations at {', '.join(constant)} do not vary on the training sample: there is no covariance, and no "
            "random errors of its shape."
        )
    alone = damages[0].arrays.get("alone")
    if alone is not None and (missing := int(np.isnan(alone[:, 0, 0]).sum())):
        cautions.append(
            f"The token at position {settings.position} does not count in {missing} of {len(alone)} sequences, where "
            "it was not replaced alone."
        )
    return cautions
