"""What is one dictionary worth that is put together from several?

Frankenstein's dictionary (Bussmann, Leask et al. 2024): start from the smallest of several dictionaries, go through the
larger ones, and keep each latent whose direction no kept one has (see `appending`). It has a smaller error than a
trained dictionary of as many latents, and more active latents a token; the authors say that this makes a fair
comparison difficult. So it is compared here with trained dictionaries at equal L0 as well (see `frontier`), and three
choices by measured error stand beside it, from the same pool of latents (see `search`): as many latents, the same L0,
and the L0 of the best of the dictionaries that it is made of. Each under every refit (see `hybrids`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analyses.common.inputs import (
    DataLike,
    DictionaryLike,
    ModelLike,
    TextLike,
    check_same_place,
    open_activations,
    open_dictionaries,
)
from analyses.composition import frankenstein_tables as tables
from analyses.composition.append_rule import Appended, Order, Start, appended
from analyses.composition.frankenstein_frontier import compared
from analyses.pool.dictionary_pool import joinable, pooled
from analyses.pool.pool_sample import Observations, observe
from analyses.pool.quadratic_error import form
from analyses.pool.refitted_subsets import BY_GRADIENT, CLOSED, Refit, Sample, hybrid
from analyses.pool.refitted_subsets import compact as compacted
from analyses.pool.ridge_refit import normal_equations
from analyses.pool.search_starts import SEARCHED_REFITTED, best_of_starts
from analyses.pool.threshold_calibration import Agreement, Calibration, agreement
from analyses.quality.measured_points import Point
from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import emitting
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.evaluate import firing_rates
from dictlab.evaluation.reconstruction import evaluate_activations
from dictlab.reports.report import Report

Compact = Literal["no", "codes", "decisions", "rate"]
RULE, ASKED = "cosine", "as asked"
CONTROL = "best donor"  # a refit helps any dictionary: its own latents under every refit
FILES = {RULE: "frankenstein", "best donor's L0": "donor_l0"}
SEARCH_RIDGE = 0.01  # of the decoders that a search fits
HEARD = 16_384  # held-out tokens on which firing decisions are compared


def frankenstein(
    dictionaries: Sequence[DictionaryLike],
    *,
    beside: Sequence[DictionaryLike] | None = None,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    data: DataLike | None = None,
    threshold: float = 0.4,
    start: Start = "smallest",
    order: Order = "width",
    duplicates: float = 0.9,
    refit: Literal["none", "bias", "decoder", "biases", "all"] = "decoder",
    gradient: bool = False,
    steps: int = 300,
    latents: int | None = None,
    l0: float | None = None,
    search_refit: bool | None = None,
    compact: Compact = "no",
    tokens: int = 65_536,
    contexts: int = 64,
    seed: int = 0,
    device: str = "cpu",
    token_selection: str | None = None,
) -> Report:
    """Put one dictionary together from several, by the published rule and by measured error, and compare with training.

    Args:
        dictionaries: Two or more at the same site, whose latents are used.
        beside: Other trained dictionaries at the site, to compare with and not to use.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from: the training split to choose and refit on, the held-out split to measure on.
        data: Activations in place of model and text: an array, or a .npy or .safetensors file. No CE and KL.
        threshold: The rule keeps a latent whose cosine with every kept one is at most this.
        start: The rule's first dictionary, of which it keeps everything: the smallest, the first, or nothing.
        order: In which the rule goes through the others: by width, as given, or random.
        duplicates: Cosine above which the rule takes two latents of one dictionary for the same.
        refit: Of the dictionaries that are written: nothing, output bias or decoder in closed form; biases or all
            weights by gradient.
        gradient: Measure both refits by gradient, whatever is written.
        steps: Of gradient.
        latents: Most latents of one more choice by measured error.
        l0: Most active latents a token of that choice.
        search_refit: Choose by the error that is left when the decoder is refitted; slow with many latents, so by
            default only where there are at most 2,048.
        compact: Give latents of TopK and the like thresholds of their own, calibrated on their codes, firing decisions
            or firing rates, so that no rivals are carried along.
        tokens: Training tokens to choose and refit on.
        contexts: Held-out sequences to measure on.
        seed: Of the samples of text, a random order, fine-tuning and the bootstrap.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.

    Example:
        dictlab report frankenstein a.safetensors b.safetensors c.safetensors --threshold 0.7 --gradient
        dictlab report frankenstein a.safetensors b.safetensors --data activations.npy
    """
    check_at_least(0, seed=seed, steps=steps, latents=latents, l0=l0)
    written = _named(refit)
    given = open_dictionaries(dictionaries, least=2, token_selection=token_selection)
    apart = open_dictionaries(beside or [], least=0, token_selection=token_selection)
    _check(given, apart)
    reading = open_activations([*given, *apart], model=model, text=text, data=data, device=device)
    donors, others = reading.dictionaries[: len(given)], reading.dictionaries[len(given) :]
    source, held = reading.parts()
    batches = list(source.sample(tokens, seed=seed))
    pool = pooled(donors)
    seen = observe(pool, batches)
    rule = _by_rule(donors, seen, threshold, duplicates, start, order, seed)
    sample = Sample(pool, batches, seen, joinable(donors)[rule.order[0]].b_out, steps, seed)

    def measured(some: Sequence[Dictionary]) -> list[Point]:
        found = evaluate_activations(some, held, contexts=contexts, seed=seed)
        return [Point(d, e) for d, e in zip(some, found, strict=True)]

    trained = measured([*donors, *others])
    best = min(trained[: len(donors)], key=lambda point: point.value("mse"))
    rate = float(seen.firing_rate[rule.chosen].sum())
    budgets: dict[str, tuple[int | None, float | None]] = {
        "equal size": (int(rule.chosen.sum()), None),
        "equal L0": (None, rate),
        "best donor's L0": (None, best.value("l0")),
    }
    if latents is not None or l0 is not None:
        budgets[ASKED] = (latents, l0)
    by_refit = pool.n_latents <= SEARCHED_REFITTED if search_refit is None else search_refit
    widths = [d.n_latents for d in joinable(donors)]
    choices, said = _choices(rule, sample, widths, budgets, by_refit)
    choices[CONTROL] = _each(widths)[trained.index(best)]
    made = _all_refits(choices, sample, written, gradient)
    agreements: dict[str, Agreement] = {}
    if compact != "no":
        heard = list(held.sample(HEARD, seed=seed))
        alone, agreements = _compact(choices, made, sample, written, compact, heard)
        made |= alone
    points = measured(list(made.values()))
    how: dict[str, Any] = {"threshold": threshold, "start": start, "order": order, "duplicates": duplicates}
    how |= {"refit": refit, "compact": compact, "steps": steps, "search_refit": by_refit, "tokens": seen.n_tokens}
    how |= source.record()
    suffix = written if compact == "no" else f"{written}, compact"
    result = {
        _file(choice): _described(made[f"{choice}, {suffix}"], points, sample, how | {"choice": choice})
        for choice in choices
        if choice != CONTROL
    }
    comparisons = {cost: compared(points, trained, cost) for cost in ("l0", "latents")}
    found = tables.Found(points, trained, comparisons, f"{RULE}, {suffix}", best.name)
    return Report(
        title=f"What is a dictionary worth that is put together from {len(donors)}?",
        summary=tables.summary(found),
        tables=tables.all_tables(found, tables.rule_table(rule, donors), agreements),
        plots=tables.plots(found),
        dictionaries=result,
        settings=how | {"seed": seed} | points[0].evaluation.sample,
        inputs=(*given, *apart),
        warnings=(*said, *tables.warnings(found), *reading.cautions),
    )


def _check(donors: Sequence[Dictionary], others: Sequence[Dictionary]) -> None:
    """Refuse names that the report's own rows have, or that two dictionaries share, and different places."""
    names = [dictionary.name for dictionary in (*donors, *others)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DictlabError(f"{twice!r} is among the dictionaries that are used and among those beside: give it once.")
    check_same_place([*donors, *others])


def _by_rule(
    donors: Sequence[Dictionary],
    seen: Observations,
    threshold: float,
    duplicates: float,
    start: Start,
    order: Order,
    seed: int,
) -> Appended:
    own = joinable(donors)
    rates = torch.from_numpy(seen.firing_rate).split([d.n_latents for d in own])
    directions = [d.W_dec.cpu() for d in own]
    found = appended(directions, rates, threshold=threshold, duplicates=duplicates, start=start, order=order, seed=seed)
    if not found.chosen.any():
        names = ", ".join(d.name for d in donors)
        raise DictlabError(f"no latent of {names} was active on {seen.n_tokens} tokens: there is nothing to join.")
    return found


def _choices(
    rule: Appended,
    sample: Sample,
    widths: Sequence[int],
    budgets: Mapping[str, tuple[int | None, float | None]],
    refit: bool,
) -> tuple[dict[str, NDArray[np.bool_]], tuple[str, ...]]:
    """The rule's latents, and those with the smallest error within each budget."""
    made = form(sample.observations, sample.pool.W_dec)
    starts = [rule.chosen, *_each(widths)]
    equations = normal_equations(sample.observations) if refit else None
    choices, said = {RULE: rule.chosen}, []
    for name, (latents, l0) in budgets.items():
        found = best_of_starts(made, starts, latents=latents, l0=l0, equations=equations, ridge=SEARCH_RIDGE)
        if not found.chosen.any():
            if name == ASKED:
                raise DictlabError(f"no latent fits into latents {latents} and L0 {l0}. Allow more.")
            said.append(f"{name}: no latent that helps is active so seldom (L0 {l0}); left out.")
            continue
        choices[name] = found.chosen
        if not found.settled:
            said.append(f"{name}: the search stopped when its trials ran out; more might lower the error further.")
    return choices, tuple(said)


def _each(widths: Sequence[int]) -> list[NDArray[np.bool_]]:
    """Each donor's latents in the pool."""
    donor = np.repeat(np.arange(len(widths)), widths)
    return [donor == number for number in range(len(widths))]


def _all_refits(
    choices: Mapping[str, NDArray[np.bool_]], sample: Sample, written: Refit, gradient: bool
) -> dict[str, Dictionary]:
    """Every choice under every refit; those by gradient where they are asked for."""
    refits = [*CLOSED, *(refit for refit in BY_GRADIENT if gradient or refit == written)]
    named = {f"{choice}, {refit}": (chosen, refit) for choice, chosen in choices.items() for refit in refits}
    return {name: hybrid(sample, torch.from_numpy(chosen), refit, name) for name, (chosen, refit) in named.items()}


def _compact(
    choices: Mapping[str, NDArray[np.bool_]],
    made: Mapping[str, Dictionary],
    sample: Sample,
    written: Refit,
    by: Calibration,
    heard: Sequence[Tensor],
) -> tuple[dict[str, Dictionary], dict[str, Agreement]]:
    """What is written, each latent with a threshold of its own; as it is and, if it was, with its decoder refitted."""
    found: dict[str, Dictionary] = {}
    agreements: dict[str, Agreement] = {}
    for choice in choices:
        before = made[f"{choice}, {written}"]
        alone, again = compacted(sample, before, written, by)
        found |= {alone.name: alone, again.name: again}
        agreements |= dict.fromkeys((alone.name, again.name), agreement(before, alone, heard))
    return found, agreements


def _named(refit: str) -> Refit:
    """A refit by its full name."""
    short: dict[str, Refit] = {"biases": "biases by gradient", "all": "all by gradient"}
    full = short.get(refit, refit)
    if full not in (*CLOSED, *BY_GRADIENT):
        raise DictlabError(f"refit is {refit!r}; expected one of {', '.join((*CLOSED, *short))}.")
    return full


def _file(choice: str) -> str:
    return FILES.get(choice, choice.replace(" ", "_"))


def _described(made: Dictionary, points: Sequence[Point], sample: Sample, how: Mapping[str, Any]) -> Dictionary:
    """A dictionary that is written: firing rates, how it was made, and what was measured."""
    found = next(point.evaluation for point in points if point.name == made.name)
    rates, seen = firing_rates([made], sample.batches)
    dead = int((emitting(made.activation, made.n_latents) & (rates[0] == 0)).sum())
    metrics = found.record() | {"dead": dead, "firing_tokens": seen}
    return replace(
        made,
        firing_rate=rates[0].to(made.W_dec.device),
        metadata=replace(made.metadata, training=made.metadata.training | dict(how), metrics=metrics),
    )
