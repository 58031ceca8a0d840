"""What can be trained on? Activations of a model at one or more sites, an array, or another dictionary's decoder.

A source gives a sample to start from, a stream of batches that can be taken up again, and the measurement in the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from dictlab.dictionary import Dictionary
from dictlab.training.config import TrainConfig
from dictlab.training.member import Member
from dictlab.training.objectives import Objective
from dictlab.training.sources.batches import Batches

SAMPLE = 32_768  # activations that the scale and the initial bias are taken from
FIRING_TOKENS = 1 << 18  # training tokens on which firing rates are measured in the end
FINETUNE_SEED = 1 << 20  # added to the seed of the data's order: other documents come first


class Source(Protocol):
    """What a run trains on.

    Attributes:
        config: The run's settings, with what the source decides filled in.
        members: What is trained.
    """

    config: TrainConfig
    members: Sequence[Member]

    def samples(self) -> Mapping[str, Tensor]:
        """Activations to start from, by site, `[n, d_in]`."""
        ...

    def batches(self, start: Mapping[str, Any] | None) -> Batches:
        """Batches from the beginning, or from a position."""
        ...

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        ...

    def described(self) -> dict[str, Any]:
        """Fields of a dictionary's metadata; `training` holds settings."""
        ...

    def measured(self, dictionaries: Sequence[Dictionary]) -> list[Dictionary]:
        """The dictionaries with firing rates, metrics and the operations of their training."""
        ...


def goals_of(config: TrainConfig) -> list[list[Objective]]:
    """What is trained for at first, and while fine-tuning."""
    last = [[config.weights(config.finetune)]] if config.finetune else []
    return [[config.weights(name) for name in config.objective], *last]
