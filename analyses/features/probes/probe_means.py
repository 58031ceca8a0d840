"""Means over tasks of what the best latent, or coordinate, says of each label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.features.probes import single_latent_probes as probing
from analyses.features.probes.single_latent_probes import ALL, Probed
from dictlab.numerics.statistics import Estimate, Formula, interval

LOSS, LEFT = "probe loss (nats, mean over tasks)", "share of the labels' entropy left"


KINDS = {"dictionary": 0, "single coordinates": 1, "all coordinates": 2}


class ProbeMeans(NamedTuple):
    """Means over the tasks of one set of features.

    Attributes:
        probed: Its probes.
        name: What it is called, with its site where there are several.
        loss: Cross-entropy of the best feature of each task, nats.
        of_entropy: Share of the labels' entropy that is left.
        f1: F1.
        has: Tasks with an F1 that is large enough.
    """

    probed: Probed
    name: str
    loss: Estimate
    of_entropy: Estimate
    f1: Estimate
    has: int

    @property
    def kind(self) -> str:
        """A key of KINDS."""
        if self.probed.dictionary is not None:
            return "dictionary"
        return "all coordinates" if self.probed.name == ALL else "single coordinates"

    @property
    def family(self) -> tuple[str, str]:
        """Objective and activation function of a dictionary."""
        dictionary = self.probed.dictionary
        return ("", "") if dictionary is None else (dictionary.metadata.objective or "unknown", _activation(dictionary))

    @property
    def width(self) -> int | None:
        """Latents of a dictionary."""
        return None if self.probed.dictionary is None else self.probed.dictionary.n_latents


def probe_means(measured: Sequence[Probed], min_f1: float) -> list[ProbeMeans]:
    """The means of every set of features."""
    return [
        ProbeMeans(
            one,
            feature_set_name(one, measured),
            _mean_over_tasks(one, probing.ce),
            _mean_over_tasks(one, probing.relative),
            _mean_over_tasks(one, probing.f1),
            int((one.f1 >= min_f1).sum()),
        )
        for one in measured
    ]


def feature_set_name(one: Probed, measured: Sequence[Probed]) -> str:
    """What a set of features is called: with its site where there are several."""
    several = len({other.site for other in measured}) > 1
    return f"{one.name} at {one.site}" if several and one.dictionary is None else one.name


def _mean_over_tasks(one: Probed, formula: Formula) -> Estimate:
    """The mean of a formula over the tasks, with its interval over sequences."""

    def mean(sums: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.asarray(formula(sums).mean(axis=-1))

    low, high = interval(one.sums.draws(mean)) if one.sums.n_sequences > 1 else (np.nan, np.nan)
    return Estimate(float(one.sums.value(mean)), low, high)


def _activation(dictionary: Any) -> str:
    record = dictionary.activation.record()
    return f"{record['kind']} {record['k']}" if "k" in record else str(record["kind"])
