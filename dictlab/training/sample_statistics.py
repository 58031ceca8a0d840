"""Statistics of a sample of the activations, from which a dictionary's units and its first bias are taken."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dictlab.data.activations import Moments, moments
from dictlab.errors import DictlabError
from dictlab.training.learner.initialisation import geometric_median

# Squares and their sums over some million coordinates must neither overflow nor vanish in float32 (1e-38 to 3e38).
SMALLEST, LARGEST = 1e-15, 1e15


class SampleStatistics(NamedTuple):
    """Moments and geometric median of a sample of the activations at one site."""

    moments: Moments
    centre: Float[Tensor, " d_in"]

    @classmethod
    def of(cls, x: Float[Tensor, "sample d_in"], what: str) -> SampleStatistics:
        """Measure a sample.

        Args:
            x: The sample.
            what: Where it is from, for messages.

        Raises:
            DictlabError: It holds values that are not finite, does not vary, or varies at a scale whose squares float32
                cannot hold.
        """
        if not bool(torch.isfinite(x).all()):
            raise DictlabError(
                f"{what} hold NaN or infinite values. Does the model overflow in this precision? Load it in another."
            )
        found = moments([x])
        if not found.variance > 0:
            raise DictlabError(f"{what} do not vary; nothing to learn.")
        deviation, largest = math.sqrt(found.variance / x.shape[1]), float(x.abs().max())
        if deviation < SMALLEST or largest > LARGEST:
            raise DictlabError(
                f"{what} vary by {deviation:.2g} a coordinate, and the largest is {largest:.2g}: squares of such "
                f"numbers are not held by float32. Expected {SMALLEST:g} to {LARGEST:g}; scale the data by a constant."
            )
        return cls(found, geometric_median(x))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], variance: float, device: str) -> SampleStatistics:
        """Out of a saved state, checked before (`state_checks`)."""
        kept = {name: t.to(device) for name, t in tensors.items()}
        return cls(Moments(int(kept["n"]), kept["mean"], variance, None), kept["centre"])

    def tensors(self) -> dict[str, Tensor]:
        """What a state keeps as tensors."""
        tensors = {"n": torch.tensor(self.moments.n), "mean": self.moments.mean, "centre": self.centre}
        return {name: t.cpu() for name, t in tensors.items()}
