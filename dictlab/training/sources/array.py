"""An array as what is trained on: of activations, or the decoder of another dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dictlab.data.arrays import ArrayActivations, ArrayLike, RowStream, open_array
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.evaluation.reconstruction import evaluate_reconstruction
from dictlab.formats.loading import load
from dictlab.runtime.progress import Phase
from dictlab.token_selection import ALL
from dictlab.training.config import TrainConfig
from dictlab.training.costs import counted
from dictlab.training.distributed.ranks import SINGLE_PROCESS, Ranks
from dictlab.training.learner.warm_start import load_for_array
from dictlab.training.measure import with_metrics
from dictlab.training.member import Member
from dictlab.training.objectives import Batch
from dictlab.training.sources.base import FINETUNE_SEED, SAMPLE, goals_of
from dictlab.training.sources.batches import Batches, Part

EVALUATION_ROWS = 1 << 15


class ArraySource:
    """Activations in an array, or the decoder of another dictionary."""

    def __init__(
        self, config: TrainConfig, data: ArrayLike | ArrayActivations | None, ranks: Ranks = SINGLE_PROCESS
    ) -> None:
        self._ranks = ranks
        ranks.check_divisible(config.batch, "rows")
        self._base = load(config.on[1]) if config.on and data is None else None
        if self._base is not None:
            data = decoder_rows(self._base)
        opened = open_array(data if data is not None else str(config.data), config.data)
        self.data = replace(opened, device=config.device)
        self.train, self.heldout = self.data.as_split("train"), self.data.as_split("heldout")
        tokens = config.tokens if config.epochs is None else config.epochs * self.train.n_rows
        self.config = replace(config, tokens=tokens, epochs=None, token_selection=str(ALL))
        starts = load_for_array(config.start, self.data.name, self.data.d_in)
        self.members: Sequence[Member] = list(self.config.members(starts))

    def cost(self) -> None:
        """Nothing runs but the steps, whose line of progress has a remaining time from the first of them on."""

    def samples(self) -> dict[str, Tensor]:
        """Rows to start from."""
        with Phase(f"sample {self.data.name}", shown=self._ranks.is_rank_zero):
            return {"": torch.cat([x.flatten(0, 1) for x in self.train.sample(SAMPLE)])}

    def batches(self, start: Mapping[str, Any] | None) -> Batches:
        """Rows in random order."""
        config = self.config
        steps = [config.steps - config.finetune_steps, config.finetune_steps][: len(goals_of(config))]
        seeds = [config.seed[0] + number * FINETUNE_SEED for number in range(len(steps))]
        streams = [partial(RowStream, self.train, batch=config.batch, seed=seed) for seed in seeds]
        return Batches(
            [
                Part(count, lambda at, stream=stream: stream(start=at), lambda x: {"": Batch(x)}, {"": None})  # type: ignore[misc]
                for count, stream in zip(steps, streams, strict=True)
            ],
            start,
            self._ranks,
        )

    def show_progress(self, phase: Phase) -> None:
        """Nothing is waited for."""

    def identity(self) -> dict[str, Any]:
        """The array's content."""
        return {"data": self.data.fingerprint}

    def described(self) -> dict[str, Any]:
        """The array, and the dictionary that it was made from."""
        training = self.data.record() | {"rows": self.train.n_rows}
        if self.config.on is None:
            return {"training": training}
        return {"training": training | {"on": list(self.config.on)}, "sources": (Path(self.config.on[1]).stem,)}

    def with_metrics(self, dictionaries: Sequence[Dictionary]) -> list[Dictionary]:
        """Metrics of the reconstruction, on held-out rows."""
        evaluations = evaluate_reconstruction(dictionaries, self.heldout, tokens=EVALUATION_ROWS)
        return [counted(with_metrics(d, e), self.config, 0) for d, e in zip(dictionaries, evaluations, strict=True)]


def decoder_rows(dictionary: Dictionary) -> ArrayActivations:
    """Unit-norm decoder rows of the alive latents of a dictionary, as activations (Leask et al. 2025, section 5).

    Raises:
        DictlabError: No latent is alive.
    """
    rows = dictionary.directions[dictionary.alive].float().cpu()
    if not len(rows):
        raise DictlabError(f"{dictionary.name}: no latent is alive; there are no decoder rows to train on.")
    return open_array(rows, f"decoder of {dictionary.name}", whole=True)
