"""Which latents of a chain of dictionaries make the stitched one?

Each rule gives a mask over the pool of all of them:

    effect    SMALL, and of each larger dictionary in turn the latents that lower the error when inserted alone into
              what has been stitched so far
    cosine    SMALL, and of each larger one the latents whose max cosine with what has been stitched so far is below a
              threshold (the published rule)
    path      those that are there at a point of the path between sizes
    optimal   those that a local search over all latents finds, under a budget of latents and L0; see `subset_search`
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from analyses.composition.insertion.insertion_effects import effects_in_pool
from analyses.composition.insertion.single_insertions import SingleInsertions, nearest_alive, on_sample
from analyses.composition.path.path_steps import Order
from analyses.composition.path.size_path import match_latents, order_steps, point_until, trace_path
from analyses.pool.dictionary_chain import DictionaryChain
from analyses.pool.quadratic_error import QuadraticError
from analyses.pool.ridge_refit import Refit, normal_equations
from analyses.pool.search_starts import SEARCHED_REFITTED, best_of_starts
from dictlab.runtime.progress import track


@dataclass(frozen=True, eq=False)
class Choice:
    """What a rule chose, and why.

    Attributes:
        rule: Its name.
        chosen: Which latents of the pool.
        insertions: What was measured of each larger dictionary, where the rule looked at its latents one by one.
        point: On the path, if it is one of it.
        cautions: What is to be said of how it was found.
    """

    rule: str
    chosen: Bool[np.ndarray, " n_pool"]
    insertions: tuple[SingleInsertions, ...] = ()
    point: int | None = None
    cautions: tuple[str, ...] = ()


def by_insertion(chain: DictionaryChain, threshold: float) -> tuple[Choice, Choice]:
    """The choices by effect and by cosine.

    Args:
        chain: The dictionaries, encoded on the tokens that effects are measured on.
        threshold: Cosine below which the cosine rule calls a latent novel.
    """
    first = _insertions(chain, chain.mask_of(0), 1, threshold)
    effect, cosine = (_inserted(chain, rule, threshold, first) for rule in ("effect", "cosine"))
    return effect, cosine


def by_path(chain: DictionaryChain, threshold: float, order: Order, seed: int, until: str) -> Choice:
    """A point of the path through the chain.

    Raises:
        DictlabError: There is no such point.
    """
    trace = trace_path(chain, order_steps(chain, match_latents(chain, threshold), order, seed))
    point = point_until(trace, until)
    return Choice("path", trace.schedule.chosen(point), point=point)


def by_search(chain: DictionaryChain, latents: int | None, l0: float | None, refit: Refit) -> Choice:
    """The choice of a local search that begins with the best of the dictionaries, cut to the budgets.

    It minimises the error as the latents come, or, for a decoder that will be refitted, the refitted error; in pools
    above `SEARCHED_REFITTED` latents that would take too long, and the choice says so.

    Args:
        chain: The dictionaries.
        latents: How many may be chosen; by default any number.
        l0: Active latents a token that are allowed; by default what the largest dictionary has.
        refit: What is refitted afterwards.
    """
    quadratic, n = QuadraticError.from_sample(chain.sample, chain.pool.W_dec), chain.pool.n_latents
    starts = [chain.mask_of(number) for number in range(len(chain.dictionaries))]
    allowed = quadratic.l0(starts[-1]) if l0 is None else l0
    refitted = refit == "decoder" and n <= SEARCHED_REFITTED
    equations = normal_equations(chain.sample) if refitted else None
    found = best_of_starts(quadratic, starts, latents=latents, l0=allowed, equations=equations)
    cautions = []
    if refit == "decoder" and not refitted:
        cautions.append(
            f"The search took decoders as they are: refitting each choice of {n} latents would take too long (up to "
            f"{SEARCHED_REFITTED} are refitted). The decoder of what it chose is refitted."
        )
    if not found.settled:
        cautions.append("The search stopped when its trials ran out; more might lower the error further.")
    return Choice("optimal", found.chosen, cautions=tuple(cautions))


def _inserted(chain: DictionaryChain, rule: str, threshold: float, first: SingleInsertions) -> Choice:
    """Each larger dictionary in turn, its novel latents inserted into what has been stitched so far."""
    chosen, insertions = chain.mask_of(0), [first]
    for number in track(range(1, len(chain.dictionaries)), f"by {rule}", unit="dictionaries"):
        if number > 1:
            insertions.append(_insertions(chain, chosen, number, threshold))
        novel = insertions[-1].novel if rule == "effect" else insertions[-1].novel_by_cosine
        chosen[chain.latents_of(number)] = novel.numpy()
    return Choice(rule, chosen, tuple(insertions))


def _insertions(
    chain: DictionaryChain, into: Bool[np.ndarray, " n_pool"], number: int, threshold: float
) -> SingleInsertions:
    """The latents of one dictionary inserted, each alone, into some of the pool's."""
    large = chain.dictionaries[number]
    small = chain.dictionaries[0] if number == 1 else chain.subset(into, None, "what was stitched so far")
    effects = effects_in_pool(chain, into, number)
    small = on_sample(small, effects)
    return SingleInsertions(small, large, effects, nearest_alive(large, small), threshold)
