"""Can it be said in strings of tokens when a latent is active, and is what is said enough for the model?

N2G (Foote et al. 2023, as in Gao et al. 2024): patterns of tokens with wildcards from random active tokens of training
text (`n2g`), kept as a trie (`n2g_trie`), that simulate activations on held-out text (`simulation`). It asks
for nothing but the model itself. With an endpoint, a language model explains the same latents as well
(`analyses.autointerp`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from analyses.autointerp import report as interpretation_report
from analyses.autointerp import scores as interpretation
from analyses.autointerp.llm_client import Endpoint
from analyses.autointerp.settings import Interpreter
from analyses.common.firings import Firings, collect_firings
from analyses.common.inputs import ModelInputs, open_inputs
from analyses.common.opening import DictionaryLike, ModelLike, TextLike
from analyses.common.patching import counted_mask
from analyses.features.explanations.bigram_baseline import Bigrams
from analyses.features.explanations.n2g import last_activations, padding_of, patterns
from analyses.features.explanations.n2g_trie import Pattern, Trie
from analyses.features.explanations.report import explanations_report
from analyses.features.explanations.simulation import (
    ExplainedDictionary,
    ExplainedLatent,
    ExplanationSample,
    drawn_examples,
    factor,
    score,
    simulated,
    spliced,
)
from dictlab.data.activations import capture_sequences
from dictlab.data.packing import leading_tokens
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.evaluate import firing_rates
from dictlab.evaluation.sites import site_of
from dictlab.numerics import seeds
from dictlab.reports.report import Report
from dictlab.runtime.progress import track


class ExplainableDictionary(NamedTuple):
    """A dictionary, and where its latents that are explained are active.

    Attributes:
        given: The dictionary.
        adapted: As it reads the model's activations.
        selected: Its latents that are explained.
        firings: Where these are active: in training text, and in held-out text.
        counted: Which tokens of these two texts count.
    """

    given: Dictionary
    adapted: Dictionary
    selected: list[int]
    firings: tuple[Firings, Firings]
    counted: tuple[Bool[Tensor, "sequences context"], Bool[Tensor, "sequences context"]]


BIGRAM_TOKENS = 1 << 20  # of training text, for the baseline
NORM_CONTEXTS = 16  # of training text, from which the median norm of an activation is taken


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
    token_selection: str | None = None,
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
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.

    Returns:
        A report with these tables; in brackets what is there only where there is such a thing. Where an interpreter is
        asked for its cost alone, the report is of interpretation_cost alone.

        overview: dictionary; latents; precision; precision low; precision high; recall; recall low; recall high; F1; F1
            low; F1 high; chance; with precision; active; patterns a latent; tokens a pattern; wildcards; at start;
            unreached
        reconstruction: dictionary; latents; share; clean; clean low; clean high; reconstruction; reconstruction low;
            reconstruction high; simulated; simulated low; simulated high; zeroed; zeroed low; zeroed high; bigram;
            bigram low; bigram high; recovered; recovered low; recovered high; less bigram; less bigram low; less bigram
            high
        latents: dictionary; latent; precision; precision low; precision high; recall; recall low; recall high; F1; F1
            low; F1 high; active tokens; simulated tokens; active training tokens; examples; patterns; factor; first
            pattern
        patterns: dictionary; latent; pattern; activation; at start; reached; tokens; importance
        [differences]: dictionary; against; measure; difference; low; high; ratio; ratio low; ratio high; unit
        [interpretation]: dictionary; latents; detection; detection low; detection high; detection latents; fuzzing;
            fuzzing low; fuzzing high; fuzzing latents; chance; unexplained; questions; unread questions; left out
        [interpretation_differences]: first; second; score; first latents; second latents; difference; difference low;
            difference high; p
        [interpretation_latents]: dictionary; latent; explanation; detection; fuzzing; detection right contexts;
            detection right taken for right; detection wrong contexts; detection wrong taken for right; fuzzing right
            contexts; fuzzing right taken for right; fuzzing wrong contexts; fuzzing wrong taken for right; unread
            questions
        [interpretation_judgements]: dictionary; latent; score; context; truth; answer
        [interpretation_cost]: what; requests; tokens in; tokens out; money

    Example:
        dictlab report explanations topk16.safetensors relu20.safetensors --latents 64
        dictlab report explanations topk16.safetensors --endpoint http://127.0.0.1:8080/v1 --explainer qwen2.5-7b
    """
    if interpreter is not None:
        Endpoint(interpreter).close()  # what is wrong with it is said before the work
    check_at_least(0, seed=seed, latents=latents)
    check_at_least(1, examples=examples, max_pattern_length=max_pattern_length)
    inputs = open_inputs(
        dictionaries,
        analysis="explanations",
        model=model,
        text=text,
        device=device,
        resumable=True,
        token_selection=token_selection,
    )
    check_at_least(2 * inputs.context, tokens=tokens)
    contexts = tokens // inputs.context
    train, held = (inputs.sample(contexts, split, seed=seed) for split in ("train", "heldout"))
    if len(held.tokens) < 2:
        raise DictlabError(
            f"text {inputs.text.name}: its held-out split has 1 context of {inputs.context} tokens; 2 are needed."
        )
    sample = ExplanationSample(
        inputs.model, inputs.selection, train.tokens, held.tokens, _bigrams(inputs, seed),
        padding_of(inputs.model.tokenizer), latents, examples, max_pattern_length, seed,
    )  # fmt: skip
    explainable = [
        _explainable(given, adapted, sample) for given, adapted in zip(inputs.dictionaries, inputs.adapted, strict=True)
    ]
    settings = inputs.record() | {
        "training_tokens": train.tokens.numel(), "heldout_tokens": held.tokens.numel(),
        "heldout_sequences": len(held.tokens), "latents": latents, "examples": examples,
        "max_pattern_length": max_pattern_length,
        "padding": inputs.model.tokenizer.decode([sample.padding.token]),
        "bigram_tokens": int(sample.bigrams.tokens.sum()), "bigram_strength": sample.bigrams.strength, "seed": seed,
    }  # fmt: skip
    outcome = None if interpreter is None else _interpreted(explainable, sample, interpreter)
    if interpreter is not None and outcome is not None and outcome.sent is None:
        return interpretation_report.cost_report(outcome, interpreter, settings, inputs.dictionaries)
    report = explanations_report(
        [_explained(one, sample) for one in explainable],
        inputs.dictionaries,
        sample,
        settings,
        (*held.warnings, *inputs.warnings),
    )
    if interpreter is None or outcome is None:
        return report
    return interpretation_report.with_interpretation(report, outcome, interpreter, seed)


def _bigrams(inputs: ModelInputs, seed: int) -> Bigrams:
    """The baseline, fitted to training text."""
    length, tokenizer = inputs.context, inputs.model.tokenizer
    contexts = islice(inputs.text.as_split("train").contexts(tokenizer, length, seed=seed), BIGRAM_TOKENS // length)
    shown = track(contexts, "bigram model", BIGRAM_TOKENS // length, unit="contexts")
    return Bigrams.fitted(torch.stack(list(shown)).numpy(), inputs.model.vocabulary)


def _explainable(given: Dictionary, adapted: Dictionary, sample: ExplanationSample) -> ExplainableDictionary:
    """Latents to explain, and where they are active."""
    site, lead = site_of(adapted), len(leading_tokens(sample.model.tokenizer))
    train, held = (
        counted_mask(sample.model, tokens, [site], sample.selection) for tokens in (sample.train, sample.held)
    )
    selected = _selected(adapted, sample)
    firings = (
        collect_firings(adapted, sample.model, sample.train, selected, lead, train),
        collect_firings(adapted, sample.model, sample.held, selected, lead, held),
    )
    return ExplainableDictionary(given, adapted, selected, firings, (train, held))


def _interpreted(
    explainable: Sequence[ExplainableDictionary], sample: ExplanationSample, interpreter: Interpreter
) -> interpretation.Interpretation:
    """What a language model says of the same latents. At tokens that do not count they are silent."""
    tokenizer = sample.model.tokenizer
    lead = len(leading_tokens(tokenizer))
    train, held = (interpretation.grid(split, tokenizer, lead, interpreter) for split in (sample.train, sample.held))
    subjects = [
        interpretation.choose_contexts(one.given, one.selected, one.firings, (train, held), interpreter, sample.seed)
        for one in explainable
    ]
    return interpretation.interpret(subjects, interpreter)


def _explained(explainable: ExplainableDictionary, sample: ExplanationSample) -> ExplainedDictionary:
    """Everything that is measured of one dictionary."""
    given, adapted, selected, (before, after), (in_train, in_held) = explainable
    model, train, held = sample.model, sample.train, sample.held
    lead = leading_tokens(model.tokenizer)
    drawn = drawn_examples(
        selected, before, train, sample.examples, longest=sample.longest, seed=sample.seed, first=len(lead)
    )
    activate = last_activations(model, adapted, lead, sample.selection, _longest_norm(adapted, sample))
    of: dict[int, list[Pattern]] = {latent: [] for latent in selected}
    for example, pattern in zip(drawn, patterns(drawn, activate, sample.padding, sample.longest), strict=True):
        of[example.latent].append(pattern)
    tries = [Trie.of(of[latent]) for latent in selected]
    there = simulated(tries, train, len(lead), in_train)
    here = simulated(tries, held, len(lead), in_held)
    factors = [factor(s, active) for s, active in zip(there, before.latents, strict=True)]
    scores = [score(s, active, (len(held), held.shape[1])) for s, active in zip(here, after.latents, strict=True)]
    sums = spliced(adapted, model, held, selected, here, factors, sample.bigrams, in_held)
    parts = zip(selected, (of[i] for i in selected), scores, here, after.latents, before.latents, factors, strict=True)
    return ExplainedDictionary(given, [ExplainedLatent(*part) for part in parts], after.share, sums, sample.seed)


@torch.no_grad()
def _longest_norm(adapted: Dictionary, sample: ExplanationSample) -> float:
    """The norm above which the token of a string is an outlier: the multiple of the median norm in training text."""
    if sample.selection.norm_multiple is None:
        return math.inf
    site = site_of(adapted)
    some: Int[Tensor, "few context"] = sample.train[:NORM_CONTEXTS]
    norms = sample.model.capture(some, site)[site].float().norm(dim=-1)
    return sample.selection.norm_multiple * float(norms.median())


def _selected(adapted: Dictionary, sample: ExplanationSample) -> list[int]:
    """A random sample of the latents that are active in the training sample, sorted; all of them for a count of 0.

    Raises:
        DictlabError: None is.
    """
    activations = capture_sequences(sample.model, site_of(adapted), sample.train, sample.selection)
    (firing_rate,), n_tokens = firing_rates([adapted], activations)
    alive = firing_rate.nonzero().squeeze(1)
    if not len(alive):
        raise DictlabError(
            f"{adapted.name}: no latent is active on {n_tokens} training tokens, so none can be explained. "
            "Give more `tokens=...`, or another `text=...`."
        )
    order = torch.randperm(len(alive), generator=seeds.generator(sample.seed, "latents to explain"))
    return sorted(alive[order[: sample.latents or None]].tolist())
