"""What is measured of a dictionary, in which units, with which interval?

Every metric is a ratio or difference of sums over tokens, kept by sequence, so that an interval comes from
resampling sequences (tokens of one sequence are not independent). x are activations, x_hat their reconstructions, mu
the mean activation of the sample:

    L0                    active latents a token
    MSE                   mean over tokens and coordinates of (x - x_hat)^2
    explained variance    1 - sum |x - x_hat|^2 / sum |x - mu|^2           (a ratio of sums, not a mean of ratios)
    CE increase           next-token cross-entropy with x_hat in place of x, minus without; nats a token
    KL                    KL(original || spliced) of the next-token distributions; nats a token
    CE recovered          (CE_ablated - CE_spliced) / (CE_ablated - CE_clean), the activation ablated to 0, or to mu
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dictlab.numerics.statistics import bootstrap_weights, interval
from dictlab.runtime.interruption import partial_warnings
from dictlab.token_selection import ALL, TokenSelection

Sums = Mapping[str, NDArray[np.float64]]


class Metric(NamedTuple):
    """A number that follows from sums over tokens: its name, its unit, and how."""

    label: str
    unit: str
    of: Callable[[Sums], NDArray[np.float64]]


def _share(of: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """A share, NaN where there is nothing to have a share of."""
    whole = np.asarray(whole, dtype=np.float64)
    return np.asarray(np.divide(of, whole, out=np.full(np.shape(whole), np.nan), where=whole != 0))


METRICS = {
    "l0": Metric("L0", "latents/token", lambda s: s["l0"] / s["tokens"]),
    "mse": Metric("MSE", "activation²", lambda s: s["squared_error"] / s["coordinates"]),
    "explained_variance": Metric(
        "explained variance", "share", lambda s: 1 - _share(s["squared_error"], s["variance"])
    ),
    "ce_increase": Metric("CE increase", "nats/token", lambda s: (s["ce"] - s["ce_clean"]) / s["predicted"]),
    "kl": Metric("KL", "nats/token", lambda s: s["kl"] / s["tokens"]),
    "ce_recovered_zero": Metric(
        "CE recovered (zero)", "share", lambda s: _share(s["ce_zero"] - s["ce"], s["ce_zero"] - s["ce_clean"])
    ),
    "ce_recovered_mean": Metric(
        "CE recovered (mean)", "share", lambda s: _share(s["ce_mean"] - s["ce"], s["ce_mean"] - s["ce_clean"])
    ),
    "ce_clean": Metric("CE without dictionary", "nats/token", lambda s: s["ce_clean"] / s["predicted"]),
}
RECONSTRUCTION_METRICS = ("l0", "mse", "explained_variance")  # those that need no model


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured of one dictionary, by sequence.

    Attributes:
        name: The dictionary's name.
        sums: For each quantity, its sum over the tokens of each sequence, `[sequences]`.
        fired: Whether each latent that can be active was, in each sequence.
        seed: Of the resampling. Evaluations of the same text and seed share their resamples: differences are paired.
        fingerprint: Of the tokens measured on: equal for equal text, tokenizer, seed and number of contexts.
        asked: Sequences that were to be measured; more than were, if it was interrupted.
        unit: What sequences are called.
        counted: What tokens are called.
        selection: Which of them count.
    """

    name: str
    sums: Sums
    fired: Float[Tensor, "sequences n_latents"]
    seed: int
    fingerprint: str = ""
    asked: int = 0
    unit: str = "held-out sequences"
    counted: str = "tokens"
    selection: TokenSelection = ALL

    @property
    def size(self) -> str:
        """How much was measured, in words."""
        selected = "" if self.selection == ALL else f", {self.selection}"
        return f"{self.n_sequences} {self.unit} ({self.n_tokens} {self.counted}{selected})"

    @property
    def sink_share(self) -> float:
        """Share of the variance measured that attention sinks hold."""
        variance, sinks = self.sums["variance"].sum(), self.sums.get("sink_variance")
        return float(sinks.sum() / variance) if sinks is not None and variance > 0 else 0.0

    @property
    def cautions(self) -> tuple[str, ...]:
        """What a report must say of how much was measured."""
        said = list(partial_warnings(self.n_sequences, self.asked))
        if self.n_sequences < 2:
            said.append("One sequence: no intervals. Measure on more with `contexts=...`, where there are more.")
        if "variance" in self.sums and self.sums["variance"].sum() == 0:
            said.append("Activations do not vary on this sample: there is no variance to explain.")
        return (*said, *self._unclear_ablations())

    def _unclear_ablations(self) -> list[str]:
        """Ablations that raise the cross-entropy by nothing that is clear of 0, of which CE recovered is a share."""
        if not self.has_model or self.n_sequences < 2:
            return []
        said, weights = [], bootstrap_weights(self.n_sequences, self.seed)
        for name in ("zero", "mean"):
            raised = (self.sums[f"ce_{name}"] - self.sums["ce_clean"]) / self.sums["predicted"].mean()
            low, high = interval(weights @ raised / self.n_sequences)
            if low <= 0:
                said.append(
                    f"CE recovered ({name}) is a share of next to nothing: ablating activations to {name} raises the "
                    f"cross-entropy by {raised.mean():.4f} [{low:.4f}, {high:.4f}] nats a token, not clear of 0."
                )
        return said

    @property
    def has_model(self) -> bool:
        """Whether the model's output was measured too."""
        return "ce" in self.sums

    def among(self, keys: Iterable[str]) -> list[str]:
        """Those of some metrics that were measured."""
        return [key for key in keys if key in self.metrics]

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics that were measured: without a model, those of the reconstruction alone."""
        return METRICS if self.has_model else {name: METRICS[name] for name in RECONSTRUCTION_METRICS}

    @property
    def n_sequences(self) -> int:
        """Sequences measured."""
        return len(self.sums["tokens"])

    @property
    def n_tokens(self) -> int:
        """Tokens measured."""
        return int(self.sums["tokens"].sum())

    @property
    def sample(self) -> dict[str, Any]:
        """What was measured on, for the record."""
        about: dict[str, Any] = {"evaluation_tokens": self.n_tokens, "evaluation_sample": self.fingerprint}
        return about | ({} if self.selection == ALL else {"evaluation_token_selection": str(self.selection)})

    @property
    def alive(self) -> int:
        """Latents active at least once in this sample."""
        return int((self.fired > 0).any(dim=0).sum())

    def value(self, metric: str) -> float:
        """A metric of METRICS over all sequences."""
        return float(METRICS[metric].of({name: values.sum() for name, values in self.sums.items()}))

    def draws(self, metric: str) -> NDArray[np.float64]:
        """The metric in each bootstrap resample of the sequences."""
        weights = bootstrap_weights(self.n_sequences, self.seed)
        return METRICS[metric].of({name: weights @ values for name, values in self.sums.items()})

    def interval(self, metric: str) -> tuple[float, float]:
        """95 % percentile bootstrap interval over sequences; NaN for a single sequence."""
        if self.n_sequences < 2:
            return float("nan"), float("nan")
        return interval(self.draws(metric))

    def alive_draws(self) -> NDArray[np.float64]:
        """Latents active at least once in each bootstrap resample: fewer than in the sample, never more."""
        present = torch.from_numpy((bootstrap_weights(self.n_sequences, self.seed) > 0).astype(np.float32))
        return (present @ self.fired > 0).sum(dim=1).double().numpy()

    def alive_interval(self) -> tuple[float, float]:
        """From the latents seen alive to how many a larger sample might show, at 95 %.

        Resampling loses latents that fired in one sequence only; the basic bootstrap turns that loss round. What was
        seen is certain, so it is the lower end.
        """
        high = interval(2 * self.alive - self.alive_draws())[1]
        return self.alive, min(max(high, self.alive), self.fired.shape[1])

    def table(self) -> pd.DataFrame:
        """One row a metric: value, 95 % interval, unit."""
        rows = [(m.label, self.value(key), *self.interval(key), m.unit) for key, m in self.metrics.items()]
        rows.insert(3, ("alive latents", self.alive, *self.alive_interval(), f"of {self.fired.shape[1]}"))
        frame = pd.DataFrame(rows, columns=["metric", "value", "low", "high", "unit"])
        frame.insert(0, "dictionary", self.name)
        return frame

    def record(self) -> dict[str, Any]:
        """The metrics for a dictionary's metadata."""
        entries: dict[str, Any] = {"alive": self.alive, **self.sample}
        for metric in self.metrics:
            entries[metric] = self.value(metric)
            entries[f"{metric}_interval"] = list(self.interval(metric))
        return entries
