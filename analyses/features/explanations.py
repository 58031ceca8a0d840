"""Can it be said in strings of tokens when a latent is active, and is what is said enough for the model?

N2G (Foote et al. 2023, as in Gao et al. 2024): patterns of tokens with wildcards from random active tokens of training
text (`pattern_building`), kept as a trie (`ngrams`), that simulate activations on held-out text (`simulation`). It asks
for nothing but the model itself. With an endpoint, a language model explains the same latents as well
(`interpretation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
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
from analyses.features import explanations_plots as plots
from analyses.features import explanations_tables as tables
from analyses.features.bigram_baseline import Bigrams
from analyses.features.explanations_differences import differences
from analyses.features.explanations_tables import Explained, Latent
from analyses.features.n2g import Padding, last_activations, padding_of, patterns
from analyses.features.n2g_trie import Pattern, Trie
from analyses.features.simulation import drawn_examples, factor, score, simulated, spliced
from dictlab import seeds
from dictlab.data.activations import capture_sequences
from dictlab.data.packing import leading_tokens
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.evaluate import firing_rates, site_of
from dictlab.evaluation.recorded_selection import all_tokens_warning
from dictlab.model.language_model import LanguageModel
from dictlab.reports.report import Plot, Report, Table
from dictlab.statistics import interval_words

BIGRAM_TOKENS = 1 << 20  # of training text, for the baseline
INTERVAL = interval_words()
DIFFERENCES = (
    f"The dictionary less the one before it (against), and over it. {INTERVAL}: of precision, recall and F1 over "
    "latents, which have nothing to do with each other in two dictionaries; of the rest over sequences, paired."
)


class Plan(NamedTuple):
    """What every dictionary is explained with."""

    model: LanguageModel
    train: Int[Tensor, "sequences context"]
    held: Int[Tensor, "sequences context"]
    bigrams: Bigrams
    padding: Padding
    latents: int
    examples: int
    longest: int
    seed: int


class Sampled(NamedTuple):
    """A dictionary, and where its latents that are explained are active: in training text, and in held-out text."""

    own: Dictionary
    placed: Dictionary
    chosen: list[int]
    splits: tuple[Firings, Firings]


def explanations(
    dictionaries: Sequence[DictionaryLike],
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    latents: int = 32,
    examples: int = 16,
    longest: int = 32,
    tokens: int = 32_768,
    interpreter: Interpreter | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Report:
    """Can strings of tokens with gaps say when a latent is active? And, with an endpoint, can a language model?

    Args:
        dictionaries: Any number, at one site or at several.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from: patterns from its training split, scores from its held-out split.
        latents: Latents of each dictionary to explain, drawn from those active in the training sample; 0 for all these.
        examples: Active tokens that a latent's patterns are built from, at most.
        longest: Tokens of a pattern, at most.
        tokens: Tokens of each split.
        interpreter: A language model that explains the same latents in words, and scores them; none by default.
        seed: Of the samples of text, latents and examples, and the bootstrap.
        device: Where to run: cpu, cuda, ...

    Example:
        dictlab report explanations topk16.safetensors relu20.safetensors --latents 64
        dictlab report explanations topk16.safetensors --endpoint http://127.0.0.1:8080/v1 --explainer qwen2.5-7b
    """
    if interpreter is not None:
        Endpoint(interpreter).close()  # what is wrong with it is said before the work
    check_at_least(0, seed=seed, latents=latents)
    check_at_least(1, examples=examples, longest=longest)
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
    plan = Plan(model, train, held, bigrams, padding, latents, examples, longest, seed)
    sampled = [_sampled(own, placed, plan) for own, placed in zip(opened, in_model(opened, model), strict=True)]
    settings = {
        "text": source.name, "model": model.name, "context": length, "training_tokens": train.numel(),
        "heldout_tokens": held.numel(), "heldout_sequences": len(held), "latents": latents, "examples": examples,
        "longest": longest, "padding": model.tokenizer.decode([padding.token]),
        "bigram_tokens": int(bigrams.tokens.sum()), "bigram_strength": bigrams.strength, "seed": seed,
    }  # fmt: skip
    outcome = None if interpreter is None else _interpreted(sampled, plan, interpreter)
    if interpreter is not None and outcome is not None and outcome.sent is None:
        return interpretation_report.cost_report(outcome, interpreter, settings, opened)
    report = _report([_explained(one, plan) for one in sampled], opened, plan, settings, tokens // length)
    if interpreter is None or outcome is None:
        return report
    return interpretation_report.with_interpretation(report, outcome, interpreter, seed)


def _sampled(own: Dictionary, placed: Dictionary, plan: Plan) -> Sampled:
    chosen, lead = _chosen(placed, plan), len(leading_tokens(plan.model.tokenizer))
    before, after = (collect_firings(placed, plan.model, split, chosen, lead) for split in (plan.train, plan.held))
    return Sampled(own, placed, chosen, (before, after))


def _interpreted(sampled: Sequence[Sampled], plan: Plan, interpreter: Interpreter) -> interpretation.Interpretation:
    """What a language model says of the same latents."""
    tokenizer = plan.model.tokenizer
    lead = len(leading_tokens(tokenizer))
    train, held = (interpretation.grid(split, tokenizer, lead, interpreter) for split in (plan.train, plan.held))
    subjects = [
        interpretation.choose_contexts(one.own, one.chosen, one.splits, (train, held), interpreter, plan.seed)
        for one in sampled
    ]
    return interpretation.interpret(subjects, interpreter)


def _explained(sampled: Sampled, plan: Plan) -> Explained:
    """Everything that is measured of one dictionary."""
    own, placed, chosen, (before, after) = sampled
    model, train, held = plan.model, plan.train, plan.held
    lead = leading_tokens(model.tokenizer)
    drawn = drawn_examples(chosen, before, train, plan.examples, longest=plan.longest, seed=plan.seed, first=len(lead))
    built = patterns(drawn, last_activations(model, placed, lead), plan.padding, plan.longest)
    of: dict[int, list[Pattern]] = {latent: [] for latent in chosen}
    for example, pattern in zip(drawn, built, strict=True):
        of[example.latent].append(pattern)
    tries = [Trie.of(of[latent]) for latent in chosen]
    there, here = (simulated(tries, split, len(lead)) for split in (train, held))
    factors = [factor(s, active) for s, active in zip(there, before.latents, strict=True)]
    scores = [score(s, active, (len(held), held.shape[1])) for s, active in zip(here, after.latents, strict=True)]
    sums = spliced(placed, model, held, chosen, here, factors, plan.bigrams)
    parts = zip(chosen, (of[i] for i in chosen), scores, here, after.latents, before.latents, factors, strict=True)
    return Explained(own, [Latent(*one) for one in parts], after.share, sums, plan.seed)


def _chosen(placed: Dictionary, plan: Plan) -> list[int]:
    """A random sample of the latents that are active in the training sample, sorted; all of them for a count of 0.

    Raises:
        DictlabError: None is.
    """
    (rates,), _ = firing_rates([placed], capture_sequences(plan.model, site_of(placed), plan.train))
    alive = rates.nonzero().squeeze(1)
    if not len(alive):
        raise DictlabError(
            f"{placed.name}: no latent is active on {plan.train.numel()} training tokens, so none can be explained. "
            "Give more --tokens, or another --text."
        )
    order = torch.randperm(len(alive), generator=seeds.generator(plan.seed, "latents to explain"))
    return sorted(alive[order[: plan.latents or None]].tolist())


def _report(
    found: Sequence[Explained],
    opened: Sequence[Dictionary],
    plan: Plan,
    settings: dict[str, Any],
    asked: int,
) -> Report:
    overview, rebuilt = tables.overview(found), tables.reconstruction(found)
    tokenizer = plan.model.tokenizer
    frame = tables.latents(found, tokenizer)
    text = f"{settings['heldout_sequences']} held-out sequences ({settings['heldout_tokens']} tokens)"
    made = {
        "overview": Table(
            overview,
            f"Means over latents on {text}; {INTERVAL} over latents, a seeded sample. precision: share of simulated "
            "firings at which the latent is active, over the latents whose patterns were met (with precision); recall: "
            "share of its active tokens that are simulated; chance: share of tokens at which the latent is active, the "
            "precision of a guess. unreached: examples of whose activation the last "
            f"{settings['longest']} tokens alone give less than half.",
        ),
        "reconstruction": Table(
            rebuilt,
            f"clean: cross-entropy of the next token, nats, on {text}; the others: its increase over clean. {INTERVAL} "
            "over sequences, paired. simulated: the explained "
            "latents replaced by their simulation; zeroed: by 0; recovered: (zeroed - simulated) / (zeroed - "
            "reconstruction); less bigram: simulated - bigram. "
            "share: share of the active latents of all tokens that are explained ones; the bigram "
            f"model (of {settings['bigram_tokens']} training tokens) compares with a share of 1 only.",
        ),
        "latents": Table(frame, f"One row a latent, on {text}; {INTERVAL} over sequences."),
        "patterns": Table(
            tables.patterns(found, tokenizer),
            "Every pattern: ∗ stands for any token, ^ for the beginning of a context; importance: share of the "
            "activation lost when a token is replaced, from left to right.",
        ),
    }
    if len(found) > 1:
        made["differences"] = Table(differences(found), DIFFERENCES)
    drawn = {
        "scores": Plot(plots.scores(frame, overview), f"A point a latent, bars are means over latents; {text}."),
        "reconstruction": Plot(plots.reconstruction(rebuilt), f"{INTERVAL} over sequences; {text}."),
    }
    warnings = []
    if settings["heldout_sequences"] < asked:
        warnings.append(f"The held-out split holds {settings['heldout_sequences']} contexts, {asked} were asked for.")
    for one in found:
        if one.dictionary.activation.batchwise:
            warnings.append(
                f"{one.dictionary.name}: its latents compete with those of other tokens encoded together "
                f"({one.dictionary.activation.kind}), so a string alone makes other ones active. "
                "Its scores mean little; a file with a threshold does not have this."
            )
        if len(one.latents) < settings["latents"]:
            warnings.append(
                f"{one.dictionary.name}: only {len(one.latents)} latents are active in the training sample, "
                f"{settings['latents']} were asked for. More --tokens help."
            )
    return Report(
        title="Can strings of tokens say when a latent is active?",
        summary=tables.summary(overview, rebuilt),
        tables=made,
        plots=drawn,
        cards={"patterns": tables.cards(found, tokenizer, plan.held)},
        settings=settings,
        inputs=tuple(opened),
        warnings=(*warnings, *all_tokens_warning(opened)),
    )
