"""Which latents of a pool, so many at most and so many active a token at most, leave the smallest error?

Local search over the quadratic form of the pool (see `quadratic_error`). From any start: what is over budget goes,
the cheapest first; then, one at a time and until none helps,

    remove    a latent without which the error is smaller
    add       the one with the largest gain for what it takes of the budgets, of those that fit
    swap      a chosen latent for another

where a latent takes 1 / (latents allowed) and (its firing rate) / (L0 allowed): of a budget of latents that is the
largest gain, of one of L0 the largest gain per firing, as in a knapsack. Every change is exact and every move lowers
the error, so the search ends: where no single move helps, a local optimum. Nothing is drawn at random.

Choosing subsets is hard in general, and nothing says how far a local optimum is from the best of all. Where pools are
small enough to try every subset, it was the best under a budget of latents, and under one of L0, where a few large
things have to fit into a small space, 0.8 % worse on average and 8 % at worst (test_subset_search.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from analyses.pool import ridge_refit as refits
from analyses.pool.pool_sample import PoolSample
from analyses.pool.quadratic_error import QuadraticError
from analyses.pool.refitted_updates import RefittedDecoder, penalties_of
from analyses.pool.subset_updates import FixedDecoder, SubsetMoves
from dictlab.errors import DictlabError, check_at_least

TRIALS = 2000  # chosen latents that a place is sought for another in, at most
LEAST = 1e-9  # of the error of nothing but the bias; smaller changes are rounding

NOTHING = 1e-12  # a price, or a budget, so small

Mask = NDArray[np.bool_]
Array = NDArray[np.float64]


class Move(NamedTuple):
    """One step of a search: what went and what came, and the error and L0 after it."""

    removed: int | None
    added: int | None
    error: float
    l0: float


@dataclass(frozen=True, eq=False)
class Search:
    """How a search went.

    Attributes:
        chosen: The latents that were found.
        error: What was minimised, at the end: the MSE on the sample, with a refit that of the penalised sum of squares.
        moves: Every step.
        settled: Whether no move helps any more; False where the number of trials ran out before that was known.
        approximate: What was not done exactly, in words; empty if nothing was.
    """

    chosen: Bool[Mask, " n_latents"]
    error: float
    moves: tuple[Move, ...]
    settled: bool
    approximate: str = ""


@dataclass(frozen=True, eq=False)
class Budget:
    """What may be spent.

    Attributes:
        latents: How many.
        l0: Active ones a token.
        rates: Share of tokens at which each latent is active.
    """

    latents: float
    l0: float
    rates: Float[Array, " n_latents"]

    @property
    def prices(self) -> Float[Array, " n_latents"]:
        """What each latent takes of the budgets, as a share of them; 1 for each where there are none."""
        if np.isinf(self.latents) and np.isinf(self.l0):
            return np.ones(len(self.rates))
        prices: Array = 1 / max(self.latents, 1.0) + self.rates / max(self.l0, NOTHING)
        return np.maximum(prices, NOTHING)

    def over(self, chosen: Mask) -> bool:
        """Whether a set takes more than there is."""
        return chosen.sum() > self.latents or self.spent(chosen) > self.l0

    def spent(self, chosen: Mask) -> float:
        """L0 of a set."""
        return float(self.rates[chosen].sum())

    def fit(self, chosen: Mask, without: int | None = None) -> Bool[Mask, " n_latents"]:
        """Which latents still fit beside a set, a latent of it gone or not."""
        gone = 0.0 if without is None else float(self.rates[without])
        room = chosen.sum() - (without is not None) < self.latents
        fitting: Mask = ~chosen & (self.spent(chosen) - gone + self.rates <= self.l0) & room
        return fitting


def search(
    quadratic: QuadraticError,
    start: Bool[Mask, " n_latents"] | None = None,
    *,
    latents: int | None = None,
    l0: float | None = None,
    refit: float | None = None,
    trials: int = TRIALS,
) -> Search:
    """Choose latents of a pool so that the error is small and the budgets are kept.

    Args:
        quadratic: The pool on a sample of tokens.
        start: Where to begin; with nothing by default. With a refit: with what is found without one.
        latents: How many may be chosen.
        l0: How many of them may be active a token, on average over the sample.
        refit: Measure each set with its decoder and bias refitted by least squares, with this ridge as a share of the
            mean energy that a latent adds; None for directions as they are, and the bias of the quadratic error.
        trials: How many chosen latents are tried against all others in their place, at most.

    Raises:
        DictlabError: A budget is negative, the start is of another pool, or more latents are to be kept than a refit
            can handle.
    """
    check_at_least(0, trials=trials)
    budget = budget_of(quadratic, latents, l0)
    begin = np.zeros(quadratic.n_latents, dtype=bool) if start is None else np.asarray(start, dtype=bool)
    if len(begin) != quadratic.n_latents:
        raise DictlabError(f"the start of a search has {len(begin)} latents; its pool has {quadratic.n_latents}.")
    begin = begin & (budget.rates > 0)  # silent latents would take places
    if refit is None:
        return searched(FixedDecoder(quadratic, begin), budget, trials, quadratic.constant)
    plain = search(quadratic, start, latents=latents, l0=l0, trials=trials) if start is None else None
    begin = begin if plain is None else plain.chosen
    penalties = penalties_of(quadratic, refit)
    if quadratic.n_latents > refits.LARGEST_REFIT:
        return _shortlisted(quadratic, begin, budget, penalties, trials)
    return searched(RefittedDecoder(quadratic, begin, penalties), budget, trials, quadratic.constant)


def reduced(
    quadratic: QuadraticError, start: Bool[Mask, " n_latents"], *, latents: int | None = None, l0: float | None = None
) -> Bool[Mask, " n_latents"]:
    """A choice cut to its budgets: what raises the error least for what it takes of the budget goes first.

    Args:
        quadratic: The pool on a sample of tokens.
        start: The choice.
        latents: How many may be chosen.
        l0: How many of them may be active a token, on average over the sample.
    """
    budget = budget_of(quadratic, latents, l0)
    state = FixedDecoder(quadratic, np.asarray(start, dtype=bool) & (budget.rates > 0))
    steps = _LocalSearch(state, budget, 0.0, 0)
    while budget.over(state.chosen):
        steps.reduce()
    return state.chosen.copy()


def budget_of(quadratic: QuadraticError, latents: int | None, l0: float | None) -> Budget:
    """What may be spent of a pool; None is no limit."""
    check_at_least(0, **{name: value for name, value in (("latents", latents), ("l0", l0)) if value is not None})
    most, rates = float("inf") if latents is None else float(latents), quadratic.sample.firing_rate
    slack = 1e-12 * quadratic.n_latents  # of a sum of firing rates
    return Budget(most, float("inf") if l0 is None else l0 + slack, rates)


def _shortlisted(quadratic: QuadraticError, begin: Mask, budget: Budget, penalties: Array, trials: int) -> Search:
    """A search with a refit among the latents of a large pool that promise most beside a start."""
    most, count = refits.LARGEST_REFIT, int(begin.sum())
    if count > most:
        raise DictlabError(
            f"refitting {count} latents needs several matrices of their square; {most} is the most. "
            "Choose without a refit, or fewer latents."
        )
    product = quadratic.product(begin.astype(np.float64))
    gains = np.divide(
        (quadratic.linear - product) ** 2, quadratic.diagonal, out=np.zeros(len(begin)), where=quadratic.diagonal > 0
    )
    listed = np.sort(np.argsort(-np.where(begin, np.inf, gains), kind="stable")[:most])
    some = _part(quadratic, listed)
    found = searched(
        RefittedDecoder(some, begin[listed], penalties[listed]),
        replace(budget, rates=budget.rates[listed]),
        trials,
        quadratic.constant,
    )
    chosen = np.zeros(quadratic.n_latents, dtype=bool)
    chosen[listed] = found.chosen
    moves = tuple(
        move._replace(
            **{side: int(listed[at]) for side in ("removed", "added") if (at := getattr(move, side)) is not None}
        )
        for move in found.moves
    )
    approximate = (
        f"of {quadratic.n_latents} latents, the {len(listed)} that promise most beside a choice without refit were "
        "searched"
    )
    return replace(found, chosen=chosen, moves=moves, approximate=approximate)


def _part(quadratic: QuadraticError, latents: NDArray[np.int64]) -> QuadraticError:
    """The quadratic error of some latents of the pool."""
    seen: PoolSample = quadratic.sample.columns(latents)
    return replace(
        quadratic,
        sample=seen,
        directions=quadratic.directions[latents],
        linear=quadratic.linear[latents],
        diagonal=quadratic.diagonal[latents],
        mean_codes=quadratic.mean_codes[latents],
    )


def searched(state: SubsetMoves, budget: Budget, trials: int, scale: float) -> Search:
    """A search from a state; changes smaller than `LEAST` of the scale do not count."""
    steps = _LocalSearch(state, budget, LEAST * scale, trials)
    while budget.over(state.chosen):
        steps.reduce()
    steps.descend()
    while steps.swap():
        steps.descend()
    return Search(state.chosen.copy(), state.error, tuple(steps.moves), settled=not steps.exhausted)


class _LocalSearch:
    """The steps of a search, and how many swaps may still be tried."""

    def __init__(self, state: SubsetMoves, budget: Budget, least: float, trials: int) -> None:
        self.state, self.budget, self.least, self.trials = state, budget, least, trials
        self.moves: list[Move] = []
        self.exhausted = False

    def reduce(self) -> None:
        """Remove what costs least for what it takes of the budget that is exceeded."""
        chosen, rates = self.state.chosen, self.budget.rates
        price = rates if chosen.sum() <= self.budget.latents else np.ones(len(rates))
        able = chosen & (price > 0)
        cost = np.divide(self.state.changes(), price, out=np.full(len(rates), np.inf), where=able)
        self._step(int(cost.argmin()), None)

    def descend(self) -> None:
        """Remove and add while that helps."""
        prices, same = self.budget.prices, np.ones(len(self.budget.rates))
        while True:
            harmful, change = self.state.best(self.state.chosen, same)
            if change < -self.least:
                self._step(harmful, None)
                continue
            helpful, change = self.state.best(self.budget.fit(self.state.chosen), prices)
            if change >= -self.least:
                return
            self._step(None, helpful)

    def swap(self) -> bool:
        """Try each chosen latent, the least useful first, against all others in its place; whether any gave way."""
        changes, any_gave_way = self.state.changes(), False
        order, same = np.flatnonzero(self.state.chosen), np.ones(len(self.budget.rates))
        for latent in order[np.argsort(changes[order], kind="stable")]:
            if self.state.swap_cannot_help(latent, changes):
                continue
            if self.trials == 0:
                self.exhausted = True
                break
            self.trials -= 1
            other, change = self.state.best(self.budget.fit(self.state.chosen, latent), same, latent)
            if changes[latent] + change < -self.least:
                self._step(int(latent), other)
                changes, any_gave_way = self.state.changes(), True
        return any_gave_way

    def _step(self, removed: int | None, added: int | None) -> None:
        for latent in (removed, added):
            if latent is not None:
                self.state.move(latent)
        self.moves.append(Move(removed, added, self.state.error, self.budget.spent(self.state.chosen)))
