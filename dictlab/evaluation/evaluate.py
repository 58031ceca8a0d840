"""How well does a dictionary reconstruct, and does the model still work with it spliced in?

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

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from dictlab.data.activations import statistics
from dictlab.data.text import Text
from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import emitting
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.transformer_lens import adapted
from dictlab.interruption import Completion, partial_warnings
from dictlab.model.language_model import LanguageModel
from dictlab.model.output_divergence import kl_and_ce, next_tokens
from dictlab.statistics import bootstrap_weights, interval

BATCH_TOKENS = 2048  # activations of so many tokens are held for each dictionary; logits of a block of them

Sums = Mapping[str, NDArray[np.float64]]


class Metric(NamedTuple):
    """A number that follows from sums over tokens: its name, its unit, and how."""

    label: str
    unit: str
    of: Callable[[Sums], NDArray[np.float64]]


METRICS = {
    "l0": Metric("L0", "latents/token", lambda s: s["l0"] / s["tokens"]),
    "mse": Metric("MSE", "activation²", lambda s: s["squared_error"] / s["coordinates"]),
    "explained_variance": Metric("explained variance", "share", lambda s: 1 - s["squared_error"] / s["variance"]),
    "ce_increase": Metric("CE increase", "nats/token", lambda s: (s["ce"] - s["ce_clean"]) / s["predicted"]),
    "kl": Metric("KL", "nats/token", lambda s: s["kl"] / s["tokens"]),
    "ce_recovered_zero": Metric(
        "CE recovered (zero)", "share", lambda s: (s["ce_zero"] - s["ce"]) / (s["ce_zero"] - s["ce_clean"])
    ),
    "ce_recovered_mean": Metric(
        "CE recovered (mean)", "share", lambda s: (s["ce_mean"] - s["ce"]) / (s["ce_mean"] - s["ce_clean"])
    ),
    "ce_clean": Metric("CE without dictionary", "nats/token", lambda s: s["ce_clean"] / s["predicted"]),
}
OF_RECONSTRUCTION = ("l0", "mse", "explained_variance")  # those that need no model


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
    """

    name: str
    sums: Sums
    fired: Float[Tensor, "sequences n_latents"]
    seed: int
    fingerprint: str = ""
    asked: int = 0
    unit: str = "held-out sequences"
    counted: str = "tokens"

    @property
    def size(self) -> str:
        """How much was measured, in words."""
        return f"{self.n_sequences} {self.unit} ({self.n_tokens} {self.counted})"

    @property
    def cautions(self) -> tuple[str, ...]:
        """What a report must say of how much was measured."""
        said = list(partial_warnings(self.n_sequences, self.asked))
        if self.n_sequences < 2:
            said.append("One sequence: no intervals. Measure on more with --contexts, where there are more.")
        return tuple(said)

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
        return METRICS if self.has_model else {name: METRICS[name] for name in OF_RECONSTRUCTION}

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
        return {"evaluation_tokens": self.n_tokens, "evaluation_sample": self.fingerprint}

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


@torch.no_grad()
def evaluate(
    dictionaries: Sequence[Dictionary],
    model: LanguageModel,
    text: Text,
    *,
    contexts: int = 64,
    context: int | None = None,
    seed: int = 0,
    partial: bool = False,
) -> list[Evaluation]:
    """Measure dictionaries on contexts drawn from all over a text. After a pass for the mean activations, one clean
    forward of each batch serves them all.

    Args:
        dictionaries: Each at the site in its metadata.
        model: The model they belong to.
        text: What to run it on; the held-out split, if it is to mean anything.
        contexts: Sequences to measure; fewer where the text ends before.
        context: Tokens a sequence; the model's own by default, 1,024 at most.
        seed: Of the sample and the bootstrap.
        partial: On Ctrl-C, return what is complete, if that is two sequences or more.

    Raises:
        DictlabError: A dictionary names no site, or one that is not the model's, or has another width than the site,
            or a reconstruction is not finite.
    """
    dictionaries = [adapted(dictionary, model) for dictionary in dictionaries]
    sites = [site_of(dictionary) for dictionary in dictionaries]
    check_at_least(1, contexts=contexts)
    length = model.context_length(context)
    sampled = text.sample(model.tokenizer, length, contexts, seed=seed)
    fingerprint = hashlib.sha256(sampled.numpy().tobytes()).hexdigest()[:16]
    batches = sampled.split(max(1, BATCH_TOKENS // length))
    means = {
        site: statistics(model.capture(tokens, site)[site] for tokens in batches).mean for site in dict.fromkeys(sites)
    }
    rows: list[list[dict[str, Tensor]]] = [[] for _ in dictionaries]
    fired: list[list[Tensor]] = [[] for _ in dictionaries]
    with Completion(len(sampled), least=2 if partial else None) as completion:
        for tokens in tqdm(batches, desc="evaluate", leave=False):
            for index, (row, active) in enumerate(list(_measure(dictionaries, sites, means, model, tokens))):
                rows[index].append(row)
                fired[index].append(active)
            completion.add(len(tokens))
    return [
        Evaluation(
            dictionary.name,
            {key: torch.cat([row[key] for row in own]).double().cpu().numpy() for key in own[0]},
            torch.cat(active).cpu()[:, emitting(dictionary.activation, dictionary.n_latents)],
            seed,
            fingerprint,
            len(sampled),
        )
        for dictionary, own, active in zip(dictionaries, rows, fired, strict=True)
    ]


@torch.no_grad()
def firing_rates(
    dictionaries: Sequence[Dictionary], batches: Iterable[Float[Tensor, "*tokens d_in"]]
) -> tuple[list[Float[Tensor, " n_latents"]], int]:
    """Share of tokens at which each latent of each dictionary is active, in one pass; and the number of tokens."""
    seen = 0
    fired = [torch.zeros(d.n_latents, dtype=torch.long) for d in dictionaries]
    for x in batches:
        seen += x.numel() // x.shape[-1]
        for count, dictionary in zip(fired, dictionaries, strict=True):
            count += dictionary.encode(x).firings().cpu()
    return [(count / max(1, seen)).float() for count in fired], seen


def check_finite(dictionary: Dictionary, x_hat: Float[Tensor, "*tokens d_in"]) -> None:
    """Refuse a reconstruction that is not made of numbers.

    Raises:
        DictlabError: Some of it is NaN or infinite.
    """
    bad = int((~torch.isfinite(x_hat)).any(dim=-1).sum())
    if bad:
        raise DictlabError(
            f"{dictionary.name}: its reconstruction of {bad} of {x_hat[..., 0].numel()} tokens is not finite. "
            "Are its weights damaged, or is it a dictionary of another model or site?"
        )


def site_of(dictionary: Dictionary) -> str:
    """The site in a dictionary's metadata.

    Raises:
        DictlabError: It names none.
    """
    if dictionary.metadata.site is None:
        raise DictlabError(f"{dictionary.name}: its file does not say at which site of the model it belongs.")
    return dictionary.metadata.site


def _measure(
    dictionaries: Sequence[Dictionary],
    sites: Sequence[str],
    means: Mapping[str, Tensor],
    model: LanguageModel,
    tokens: Int[Tensor, "batch context"],
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """For each dictionary, sums over the tokens of each sequence, and which latents were active in it."""
    starts = {site: model.block_input(site) for site in sites}
    clean = model.capture(tokens, list(dict.fromkeys([*sites, *starts.values(), model.last_site])))
    tokens = tokens.to(model.device)

    def spliced(site: str, x: Tensor) -> Tensor:
        return model.final_residual(x.to(clean[site].dtype), site, residual=clean[starts[site]], tokens=tokens).flatten(
            0, 1
        )

    known = [dictionary(clean[site].float()) for dictionary, site in zip(dictionaries, sites, strict=True)]
    for dictionary, (_, x_hat) in zip(dictionaries, known, strict=True):
        check_finite(dictionary, x_hat)
    altered = [spliced(site, x_hat) for site, (_, x_hat) in zip(sites, known, strict=True)]
    for site, mean in means.items():
        altered += [spliced(site, x.expand_as(clean[site])) for x in (torch.zeros_like(mean), mean)]
    out = kl_and_ce(model, clean[model.last_site].flatten(0, 1), torch.stack(altered), next_tokens(tokens).flatten())
    kl, ce, ce_clean = (values.unflatten(-1, tokens.shape).double() for values in (out.kl, out.ce, out.ce_clean))
    kl, ce, ce_clean = kl.sum(-1), ce[..., :-1].sum(-1), ce_clean[..., :-1].sum(-1)  # the last token has none after it
    ablated = {site: ce[len(sites) + 2 * i :][:2] for i, site in enumerate(means)}
    batch, length = tokens.shape
    for index, (dictionary, site) in enumerate(zip(dictionaries, sites, strict=True)):
        x, (codes, x_hat) = clean[site], known[index]
        row = {
            "tokens": torch.full((batch,), float(length)),
            "predicted": torch.full((batch,), float(length - 1)),
            "coordinates": torch.full((batch,), float(length * x.shape[-1])),
            "l0": codes.l0().reshape(batch, length).sum(dim=1),
            "squared_error": (x - x_hat).double().square().sum(dim=(1, 2)),
            "variance": (x - means[site].to(x)).double().square().sum(dim=(1, 2)),
            "ce_clean": ce_clean,
            "ce": ce[index],
            "kl": kl[index],
            "ce_zero": ablated[site][0],
            "ce_mean": ablated[site][1],
        }
        active = torch.zeros(batch, dictionary.n_latents)
        on = codes.values != 0
        active[(codes.rows[on] // length).cpu(), codes.indices[on].cpu()] = 1.0
        yield row, active
