"""What does a larger dictionary know that a smaller one does not?

Each latent of LARGE is inserted into SMALL, alone, and called novel if the error falls (`insertion_effects`; Bussmann,
Leask et al. 2024; Leask et al. 2025). The published stand-in for this test is the cosine rule: novel where the max
decoder cosine with SMALL is below a threshold (0.7 for GPT-2, 0.4 for Gemma). Both are computed, and how well the one
predicts the other (`cosine_predictor`). What another seed of SMALL would add is the floor (`seed_control`). What the
most useful latents are stands on cards (`latent_cards`); whether the model minds them is measured where it is asked for
(`insertion_in_model`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from analyses.common.chance import chance_levels, comparison_notes
from analyses.common.compatibility import check_same_place
from analyses.common.inputs import DataLike, open_activations
from analyses.common.opening import DictionaryLike, ModelLike, TextLike, open_dictionaries
from analyses.composition.insertion.cosine_predictor import groups, kinds_of, prediction_areas, threshold_rules
from analyses.composition.insertion.insertion_in_model import Changes, changes, insertion_behaviour
from analyses.composition.insertion.latent_cards import CardContext, portrait_cards, portrait_table, portraits
from analyses.composition.insertion.seed_control import controlled, novelty_shares
from analyses.composition.insertion.single_insertions import SingleInsertions, insert_each
from analyses.composition.novelty.plots import effect_plot, model_effect_plot, prediction_plot
from analyses.composition.novelty.report import (
    NoveltyResult,
    novelty_summary,
    novelty_tables,
    novelty_title,
    novelty_warnings,
    prediction_tables,
)
from dictlab.data.activations import Activations, ModelActivations
from dictlab.errors import DictlabError, check_at_least, check_choice
from dictlab.numerics import seeds
from dictlab.numerics.statistics import BySequence
from dictlab.reports.cards import Cards
from dictlab.reports.report import Plot, Report, Table

LatentChoice = Literal["useful", "random"]


def novelty(
    small: DictionaryLike,
    large: DictionaryLike,
    *,
    control: DictionaryLike | None = None,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    data: DataLike | None = None,
    tokens: int = 65_536,
    threshold: float = 0.7,
    cards: int = 12,
    ce_latents: int = 0,
    latent_choice: LatentChoice = "useful",
    which_latents: Sequence[int] = (),
    contexts: int = 64,
    seed: int = 0,
    device: str = "cpu",
    token_selection: str | None = None,
) -> Report:
    """Which latents of LARGE bring something that SMALL lacks, and what are they?

    Args:
        small: The smaller dictionary. Latents are added to it.
        large: The larger dictionary. Its latents are added one at a time.
        control: Another seed of SMALL (or of LARGE): what is novel between two seeds is the floor.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from. Its training split, and its held-out split for CE and KL.
        data: Activations in place of model and text: an array, or a .npy or .safetensors file. No cards, no CE and KL.
        tokens: Training tokens to sample.
        threshold: Cosine of decoder directions from which two latents count as the same. The
            published rule calls a latent novel below it.
        cards: Latents to show what they are: contexts, tokens, nearest latents; 0 for none.
        ce_latents: Latents to measure the change in CE and KL of; 0 for none.
        latent_choice: Which latents for these two: the most useful novel ones, or random active ones.
        which_latents: Latents of LARGE in place of chosen ones, by number; their CE and KL are measured too.
        contexts: Held-out sequences to measure on. For CE and KL.
        seed: Seed of everything that is drawn at random.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.

    Returns:
        A report with these tables; in brackets what is there only where there is such a thing.

        latents: latent; class; change in MSE; standard error; best scale; firing rate; max cosine; parent; class by
            cosine
        shares: inserted; relation; activations; active; dead; novel; share novel; share novel low; share novel high;
            share by cosine; share by cosine low; share by cosine high; certainly novel; certainly not; carries
            something; best decrease; novel with a twin
        [behaviour]: latent; class; change in MSE; held-out change in MSE; held-out change in MSE low; held-out change
            in MSE high; change in CE; change in CE low; change in CE high; change in KL; change in KL low; change in KL
            high; sequences active
        [portraits]: latent; class; change in MSE; standard error; firing rate; promoted; suppressed; nearest; context
            1; context 2; context 3; context 4; context of the nearest
        prediction: latents; weighting; n; novel; share novel; ROC AUC; ROC AUC low; ROC AUC high; PR AUC (novel); PR
            AUC (novel) low; PR AUC (novel) high; PR AUC (reconstruction); PR AUC (reconstruction) low; PR AUC
            (reconstruction) high
        thresholds: latents; weighting; rule; threshold; low; high; novel, called novel; novel, called reconstruction;
            reconstruction, called novel; reconstruction, called reconstruction; sensitivity; specificity; precision; J;
            F1 (novel); F1 (reconstruction); accuracy
        agreement: class; class by cosine; latents

    Example:
        dictlab report novelty small.safetensors large.safetensors --control small_other_seed.safetensors
        dictlab report novelty small.safetensors large.safetensors --ce-latents 32 --threshold 0.5
        dictlab report novelty small.safetensors large.safetensors --which-latents 17 --which-latents 254
        dictlab report novelty small.safetensors large.safetensors --data activations.npy
    """
    check_at_least(0, seed=seed, cards=cards, ce_latents=ce_latents)
    check_at_least(1, contexts=contexts)
    check_choice(LatentChoice, latent_choice=latent_choice)
    several = [small, large] if control is None else [small, large, control]
    given = open_dictionaries(several, analysis="novelty", token_selection=token_selection)
    check_same_place(given, model)
    if data is not None and (ce_latents or which_latents):
        raise DictlabError("ce_latents and which_latents: what latents do to the output needs a model; data has none.")
    reading = open_activations(given, model=model, text=text, data=data, device=device)
    small, large, *controls = reading.dictionaries
    of = [controlled(small, large, other) for other in controls]
    source = reading.part("train")
    pair, *floor = (
        insert_each(a, b, source.sample(tokens, seed=seed), threshold)
        for a, b in ((small, large), *zip(of, controls, strict=True))
    )
    n_cards, n_run = cards, ce_latents
    if which_latents:
        n_cards, n_run = len(which_latents) if cards else 0, len(which_latents)
    if not isinstance(source, ModelActivations):
        n_cards = n_run = 0
    selected = select_latents(pair, which_latents, latent_choice, max(n_cards, n_run), seed)
    behaviour, n_sequences = _measure_in_model(pair, selected[:n_run], source, contexts, seed) if n_run else (None, 0)
    parts = groups(pair.alive, kinds_of(large.activation, large.n_latents))
    result = NoveltyResult(
        pair=pair,
        floor=floor,
        shares=[novelty_shares(one, seed) for one in (pair, *floor)],
        prediction=prediction_areas(parts, seed),
        thresholds=threshold_rules(parts, threshold, seed),
        behaviour_of=selected[:n_run],
        behaviour=behaviour,
    )
    portrait_tables: dict[str, Table] = {}
    latent_cards: dict[str, Cards] = {}
    if isinstance(source, ModelActivations) and selected[:n_cards]:
        context = CardContext(source.model, source.sequences(tokens, seed), seed, source.selection)
        portrait_tables, latent_cards = build_latent_cards(result, selected[:n_cards], context)
    return Report(
        title=novelty_title(pair),
        summary=novelty_summary(result, seed),
        tables=novelty_tables(result) | portrait_tables | prediction_tables(result),
        plots=_plots(result, seed),
        cards=latent_cards,
        settings={"tokens": pair.effects.tokens, "threshold": threshold, "seed": seed}
        | {
            "latents": list(which_latents) or latent_choice,
            "cards": n_cards,
            "ce_latents": n_run,
            "contexts": n_sequences,
        }
        | source.record(),
        inputs=(small, large, *controls),
        warnings=(
            *novelty_warnings(result),
            *comparison_notes([small, large], result.pair.effects.dead_latents(small.name, large.name)),
            *reading.cautions,
        ),
    )


def _measure_in_model(
    pair: SingleInsertions, latents: Sequence[int], source: Activations, contexts: int, seed: int
) -> tuple[BySequence | None, int]:
    """CE and KL of inserting each latent on held-out sequences, and the number of these; nothing for an array."""
    if not isinstance(source, ModelActivations):
        return None, 0
    sequences = source.as_split("heldout").sequences(contexts * source.context, seed)
    if not latents:
        return None, len(sequences)
    behaviour = insertion_behaviour(
        pair.small, pair.large, latents, source.model, sequences, selection=source.selection, seed=seed
    )
    return behaviour, len(sequences)


def select_latents(
    pair: SingleInsertions, latents: Sequence[int], choice: LatentChoice, count: int, seed: int
) -> list[int]:
    """Which latents of LARGE are shown and run in the model, most useful first unless they were named.

    Args:
        pair: What was inserted.
        latents: Those that were named, if any.
        choice: Otherwise the most useful novel ones, or random active ones.
        count: How many of these, at most.
        seed: Of random ones.

    Raises:
        DictlabError: LARGE has no latent of a number that was named.
    """
    unknown = [i for i in latents if not 0 <= i < pair.large.n_latents]
    if unknown:
        raise DictlabError(
            f"which_latents: {pair.large.name} has latents 0 to {pair.large.n_latents - 1}, and no {unknown[0]}."
        )
    if latents:
        return list(dict.fromkeys(latents))
    alive: list[int] = pair.alive.latent.tolist()
    if choice == "useful":
        return alive[: min(count, int(pair.alive.novel.sum()))]
    order = torch.randperm(len(alive), generator=seeds.generator(seed, "latents looked at"))[:count].tolist()
    return [alive[i] for i in sorted(order)]


def build_latent_cards(
    result: NoveltyResult, latents: Sequence[int], context: CardContext
) -> tuple[dict[str, Table], dict[str, Cards]]:
    """What some latents of LARGE are: a table and cards of the same name."""
    pair = result.pair
    behaviour: dict[int, dict[str, Changes]] = {}
    if result.behaviour is not None:
        of = {what: changes(result.behaviour, what) for what in ("CE", "KL")}
        behaviour = {
            latent: {what: Changes(*(values[i] for values in change)) for what, change in of.items()}
            for i, latent in enumerate(result.behaviour_of)
        }
    drawn = portraits(pair, latents, context)
    cards = portrait_cards(pair, drawn, behaviour)
    return {
        "portraits": Table(portrait_table(pair, drawn), cards.caption, {"latent": [pair.large.name] * len(drawn)})
    }, {"portraits": cards}


def _plots(result: NoveltyResult, seed: int) -> dict[str, Plot]:
    """All plots; curves of the cosine where there are two classes."""
    plots = {}
    for name, one in zip(("effects", "control"), (result.pair, *result.floor), strict=False):
        plots[name] = effect_plot(one, chance_levels(one.small, seed)["shaped"])
    if result.thresholds:
        plots["prediction"] = prediction_plot(result.pair, result.prediction, result.thresholds)
    if result.behaviour is not None:
        plots["behaviour"] = model_effect_plot(result.pair, result.behaviour_of, result.behaviour)
    return plots
