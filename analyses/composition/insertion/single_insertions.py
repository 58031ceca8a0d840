"""Which latents of LARGE are novel to SMALL: by their measured effect, and by the cosine rule beside it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from analyses.common.neighbours import Neighbours, nearest
from analyses.composition.insertion.insertion_effects import InsertionEffects, insertion_effects
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.numerics.statistics import share_draws
from dictlab.runtime.progress import track

TWIN = 0.9  # cosine above which two novel latents bring the same

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


class LatentEffects(NamedTuple):
    """Some latents of LARGE, `[n]` each.

    Attributes:
        latent: Their numbers in LARGE.
        change: Change in MSE of each inserted alone, in activation².
        error: Standard error of it over sequences.
        scale: The factor that would serve best.
        cosine: Of its decoder direction with the nearest alive one of SMALL.
        novel: By measured effect: the error falls.
        novel_by_cosine: By the cosine rule.
    """

    latent: Int[NDArray[np.int64], " n"]
    change: Float[Array, " n"]
    error: Float[Array, " n"]
    scale: Float[Array, " n"]
    cosine: Float[Array, " n"]
    novel: Bool[Mask, " n"]
    novel_by_cosine: Bool[Mask, " n"]

    def at(self, chosen: Bool[Mask, " n"] | Int[NDArray[np.int64], " some"]) -> LatentEffects:
        """Some of them."""
        return LatentEffects(
            self.latent[chosen],
            self.change[chosen],
            self.error[chosen],
            self.scale[chosen],
            self.cosine[chosen],
            self.novel[chosen],
            self.novel_by_cosine[chosen],
        )


@dataclass(frozen=True, eq=False)
class SingleInsertions:
    """Each latent of LARGE inserted alone into SMALL.

    Attributes:
        small: The dictionary that is added to.
        large: The dictionary whose latents are added.
        effects: What was measured of each.
        neighbours: The nearest alive latents of SMALL of each.
        threshold: Cosine below which the cosine rule calls a latent novel.
    """

    small: Dictionary
    large: Dictionary
    effects: InsertionEffects
    neighbours: Neighbours
    threshold: float

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.large.name} in {self.small.name}"

    @property
    def novel(self) -> Bool[Tensor, " n_large"]:
        """Latents that are novel by their measured effect."""
        return self.effects.novel

    @property
    def novel_by_cosine(self) -> Bool[Tensor, " n_large"]:
        """Latents that the cosine rule calls novel; dead ones are not."""
        return (self.neighbours.cosine[:, 0].cpu() < self.threshold) & ~self.effects.dead

    @cached_property
    def latents(self) -> LatentEffects:
        """All latents, dead ones included, in their order in LARGE."""
        effects = self.effects
        return LatentEffects(
            np.arange(len(effects.change)),
            effects.change.numpy(),
            effects.error.numpy(),
            effects.scale.numpy(),
            self.neighbours.cosine[:, 0].double().cpu().numpy(),
            self.novel.numpy(),
            self.novel_by_cosine.numpy(),
        )

    @cached_property
    def most_useful_first(self) -> Int[NDArray[np.int64], " n_large"]:
        """All latents, the one that lowers the error most first."""
        return np.argsort(self.latents.change, kind="stable")

    @cached_property
    def alive(self) -> LatentEffects:
        """Latents that were active, the most useful first."""
        order = self.most_useful_first
        return self.latents.at(order[~self.effects.dead.numpy()[order]])

    def share_draws(self, novel: Bool[Mask, " n_alive"], seed: int) -> Float[Array, " resamples"]:
        """The share of novel latents in bootstrap resamples of the active ones.

        Args:
            novel: Whether each active latent is.
            seed: Of the resampling.
        """
        return share_draws(novel, seed, f"share of novel latents, {self.name}")


def insert_each(
    small: Dictionary, large: Dictionary, batches: Iterable[Float[Tensor, "batch context d_in"]], threshold: float
) -> SingleInsertions:
    """Each latent of LARGE inserted alone into SMALL, on some activations.

    Raises:
        DictlabError: No latent of LARGE is active on them, or none of SMALL is alive.
    """
    effects = insertion_effects(small, large, track(batches, f"inserting {large.name}", unit="batches"))
    if bool(effects.dead.all()):
        raise DictlabError(
            f"{large.name}: none of its {large.n_latents} latents adds anything on {effects.tokens} tokens: "
            "they are never active, or have no decoder direction."
        )
    small = on_sample(small, effects)
    return SingleInsertions(small, large, effects, nearest_alive(large, small), threshold)


def on_sample(small: Dictionary, effects: InsertionEffects) -> Dictionary:
    """SMALL with the firing rates of the sample where its file has none: latents that never fire there are dead."""
    if small.firing_rate is not None:
        return small
    return replace(small, firing_rate=effects.small_firing_rate.float().to(small.W_dec.device))


def nearest_alive(large: Dictionary, small: Dictionary, top: int = 1) -> Neighbours:
    """For each latent of LARGE, the alive latents of SMALL with the nearest decoder directions. Where one of two
    latents is signed (emits values of either sign), their cosine is absolute.

    Raises:
        DictlabError: SMALL has no alive latent.
    """
    candidates = small.alive.nonzero().squeeze(1)
    if len(candidates) == 0:
        raise DictlabError(f"{small.name}: none of its {small.n_latents} latents is alive, so there is no nearest one.")
    signed = small.signed[candidates]
    found = nearest(large.W_dec, small.W_dec[candidates], top=top, signed_a=large.signed, signed_b=signed)
    return Neighbours(found.cosine, candidates[found.rows])


def novel_with_a_twin(insertions: SingleInsertions, cosine: float = TWIN) -> int:
    """Novel latents that have another novel one in their own direction: what they bring is counted twice."""
    rows = torch.from_numpy(insertions.alive.latent[insertions.alive.novel])
    if len(rows) < 2:
        return 0
    directions = insertions.large.W_dec[rows.to(insertions.large.W_dec.device)]
    signed = insertions.large.signed[rows.to(insertions.large.W_dec.device)]
    near = nearest(directions, directions, itself=False, signed_a=signed)
    return int((near.cosine[:, 0] > cosine).sum())
