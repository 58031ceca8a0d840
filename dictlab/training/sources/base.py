"""Sources of activations to train on: a model at one or more sites, an array, or another dictionary's decoder.

A source gives a sample to start from, a stream of batches that can be resumed, and the held-out metrics in the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from dictlab.dictionary import Dictionary
from dictlab.runtime.cost_estimate import CostEstimate
from dictlab.runtime.progress import Phase
from dictlab.training.config import TrainConfig
from dictlab.training.member import Member
from dictlab.training.objectives import Objective
from dictlab.training.sources.batches import Batches

SAMPLE = 32_768  # activations that the scale and the initial bias are taken from
FINETUNE_SEED = 1 << 20  # added to the seed of the data's order: other documents come first


class ActivationSource(Protocol):
    """What a run trains on.

    Attributes:
        config: The run's settings, with what the source decides filled in.
        members: What is trained.
    """

    config: TrainConfig
    members: Sequence[Member]

    def cost(self) -> CostEstimate | None:
        """What the run is going to cost, from a short probe; None where nothing runs but the steps."""
        ...

    def samples(self) -> Mapping[str, Tensor]:
        """Activations to start from, by site, `[n, d_in]`."""
        ...

    def batches(self, start: Mapping[str, Any] | None) -> Batches:
        """Batches from the beginning, or from a position."""
        ...

    def show_progress(self, phase: Phase) -> None:
        """Show on a run's line of progress what batches wait for."""
        ...

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run is resumed."""
        ...

    def described(self) -> dict[str, Any]:
        """Fields of a dictionary's metadata; `training` holds settings."""
        ...

    def with_metrics(self, dictionaries: Sequence[Dictionary]) -> list[Dictionary]:
        """The dictionaries with held-out metrics and the operations of their training in their metadata."""
        ...


def goals_of(config: TrainConfig) -> list[list[Objective]]:
    """What is trained for at first, and while fine-tuning."""
    last = [[config.weights(config.finetune)]] if config.finetune else []
    return [[config.weights(name) for name in config.objective], *last]
