"""Which rule makes the best dictionary within a budget of latents and L0?

Every rule's choice is cut to the budget, refitted, and measured on tokens of the training split that were drawn anew,
not on those that are reported on:

    effect, cosine    what the rule inserts, then what raises the error least goes until the budget is kept
    path              of the points of the path between sizes that keep it, the one with the smallest error
    optimal           a local search under it, which begins with the best of the dictionaries

The smallest of the geometric means of MSE and KL (of MSE alone without a model) decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from analyses.composition.path.path_steps import Order
from analyses.composition.path.size_path import match_latents, order_steps, trace_path
from analyses.composition.stitching.selection_rules import Choice, by_search
from analyses.pool.dictionary_chain import DictionaryChain
from analyses.pool.quadratic_error import QuadraticError
from analyses.pool.ridge_refit import LARGEST_REFIT, Refit
from analyses.pool.search_starts import SEARCHED_REFITTED
from analyses.pool.subset_search import budget_of, reduced
from dictlab.data.activations import Activations
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.evaluation.metrics import Evaluation
from dictlab.evaluation.reconstruction import evaluate_activations

CONTEXTS = 16  # training sequences that decide between rules
APART = 1_000_003  # added to the seed, so that these are other sequences than those that are fitted


def within_budget(
    chain: DictionaryChain,
    choices: Mapping[str, Choice],
    *,
    threshold: float,
    order: Order,
    seed: int,
    refit: Refit,
    latents: int | None,
    l0: float | None,
) -> tuple[dict[str, Choice], tuple[str, ...]]:
    """What each rule chooses within a budget, by rule; and what was left out because the pool is too large.

    Args:
        chain: The dictionaries.
        choices: By effect and by cosine, without a budget.
        threshold: Cosine from which the path matches two latents.
        order: Of the path.
        seed: Of a random order.
        refit: What is refitted afterwards.
        latents: How many may be chosen; by default any number.
        l0: Active latents a token that are allowed; by default what the largest dictionary has.

    Raises:
        DictlabError: The budget is too small for any latent.
    """
    quadratic, n = QuadraticError.from_sample(chain.sample, chain.pool.W_dec), chain.pool.n_latents
    allowed = quadratic.l0(chain.mask_of(len(chain.dictionaries) - 1)) if l0 is None else l0
    cut = {
        rule: replace(choice, chosen=reduced(quadratic, choice.chosen, latents=latents, l0=allowed))
        for rule, choice in choices.items()
    }
    if not all(choice.chosen.any() for choice in cut.values()):
        raise DictlabError(f"no latent fits into latents {latents} and L0 {allowed:g}. Allow more.")
    cautions = []
    if n <= SEARCHED_REFITTED:
        cut["path"] = _best_of_path(chain, quadratic, threshold, order, seed, latents, allowed)
    else:
        cautions.append(f"The path was left out: {n} latents, {SEARCHED_REFITTED} at most. Take it with `until=...`.")
    if n <= LARGEST_REFIT:
        cut["optimal"] = by_search(chain, latents, allowed, refit)
    else:
        cautions.append(f"The search was left out: {n} latents, {LARGEST_REFIT} at most. Ask with `select='optimal'`.")
    return {rule: choice for rule, choice in cut.items() if choice.chosen.any()}, tuple(cautions)


def _best_of_path(
    chain: DictionaryChain,
    quadratic: QuadraticError,
    threshold: float,
    order: Order,
    seed: int,
    latents: int | None,
    l0: float,
) -> Choice:
    """The point of the path with the smallest error, with the best bias, of those that keep the budget."""
    trace = trace_path(chain, order_steps(chain, match_latents(chain, threshold), order, seed))
    budget = budget_of(quadratic, latents, l0)
    fits = (trace.l0() <= budget.l0) & (trace.schedule.n_latents() <= budget.latents)
    if not fits.any():
        return Choice("path", np.zeros(chain.pool.n_latents, dtype=bool))
    point = int(np.where(fits, trace.mse("best"), np.inf).argmin())
    return Choice("path", trace.schedule.chosen(point), point=point)


def best_of(candidates: Sequence[Dictionary], train: Activations, seed: int) -> int:
    """The candidate with the smallest `score` on training sequences that are drawn anew."""
    if len(candidates) == 1:
        return 0
    measured = evaluate_activations(candidates, train, contexts=CONTEXTS, seed=seed + APART)
    return int(np.argmin([score(evaluation) for evaluation in measured]))


def score(evaluation: Evaluation) -> float:
    """sqrt(MSE KL); the MSE where there is no model."""
    mse = evaluation.value("mse")
    return float(np.sqrt(mse * evaluation.value("kl"))) if evaluation.has_model else mse
