"""How much is called novel where nothing is new: another seed of the same dictionary as a floor.

Two dictionaries that differ in their seed alone do not share all latents. The share of latents of the one that are
novel to the other is therefore what training itself scatters; a larger dictionary has to bring more than that (Leask
et al. 2025). Intervals of shares are 95 % bootstrap intervals over latents.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from analyses.common.seed_floor import relation
from analyses.composition.insertion.cosine_predictor import CERTAIN
from analyses.composition.insertion.single_insertions import SingleInsertions, novel_with_a_twin
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.numerics.statistics import Estimate, interval


class NoveltyShares(NamedTuple):
    """How many of the active latents of LARGE are novel to SMALL, and how certain that is.

    Attributes:
        active: Latents that were active.
        dead: Latents that were not.
        novel: Latents that are novel by their measured effect.
        by_effect: Their share.
        by_cosine: Estimate that the cosine rule calls novel.
        certainly_novel: Estimate whose change in MSE is more than CERTAIN standard errors below 0.
        certainly_not: Estimate more than as many above.
        carries_something: Estimate with a best scale above 0.
        best_decrease: Of the most useful latent, as a share of SMALL's MSE.
        with_a_twin: Novel latents that have another novel one in their own direction.
    """

    active: int
    dead: int
    novel: int
    by_effect: Estimate
    by_cosine: Estimate
    certainly_novel: float
    certainly_not: float
    carries_something: float
    best_decrease: float
    with_a_twin: int


def is_control(small: Dictionary, large: Dictionary) -> bool:
    """Whether two dictionaries differ in their seed alone, by what their files say."""
    return relation(small, large) == "cross-seed"


def controlled(small: Dictionary, large: Dictionary, control: Dictionary) -> Dictionary:
    """Which of the two the control is another seed of: the one of its width.

    Raises:
        DictlabError: It has the width of neither.
    """
    for of in (small, large):
        if control.n_latents == of.n_latents:
            return of
    raise DictlabError(
        f"control {control.name} has {control.n_latents} latents; expected another seed of {small.name} "
        f"({small.n_latents}) or of {large.name} ({large.n_latents})."
    )


def control_warnings(of: Dictionary, control: Dictionary) -> tuple[str, ...]:
    """What is said of a control that is no other seed."""
    found = relation(of, control)
    if found == "cross-seed":
        return ()
    if found == "same settings":
        how = f"is not known to have another seed than {of.name}"
    else:
        how = f"differs from {of.name} in more than its seed ({found})"
    return (f"The control {control.name} {how}: what is novel in it is no floor of seeds alone.",)


def novelty_shares(insertions: SingleInsertions, seed: int) -> NoveltyShares:
    """The shares of novel latents among the active ones of LARGE."""
    alive = insertions.alive
    shares = []
    for novel in (alive.novel, alive.novel_by_cosine):
        shares.append(Estimate(float(novel.mean()), *interval(insertions.share_draws(novel, seed))))
    return NoveltyShares(
        active=len(alive.latent),
        dead=int(insertions.effects.dead.sum()),
        novel=int(alive.novel.sum()),
        by_effect=shares[0],
        by_cosine=shares[1],
        certainly_novel=float((alive.change < -CERTAIN * alive.error).mean()),
        certainly_not=float((alive.change > CERTAIN * alive.error).mean()),
        carries_something=float((alive.scale > 0).mean()),
        best_decrease=insertions.effects.of_mse(-float(np.min(alive.change))),
        with_a_twin=novel_with_a_twin(insertions),
    )


def excess(pair: SingleInsertions, floor: SingleInsertions, seed: int) -> Estimate:
    """The share of novel latents less that of the control."""
    draws = pair.share_draws(pair.alive.novel, seed) - floor.share_draws(floor.alive.novel, seed)
    return Estimate(float(pair.alive.novel.mean()) - float(floor.alive.novel.mean()), *interval(draws))
