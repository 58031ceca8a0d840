"""Can I have the best of both?

SMALL keeps all its latents; the latents of LARGE that are novel are added (Bussmann, Leask et al. 2024), then those of
the next larger dictionary to what has been stitched so far. Three things decide whether the result is any good, and
each is measured on held-out text (or on the held-out part of plain activations):

* Which latents (`latent_selection`): by their measured effect, by the published cosine rule, by a search, or those at a
  point of the path between sizes; by default the best of these within the parents' L0.
* What makes them active: every latent follows its own dictionary's activation function. A latent from a TopK dictionary
  is active where it is among that dictionary's k largest, so the latents that are left behind still compete, but emit
  nothing. Or all latents follow one activation function (`one_competition`).
* The decoder: effects of single insertions do not add up, and a set can overshoot badly. With the encoders frozen,
  the best decoder D and bias b are a ridge regression, pulled towards the directions that the latents came with:

      min  sum_t |x_t - b - f_t D|^2 + sum_j lambda_j |D_j - D_0j|^2

A refit helps any dictionary, so every parent with its own decoder refitted stands beside the result as a control, and
the result is held against the best of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.common.chance import sign_notes
from analyses.common.inputs import DataLike, open_activations
from analyses.common.opening import DictionaryLike, ModelLike, TextLike
from analyses.composition.path.path_steps import Order
from analyses.composition.path.size_path import parse_until
from analyses.composition.stitching.continuation import CONTINUED, check_can_train, continue_stitching, parent_and_novel
from analyses.composition.stitching.continuation_report import continuation_sentence, continuation_table
from analyses.composition.stitching.inserted_cards import inserted_cards
from analyses.composition.stitching.latent_selection import Select, checked_budget, select_latents
from analyses.composition.stitching.measurement import (
    STITCHED,
    UNREFITTED,
    measure_stitching,
    n_dead,
    stitched_in_steps,
)
from analyses.composition.stitching.report import (
    names_in_words,
    stitching_plots,
    stitching_summary,
    stitching_tables,
    stitching_warnings,
)
from analyses.composition.stitching.stitching_data import StitchingData
from analyses.composition.stitching.stitching_result import StitchingResult
from analyses.pool.dictionary_chain import DictionaryChain, check_active, encode_chain, open_chain
from analyses.pool.dictionary_pool import part_of, pool_of
from analyses.pool.refitted_subsets import RefittedSubsets
from analyses.pool.ridge_refit import Refit, check_active_refittable, check_refittable
from analyses.pool.search_starts import BudgetLimits
from analyses.quality.measured_points import Point
from dictlab.dictionary import Dictionary
from dictlab.errors import check_at_least, check_choice
from dictlab.evaluation.recorded_selection import with_selection
from dictlab.reports.report import Report

Rule = Literal["own", "topk", "batchtopk", "jumprelu"]


def join(small: Dictionary, large: Dictionary, chosen: Bool[Tensor, " n_large"], name: str = "stitched") -> Dictionary:
    """SMALL with the chosen latents of LARGE added; weights as they were, output bias SMALL's.

    Pre-biases are folded into the encoders first, so that no latent changes when it moves. Codes of the result are
    SMALL's codes and, beside them, LARGE's codes at the chosen latents.

    Args:
        small: Keeps all its latents, first in the result.
        large: Its chosen latents follow in their order.
        chosen: Which latents of LARGE.
        name: Of the result.

    Raises:
        DictlabError: The two normalise their inputs in different ways, so that no one encoder can serve both.
    """
    everything = torch.cat([torch.ones(small.n_latents, dtype=torch.bool), chosen.cpu()])
    return part_of(pool_of([small, large]), everything, name=name)


def stitching(
    small: DictionaryLike,
    larger: Sequence[DictionaryLike],
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    data: DataLike | None = None,
    select: Select = "best",
    threshold: float = 0.7,
    refit: Refit | None = None,
    until: str | None = None,
    max_latents: int | None = None,
    max_l0: float | None = None,
    competition: Rule | None = None,
    finetune: int = 0,
    cards: int = 12,
    order: Order = "cosine",
    tokens: int = 65_536,
    contexts: int = 64,
    seed: int = 0,
    device: str = "cpu",
    token_selection: str | None = None,
) -> Report:
    """Add to SMALL what larger dictionaries know and it lacks, and measure whether the result is better.

    Args:
        small: The smaller dictionary. Latents are added to it.
        larger: Larger dictionaries at the same site, in turn.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from. Its training split to choose and refit on, its held-out split to measure on.
        data: Activations in place of model and text: an array, or a .npy or .safetensors file. No CE and KL.
        select: Novel latents by their measured effect, or by the published cosine rule; or, optimal, any latents of
            all dictionaries, by a local search for the smallest error under a budget. best takes, of these and the
            path, each cut to the budget, what has the smallest MSE and KL on training tokens drawn anew.
        threshold: Cosine of decoder directions from which two latents count as the same. The
            cosine rule calls a latent novel below it.
        refit: What is refitted in closed form, encoders frozen: decoder and bias, bias alone, or nothing. By default
            the decoder; at a point of the path the bias.
        until: Instead, take the path between sizes until latents=N (alive ones), mse=VALUE or l0=VALUE is reached.
        max_latents: Latents that a search for the smallest error may choose, at most; by default any number.
        max_l0: Active latents a token that a search for the smallest error may choose, at most. By default as many as
            the largest dictionary has.
        competition: own: each latent is active by its own dictionary's rule. topk, batchtopk, jumprelu: all of them
            by one, which makes an ordinary encoder. By default own, or, with best, whatever is better of own and
            jumprelu.
        finetune: Tokens that training goes on for, from the result and from its controls, at one k; 0 for none. With
            best it starts from the best parent and what of the others is novel beside it by cosine.
        cards: Latents to show what they are: contexts, tokens, nearest latents; 0 for none.
        order: Of the steps within a phase of the path: least similar first (cosine), most useful alone first (effect),
            in random order; or without phases, of all steps left the one with the smallest error (greedy, slow).
        tokens: Training tokens to sample.
        contexts: Held-out sequences to measure on.
        seed: Seed of everything that is drawn at random.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.

    Returns:
        A report with these tables; in brackets what is there only where there is such a thing.

        quality: dictionary; best; latents; L0; MSE; MSE at equal L0 (%); [CE increase]; [KL]; explained variance
        equal_l0: dictionary; metric; L0; value; best parent at that L0; its value; difference (%); low; high; note
        sparsity_curves: parent; dictionary; L0; MSE; [CE increase]; [KL]
        differences: dictionary; metric; difference; low; high; unit
        latents: latent; class; change in MSE; standard error; best scale; firing rate; max cosine; parent; class by
            cosine; [dictionary]
        agreement: class; class by cosine; latents; [dictionary]
        metrics: dictionary; metric; value; low; high; unit
        [continued]: dictionary; tokens; latents; L0; MSE; [CE increase]; [KL]; MSE less the parent's (%); low; high

    Example:
        dictlab stitch small.safetensors large.safetensors --out out/stitched
        dictlab stitch a-256.safetensors a-512.safetensors a-1024.safetensors --until latents=700
        dictlab stitch small.safetensors large.safetensors --data activations.npy
    """
    check_at_least(0, seed=seed, finetune=finetune, cards=cards)
    check_choice(Select, select=select)
    check_choice(Refit, refit=refit)
    check_choice(Order, order=order)
    check_choice(Rule, competition=competition)
    budget = checked_budget(select, max_latents, max_l0)
    if until is not None:
        parse_until(until)  # refused before the work
    parents = [
        _as_parent(parent)
        for parent in with_selection(open_chain(small, larger, analysis="stitching"), token_selection)
    ]
    reading = open_activations(parents, model=model, text=text, data=data, device=device)
    train, heldout = reading.parts()
    check_can_train(train, finetune)
    refit = refit or ("decoder" if until is None else "bias")
    batches = sampled_for_refit(train.sample(tokens, seed=seed), reading.dictionaries if refit == "decoder" else ())
    chain = _encoded(reading.dictionaries, batches, refit)
    activations = StitchingData(
        chain, RefittedSubsets(chain.pool, chain.sample), batches, train, heldout, contexts, seed
    )
    best = select == "best" and until is None
    selection = select_latents(activations, select, refit, budget, until=until, threshold=threshold, order=order)
    stitched, steps = stitched_in_steps(activations, selection.choice, refit, competition, better=best)
    result = measure_stitching(
        activations, selection.choices, selection.rule, refit, stitched, steps, threshold=threshold
    )
    how = _settings(result, threshold, chain.sample.n_tokens, until=until, order=order, budget=budget)
    written = _described(result.stitched, how | train.record())
    continued = None
    if finetune:
        start, active = result.stitched.dictionary, result.stitched.value("l0")
        if best:
            start, active = _start_at_budget(activations, result.best_parent, threshold, budget.l0)
        continued = continue_stitching(activations, result.best_parent, start, max(1, round(active)), finetune)
    return Report(
        title=f"{parents[0].name} stitched with what {names_in_words(parents[1:])} adds",
        summary=" ".join([stitching_summary(result), *([continuation_sentence(continued)] if continued else [])]),
        tables=stitching_tables(result) | ({"continued": continuation_table(continued)} if continued else {}),
        plots=stitching_plots(result),
        cards=inserted_cards(
            result.shown.insertions[0],
            torch.from_numpy(result.choice.chosen[chain.latents_of(1)]),
            heldout,
            count=cards,
            contexts=contexts,
            seed=seed,
        ),
        dictionaries={STITCHED: written} | ({"continued": continued.result.dictionary} if continued else {}),
        settings=written.metadata.training | {"seed": seed} | result.stitched.evaluation.sample,
        inputs=chain.dictionaries,
        warnings=(
            *stitching_warnings(result),
            *selection.cautions,
            *sign_notes(chain.dictionaries),
            *reading.cautions,
        ),
    )


def sampled_for_refit(
    batches: Iterable[Float[Tensor, "batch context d_in"]], refitted: Sequence[Dictionary]
) -> list[Float[Tensor, "batch context d_in"]]:
    """The batches of a sample; what cannot be refitted is refused after the first of them.

    Raises:
        DictlabError: One of the dictionaries to be refitted is too large.
    """
    held: list[Tensor] = []
    for batch in batches:
        if not held:
            check_refittable(refitted, batch)
        held.append(batch)
    return held


def _encoded(
    dictionaries: Sequence[Dictionary], batches: Sequence[Float[Tensor, "batch context d_in"]], refit: Refit
) -> DictionaryChain:
    """The chain on the sample.

    Raises:
        DictlabError: A dictionary does nothing on it, or too much to be refitted.
    """
    chain = encode_chain(dictionaries, batches)
    check_active(chain)
    if refit == "decoder":
        check_active_refittable([d.name for d in chain.dictionaries], chain.n_active, chain.sample.n_tokens)
    return chain


def _start_at_budget(
    data: StitchingData, parent: int, threshold: float, max_l0: float | None
) -> tuple[Dictionary, float]:
    """The best parent and what is novel beside it, and the budget's L0, which what was chosen need not use up."""
    chain = data.chain
    active = float(chain.sample.firing_rate[chain.latents_of(parent)].sum()) if max_l0 is None else max_l0
    return data.subsets.subset(parent_and_novel(chain, parent, threshold), "decoder", CONTINUED), active


def _settings(
    result: StitchingResult, threshold: float, tokens: int, *, until: str | None, order: Order, budget: BudgetLimits
) -> dict[str, Any]:
    """How the result was made, for its file's metadata and the report; what was not given is left out."""
    settings = {
        "select": result.rule,
        "refit": result.refit,
        "inserted": result.n_inserted,
        "kept": result.n_kept,
        "point": result.choice.point,
        "threshold": threshold,
        "tokens": tokens,
        "until": until,
        "order": order if result.rule == "path" else None,
        "max_latents": budget.latents,
        "max_l0": budget.l0,
    }
    return {name: value for name, value in settings.items() if value is not None}


def _as_parent(dictionary: Dictionary) -> Dictionary:
    """A parent under a name that no row of the report's own has: it may itself be a stitched dictionary."""
    taken = dictionary.name == STITCHED or dictionary.name.startswith((*UNREFITTED.values(), "by "))
    return replace(dictionary, name=f"{dictionary.name} (parent)") if taken else dictionary


def _described(stitched: Point, how: Mapping[str, Any]) -> Dictionary:
    """The stitched dictionary with how it was made, and what was measured, in its metadata."""
    dictionary = stitched.dictionary
    dead = n_dead(dictionary)
    metrics = stitched.evaluation.record() | {"dead": dead, "firing_tokens": how["tokens"]}
    training = dictionary.metadata.training | dict(how)
    return replace(dictionary, metadata=replace(dictionary.metadata, training=training, metrics=metrics))
