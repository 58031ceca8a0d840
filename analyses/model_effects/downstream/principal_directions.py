"""Which principal directions of the activation does a dictionary not reconstruct, and does the model mind?

v_1, v_2, ... are the eigenvectors of the covariance of the activation x, largest variance first (Braun et al. 2024,
appendix on layer 10). With e = x - x_hat:

    not reconstructed along v_k     sum (e . v_k)^2 / sum ((x - mu) . v_k)^2        1 is what the mean alone gives
    correlation along v_k           Pearson r of x . v_k and x_hat . v_k, without the first position

Whether the model minds is asked of groups of directions, 1, 2, 3-4, 5-8, 9-16, ..., with P_g the projector on a group,
by the KL of the model's output from the original one:

    only this group wrong     x - P_g e               all else is as it was
    this group repaired       x_hat + P_g e           all else stays wrong
    resampled                 P_g x taken from another token (never the first position): what the group is worth at all
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dictlab.data.activations import Moments
from dictlab.numerics.statistics import Array, BySequence

LOST = 0.5  # a direction with more than this share of its variance not reconstructed is called lost
WRONG, REPAIRED, RESAMPLED = "only this group wrong", "this group repaired", "resampled"


class Principal(NamedTuple):
    """Principal directions of an activation: its mean, the directions as columns, and the variance along each."""

    mean: Float[Tensor, " d_in"]
    directions: Float[Tensor, "d_in d_in"]
    variance: Float[Tensor, " d_in"]


class Group(NamedTuple):
    """Neighbouring principal directions, counted from 0; `stop` is not in it."""

    start: int
    stop: int

    @property
    def name(self) -> str:
        """As it is counted from 1: "1", "3-4"."""
        return str(self.stop) if self.stop - self.start == 1 else f"{self.start + 1}-{self.stop}"


def principal(moments: Moments) -> Principal:
    """The principal directions of activations whose covariance is known."""
    assert moments.covariance is not None
    variance, directions = torch.linalg.eigh(moments.covariance.double())
    return Principal(moments.mean, directions.flip(1).to(moments.mean), variance.flip(0).clamp_min(0).to(moments.mean))


def doubling_groups(n: int) -> list[Group]:
    """Groups of n directions, each twice as large as the last: 1, 2, 3-4, 5-8, ..."""
    edges = [0]
    while edges[-1] < n:
        edges.append(min(n, max(1, 2 * edges[-1])))
    return [Group(start, stop) for start, stop in pairwise(edges)]


def sums_along(
    x: Float[Tensor, "batch context d_in"],
    x_hat: Float[Tensor, "batch context d_in"],
    basis: Principal,
    counted: Bool[Tensor, "batch context"] | None = None,
) -> dict[str, Float[Tensor, "batch d_in"]]:
    """Sums over the tokens of each sequence that count, from which `not_reconstructed` and `correlation` follow."""
    counted = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if counted is None else counted
    p, q = ((((v - basis.mean) @ basis.directions) * counted[..., None]).double() for v in (x, x_hat))
    later_p, later_q = p[:, 1:], q[:, 1:]
    later = counted[:, 1:].sum(dim=1).double()
    return {
        "error": (p - q).square().sum(dim=1),
        "variance": p.square().sum(dim=1),
        "n": later[:, None].expand(-1, p.shape[-1]),
        "p": later_p.sum(dim=1),
        "q": later_q.sum(dim=1),
        "pp": later_p.square().sum(dim=1),
        "qq": later_q.square().sum(dim=1),
        "pq": (later_p * later_q).sum(dim=1),
    }


def not_reconstructed(s: Mapping[str, Array]) -> Array:
    """Share of the variance along each direction that is not reconstructed; more than 1 is worse than the mean."""
    return s["error"] / s["variance"]


def correlation(s: Mapping[str, Array]) -> Array:
    """Pearson correlation of original and reconstruction along each direction; NaN where either is constant."""
    together = s["n"] * s["pq"] - s["p"] * s["q"]
    spread = (s["n"] * s["pp"] - s["p"] ** 2).clip(0) * (s["n"] * s["qq"] - s["q"] ** 2).clip(0)
    out: Array = np.divide(together, np.sqrt(spread), out=np.full_like(spread, np.nan), where=spread > 0)
    return out


def repaired_and_wrong(
    x: Float[Tensor, "batch context d_in"], x_hat: Float[Tensor, "batch context d_in"], basis: Principal, group: Group
) -> dict[str, Float[Tensor, "batch context d_in"]]:
    """What to put in place of x: the original with only this group's error, and the reconstruction without it."""
    projector = basis.directions[:, group.start : group.stop]
    error = (x - x_hat) @ projector @ projector.T
    return {WRONG: x - error, REPAIRED: x_hat + error}


def resampled(
    x: Float[Tensor, "batch context d_in"],
    basis: Principal,
    group: Group,
    generator: torch.Generator,
    counted: Bool[Tensor, "batch context"] | None = None,
) -> Float[Tensor, "batch context d_in"]:
    """x with its component in the group exchanged among the batch's tokens that count, but for first positions."""
    projector = basis.directions[:, group.start : group.stop]
    exchanged = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if counted is None else counted.clone()
    exchanged[:, 0] = False
    tokens = x[exchanged]
    order = torch.randperm(len(tokens), generator=generator).to(x.device)
    out = x.clone()
    out[exchanged] = tokens + (tokens[order] - tokens) @ projector @ projector.T
    return out


def lost_mask(along: BySequence) -> np.ndarray:
    """Directions of which more than LOST of the variance is not reconstructed, `[d_in]`."""
    mask: np.ndarray = along.value(not_reconstructed) > LOST
    return mask
