"""In which order does one dictionary become another, latent by latent?

From SMALL to LARGE (Leask et al. 2025, interpolation between sizes; the order is theirs as far as it is known):

    insert    novel latents of LARGE, one at a time
    swap      components with latents of both, one at a time: SMALL's out, LARGE's in
    drop      what is left of SMALL (orphans), one at a time

after which the latents are LARGE's and no others, and the next, larger dictionary is gone to from there. Dead latents
change places with the last step, and are not counted: the path between two functions does not depend on dead latents in
their files. Within a phase the order is a choice: by cosine (novel ones and orphans by their max cosine with the other
dictionary, components by the smallest cosine of their edges, least similar first), by effect (what a step does to the
MSE when it is taken alone from SMALL, most useful first), or random. Without phases, mixed: of all steps that are left
always the one after which the error is smallest (greedy).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from analyses.composition.path.latent_graph import Components, Graph
from analyses.pool.quadratic_error import QuadraticError
from dictlab.numerics import seeds
from dictlab.runtime.progress import track

Order = Literal["cosine", "effect", "random", "greedy"]
PHASES = ("insert", "swap", "drop", "mixed")
_PHASE_OF = {"novel": 0, "same": 1, "split": 1, "merge": 1, "tangled": 1, "orphan": 2}


class LatentMatching(NamedTuple):
    """Which latents of two dictionaries that follow each other in a pool are matched, from a decoder cosine on.

    Attributes:
        graph: Of their decoders.
        components: Of the graph at its threshold.
        first_small: Where SMALL's latents begin in the pool.
        first_large: Where LARGE's do.
        small: SMALL's name.
        large: LARGE's name.
    """

    graph: Graph
    components: Components
    first_small: int
    first_large: int
    small: str = "SMALL"
    large: str = "LARGE"

    @property
    def n_units(self) -> int:
        """What comes and goes in one step each: the components."""
        return len(self.components.kind)

    @property
    def pair(self) -> str:
        """What tables call the two."""
        return f"{self.small} → {self.large}"


@dataclass(frozen=True, eq=False)
class StepSchedule:
    """At which step of a path each latent of a pool comes and goes. Point 0 is the start; step k leads to point k.

    Attributes:
        enters: The first point at which each latent is there.
        leaves: The first point at which it is there no more; one past the last point if it stays.
        phase: One of PHASES for each step.
        stage: For each step, the number of the dictionary that it starts from, among those of the pool.
        alive: Latents of the pool that are counted.
    """

    enters: NDArray[np.int64]
    leaves: NDArray[np.int64]
    phase: NDArray[np.str_]
    stage: NDArray[np.int64]
    alive: NDArray[np.bool_]

    @property
    def steps(self) -> int:
        return len(self.phase)

    def chosen(self, point: int) -> Bool[np.ndarray, " n_pool"]:
        """The latents that are there at a point."""
        return (self.enters <= point) & (point < self.leaves)

    def n_latents(self) -> NDArray[np.int64]:
        """How many alive latents there are at each point."""
        return np.rint(self.totals(self.alive.astype(np.float64))).astype(np.int64)

    def totals(self, values: Float[np.ndarray, " n_pool"]) -> NDArray[np.float64]:
        """The sum of something over the latents that are there, at each point."""
        come = np.bincount(self.enters, weights=values, minlength=self.steps + 2)
        gone = np.bincount(self.leaves, weights=values, minlength=self.steps + 2)
        return np.cumsum(come - gone)[: self.steps + 1]

    def stage_ends(self) -> NDArray[np.int64]:
        """The point at which each stage ends: the dictionary that it goes to."""
        last = np.append(self.stage[1:] != self.stage[:-1], True) if self.steps else np.zeros(0, dtype=bool)
        return np.flatnonzero(last) + 1

    def phase_ends(self) -> NDArray[np.int64]:
        """The points at which a phase ends, the start of the path first."""
        if not self.steps:
            return np.zeros(1, dtype=np.int64)
        last = (self.phase[1:] != self.phase[:-1]) | (self.stage[1:] != self.stage[:-1])
        return np.concatenate([[0], np.flatnonzero(last) + 1, [self.steps]])


def schedule_steps(
    matchings: Sequence[LatentMatching],
    n_pool: int,
    scores: Sequence[Float[np.ndarray, " units"]],
    *,
    mixed: bool = False,
) -> StepSchedule:
    """The whole way from the first dictionary of a chain to the last.

    Args:
        matchings: Of each dictionary with the next one.
        n_pool: Latents of the pool.
        scores: For each pair, what its units are ordered by in their phases, smallest first; of `cosine_scores`,
            `effect_scores`, `random_scores` or `greedy_scores`.
        mixed: Pay no heed to phases.
    """
    enters, leaves, alive = np.full(n_pool, -1), np.full(n_pool, -1), np.ones(n_pool, dtype=bool)
    enters[: len(matchings[0].components.of_small) if matchings else n_pool] = 0
    phases, stages, point = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)], 0
    for stage, (matching, score) in enumerate(zip(matchings, scores, strict=True)):
        out, into, phase = _units(matching)
        phase = np.full_like(phase, PHASES.index("mixed")) if mixed else phase
        order = np.lexsort((score, phase))
        step = np.full(len(order) + 1, point + len(order))  # the last one is that of dead latents
        step[order] = point + 1 + np.arange(len(order))
        for first, unit, moves, living in (
            (matching.first_small, out, leaves, matching.graph.alive_small),
            (matching.first_large, into, enters, matching.graph.alive_large),
        ):
            moves[first : first + len(unit)], alive[first : first + len(unit)] = step[unit], living
        point += len(order)
        phases.append(phase[order])
        stages.append(np.full(len(order), stage))
    enters[enters < 0] = leaves[leaves < 0] = point + 1  # never, and for good
    names = np.array(PHASES)[np.concatenate(phases)]
    return StepSchedule(enters, leaves, names, np.concatenate(stages), alive)


def cosine_scores(matching: LatentMatching) -> NDArray[np.float64]:
    """What each unit is ordered by: max cosines, and for a component the smallest cosine of its edges."""
    found, edges = matching.components, matching.graph
    score = np.full(matching.n_units, np.inf)
    for of, cosine in (
        (found.of_large, np.where(np.isinf(edges.weakest), edges.nearest_large, edges.weakest)),
        (found.of_small, np.where(_orphaned(found), edges.nearest_small, np.inf)),
    ):
        np.fmin.at(score, of[of >= 0], cosine[of >= 0])
    return score


def effect_scores(matching: LatentMatching, quadratic: QuadraticError) -> NDArray[np.float64]:
    """What each unit does to the MSE when it alone is taken, from SMALL; exact, see `quadratic_error`."""
    unit, weight = _signed(matching, quadratic.n_latents)
    chosen = np.where(weight < 0, 1.0, 0.0)
    slope = 2 * weight * (quadratic.product(chosen) - quadratic.linear)
    alone = slope + np.square(weight) * quadratic.diagonal
    change = np.bincount(unit[unit >= 0], weights=alone[unit >= 0], minlength=matching.n_units).astype(np.float64)
    several = np.bincount(unit[unit >= 0], minlength=matching.n_units) > 1
    for latent in np.flatnonzero((unit >= 0) & several[unit]):
        others = np.flatnonzero(unit == unit[latent])
        others = others[others != latent]
        change[unit[latent]] += weight[latent] * float(weight[others] @ quadratic.column(int(latent))[others])
    return change


def greedy_scores(matching: LatentMatching, quadratic: QuadraticError) -> NDArray[np.float64]:
    """When each unit is taken, always the one after which the error is smallest; exact, see `quadratic_error`."""
    unit, weight = _signed(matching, quadratic.n_latents)
    count, inside = matching.n_units, np.flatnonzero(unit >= 0)
    chosen = np.where(weight < 0, 1.0, 0.0)
    product, alone = quadratic.product(chosen), effect_scores(matching, quadratic)
    start = 2 * weight * product
    square = alone - np.bincount(unit[inside], weights=(start - 2 * weight * quadratic.linear)[inside], minlength=count)
    members = np.split(inside[np.argsort(unit[inside], kind="stable")], np.cumsum(np.bincount(unit[inside]))[:-1])
    taken = np.full(count, np.inf)
    for turn in track(range(count), "greedy order", unit="latents"):
        slope = np.bincount(unit[inside], weights=(2 * weight * (product - quadratic.linear))[inside], minlength=count)
        best = int(np.where(np.isinf(taken), square + slope, np.inf).argmin())
        taken[best] = turn
        for latent in members[best]:
            product = product + weight[latent] * quadratic.column(int(latent))
    return taken


def random_scores(matching: LatentMatching, seed: int) -> NDArray[np.float64]:
    """A random order."""
    generator = seeds.generator(seed, f"order of a path from latent {matching.first_small}")
    return torch.rand(matching.n_units, generator=generator, dtype=torch.double).numpy()


def _units(matching: LatentMatching) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The unit in which each latent of SMALL goes and each of LARGE comes, -1 for dead ones, and each unit's phase."""
    found = matching.components
    return found.of_small, found.of_large, np.array([_PHASE_OF[str(kind)] for kind in found.kind], dtype=np.int64)


def _signed(matching: LatentMatching, n_pool: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The unit of each latent of the pool, -1 without one, and whether it comes (1) or goes (-1) with it."""
    out, into, _ = _units(matching)
    unit, weight = np.full(n_pool, -1), np.zeros(n_pool)
    for first, of, sign in ((matching.first_small, out, -1.0), (matching.first_large, into, 1.0)):
        unit[first : first + len(of)], weight[first : first + len(of)] = of, sign
    return unit, weight


def _orphaned(found: Components) -> NDArray[np.bool_]:
    kind = np.append(found.kind, "dead")  # whose number is -1
    return kind[found.of_small] == "orphan"  # type: ignore[no-any-return]
