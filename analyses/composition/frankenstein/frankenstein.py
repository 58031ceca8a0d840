"""What is one dictionary worth that is put together from several?

Frankenstein's dictionary (Bussmann, Leask et al. 2024): start from the smallest of several dictionaries, go through the
larger ones, and keep each latent whose direction no kept one has (see `append_rule`). It has a smaller error than a
trained dictionary of as many latents, and more active latents a token; the authors say that this makes a fair
comparison difficult. So it is compared here with trained dictionaries at equal L0 as well (see `trained_frontier`), and
three choices by measured error stand beside it, from the same pool of latents (see `subset_search`): as many latents,
the same L0, and the L0 of the best of the dictionaries that it is made of. Each under every refit (see
`refitted_subsets`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from analyses.common.chance import sign_notes
from analyses.common.compatibility import check_same_place
from analyses.common.inputs import DataLike, open_activations
from analyses.common.opening import DictionaryLike, ModelLike, TextLike, open_dictionaries
from analyses.composition.frankenstein.append_rule import Appended
from analyses.composition.frankenstein.hybrids import (
    ASKED,
    COMPACT,
    choose_by_rule,
    choose_by_search,
    compact_agreements,
    compact_choices,
    refit_choices,
)
from analyses.composition.frankenstein.report import (
    CompactHybrid,
    FrankensteinResult,
    Hybrid,
    frankenstein_plots,
    frankenstein_summary,
    frankenstein_tables,
    frankenstein_warnings,
)
from analyses.composition.trained_frontier import frontier_ratios
from analyses.pool.dictionary_chain import DictionaryChain, encode_chain
from analyses.pool.refitted_subsets import BY_GRADIENT, CLOSED, GradientRefit
from analyses.pool.ridge_refit import Refit
from analyses.pool.search_starts import SEARCHED_REFITTED, BudgetLimits
from analyses.quality.measured_points import Point
from dictlab.data.activations import Activations
from dictlab.dictionary import Dictionary
from dictlab.dictionary.union import emitting
from dictlab.errors import DictlabError, check_at_least, check_choice
from dictlab.evaluation.evaluate import firing_rates
from dictlab.evaluation.reconstruction import evaluate_activations
from dictlab.reports.report import Report

Compact = Literal["no", "codes", "decisions", "rate"]
RULE, DONOR_L0 = "cosine", "best donor's L0"
CONTROL = "best donor"  # a refit helps any dictionary: its own latents under every refit
FILES = {RULE: "frankenstein", DONOR_L0: "donor_l0"}
GRADIENT: dict[str, GradientRefit] = {"biases": "biases by gradient", "all": "all by gradient"}
AGREEMENT_TOKENS = 16_384  # held-out tokens on which firing decisions are compared


def frankenstein(
    dictionaries: Sequence[DictionaryLike],
    *,
    baselines: Sequence[DictionaryLike] | None = None,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    data: DataLike | None = None,
    max_cosine: float = 0.4,
    duplicate_threshold: float = 0.9,
    written_refit: Literal["none", "bias", "decoder", "biases", "all"] = "decoder",
    gradient_refits: bool = False,
    gradient_steps: int = 300,
    max_latents: int | None = None,
    max_l0: float | None = None,
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
        dictionaries: Two or more at the same site.
        baselines: Other trained dictionaries at the site, to compare with and not to use.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from. Its training split to choose and refit on, its held-out split to measure on.
        data: Activations in place of model and text: an array, or a .npy or .safetensors file. No CE and KL.
        max_cosine: The rule keeps a latent whose cosine with every kept one is at most this.
        duplicate_threshold: Cosine above which the rule takes two latents of one dictionary for the same.
        written_refit: What is refitted in the dictionaries that are written: nothing, output bias or decoder in closed
            form; biases or all weights by gradient.
        gradient_refits: Measure both refits by gradient, whatever is written.
        gradient_steps: Steps of a refit by gradient.
        max_latents: Latents that a search for the smallest error may choose, at most; by default any number. One more
            choice beside those of the rule's size and L0.
        max_l0: Active latents a token that a search for the smallest error may choose, at most. Of the same choice; by
            default any number.
        search_refit: Choose by the error that is left when the decoder is refitted; slow with many latents, so by
            default only where there are at most 2,048.
        compact: Give latents of TopK and the like thresholds of their own, calibrated on their codes, firing decisions
            or firing rates, so that no rivals are carried along.
        tokens: Training tokens to sample.
        contexts: Held-out sequences to measure on.
        seed: Seed of everything that is drawn at random.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.

    Returns:
        A report with these tables; in brackets what is there only where there is such a thing.

        quality: dictionary; is; latents; encoders; L0; MSE; MSE low; MSE high; explained variance; [CE increase]; [CE
            increase low]; [CE increase high]; [KL]
        at_equal_l0: dictionary; L0; error; value; frontier; ratio; low; high; frontier there
        at_equal_size: dictionary; latents; error; value; frontier; ratio; low; high; frontier there
        rule: dictionary; latents; silent here; too near; duplicates; taken; share taken
        metrics: dictionary; metric; value; low; high; unit
        [compact]: dictionary; decisions; firings; lost; new; silent; encoders before; encoders; L0 before; L0; MSE
            before; MSE; CE increase before; CE increase

    Example:
        dictlab report frankenstein a.safetensors b.safetensors c.safetensors --max-cosine 0.7 --gradient-refits
        dictlab report frankenstein a.safetensors b.safetensors --data activations.npy
    """
    check_at_least(0, seed=seed, gradient_steps=gradient_steps, max_latents=max_latents, max_l0=max_l0)
    check_choice(Compact, compact=compact)
    written = _named(written_refit)
    given = open_dictionaries(dictionaries, analysis="frankenstein", least=2, token_selection=token_selection)
    apart = open_dictionaries(baselines or [], analysis="frankenstein", least=0, token_selection=token_selection)
    _check(given, apart)
    reading = open_activations([*given, *apart], model=model, text=text, data=data, device=device)
    donors, others = reading.dictionaries[: len(given)], reading.dictionaries[len(given) :]
    train, heldout = reading.parts()
    batches = list(train.sample(tokens, seed=seed))
    chain = encode_chain(donors, batches)
    rule = choose_by_rule(chain, max_cosine, duplicate_threshold)
    trained = _measured([*donors, *others], heldout, contexts, seed)
    best_donor = min(trained[: len(donors)], key=lambda point: point.value("mse"))
    budgets = _budgets(chain, rule, best_donor, BudgetLimits(max_latents, max_l0))
    by_refit = chain.pool.n_latents <= SEARCHED_REFITTED if search_refit is None else search_refit
    searched, cautions = choose_by_search(chain, rule, budgets, by_refit)
    choices = {RULE: rule.chosen, **searched, CONTROL: chain.mask_of(trained.index(best_donor))}
    refits = [*CLOSED, *(kind for kind in BY_GRADIENT if gradient_refits or kind == written)]
    refitted = refit_choices(chain, choices, refits, rule.order[0], batches, gradient_steps, seed)
    if compact != "no":
        refitted |= compact_choices(refitted, choices, written, batches, compact)
    points = _measured(list(refitted.values()), heldout, contexts, seed)
    hybrids = {key: Hybrid(*key, point) for key, point in zip(refitted, points, strict=True)}
    written_kind = written if compact == "no" else f"{written}, {COMPACT}"
    agreements: list[CompactHybrid] = []
    if compact != "no":
        agreements = compact_agreements(hybrids, choices, written, heldout.sample(AGREEMENT_TOKENS, seed=seed))
    result = FrankensteinResult(
        hybrids=list(hybrids.values()),
        trained=trained,
        ratios={cost: frontier_ratios(points, trained, cost) for cost in ("l0", "latents")},
        result=hybrids[RULE, written_kind],
        at_donor_l0=hybrids.get((DONOR_L0, written_kind)),
        best_donor=best_donor,
        rule=rule,
        donors=donors,
        compact=agreements,
    )
    how: dict[str, Any] = {"max_cosine": max_cosine, "duplicate_threshold": duplicate_threshold}
    how |= {"written_refit": written_refit, "compact": compact}
    how |= {"gradient_steps": gradient_steps, "search_refit": by_refit}
    how |= {"tokens": chain.sample.n_tokens} | train.record()
    return Report(
        title=f"What is a dictionary worth that is put together from {len(donors)}?",
        summary=frankenstein_summary(result),
        tables=frankenstein_tables(result),
        plots=frankenstein_plots(result),
        dictionaries={
            FILES.get(choice, choice.replace(" ", "_")): _described(
                hybrids[choice, written_kind].point, batches, how | {"choice": choice}
            )
            for choice in (RULE, *searched)
        },
        settings=how | {"seed": seed} | points[0].evaluation.sample,
        inputs=(*given, *apart),
        warnings=(
            *cautions,
            *frankenstein_warnings(result),
            *sign_notes(donors),
            *_silent_donors(chain),
            *reading.cautions,
        ),
    )


def _check(donors: Sequence[Dictionary], others: Sequence[Dictionary]) -> None:
    """Refuse names that two dictionaries share, and different places."""
    names = [dictionary.name for dictionary in (*donors, *others)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DictlabError(f"{twice!r} is among the dictionaries that are used and among the baselines: give it once.")
    check_same_place([*donors, *others])


def _budgets(chain: DictionaryChain, rule: Appended, best_donor: Point, asked: BudgetLimits) -> dict[str, BudgetLimits]:
    """What searches may spend: the rule's size, the rule's L0, the best donor's L0, and what was asked for."""
    budgets = {
        "equal size": BudgetLimits(int(rule.chosen.sum()), None),
        "equal L0": BudgetLimits(None, float(chain.sample.firing_rate[rule.chosen].sum())),
        DONOR_L0: BudgetLimits(None, best_donor.value("l0")),
    }
    return budgets if asked == (None, None) else budgets | {ASKED: asked}


def _silent_donors(chain: DictionaryChain) -> tuple[str, ...]:
    """Donors of which no latent was active on the sample."""
    active = [bool(chain.sample.firing_rate[chain.latents_of(i)].any()) for i in range(len(chain.dictionaries))]
    return tuple(
        f"{donor.name}: none of its {donor.n_latents} latents was active on {chain.sample.n_tokens} tokens, so none "
        "is used. Is it dead, or of another model or site?"
        for donor, fires in zip(chain.dictionaries, active, strict=True)
        if not fires
    )


def _measured(dictionaries: Sequence[Dictionary], heldout: Activations, contexts: int, seed: int) -> list[Point]:
    evaluations = evaluate_activations(dictionaries, heldout, contexts=contexts, seed=seed)
    return [Point(d, e) for d, e in zip(dictionaries, evaluations, strict=True)]


def _named(refit: str) -> Refit | GradientRefit:
    """A refit by its full name."""
    full = GRADIENT.get(refit, refit)
    for known in (*CLOSED, *BY_GRADIENT):
        if full == known:
            return known
    raise DictlabError(f"written_refit is {refit!r}; expected one of {', '.join((*CLOSED, *GRADIENT))}.")


def _described(made: Point, batches: Sequence[Tensor], how: Mapping[str, Any]) -> Dictionary:
    """A dictionary that is written: firing rates, how it was made, and what was measured."""
    dictionary = made.dictionary
    (rates,), tokens = firing_rates([dictionary], batches)
    dead = int((emitting(dictionary.activation, dictionary.n_latents) & (rates == 0)).sum())
    metrics = made.evaluation.record() | {"dead": dead, "firing_tokens": tokens}
    training = dictionary.metadata.training | dict(how)
    return replace(
        dictionary,
        firing_rate=rates.to(dictionary.W_dec.device),
        metadata=replace(dictionary.metadata, training=training, metrics=metrics),
    )
