"""Which latents of a chain of dictionaries make the stitched one?

Each rule gives a mask over the pool of all of them:

    effect    SMALL, and of each larger dictionary in turn the latents that lower the error when inserted alone into
              what has been stitched so far
    cosine    SMALL, and of each larger one the latents whose max cosine with what has been stitched so far is below a
              threshold (the published rule)
    path      those that are there at a point of the path between sizes
    optimal   those that a local search over all latents finds, under a budget of latents and L0; see `search`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from analyses.composition.novelty import Effects, insertion_effects, latent_table, nearest_alive
from analyses.composition.path_steps import Order
from analyses.composition.size_chain import Chain, followed, kinships, ordered, point_until, point_with
from analyses.pool.quadratic_error import form
from analyses.pool.ridge_refit import Refit, normal_equations
from analyses.pool.search_starts import SEARCHED_REFITTED, best_of_starts
from dictlab.dictionary import Dictionary

CLASS = {"effect": "class", "cosine": "class by cosine"}  # the column of a latent table that each rule reads


@dataclass(frozen=True, eq=False)
class Choice:
    """What a rule chose, and why.

    Attributes:
        rule: Its name.
        chosen: Which latents of the pool.
        tables: Of the latents of each larger dictionary, where the rule looked at each.
        effects: What the tables were made of.
        into: What each larger dictionary was inserted into.
        point: On the path, if it is one of it.
        cautions: What is to be said of how it was found.
    """

    rule: str
    chosen: Bool[np.ndarray, " n_pool"]
    tables: tuple[pd.DataFrame, ...] = ()
    effects: tuple[Effects, ...] = ()
    into: tuple[Dictionary, ...] = ()
    point: int | None = None
    cautions: tuple[str, ...] = ()


def by_insertion(
    chain: Chain, batches: Sequence[Float[Tensor, "batch context d_in"]], threshold: float
) -> tuple[Choice, Choice]:
    """The choices by effect and by cosine.

    Args:
        chain: The dictionaries.
        batches: The activations that effects are measured on.
        threshold: Cosine below which the cosine rule calls a latent novel.
    """
    first = _looked_at(chain.dictionaries[0], chain.dictionaries[1], batches, threshold)
    effect, cosine = (_inserted(chain, rule, batches, threshold, first) for rule in ("effect", "cosine"))
    return effect, cosine


def by_path(chain: Chain, threshold: float, order: Order, seed: int, at: int | None, until: str | None) -> Choice:
    """A point of the path through the chain.

    Raises:
        DictlabError: There is no such point.
    """
    found = followed(chain, ordered(chain, kinships(chain, threshold), order, seed))
    point = point_with(found, at) if at is not None else point_until(found, str(until))
    return Choice("path", found.route.chosen(point), point=point)


def by_search(chain: Chain, latents: int | None, l0: float | None, refit: Refit) -> Choice:
    """The choice of a local search that begins with the best of the dictionaries, cut to the budgets.

    It minimises the error as the latents come, or, for a decoder that will be refitted, the refitted error; in pools
    above `SEARCHED_REFITTED` latents that would take too long, and the choice says so.

    Args:
        chain: The dictionaries.
        latents: How many may be chosen; by default any number.
        l0: Active latents a token that are allowed; by default what the largest dictionary has.
        refit: What is refitted afterwards.
    """
    made, n = form(chain.observations, chain.pool.W_dec), chain.pool.n_latents
    starts = []
    for number in range(len(chain.dictionaries)):
        starts.append(np.zeros(n, dtype=bool))
        starts[-1][chain.own(number)] = True
    allowed = made.l0(starts[-1]) if l0 is None else l0
    refitted = refit == "decoder" and n <= SEARCHED_REFITTED
    equations = normal_equations(chain.observations) if refitted else None
    found = best_of_starts(made, starts, latents=latents, l0=allowed, equations=equations)
    cautions = []
    if refit == "decoder" and not refitted:
        cautions.append(
            f"The search took decoders as they are: refitting each choice of {n} latents would take too long (up to "
            f"{SEARCHED_REFITTED} are refitted). The decoder of what it chose is refitted."
        )
    if not found.settled:
        cautions.append("The search stopped when its trials ran out; more might lower the error further.")
    return Choice("optimal", found.chosen, cautions=tuple(cautions))


def _inserted(
    chain: Chain,
    rule: str,
    batches: Sequence[Tensor],
    threshold: float,
    first: tuple[Effects, pd.DataFrame],
) -> Choice:
    chosen = np.zeros(chain.pool.n_latents, dtype=bool)
    chosen[chain.own(0)] = True
    into, looked = [chain.dictionaries[0]], [first]
    for number, large in enumerate(tqdm(chain.dictionaries[1:], desc=f"by {rule}", leave=False), start=1):
        if number > 1:
            into.append(chain.part(chosen, None, "what was stitched so far"))
            looked.append(_looked_at(into[-1], large, batches, threshold))
        chosen[chain.own(number)] = looked[-1][1].sort_values("latent")[CLASS[rule]] == "novel"
    effects, tables = zip(*looked, strict=True)
    return Choice(rule, chosen, tables, effects, tuple(into))


def _looked_at(
    small: Dictionary, large: Dictionary, batches: Sequence[Tensor], threshold: float
) -> tuple[Effects, pd.DataFrame]:
    effects = insertion_effects(small, large, batches)
    return effects, latent_table(effects, nearest_alive(large, small), threshold)
