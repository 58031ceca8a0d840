"""Max cosines of every ordered pair of dictionaries: means, intervals, chance, and what two seeds differ by.

The floor of a dictionary A is the mean max cosine with the dictionaries that differ from it in seed alone. How far
A in B lies below A's floor is compared latent by latent, and means are resampled over latents: each resample draws
A's latents once for all pairs that begin with A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analyses.common.chance import Levels
from analyses.common.seed_floor import SEEDS, other_seeds, relation, seeds_of
from dictlab.dictionary import Dictionary
from dictlab.numerics.statistics import Estimate, interval, latent_mean_draws

Pairwise = Mapping[tuple[str, str], Tensor]  # (of, in) -> max cosines
Means = Mapping[tuple[str, str], NDArray[np.float64]]  # (of, in) -> mean of each resample


class PairCosines(NamedTuple):
    """Max cosines of the alive latents of one dictionary with those of another, or with the others of the same one.

    Attributes:
        relation: What differs between the two.
        seeds: Whether their seeds are the same.
        of: The dictionary whose latents are asked about.
        to: The dictionary that they are looked for in.
        mean: Mean max cosine with its 95 % bootstrap interval over latents.
        quartiles: Lower quartile, median and upper quartile.
        chance: Mean max cosine of random directions, by the keys of `KINDS`.
        n_alive: Alive latents of `of`.
        n_dead: Dead ones.
        below_floor: How far the mean lies below that of the same latents in other seeds of `of`; NaN where there are
            none.
    """

    relation: str
    seeds: str
    of: str
    to: str
    mean: Estimate
    quartiles: tuple[float, float, float]
    chance: Mapping[str, float]
    n_alive: int
    n_dead: int
    below_floor: Estimate


class RelationCosines(NamedTuple):
    """Averages over the ordered pairs of one relation.

    Attributes:
        relation: What differs between the two dictionaries of each pair.
        seeds: Whether their seeds are the same.
        mean: Mean max cosine with its 95 % bootstrap interval over latents.
        median: Mean of the medians.
        chance: Means of the chance levels, by the keys of `KINDS`.
        n_pairs: Ordered pairs.
        below_floor: Mean distance below the seed floor over the pairs that have one; NaN where none has.
    """

    relation: str
    seeds: str
    mean: Estimate
    median: float
    chance: Mapping[str, float]
    n_pairs: int
    below_floor: float


class Crowding(NamedTuple):
    """The mean max cosine within one dictionary less that within another, with its 95 % bootstrap interval."""

    dictionary: str
    minus: str
    difference: Estimate


def resampled(values: Pairwise, names: Sequence[str], seed: int) -> Means:
    """Means over latents drawn with replacement; pairs that begin with one dictionary share its draws."""
    means: dict[tuple[str, str], NDArray[np.float64]] = {}
    for number, name in enumerate(names):
        columns = np.stack([values[name, other].double().numpy() for other in names], axis=1)
        draws = latent_mean_draws(columns, seed, f"latents of dictionary {number}")
        means |= {(name, other): draws[:, i] for i, other in enumerate(names)}
    return means


def pair_cosines(opened: Sequence[Dictionary], values: Pairwise, means: Means, levels: Levels) -> list[PairCosines]:
    """Every ordered pair of dictionaries, each with itself among them.

    Args:
        opened: The dictionaries.
        values: Max cosines.
        means: Their means in each resample.
        levels: Chance levels by dictionary.
    """
    pairs = []
    for a in opened:
        floor = other_seeds(a, opened)
        for b in opened:
            own, name = values[a.name, b.name], relation(a, b)
            lower, median, upper = torch.quantile(own, torch.tensor([0.25, 0.5, 0.75])).tolist()
            pairs.append(
                PairCosines(
                    name,
                    seeds_of(a, b),
                    a.name,
                    b.name,
                    Estimate(float(own.mean()), *interval(means[a.name, b.name])),
                    (lower, median, upper),
                    levels[b.name],
                    len(own),
                    a.n_emitting - len(own),
                    _below_floor(a.name, b.name, values, means, () if name in ("within", SEEDS) else floor),
                )
            )
    return pairs


def _below_floor(a: str, b: str, values: Pairwise, means: Means, floor: Sequence[str]) -> Estimate:
    """How far A in B lies below A in its other seeds; NaN where there are none."""
    if not floor:
        return Estimate(float("nan"))
    level = float(np.mean([float(values[a, seed].mean()) for seed in floor]))
    draws = np.mean([means[a, seed] for seed in floor], axis=0) - means[a, b]
    return Estimate(level - float(values[a, b].mean()), *interval(draws))


def relation_cosines(pairs: Sequence[PairCosines], means: Means) -> list[RelationCosines]:
    """Averages over the ordered pairs of each relation, those of one seed apart."""
    grouped: dict[tuple[str, str], list[PairCosines]] = {}
    for pair in pairs:
        grouped.setdefault((pair.relation, pair.seeds), []).append(pair)
    relations = []
    for (name, same_seed), group in grouped.items():
        draws = np.mean([means[pair.of, pair.to] for pair in group], axis=0)
        below = [pair.below_floor.value for pair in group if np.isfinite(pair.below_floor.value)]
        relations.append(
            RelationCosines(
                name,
                same_seed,
                Estimate(float(np.mean([pair.mean.value for pair in group])), *interval(draws)),
                float(np.mean([pair.quartiles[1] for pair in group])),
                {kind: float(np.mean([pair.chance[kind] for pair in group])) for kind in group[0].chance},
                len(group),
                float(np.mean(below)) if below else float("nan"),
            )
        )
    return relations


def crowding(opened: Sequence[Dictionary], values: Pairwise, means: Means) -> list[Crowding]:
    """Differences of the mean max cosine within dictionaries, for every two of them."""
    differences = []
    for a, b in combinations([d.name for d in opened], 2):
        difference = float(values[a, a].mean() - values[b, b].mean())
        differences.append(Crowding(a, b, Estimate(difference, *interval(means[a, a] - means[b, b]))))
    return differences
