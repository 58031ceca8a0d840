"""Can it be said in strings of tokens when a latent is active, and is what is said enough for the model?

N2G (Foote et al. 2023, as in Gao et al. 2024): patterns of tokens with wildcards from random active tokens of training
text (`pattern_building`), kept as a trie (`ngrams`), that simulate activations on held-out text (`simulation`). It asks
for nothing but the model itself. With an endpoint, a language model explains the same latents as well
(`interpretation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import torch
from tqdm import tqdm

from analyses.autointerp import report as interpretation_report
from analyses.autointerp import scores as interpretation
from analyses.autointerp.llm_client import Endpoint
from analyses.autointerp.settings import Interpreter
from analyses.common.firings import Firings, collect_firings
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
from analyses.features.bigram_baseline import Bigrams
from analyses.features.explanations_report import explanations_report
from analyses.features.n2g import last_activations, padding_of, patterns
from analyses.features.n2g_trie import Pattern, Trie
from analyses.features.simulation import (
    ExplainedDictionary,
    ExplainedLatent,
    ExplanationSample,
    drawn_examples,
    factor,
    score,
    simulated,
    spliced,
)
from dictlab import seeds
from dictlab.data.activations import capture_sequences
from dictlab.data.packing import leading_tokens
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.evaluate import firing_rates, site_of
from dictlab.reports.report import Report


class ExplainableDictionary(NamedTuple):
    """A dictionary, and where its latents that are explained are active: in training text, and in held-out text."""

    own: Dictionary
    placed: Dictionary
    chosen: list[int]
    splits: tuple[Firings, Firings]


BIGRAM_TOKENS = 1 << 20  # of training text, for the baseline


def explanations(
    dictionaries: Sequence[DictionaryLike],
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    latents: int = 32,
    examples: int = 16,
    max_pattern_length: int = 32,
    tokens: int = 65_536,
    interpreter: Interpreter | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Report:
    """Can strings of tokens with gaps say when a latent is active? And, with an endpoint, can a language model?

    Args:
        dictionaries: One or more, at one site or at several.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from. Its training split for patterns, its held-out split for scores.
        latents: Latents of each dictionary to explain, drawn from those active in the training sample; 0 for all these.
        examples: Active tokens that a latent's patterns are built from, at most.
        max_pattern_length: Tokens of a pattern, at most.
        tokens: Training tokens to sample. As many held-out tokens.
        interpreter: A language model that explains the same latents in words, and scores them; none by default.
        seed: Seed of everything that is drawn at random.
        device: Where to run: cpu, cuda, ...

    Example:
        dictlab report explanations topk16.safetensors relu20.safetensors --latents 64
        dictlab report explanations topk16.safetensors --endpoint http://127.0.0.1:8080/v1 --explainer qwen2.5-7b
    """
    if interpreter is not None:
        Endpoint(interpreter).close()  # what is wrong with it is said before the work
    check_at_least(0, seed=seed, latents=latents)
    check_at_least(1, examples=examples, max_pattern_length=max_pattern_length)
    opened = open_dictionaries(dictionaries)
    model, source = open_model(model, opened, device), open_text(text)
    for dictionary in opened:
        model.block_input(site_of(dictionary))
    length = context_of(opened, model, source)
    check_at_least(2 * length, tokens=tokens)
    padding = padding_of(model.tokenizer)
    train, held = (
        source.as_split(split).sample(model.tokenizer, length, tokens // length, seed=seed)
        for split in ("train", "heldout")
    )
    if len(held) < 2:
        raise DictlabError(f"text {source.name}: its held-out split has 1 context of {length} tokens; 2 are needed.")
    more = islice(source.as_split("train").contexts(model.tokenizer, length, seed=seed), BIGRAM_TOKENS // length)
    more = tqdm(more, desc="bigram model", total=BIGRAM_TOKENS // length, unit="context", leave=False)
    bigrams = Bigrams.fitted(torch.stack(list(more)).numpy(), model.vocabulary)
    sample = ExplanationSample(model, train, held, bigrams, padding, latents, examples, max_pattern_length, seed)
    explainable = [
        _explainable(own, placed, sample) for own, placed in zip(opened, in_model(opened, model), strict=True)
    ]
    settings = {
        "text": source.name, "model": model.name, "context": length, "training_tokens": train.numel(),
        "heldout_tokens": held.numel(), "heldout_sequences": len(held), "latents": latents, "examples": examples,
        "max_pattern_length": max_pattern_length, "padding": model.tokenizer.decode([padding.token]),
        "bigram_tokens": int(bigrams.tokens.sum()), "bigram_strength": bigrams.strength, "seed": seed,
    }  # fmt: skip
    outcome = None if interpreter is None else _interpreted(explainable, sample, interpreter)
    if interpreter is not None and outcome is not None and outcome.sent is None:
        return interpretation_report.cost_report(outcome, interpreter, settings, opened)
    report = explanations_report(
        [_explained(one, sample) for one in explainable], opened, sample, settings, tokens // length
    )
    if interpreter is None or outcome is None:
        return report
    return interpretation_report.with_interpretation(report, outcome, interpreter, seed)


def _explainable(own: Dictionary, placed: Dictionary, sample: ExplanationSample) -> ExplainableDictionary:
    chosen, lead = _chosen(placed, sample), len(leading_tokens(sample.model.tokenizer))
    before, after = (
        collect_firings(placed, sample.model, split, chosen, lead) for split in (sample.train, sample.held)
    )
    return ExplainableDictionary(own, placed, chosen, (before, after))


def _interpreted(
    explainable: Sequence[ExplainableDictionary], sample: ExplanationSample, interpreter: Interpreter
) -> interpretation.Interpretation:
    """What a language model says of the same latents."""
    tokenizer = sample.model.tokenizer
    lead = len(leading_tokens(tokenizer))
    train, held = (interpretation.grid(split, tokenizer, lead, interpreter) for split in (sample.train, sample.held))
    subjects = [
        interpretation.choose_contexts(one.own, one.chosen, one.splits, (train, held), interpreter, sample.seed)
        for one in explainable
    ]
    return interpretation.interpret(subjects, interpreter)


def _explained(explainable: ExplainableDictionary, sample: ExplanationSample) -> ExplainedDictionary:
    """Everything that is measured of one dictionary."""
    own, placed, chosen, (before, after) = explainable
    model, train, held = sample.model, sample.train, sample.held
    lead = leading_tokens(model.tokenizer)
    drawn = drawn_examples(
        chosen, before, train, sample.examples, longest=sample.longest, seed=sample.seed, first=len(lead)
    )
    built = patterns(drawn, last_activations(model, placed, lead), sample.padding, sample.longest)
    of: dict[int, list[Pattern]] = {latent: [] for latent in chosen}
    for example, pattern in zip(drawn, built, strict=True):
        of[example.latent].append(pattern)
    tries = [Trie.of(of[latent]) for latent in chosen]
    there, here = (simulated(tries, split, len(lead)) for split in (train, held))
    factors = [factor(s, active) for s, active in zip(there, before.latents, strict=True)]
    scores = [score(s, active, (len(held), held.shape[1])) for s, active in zip(here, after.latents, strict=True)]
    sums = spliced(placed, model, held, chosen, here, factors, sample.bigrams)
    parts = zip(chosen, (of[i] for i in chosen), scores, here, after.latents, before.latents, factors, strict=True)
    return ExplainedDictionary(own, [ExplainedLatent(*one) for one in parts], after.share, sums, sample.seed)


def _chosen(placed: Dictionary, sample: ExplanationSample) -> list[int]:
    """A random sample of the latents that are active in the training sample, sorted; all of them for a count of 0.

    Raises:
        DictlabError: None is.
    """
    (rates,), _ = firing_rates([placed], capture_sequences(sample.model, site_of(placed), sample.train))
    alive = rates.nonzero().squeeze(1)
    if not len(alive):
        raise DictlabError(
            f"{placed.name}: no latent is active on {sample.train.numel()} training tokens, so none can be explained. "
            "Give more --tokens, or another --text."
        )
    order = torch.randperm(len(alive), generator=seeds.generator(sample.seed, "latents to explain"))
    return sorted(alive[order[: sample.latents or None]].tolist())
