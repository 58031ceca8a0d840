"""Can I have the best of both?

SMALL keeps all its latents; the latents of LARGE that are novel are added (Bussmann, Leask et al. 2024), then those of
the next larger dictionary to what has been stitched so far. Three things decide whether the result is any good, and
each is measured on held-out text (or on the held-out part of plain activations):

* Which latents: by their measured effect, by the published cosine rule, or those at a point of the path between sizes;
  see `choosing`.
* How they are chosen at run time: every latent by its own dictionary's rule. A latent from a TopK dictionary fires
  where it beats its old rivals, so rivals that are not taken along still compete, but emit nothing.
* The decoder: effects of single insertions do not add up, and a set can overshoot badly. With the encoders frozen,
  the best decoder D and bias b are a ridge regression, pulled towards the directions that the latents came with:

      min  sum_t |x_t - b - f_t D|^2 + lambda |D - D_0|^2

A refit helps any dictionary, so SMALL with its own decoder refitted stands beside the result as a control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from analyses.common.chance import max_cosine_levels
from analyses.common.inputs import DataLike, DictionaryLike, ModelLike, TextLike, open_activations
from analyses.composition.novelty import agreement, effect_plot, effects_caption
from analyses.composition.path_steps import Order
from analyses.composition.selection_rules import Choice, by_insertion, by_path, by_search
from analyses.composition.size_chain import Chain, observed, open_chain
from analyses.composition.stitching_tables import (
    against,
    differences_caption,
    quality,
    quality_caption,
    quality_plot,
    summary,
    warnings,
)
from analyses.pool.dictionary_pool import joinable, part_of, pooled
from analyses.pool.ridge_refit import Parts, Refit
from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import emitting
from dictlab.dictionary.normalisation import Centred
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.metrics import Evaluation
from dictlab.evaluation.reconstruction import evaluate_activations
from dictlab.evaluation.recorded_selection import with_selection
from dictlab.reports.report import Plot, Report, Table

Select = Literal["effect", "cosine", "optimal"]
RAW = {
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
    return part_of(pooled([small, large]), everything, name=name)


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
    at: int | None = None,
    until: str | None = None,
    latents: int | None = None,
    l0: float | None = None,
    order: Order = "cosine",
    tokens: int = 131_072,
    contexts: int = 64,
    seed: int = 0,
    device: str = "cpu",
    token_selection: str | None = None,
) -> Report:
    """Add to SMALL what larger dictionaries know and it lacks, and measure whether the result is better.

    Args:
        small: The dictionary that is added to.
        larger: One or more dictionaries at the same site, whose novel latents are added, one dictionary after another.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from: the training split to choose and refit on, the held-out split to measure on.
        data: Activations in place of model and text: an array, or a .npy or .safetensors file. No CE and KL.
        select: Novel latents by their measured effect, or by the published cosine rule; or, optimal, any latents of
            all dictionaries, by a local search for the smallest error under a budget.
        threshold: Cosine below which the cosine rule calls a latent novel, and from which a path takes two for kin.
        refit: What is refitted in closed form, encoders frozen: decoder and bias, bias alone, or nothing. By default
            the decoder; at a point of the path the bias.
        at: Instead, take the path between sizes as far as so many latents.
        until: Instead, take it until mse=VALUE or l0=VALUE is reached.
        latents: Most latents that the search may choose; by default any number.
        l0: Most active latents a token that it may choose; by default as many as the largest dictionary has.
        order: Of the path: least similar first, most useful alone first, random, or greedy; see `dictlab report path`.
        tokens: Training tokens to choose and refit on.
        contexts: Held-out sequences to measure on.
        seed: Of the samples of text, a random order, chance level and bootstrap.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.

    Example:
        dictlab stitch small.safetensors large.safetensors --out out/stitched
        dictlab stitch a-256.safetensors a-512.safetensors a-1024.safetensors --at 700
        dictlab stitch small.safetensors large.safetensors --data activations.npy
    """
    check_at_least(0, seed=seed)
    check_at_least(1, at=at, latents=latents)
    check_at_least(0, l0=l0)
    if select != "optimal" and (latents is not None or l0 is not None):
        raise DictlabError("--latents and --l0 are budgets of a search; give --select optimal with them.")
    if at is not None and until is not None:
        raise DictlabError("--at and --until both say where on the path to stop; give one.")
    parents = [_as_parent(parent) for parent in with_selection(open_chain(small, larger), token_selection)]
    reading = open_activations(parents, model=model, text=text, data=data, device=device)
    parents, (seen, heldout) = reading.dictionaries, reading.parts()
    joinable(parents)
    fit = list(seen.sample(tokens, seed=seed))
    chain = observed(parents, fit)
    choices = {choice.rule: choice for choice in by_insertion(chain, fit, threshold)}
    rule: str = select
    refit = refit or ("decoder" if at is None and until is None else "bias")
    if select == "optimal":
        choices["optimal"] = by_search(chain, latents, l0, refit)
    if at is not None or until is not None:
        choices["path"], rule = by_path(chain, threshold, order, seed, at, until), "path"
    candidates = _candidates(chain, choices, rule, refit)
    evaluations = evaluate_activations(list(candidates.values()), heldout, contexts=contexts, seed=seed)
    found = {evaluation.name: evaluation for evaluation in evaluations}
    how = _how(choices[rule], chain, refit) | {"threshold": threshold, "tokens": chain.observations.n_tokens}
    how |= {name: value for name, value in (("at", at), ("until", until), ("order", order)) if rule == "path" and value}
    how |= {name: value for name, value in (("latents", latents), ("l0", l0)) if value is not None}
    stitched = _described(candidates["stitched"], found["stitched"], how | seen.record())
    shown = choices.get(rule if rule in ("effect", "cosine") else "effect", choices["effect"])
    return Report(
        title=f"{parents[0].name} stitched with what {_listed(parents[1:])} adds",
        summary=summary(found, parents, how),
        tables={
            "quality": Table(quality(found, candidates), quality_caption(found["stitched"])),
            "differences": Table(against(found, parents[0].name), differences_caption(parents[0].name)),
            **_latent_tables(shown, parents[1:], threshold),
            "metrics": Table(
                pd.concat([e.table() for e in evaluations], ignore_index=True), "Every metric, 95 % interval."
            ),
        },
        plots={"quality": quality_plot(found), **_effect_plots(shown, parents[1:], threshold, seed)},
        dictionaries={"stitched": stitched},
        settings=stitched.metadata.training | {"seed": seed} | found["stitched"].sample,
        inputs=tuple(parents),
        warnings=(*warnings(found, parents, rule), *choices[rule].cautions, *_mean_lost(parents), *reading.cautions),
    )


def _as_parent(dictionary: Dictionary) -> Dictionary:
    """The same under a name that no row of the report's own has: the parent may itself be a stitched dictionary."""
    taken = dictionary.name == "stitched" or dictionary.name.startswith((*RAW.values(), "by "))
    return replace(dictionary, name=f"{dictionary.name} (parent)") if taken else dictionary


def _candidates(chain: Chain, choices: Mapping[str, Choice], rule: str, refit: Refit) -> dict[str, Dictionary]:
    """The parents, what each rule makes, the same refitted (the selected rule's is the result), and a control."""
    parts, own = Parts(chain.pool, chain.observations), np.arange(chain.pool.n_latents) < chain.first[1]
    made = list(chain.dictionaries)
    for name, choice in choices.items():
        if name in ("effect", "cosine"):
            made.append(parts.made(choice.chosen, "none", RAW[name]))
        elif name != rule or refit != "bias":  # the best bias belongs to these choices
            made.append(parts.made(choice.chosen, "bias", RAW[name]))
    if refit != "none":
        made.append(parts.made(own, refit, f"{chain.dictionaries[0].name}, refitted"))
        made += [parts.made(c.chosen, refit, f"by {name}, refitted") for name, c in choices.items() if name != rule]
    made.append(parts.made(choices[rule].chosen, refit, "stitched"))
    return {dictionary.name: dictionary for dictionary in made}


def _how(choice: Choice, chain: Chain, refit: Refit) -> dict[str, Any]:
    """How the result was made, for its metadata."""
    of_small = int(choice.chosen[chain.own(0)].sum())
    how = {"select": choice.rule, "refit": refit, "inserted": int(choice.chosen.sum()) - of_small, "kept": of_small}
    return how if choice.point is None else how | {"point": choice.point}


def _described(stitched: Dictionary, found: Evaluation, how: dict[str, Any]) -> Dictionary:
    """The stitched dictionary with how it was made, and what was measured, in its metadata."""
    dead = int((emitting(stitched.activation, stitched.n_latents) & ~stitched.alive.cpu()).sum())
    metrics = found.record() | {"dead": dead, "firing_tokens": how["tokens"]}
    training = stitched.metadata.training | how
    return replace(stitched, metadata=replace(stitched.metadata, training=training, metrics=metrics))


def _latent_tables(choice: Choice, larger: Sequence[Dictionary], threshold: float) -> dict[str, Table]:
    """The latents of all larger dictionaries, and how far the two rules agree about them."""
    several = len(larger) > 1
    frames = [
        frame.assign(dictionary=large.name) if several else frame
        for frame, large in zip(choice.tables, larger, strict=True)
    ]
    agreed = [
        agreement(frame).assign(**({"dictionary": large.name} if several else {}))
        for frame, large in zip(choice.tables, larger, strict=True)
    ]
    into = " into what has been stitched so far; parents are numbered there" if several else ""
    return {
        "latents": Table(
            pd.concat(frames, ignore_index=True),
            f"Each latent of {_listed(larger)}, inserted alone{into}. {effects_caption(choice.effects[0])}",
        ),
        "agreement": Table(
            pd.concat(agreed, ignore_index=True), f"Active latents by effect and by the cosine rule at {threshold:g}."
        ),
    }


def _effect_plots(choice: Choice, larger: Sequence[Dictionary], threshold: float, seed: int) -> dict[str, Plot]:
    plots = {}
    for number, (frame, into, large) in enumerate(zip(choice.tables, choice.into, larger, strict=True), start=1):
        level = max_cosine_levels(into.W_dec[into.alive], seed)["shaped"]
        plots["effects" if number == 1 else f"effects_{number}"] = effect_plot(frame, threshold, level, into, large)
    return plots


def _mean_lost(parents: Sequence[Dictionary]) -> tuple[str, ...]:
    small, others = parents[0], [d.name for d in parents[1:] if d.normalisation.kind != Centred.kind]
    if small.normalisation.kind != Centred.kind or not others:
        return ()
    return (
        f"{small.name} gives each token the mean that it takes away; {', '.join(others)} does not, and neither does "
        "the result: a layer norm after the site takes it away all the same, but the squared error counts it.",
    )


def _listed(dictionaries: Sequence[Dictionary]) -> str:
    names = [dictionary.name for dictionary in dictionaries]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
