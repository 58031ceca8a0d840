"""What a stitching is measured against: its parents at several sparsities, other rules, and its own steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from analyses.composition.stitching.budget_rules import best_of
from analyses.composition.stitching.equal_l0 import parents_at_levels, sparsity_curves
from analyses.composition.stitching.selection_rules import Choice
from analyses.composition.stitching.stitching_data import StitchingData
from analyses.composition.stitching.stitching_result import StitchingResult
from analyses.pool.one_competition import Competition, competition_steps
from analyses.pool.ridge_refit import Refit
from analyses.pool.sparsity_levels import threshold_tokens
from analyses.quality.measured_points import Point
from dictlab.dictionary import Dictionary
from dictlab.dictionary.union import emitting
from dictlab.errors import DictlabError
from dictlab.evaluation.evaluate import firing_rates
from dictlab.evaluation.reconstruction import evaluate_activations

STITCHED = "stitched"
OWN_RULES = "each by its own rule, refitted"
UNREFITTED = {  # names of what each rule's choice is without a decoder refit
    "effect": "inserted by effect",
    "cosine": "inserted by cosine",
    "path": "on the path",
    "optimal": "found by search",
}


def best_rule(data: StitchingData, choices: Mapping[str, Choice], refit: Refit) -> str:
    """The rule whose choice, refitted, is best on training sequences drawn anew."""
    candidates = [data.subsets.subset(choice.chosen, refit, f"by {rule}") for rule, choice in choices.items()]
    return list(choices)[best_of(candidates, data.train, data.seed)]


def stitched_in_steps(
    data: StitchingData, choice: Choice, refit: Refit, competition: str | None, *, better: bool
) -> tuple[Dictionary, dict[str, Dictionary]]:
    """The result, and the steps that led to it where it is under one competition.

    Args:
        data: The pool and the training tokens.
        choice: Which of its latents.
        refit: What is refitted.
        competition: The rule; own for each donor's. None for own.
        better: None stands for what is better on training sequences drawn anew: own, or one threshold.
    """
    subsets, batches = data.subsets, data.batches
    own = subsets.subset(choice.chosen, refit, STITCHED)
    kind: Competition | None = None if competition in (None, "own") else competition  # type: ignore[assignment]
    if kind is None and (competition == "own" or not better or not _ranked(own)):
        return own, {}
    x = threshold_tokens(batches, subsets.pool.n_latents)
    l0 = float(subsets.sample.firing_rate[choice.chosen].sum())
    try:
        steps = competition_steps(own, kind or "jumprelu", l0, batches, refit, x)
    except DictlabError:
        if kind is not None:
            raise
        return own, {}  # negative codes: no threshold makes them
    candidates = {OWN_RULES: replace(own, name=OWN_RULES), **steps}
    names = list(candidates)
    chosen = names[-1]
    if kind is None:
        chosen = names[best_of(list(candidates.values()), data.train, data.seed)]
        if chosen == OWN_RULES:
            return own, {}
    result = candidates.pop(chosen)
    (rates,), _ = firing_rates([result], batches)
    return replace(result, firing_rate=rates.to(result.W_dec.device), name=STITCHED), candidates


def _ranked(dictionary: Dictionary) -> bool:
    """Whether latents compete."""
    return not dictionary.activation.elementwise


def measure_stitching(
    data: StitchingData,
    choices: Mapping[str, Choice],
    rule: str,
    refit: Refit,
    stitched: Dictionary,
    steps: Mapping[str, Dictionary],
    *,
    threshold: float,
) -> StitchingResult:
    """The parents, what each rule makes with and without a decoder refit, steps and controls, all measured held out."""
    chain, subsets = data.chain, data.subsets
    chosen, rates = choices[rule].chosen, chain.sample.firing_rate
    unrefitted = {  # of choices that were made for the best bias, with it
        name: subsets.subset(choice.chosen, "none" if choice.insertions else "bias", UNREFITTED[name])
        for name, choice in choices.items()
        if choice.insertions or name != rule or refit != "bias"
    }
    controls, refitted = [], dict(steps)
    if refit != "none":
        parents = enumerate(chain.dictionaries)
        controls = [subsets.subset(chain.mask_of(i), refit, f"{parent.name}, refitted") for i, parent in parents]
        others = {name: choice for name, choice in choices.items() if name != rule}
        refitted |= {n: subsets.subset(c.chosen, refit, f"by {n}, refitted") for n, c in others.items()}
    levels, cautions = parents_at_levels(
        chain,
        data.batches,
        refit,
        float(rates[chosen].sum()),
        [float(rates[choice.chosen].sum()) for choice in choices.values()],
        competition=stitched.activation.kind if steps else None,
    )
    candidates = [*chain.dictionaries, *unrefitted.values(), *controls, *refitted.values(), stitched]
    candidates += [level.dictionary for level in levels]
    evaluations = evaluate_activations(candidates, data.heldout, contexts=data.contexts, seed=data.seed)
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
        seed=data.seed,
        n_inserted=int(chosen.sum()) - n_kept,
        n_kept=n_kept,
    )


def n_dead(dictionary: Dictionary) -> int:
    """Latents that can be active and were not on the training tokens."""
    return int((emitting(dictionary.activation, dictionary.n_latents) & ~dictionary.alive.cpu()).sum())
