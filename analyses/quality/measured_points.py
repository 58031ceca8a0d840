"""Measured dictionaries as points, and the curves that they lie on: what the Pareto tables and plots are made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from dictlab.dictionary import Dictionary
from dictlab.evaluation.metrics import METRICS, Evaluation

LOCAL = "local"
COST_ONLY = ("seconds", "finetune_seconds", "relative_cost", "interrupted")  # of its training: tells no settings apart


class Measure(NamedTuple):
    """A quality: its key in METRICS, whether more of it is better, and whether its axis is logarithmic."""

    key: str
    more_is_better: bool
    logarithmic: bool

    @property
    def label(self) -> str:
        """Its name in tables."""
        return METRICS[self.key].label

    @property
    def short(self) -> str:
        """The same, shorter."""
        return "CE" if self.key == "ce_increase" else self.label


MEASURES = (
    Measure("ce_increase", False, True),
    Measure("kl", False, True),
    Measure("ce_recovered_zero", True, False),
    Measure("ce_recovered_mean", True, False),
    Measure("explained_variance", True, False),
    Measure("mse", False, True),
)
WITHOUT_MODEL = (MEASURES[5], MEASURES[4])
COSTS = {"l0": "L0", "alive": "alive latents"}


@dataclass(frozen=True, eq=False)
class Point:
    """One dictionary and what was measured of it."""

    dictionary: Dictionary
    evaluation: Evaluation

    @property
    def name(self) -> str:
        """The dictionary's name."""
        return self.dictionary.name

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The qualities that were measured, the one that headlines first."""
        return MEASURES if self.evaluation.has_model else WITHOUT_MODEL

    @property
    def objective(self) -> str:
        """What it was trained for, "unknown" where its file does not say."""
        return self.dictionary.metadata.objective or "unknown"

    @property
    def curve(self) -> str:
        """The name of its curve: objective, kind of activation function, width."""
        return f"{self.objective} {self.dictionary.activation.kind} {self.dictionary.n_latents}"

    @property
    def setting(self) -> str:
        """The same for dictionaries that differ in their seed only; their own where the files do not tell that."""
        metadata = self.dictionary.metadata
        training = {key: value for key, value in metadata.training.items() if key not in COST_ONLY}
        if not training or metadata.seed is None:
            return self.name
        record = self.dictionary.activation.record()
        return json.dumps([self.curve, record, metadata.tokens, training], sort_keys=True, default=str)

    @property
    def seconds(self) -> float:
        """Training time, NaN where the file does not say."""
        seconds = self.dictionary.metadata.training.get("seconds")
        return float(seconds) if isinstance(seconds, int | float) else float("nan")

    @property
    def tokens(self) -> float:
        """Tokens trained on, NaN where the file does not say."""
        tokens = self.dictionary.metadata.tokens
        return float("nan") if tokens is None else float(tokens)

    def value(self, key: str) -> float:
        """A metric, or the number of alive latents."""
        return float(self.evaluation.alive) if key == "alive" else self.evaluation.value(key)

    def interval(self, key: str) -> tuple[float, float]:
        """Its 95 % interval."""
        if key != "alive":
            return self.evaluation.interval(key)
        low, high = self.evaluation.alive_interval()
        return float(low), float(high)

    def series(self, key: str) -> Float[NDArray[np.float64], " resamples"]:
        """Its value in the sample, then in each resample; of one sequence there are none."""
        if self.evaluation.n_sequences < 2:
            return np.array([self.value(key)])
        draws = self._alive_draws if key == "alive" else self.evaluation.draws(key)
        return np.concatenate([[self.value(key)], draws])

    @cached_property
    def _alive_draws(self) -> Float[NDArray[np.float64], " resamples"]:
        return self.evaluation.alive_draws()


@dataclass(frozen=True, eq=False)
class Curve:
    """The dictionaries of one objective, kind of activation function and width; seeds of a setting are one place."""

    name: str
    settings: tuple[tuple[Point, ...], ...]

    @property
    def points(self) -> tuple[Point, ...]:
        """All of its dictionaries."""
        return tuple(point for seeds in self.settings for point in seeds)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The qualities that were measured of its dictionaries, the one that headlines first."""
        return self.points[0].measures

    @property
    def local(self) -> bool:
        """Whether its dictionaries were trained on their own reconstruction alone."""
        return self.objective == LOCAL

    @property
    def objective(self) -> str:
        """What its dictionaries were trained for."""
        return self.points[0].objective

    @property
    def width(self) -> int:
        """Latents of each of its dictionaries."""
        return self.points[0].dictionary.n_latents

    @property
    def kind(self) -> str:
        """The activation function of its dictionaries."""
        return self.points[0].dictionary.activation.kind

    @cached_property
    def series(self) -> dict[str, Float[NDArray[np.float64], "resamples settings"]]:
        """L0, alive latents and the first measure of each setting, in the sample and in each resample of it.

        A setting of several seeds is at their geometric mean. Settings that have no logarithm are left out.
        """
        found = {
            key: np.stack([_geometric([p.series(key) for p in seeds]) for seeds in self.settings], axis=1)
            for key in (*COSTS, self.measures[0].key)
        }
        kept = np.logical_and.reduce([np.isfinite(values[0]) for values in found.values()])
        return {key: values[:, kept] for key, values in found.items()}


def curves(points: Sequence[Point]) -> list[Curve]:
    """Points by curve and setting: curves of several settings first, local before others, then by width."""
    found: dict[str, dict[str, list[Point]]] = {}
    for point in points:
        found.setdefault(point.curve, {}).setdefault(point.setting, []).append(point)
    made = [Curve(name, tuple(tuple(seeds) for seeds in settings.values())) for name, settings in found.items()]
    objectives = list(dict.fromkeys(point.objective for point in points))
    return sorted(
        made,
        key=lambda c: (len(c.settings) == 1, not c.local, objectives.index(c.objective), c.kind, c.width),
    )


def average(values: Sequence[float], *, logarithmic: bool) -> float:
    """The mean of several seeds on the scale of its axis; NaN where a logarithm is asked of what has none."""
    if not logarithmic:
        return float(np.mean(values))
    return float(_geometric([np.array([value]) for value in values])[0])


def _geometric(values: Sequence[Float[NDArray[np.float64], " resamples"]]) -> Float[NDArray[np.float64], " resamples"]:
    stacked = np.stack(values)
    positive = (stacked > 0).all(axis=0)
    logs = np.log(np.where(positive, stacked, 1.0)).mean(axis=0)
    means: NDArray[np.float64] = np.where(positive, np.exp(logs), np.nan)
    return means
