"""Does a dictionary's error do more damage than an error of its size has to?

The activation x is replaced by its reconstruction, and by other points at the same distance epsilon; the damage is

    KL_t = sum_v P_t(v) (log P_t(v) - log Q_t(v))      P original, Q altered; nats
    CE increase                                        of the true next token; nats

and the ratio of mean damages, reconstruction over baseline, says how pathological the error is (Gurnee 2024). Which
baseline is fair is the question: isotropic noise is unlike any activation, and better baselines share the covariance of
activations, or are made of real ones (Lee and Heimersheim 2024). All interventions are in `perturbations`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyses.common.inputs import (
    DictionaryLike,
    ModelLike,
    TextLike,
    context_of,
    in_model,
    open_dictionaries,
    open_model,
    open_text,
)
from analyses.common.token_texts import token_text
from analyses.model_effects import pathology_plots as plots
from analyses.model_effects import pathology_tables as tables
from analyses.model_effects.dictionary_damage import DictionaryDamage
from analyses.model_effects.replacement_damage import DamageSettings, measure_damage, measure_sites
from analyses.model_effects.replacements import COVARIANCE, ISOTROPIC, RECONSTRUCTION
from dictlab.data.packing import leading_tokens
from dictlab.data.text import Text
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.evaluate import site_of
from dictlab.evaluation.recorded_selection import all_tokens_warning
from dictlab.model.language_model import LanguageModel
from dictlab.reports.report import Plot, Report, Table

PER_COORDINATE = 50  # tokens that a covariance is estimated from, for each coordinate of the activation
POSITION = 32  # the token replaced alone, where contexts are long enough


def pathology(
    dictionaries: Sequence[DictionaryLike],
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    contexts: int = 64,
    context_length: int | None = None,
    prepend_bos: bool = False,
    draws: int = 2,
    position: int | None = None,
    positions_after: int = 16,
    random_points: int = 500,
    sweep_contexts: int = 8,
    min_occurrences: int = 10,
    seed: int = 0,
    device: str = "cpu",
) -> Report:
    """Does a dictionary's error do more damage to the model than other errors of its size?

    Args:
        dictionaries: One or more, at one site or at several.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from. Its held-out split to measure on, its training split for covariances.
        contexts: Held-out sequences to measure on.
        context_length: Tokens a sequence; by default what the dictionaries were trained on.
        prepend_bos: Begin each sequence with the tokenizer's beginning-of-text token.
        draws: Draws of each random intervention at every token.
        position: The token that is replaced alone; by default 32, or the middle of a shorter sequence.
        positions_after: Positions after it at which the damage is measured; 0 leaves single-token interventions out.
        random_points: Random points at the same distance, to rank the KL of that token's reconstruction against; 0
            leaves this out.
        sweep_contexts: Sequences on which steps of many lengths are taken; 0 leaves these out.
        min_occurrences: How often a token has to occur for a row of its own.
        seed: Seed of everything that is drawn at random.
        device: Where to run: cpu, cuda, ...

    Example:
        dictlab report pathology local.safetensors e2e.safetensors stitched.safetensors --contexts 64
        dictlab report pathology gpt2-layer6.safetensors --contexts 1600 --context-length 128 --prepend-bos
    """
    check_at_least(0, positions_after=positions_after, sweep_contexts=sweep_contexts, seed=seed)
    check_at_least(1, draws=draws, min_occurrences=min_occurrences)
    check_at_least(2, contexts=contexts)
    if random_points == 1 or random_points < 0:
        raise DictlabError(
            f"random_points is {random_points}; expected 2 or more points to be among, or 0 to leave this out."
        )
    opened = open_dictionaries(dictionaries)
    sites = list(dict.fromkeys(site_of(dictionary) for dictionary in opened))
    model, text = open_model(model, opened, device), open_text(text)
    for site in sites:
        model.block_input(site)  # refuses, before any work, what cannot be resumed from
    size = model.context_length(context_length) if context_length else context_of(opened, model, text)
    position = _position(position, size)
    damage = DamageSettings(
        draws, position, min(positions_after, size - 1 - position), random_points, sweep_contexts, seed
    )
    elsewhere, tokens = _tokens(model, text, size, prepend_bos, (_needed(opened, size), contexts), seed)
    site_statistics = measure_sites(model, elsewhere, sites)
    on_device = in_model(opened, model)
    arrays = measure_damage(on_device, model, tokens, site_statistics, damage)
    found = [
        DictionaryDamage(dictionary, own, site_statistics[site_of(dictionary)].spread, seed)
        for dictionary, own in zip(opened, arrays, strict=True)
    ]
    words, frequency = _words(model, tokens), _frequencies(model, torch.cat([elsewhere, tokens]))
    made = _tables(found, damage, words, frequency, min_occurrences)
    return Report(
        title="Is the error of a reconstruction worse than others of its size?",
        summary=_summary(found),
        tables=made,
        plots=_plots(found, made, damage),
        settings={
            "text": text.name,
            "model": model.name,
            "context": size,
            "prepend_bos": prepend_bos,
            "contexts": found[0].sequences,
            "tokens_of_covariance": elsewhere[:, 1:].numel(),
            "min_occurrences": min_occurrences,
            "device": str(model.device),
        }
        | damage._asdict(),
        inputs=tuple(opened),
        warnings=(*_warnings(found, contexts, tokens, elsewhere), *all_tokens_warning(opened)),
    )


def _position(asked: int | None, size: int) -> int:
    """The token to replace alone.

    Raises:
        DictlabError: There is none, or it has no next token.
    """
    if asked is None:
        return min(POSITION, size // 2)
    if not 0 <= asked <= size - 2:
        raise DictlabError(f"position is {asked}; in sequences of {size} tokens, 0 to {size - 2} have a next token.")
    return asked


def _needed(dictionaries: Sequence[Dictionary], size: int) -> int:
    """Sequences that the covariance of the widest site needs."""
    return max(8, -(-PER_COORDINATE * max(d.d_in for d in dictionaries) // (size - 1)))


def _tokens(
    model: LanguageModel, text: Text, size: int, begin: bool, counts: tuple[int, int], seed: int
) -> tuple[Tensor, Tensor]:
    """Sequences of the training split, for covariances, and of the held-out split, to measure on."""
    start: list[int] = []
    if begin and not leading_tokens(model.tokenizer):
        if model.tokenizer.bos_token_id is None:
            raise DictlabError(f"{model.name}: its tokenizer has no beginning-of-text token; leave --prepend-bos out.")
        start = [model.tokenizer.bos_token_id]
    drawn = []
    for split, count in zip(("train", "heldout"), counts, strict=True):
        one = text.as_split(split).sample(model.tokenizer, size - len(start), count, seed=seed)  # type: ignore[arg-type]
        drawn.append(torch.cat([torch.tensor(start, dtype=one.dtype).expand(len(one), -1), one], dim=1))
    if len(drawn[1]) < 2:
        raise DictlabError(
            f"text {text.name}: its held-out split holds {len(drawn[1])} sequence of {size} tokens; intervals need 2. "
            "Give more text, or a shorter --context-length."
        )
    return drawn[0], drawn[1]


def _words(model: LanguageModel, tokens: Tensor) -> dict[int, str]:
    """How each token that occurs is shown, in quotes so that spaces can be seen."""
    return {token: f"'{token_text(model.tokenizer, token)}'" for token in tokens.unique().tolist()}


def _frequencies(model: LanguageModel, tokens: Tensor) -> np.ndarray:
    """Share of each token in the text that was looked at."""
    counts = np.bincount(tokens.flatten().numpy(), minlength=model.vocabulary)
    found: np.ndarray = counts / counts.sum()
    return found


def _tables(
    found: Sequence[DictionaryDamage],
    damage: DamageSettings,
    words: Mapping[int, str],
    frequency: np.ndarray,
    occurrences: int,
) -> dict[str, Table]:
    sample = plots.sample_of(found[0])
    made = {
        "comparison": Table(
            tables.comparison(found),
            f"KL and CE increase in nats a token, ratios of mean KL (reconstruction over baseline); {sample}. A ratio "
            "alone misleads: it is small where the damage is small, and also where the error is large.",
        ),
        "interventions": Table(
            tables.interventions(found),
            "Mean damage of each replacement (nats a token; median and 99.9 % over single draws), and the "
            f"reconstruction's mean damage over it; {sample}.",
        ),
        "positions": Table(tables.positions(found), "Mean KL by position, all tokens replaced."),
        "when": Table(
            tables.when(found, frequency),
            f"Rank correlation over tokens of the gap, KL of the reconstruction less that of {ISOTROPIC}, and of the "
            "KL itself, with what is known of a token. Intervals keep the ranks of the whole sample.",
        ),
        "tokens": Table(
            tables.by_token(found, occurrences, words),
            f"Tokens with {occurrences} occurrences or more, by the gap: KL of the reconstruction less {ISOTROPIC}'s.",
        ),
    }
    if damage.positions_after:
        made["single_token"] = Table(
            tables.alone(found), f"Only the token at position {damage.position} replaced; KL there and after it."
        )
    if damage.random_points:
        made["far_out"] = Table(
            tables.far_out(found, damage.position, found[0].arrays["tokens"], words),
            f"The token at position {damage.position} replaced alone: KL of its reconstruction among "
            f"{damage.random_points} random points at the same distance; z in their standard deviations, percentile "
            "among them.",
        )
    if damage.sweep_contexts:
        swept = f"{len(found[0].arrays['reach'])} sequences"
        made["equal_damage"] = Table(
            tables.equal_damage(found),
            f"At which multiple of the error's norm each direction does the reconstruction's damage; {swept}. Outside "
            "the multiples that were tried it is 0 or infinite.",
        )
        made["lengths"] = Table(tables.curves(found), f"KL at multiples of the error's norm; {swept}.")
        made["sensitivity"] = Table(tables.steps(found), f"KL along unit directions times a length; {swept}.")
    related = tables.family(found)
    if len(related):
        made["parents"] = Table(
            related,
            "Each dictionary beside those it was made from: difference of KL (nats a token), and its ratio to a "
            "baseline over the parent's. Below 1: less pathological than the parent.",
        )
    return made


def _plots(found: Sequence[DictionaryDamage], made: Mapping[str, Table], damage: DamageSettings) -> dict[str, Plot]:
    frames: dict[str, Any] = {name: table.frame for name, table in made.items()}
    drawn = {
        "ratios": plots.ratios(frames["comparison"], found),
        "interventions": plots.bars(frames["interventions"], found),
        "histograms": plots.histograms(found),
        "positions": plots.by_position(frames["positions"], found),
    }
    if damage.positions_after:
        drawn["single_token"] = plots.decay(frames["single_token"], found, damage.position)
    if damage.random_points:
        drawn["far_out"] = plots.strip(found)
    if damage.sweep_contexts:
        drawn["equal_damage"] = plots.equal_damage(frames["lengths"], frames["equal_damage"], found)
        drawn["sensitivity"] = plots.sensitivity(frames["sensitivity"], found)
    if len({site_of(one.dictionary) for one in found}) > 1:
        drawn["sites"] = plots.sites(frames["comparison"])
    return drawn


def _summary(found: Sequence[DictionaryDamage]) -> str:
    sentences = [_sentence(one) for one in found] if len(found) <= 2 else [_range(found)]
    if len({one.dictionary.metadata.objective or "unknown" for one in found}) > 1:
        sentences.append(
            "Objectives differ, and so does the size of their errors: compare the absolute KL before the ratios."
        )
    return " ".join(sentences)


def _sentence(one: DictionaryDamage) -> str:
    kl = one.mean(one.kl(RECONSTRUCTION))
    ratios = {name: one.over(name) for name in (ISOTROPIC, COVARIANCE)}
    parts = [f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] times {name}" for name, ratio in ratios.items()]
    return (
        f"{one.name}: KL {kl.value:.3g} [{kl.low:.3g}, {kl.high:.3g}] nats a token, "
        f"{' and '.join(parts)} at the same distance."
    )


def _range(found: Sequence[DictionaryDamage]) -> str:
    parts = []
    for name in (ISOTROPIC, COVARIANCE):
        known = [(ratio, one.name) for one in found if (ratio := one.over(name).value) == ratio]
        if known:
            (low, least), (high, most) = min(known), max(known)
            parts.append(f"from {low:.2f} ({least}) to {high:.2f} ({most}) times {name}")
    return f"KL of reconstructions at the same distance: {', and '.join(parts)}."


def _warnings(found: Sequence[DictionaryDamage], contexts: int, tokens: Tensor, elsewhere: Tensor) -> tuple[str, ...]:
    said, n = [], found[0].sequences
    if n < len(tokens):
        said.append(f"Interrupted: a partial report, of {n} of {len(tokens)} contexts.")
    elif n < contexts:
        said.append(f"The text holds {n} contexts, {contexts} were asked for.")
    width = max(one.dictionary.d_in for one in found)
    seen = elsewhere[:, 1:].numel()
    if seen < PER_COORDINATE * width:
        said.append(
            f"The covariance was estimated from {seen} tokens; {PER_COORDINATE * width} are advisable for {width} "
            "coordinates. Give more text."
        )
    exact = [one.name for one in found if not one.arrays["epsilon"].any()]
    if exact:
        said.append(f"{', '.join(exact)}: no error at all, so no ratios.")
    return tuple(said)
