"""Is a stitched dictionary better than its parents at the same sparsity?

A refit helps any dictionary, and so do more active latents. So each parent is measured along its own sparsity curve
(see `pool/sparsity_levels`), refitted at each point in the same way and on the same tokens as the result, and a result
is held against the parents where they have its L0:

    ratio = error / min over parents of the error of the parent's curve at that L0

with curves linear in log L0 and log error between points (see `trained_frontier`), in the sample and in each resample
of its sequences, so that intervals are paired. The parent is the one with the smallest error in the sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Float
from torch import Tensor

from analyses.composition.trained_frontier import FrontierRatio, frontier_ratios
from analyses.pool.dictionary_chain import DictionaryChain
from analyses.pool.one_competition import Competition, competition_steps
from analyses.pool.pool_sample import encode_sample
from analyses.pool.refitted_subsets import RefittedSubsets
from analyses.pool.ridge_refit import Refit
from analyses.pool.sparsity_levels import at_l0, threshold_tokens
from analyses.quality.measured_points import Point
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError

SPARSER = 0.75  # of a parent's own L0: one more point of its curve
BRACKET = 0.03  # thresholds are set for L0 this share below and above a result's
SAME = 0.01  # levels of L0 that differ by this share or less are one


class SparsityPoint(NamedTuple):
    """A parent at one sparsity.

    Attributes:
        parent: Its name.
        dictionary: With that sparsity, refitted.
    """

    parent: str
    dictionary: Dictionary


@dataclass(frozen=True, eq=False)
class SparsityCurve:
    """What was measured of one parent at several sparsities.

    Attributes:
        parent: Its name.
        points: In order of L0.
    """

    parent: str
    points: tuple[Point, ...]

    @property
    def latents(self) -> int:
        """Latents that can be active."""
        return self.points[0].dictionary.n_emitting


class EqualL0(NamedTuple):
    """A result beside the parent that is best at the result's L0.

    Attributes:
        parent: Its name.
        ratio: The result's error over the parent's, and where on the curve that is.
    """

    parent: str
    ratio: FrontierRatio


def levels_of(own: float, result: float, others: Sequence[float], ranked: bool) -> list[float]:
    """At which L0 a parent is measured besides its own: around that of the result, and as far as the others go.

    Args:
        own: L0 of the parent.
        result: L0 of the result.
        others: L0 of everything else that is held against the parents.
        ranked: Its latents are ranked, so that only whole numbers are to be had.
    """
    most = max([result, *others])
    wanted: list[float]
    if ranked:
        wanted = [math.floor(result), math.ceil(result), math.ceil(most), round(SPARSER * own)]
    else:
        wanted = [(1 - BRACKET) * result, (1 + BRACKET) * result, most, SPARSER * own]
    levels: list[float] = []
    for level in sorted(max(1.0, float(level)) for level in wanted):
        if all(abs(level - known) > SAME * level for known in [own, *levels]):
            levels.append(level)
    return levels


def parents_at_levels(
    chain: DictionaryChain,
    batches: Sequence[Float[Tensor, "*tokens d_in"]],
    refit: Refit,
    result: float,
    others: Sequence[float],
    *,
    competition: str | None = None,
) -> tuple[list[SparsityPoint], tuple[str, ...]]:
    """Every parent at other sparsities than its own, refitted; and what is to be said of parents that have no others.

    Args:
        chain: The parents, encoded on the batches.
        batches: What is refitted on.
        refit: What is refitted.
        result: L0 of the result on these tokens.
        others: L0 of what else is held against the parents.
        competition: The rule of a result under one competition: parents whose latents follow another one are measured
            under that rule as well.
    """
    x = threshold_tokens(batches, chain.pool.n_latents)
    points, cautions = [], []
    for number, parent in enumerate(chain.dictionaries):
        plain = chain.subset(chain.mask_of(number), chain.biases[number], parent.name)
        own = float(chain.sample.firing_rate[chain.latents_of(number)].sum())
        try:
            ranked = not plain.activation.elementwise
            versions = [at_l0(plain, level, x) for level in levels_of(own, result, others, ranked)]
        except DictlabError as error:
            cautions.append(f"{error} It is compared at its own L0 alone.")
            continue
        seen = {round(own, 2)}
        for version in versions:
            sample = encode_sample(version, batches)
            l0 = round(float(sample.firing_rate.sum()), 2)
            if l0 in seen:  # as dense as it can be
                continue
            seen.add(l0)
            everything = np.ones(version.n_latents, dtype=bool)
            name = f"{parent.name} at L0 {l0:g}" + ("" if refit == "none" else ", refitted")
            refitted = RefittedSubsets(version, sample).subset(everything, refit, name, b_out=version.b_out)
            points.append(SparsityPoint(parent.name, refitted))
        if competition not in (None, plain.activation.kind) and not plain.signed.any():
            subsets, b_out = RefittedSubsets(chain.pool, chain.sample), plain.b_out
            itself = subsets.subset(chain.mask_of(number), refit, parent.name, b_out=b_out)
            kind = cast(Competition, competition)
            points += [
                SparsityPoint(parent.name, version)
                for version in _under_one_rule(itself, kind, result, batches, refit, x)
            ]
    return points, tuple(cautions)


def _under_one_rule(
    parent: Dictionary,
    kind: Competition,
    result: float,
    batches: Sequence[Float[Tensor, "*tokens d_in"]],
    refit: Refit,
    x: Float[Tensor, "tokens d_in"],
) -> list[Dictionary]:
    """A refitted parent under another rule, at the L0 of the result and around it, by the steps that the result took.

    A result that is a whole parent is then one of these versions, and neither better nor worse than its parent.
    """
    around = [(1 - BRACKET) * result, result, (1 + BRACKET) * result]
    if kind != "jumprelu":
        around = [float(math.floor(result)), float(math.ceil(result))]
    versions = []
    for level in dict.fromkeys(around):
        step, dictionary = list(competition_steps(parent, kind, level, batches, refit, x).items())[-1]
        versions.append(replace(dictionary, name=f"{parent.name} under {step} at L0 {level:.2f}"))
    return versions


def sparsity_curves(
    parents: Sequence[Dictionary],
    own: Sequence[Dictionary],
    levels: Sequence[SparsityPoint],
    measured: Mapping[str, Point],
) -> list[SparsityCurve]:
    """The measured curve of each parent.

    Args:
        parents: As they were given.
        own: Each of them at its own sparsity, refitted as the others are.
        levels: Of `parents_at_levels`.
        measured: What was measured of all of these, by name.
    """
    curves = []
    for parent, at_own in zip(parents, own, strict=True):
        names = [at_own.name, *(level.dictionary.name for level in levels if level.parent == parent.name)]
        points = sorted((measured[name] for name in names), key=lambda point: point.value("l0"))
        curves.append(SparsityCurve(parent.name, tuple(points)))
    return curves


def at_equal_l0(result: Point, curves: Sequence[SparsityCurve]) -> dict[str, EqualL0]:
    """Each error of a result, by its key in METRICS, beside the parent that has the smallest at the result's L0.

    Errors that no parent has at that L0, because all of them are denser, are left out.
    """
    best: dict[str, EqualL0] = {}
    for curve in curves:
        for ratio in frontier_ratios([result], curve.points, "l0"):
            known = best.get(ratio.metric)
            if np.isfinite(ratio.frontier) and (known is None or ratio.frontier < known.ratio.frontier):
                best[ratio.metric] = EqualL0(curve.parent, ratio)
    return best
