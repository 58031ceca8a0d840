"""The dictionaries that are put together: latents chosen by the rule and by searches, under every refit.

A hybrid is named by its choice of latents and by its refit: ("cosine", "decoder"), ("equal L0", "bias"), ...
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analyses.composition.frankenstein.append_rule import Appended, appended
from analyses.composition.frankenstein.report import CompactHybrid, Hybrid
from analyses.pool.dictionary_chain import DictionaryChain
from analyses.pool.quadratic_error import QuadraticError
from analyses.pool.refitted_subsets import GradientRefit, RefittedSubsets, compacted
from analyses.pool.ridge_refit import Refit, normal_equations
from analyses.pool.search_starts import BudgetLimits, best_of_starts
from analyses.pool.threshold_calibration import Calibration, agreement
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError

ASKED = "as asked"  # the budget that a user gave
SEARCH_RIDGE = 0.01  # of the decoders that a search fits
COMPACT = "compact"

Mask = NDArray[np.bool_]


def choose_by_rule(chain: DictionaryChain, threshold: float, duplicates: float) -> Appended:
    """The latents that the published rule keeps (`append_rule`).

    Raises:
        DictlabError: No latent of any donor was active on the sample.
    """
    widths = [dictionary.n_latents for dictionary in chain.dictionaries]
    rates = torch.from_numpy(chain.sample.firing_rate).split(widths)
    directions = chain.pool.W_dec.cpu().split(widths)
    signed = chain.pool.signed.cpu().split(widths)
    rule = appended(directions, rates, signed=signed, threshold=threshold, duplicates=duplicates)
    if not rule.chosen.any():
        names = ", ".join(dictionary.name for dictionary in chain.dictionaries)
        raise DictlabError(f"no latent of {names} was active on {chain.sample.n_tokens} tokens: nothing can be joined.")
    return rule


def choose_by_search(
    chain: DictionaryChain, rule: Appended, budgets: Mapping[str, BudgetLimits], refit: bool
) -> tuple[dict[str, Mask], tuple[str, ...]]:
    """The latents with the smallest error within each budget, and what is to be said of how they were found."""
    quadratic = QuadraticError.from_sample(chain.sample, chain.pool.W_dec)
    starts = [rule.chosen, *(chain.mask_of(number) for number in range(len(chain.dictionaries)))]
    equations = normal_equations(chain.sample) if refit else None
    choices: dict[str, Mask] = {}
    cautions = []
    for name, (latents, l0) in budgets.items():
        found = best_of_starts(quadratic, starts, latents=latents, l0=l0, equations=equations, ridge=SEARCH_RIDGE)
        if not found.chosen.any():
            if name == ASKED:
                raise DictlabError(f"no latent fits into latents {latents} and L0 {l0}. Allow more.")
            cautions.append(f"{name}: no latent that helps is active so seldom (L0 {l0}); left out.")
            continue
        choices[name] = found.chosen
        if not found.settled:
            cautions.append(f"{name}: the search stopped when its trials ran out; more might lower the error further.")
    return choices, tuple(cautions)


def refit_choices(
    chain: DictionaryChain,
    choices: Mapping[str, Mask],
    refits: Sequence[Refit | GradientRefit],
    first: int,
    batches: Sequence[Tensor],
    steps: int,
    seed: int,
) -> dict[tuple[str, str], Dictionary]:
    """Every choice under every refit. Without one the output bias is that of the donor that the rule starts from."""
    subsets = RefittedSubsets(chain.pool, chain.sample)
    b_out = torch.from_numpy(chain.biases[first]).to(chain.pool.b_out)
    refitted = {}
    for choice, chosen in choices.items():
        for refit in refits:
            name = f"{choice}, {refit}"
            if refit == "biases by gradient" or refit == "all by gradient":
                refitted[choice, str(refit)] = subsets.tuned(chosen, refit, name, batches, steps=steps, seed=seed)
            else:
                refitted[choice, str(refit)] = subsets.subset(chosen, refit, name, b_out=b_out)
    return refitted


def compact_choices(
    refitted: Mapping[tuple[str, str], Dictionary],
    choices: Iterable[str],
    refit: Refit | GradientRefit,
    batches: Sequence[Tensor],
    thresholds: Calibration,
) -> dict[tuple[str, str], Dictionary]:
    """Every choice with thresholds in place of rivals, as they are calibrated and refitted again."""
    compact: dict[tuple[str, str], Dictionary] = {}
    for choice in choices:
        alone, again = compacted(refitted[choice, refit], batches, refit, thresholds)
        compact[choice, f"{refit}, {COMPACT}, not refitted again"] = alone
        compact[choice, f"{refit}, {COMPACT}"] = again
    return compact


def compact_agreements(
    hybrids: Mapping[tuple[str, str], Hybrid],
    choices: Iterable[str],
    refit: str,
    heldout: Iterable[Tensor],
) -> list[CompactHybrid]:
    """Each compact hybrid beside the one with rivals that it stands for; both compact ones fire alike."""
    batches, pairs = list(heldout), []
    for choice in choices:
        before, compact = hybrids[choice, refit], f"{refit}, {COMPACT}"
        alone, again = hybrids[choice, f"{compact}, not refitted again"], hybrids[choice, compact]
        agree = agreement(before.point.dictionary, alone.point.dictionary, batches)
        pairs += [CompactHybrid(after, before, agree) for after in (alone, again)]
    return pairs
