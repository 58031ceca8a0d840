"""Can I have the best of both?

SMALL keeps all its latents; the latents of LARGE that are novel are added (Bussmann, Leask et al. 2024), then those of
the next larger dictionary to what has been stitched so far. Three things decide whether the result is any good, and
each is measured on held-out text (or on the held-out part of plain activations):

* Which latents: by their measured effect, by the published cosine rule, or those at a point of the path between sizes;
  see `selection_rules`.
* How they are chosen at run time: every latent by its own dictionary's rule. A latent from a TopK dictionary fires
  where it beats its old rivals, so rivals that are not taken along still compete, but emit nothing.
* The decoder: effects of single insertions do not add up, and a set can overshoot badly. With the encoders frozen,
  the best decoder D and bias b are a ridge regression, pulled towards the directions that the latents came with:

      min  sum_t |x_t - b - f_t D|^2 + lambda |D - D_0|^2

A refit helps any dictionary, so every parent with its own decoder refitted stands beside the result as a control, and
the result is held against the best of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from analyses.common.chance import sign_notes
from analyses.common.inputs import DataLike, DictionaryLike, ModelLike, TextLike, open_activations
from analyses.composition.equal_l0 import parents_at_levels, sparsity_curves
from analyses.composition.selection_rules import Choice, by_insertion, by_path, by_search
from analyses.composition.size_path.path_steps import Order
from analyses.composition.size_path.size_path import parse_until
from analyses.composition.stitching_report import (
    StitchingResult,
    names_in_words,
    stitching_plots,
    stitching_summary,
    stitching_tables,
    stitching_warnings,
)
from analyses.pool.dictionary_chain import DictionaryChain, check_active, encode_chain, open_chain
from analyses.pool.dictionary_pool import part_of, pool_of
from analyses.pool.refitted_subsets import RefittedSubsets
from analyses.pool.ridge_refit import Refit
from analyses.quality.measured_points import Point
from dictlab.data.activations import Activations
from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import emitting
from dictlab.errors import DictlabError, check_at_least, check_choice
from dictlab.evaluation.reconstruction import evaluate_activations
from dictlab.evaluation.recorded_selection import with_selection
from dictlab.reports.report import Report

Select = Literal["effect", "cosine", "optimal"]
STITCHED = "stitched"
UNREFITTED = {  # names of what each rule's choice is without a decoder refit
    "effect": "inserted by effect",
    "cosine": "inserted by cosine",
    "path": "on the path",
    "optimal": "found by search",
}


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
    select: Select = "effect",
    threshold: float = 0.7,
    refit: Refit | None = None,
    until: str | None = None,
    max_latents: int | None = None,
    max_l0: float | None = None,
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
            all dictionaries, by a local search for the smallest error under a budget.
        threshold: Cosine of decoder directions from which two latents count as the same. The
            cosine rule calls a latent novel below it.
        refit: What is refitted in closed form, encoders frozen: decoder and bias, bias alone, or nothing. By default
            the decoder; at a point of the path the bias.
        until: Instead, take the path between sizes until latents=N, mse=VALUE or l0=VALUE is reached.
        max_latents: Latents that a search for the smallest error may choose, at most; by default any number.
        max_l0: Active latents a token that a search for the smallest error may choose, at most. By default as many as
            the largest dictionary has.
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

        quality: dictionary; latents; L0; MSE; explained variance; [CE increase]; [KL]
        differences: dictionary; metric; difference; low; high; unit
        latents: latent; class; change in MSE; standard error; best scale; firing rate; max cosine; parent; class by
            cosine; [dictionary]
        agreement: class; class by cosine; latents; [dictionary]
        metrics: dictionary; metric; value; low; high; unit

    Example:
        dictlab stitch small.safetensors large.safetensors --out out/stitched
        dictlab stitch a-256.safetensors a-512.safetensors a-1024.safetensors --until latents=700
        dictlab stitch small.safetensors large.safetensors --data activations.npy
    """
    check_at_least(0, seed=seed)
    check_choice(Select, select=select)
    check_choice(Refit, refit=refit)
    check_choice(Order, order=order)
    check_at_least(1, max_latents=max_latents)
    check_at_least(0, max_l0=max_l0)
    if select != "optimal" and (max_latents is not None or max_l0 is not None):
        raise DictlabError("--max-latents and --max-l0 are budgets of a search; give --select optimal with them.")
    if until is not None:
        parse_until(until)  # refused before the work
    parents = [_as_parent(parent) for parent in with_selection(open_chain(small, larger), token_selection)]
    reading = open_activations(parents, model=model, text=text, data=data, device=device)
    train, heldout = reading.parts()
    batches = list(train.sample(tokens, seed=seed))
    chain = encode_chain(reading.dictionaries, batches)
    check_active(chain)
    choices = {choice.rule: choice for choice in by_insertion(chain, threshold)}
    rule: str = select
    refit = refit or ("decoder" if until is None else "bias")
    if select == "optimal":
        choices["optimal"] = by_search(chain, max_latents, max_l0, refit)
    if until is not None:
        choices["path"], rule = by_path(chain, threshold, order, seed, until), "path"
    result = _measured(chain, choices, rule, refit, batches, heldout, threshold=threshold, contexts=contexts, seed=seed)
    how = {"select": rule, "refit": refit, "inserted": result.n_inserted, "kept": result.n_kept}
    how |= {"point": result.choice.point, "threshold": threshold, "tokens": chain.sample.n_tokens}
    how |= {"until": until, "order": order if rule == "path" else None}
    how |= {"max_latents": max_latents, "max_l0": max_l0}
    how = {name: value for name, value in how.items() if value is not None}
    stitched = _described(result.stitched, how | train.record())
    return Report(
        title=f"{parents[0].name} stitched with what {names_in_words(parents[1:])} adds",
        summary=stitching_summary(result),
        tables=stitching_tables(result),
        plots=stitching_plots(result),
        dictionaries={STITCHED: stitched},
        settings=stitched.metadata.training | {"seed": seed} | result.stitched.evaluation.sample,
        inputs=chain.dictionaries,
        warnings=(*stitching_warnings(result), *sign_notes(chain.dictionaries), *reading.cautions),
    )


def _as_parent(dictionary: Dictionary) -> Dictionary:
    """A parent under a name that no row of the report's own has: it may itself be a stitched dictionary."""
    taken = dictionary.name == STITCHED or dictionary.name.startswith((*UNREFITTED.values(), "by "))
    return replace(dictionary, name=f"{dictionary.name} (parent)") if taken else dictionary


def _measured(
    chain: DictionaryChain,
    choices: Mapping[str, Choice],
    rule: str,
    refit: Refit,
    batches: Sequence[Tensor],
    heldout: Activations,
    *,
    threshold: float,
    contexts: int,
    seed: int,
) -> StitchingResult:
    """The parents, what each rule makes with and without a decoder refit, and controls, all measured held out."""
    subsets, chosen = RefittedSubsets(chain.pool, chain.sample), choices[rule].chosen
    unrefitted = {  # of choices that were made for the best bias, with it
        name: subsets.subset(choice.chosen, "none" if choice.insertions else "bias", UNREFITTED[name])
        for name, choice in choices.items()
        if choice.insertions or name != rule or refit != "bias"
    }
    controls, refitted = [], {}
    if refit != "none":
        parents = enumerate(chain.dictionaries)
        controls = [subsets.subset(chain.mask_of(i), refit, f"{parent.name}, refitted") for i, parent in parents]
        others = {name: choice for name, choice in choices.items() if name != rule}
        refitted = {n: subsets.subset(c.chosen, refit, f"by {n}, refitted") for n, c in others.items()}
    stitched = subsets.subset(chosen, refit, STITCHED)
    rates = chain.sample.firing_rate
    others = [float(rates[choice.chosen].sum()) for choice in choices.values()]
    levels, cautions = parents_at_levels(chain, batches, refit, float(rates[chosen].sum()), others)
    candidates = [*chain.dictionaries, *unrefitted.values(), *controls, *refitted.values(), stitched]
    candidates += [level.dictionary for level in levels]
    evaluations = evaluate_activations(candidates, heldout, contexts=contexts, seed=seed)
    measured = {d.name: Point(d, e) for d, e in zip(candidates, evaluations, strict=True)}
    n_kept = int(chosen[chain.latents_of(0)].sum())
    return StitchingResult(
        parents=[measured[parent.name] for parent in chain.dictionaries],
        unrefitted={name: measured[candidate.name] for name, candidate in unrefitted.items()},
        controls=[measured[control.name] for control in controls],
        refitted={name: measured[candidate.name] for name, candidate in refitted.items()},
        stitched=measured[STITCHED],
        curves=sparsity_curves(chain.dictionaries, controls or chain.dictionaries, levels, measured),
        cautions=cautions,
        choices=choices,
        rule=rule,
        refit=refit,
        threshold=threshold,
        seed=seed,
        n_inserted=int(chosen.sum()) - n_kept,
        n_kept=n_kept,
    )


def _described(stitched: Point, how: Mapping[str, Any]) -> Dictionary:
    """The stitched dictionary with how it was made, and what was measured, in its metadata."""
    dictionary = stitched.dictionary
    dead = int((emitting(dictionary.activation, dictionary.n_latents) & ~dictionary.alive.cpu()).sum())
    metrics = stitched.evaluation.record() | {"dead": dead, "firing_tokens": how["tokens"]}
    training = dictionary.metadata.training | dict(how)
    return replace(dictionary, metadata=replace(dictionary.metadata, training=training, metrics=metrics))
