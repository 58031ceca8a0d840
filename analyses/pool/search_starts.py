"""Where should a search begin? From several places at once, and the best is followed.

A search from nothing adds one latent after another, and ends where no single move helps. A trained dictionary's latents
were fitted to each other: the set as a whole is good, and the way there from nothing leads uphill.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from analyses.pool.quadratic_error import QuadraticError
from analyses.pool.refitted_updates import Mask, RefittedDecoder, penalties_of
from analyses.pool.ridge_refit import NormalEquations
from analyses.pool.subset_search import TRIALS, Search, budget_of, search, searched

SEARCHED_REFITTED = 2048  # latents of a pool up to which every choice is refitted in a search, unless asked otherwise


class BudgetLimits(NamedTuple):
    """The most latents, and the most active latents a token, that may be chosen; None for any number."""

    latents: int | None
    l0: float | None


def best_of_starts(
    quadratic: QuadraticError,
    starts: Sequence[Bool[Mask, " n_latents"]],
    *,
    latents: int | None = None,
    l0: float | None = None,
    equations: NormalEquations | None = None,
    ridge: float = 0.01,
    trials: int = TRIALS,
) -> Search:
    """A search from the best of several starts: what removing and adding alone make of nothing, and of each start.

    A trained dictionary is a good start: its latents fit each other, and no way leads there from nothing along which
    every step helps.

    Args:
        quadratic: The pool.
        starts: Where to begin beside nothing; what is over budget goes first.
        latents: As in `search`.
        l0: As in `search`.
        equations: With these, starts are compared refitted, and the search is one with a refit.
        ridge: Of these decoders.
        trials: As in `search`; a tenth of them with a refit, where each takes longer.
    """
    nothing = np.zeros(quadratic.n_latents, dtype=bool)
    first = [search(quadratic, start, latents=latents, l0=l0, trials=0) for start in (nothing, *starts)]
    if equations is None:
        best = min(first, key=lambda one: one.error)
        return search(quadratic, best.chosen, latents=latents, l0=l0, trials=trials)
    penalties = penalties_of(quadratic, ridge)
    kept = [torch.from_numpy(np.flatnonzero(one.chosen)) for one in first]
    errors = [_refitted_error(equations, quadratic.directions, torch.from_numpy(penalties), some) for some in kept]
    state = RefittedDecoder(quadratic, first[int(np.argmin(errors))].chosen, penalties, equations)
    return searched(state, budget_of(quadratic, latents, l0), -(-trials // 10), quadratic.constant)


def _refitted_error(equations: NormalEquations, directions: Tensor, penalties: Tensor, kept: Tensor) -> float:
    """MSE of some latents with their decoder refitted."""
    before = torch.cat([directions[kept].double(), equations.moment.new_zeros(1, directions.shape[1])])
    some = equations.of(kept)
    return some.error(some.solution(before, penalties[kept]))
