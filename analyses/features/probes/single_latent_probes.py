"""The best single feature for each task: chosen and fitted on one sample, measured on another.

Features are the latents of a dictionary, or the coordinates of the activation (as they are, or along its principal
components) as a floor. The feature of a task is the one whose probe has the least cross-entropy on the sample fitted
on; its probe is then measured on held-out tokens, sequence by sequence. A probe on all coordinates
together is the ceiling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from analyses.features.probes import newton_logistic
from analyses.features.probes.newton_logistic import cross_entropy
from analyses.features.probes.sparse_columns import Columns, Dense, Sparse
from analyses.features.probes.token_labels import LabelledTokens
from dictlab.dictionary import Dictionary
from dictlab.dictionary.codes import Codes, offsets_of
from dictlab.evaluation.evaluate import check_finite
from dictlab.model.language_model import LanguageModel
from dictlab.numerics.statistics import BySequence
from dictlab.runtime.progress import track

FORWARD_TOKENS = 4096
COMPONENTS = 512  # that a probe on all coordinates reads at most
Sums: TypeAlias = Mapping[str, NDArray[np.float64]]
Pick: TypeAlias = Callable[[Tensor], Tensor]  # the values of some columns, [rows, columns]
CHANNELS, PRINCIPAL, ALL = "residual channels", "principal components", "dense probe"


class Rows(NamedTuple):
    """Activations at the labelled tokens of a sample.

    Attributes:
        x: At every token that counts.
        labelled: The sample.
    """

    x: Float[Tensor, "tokens d_in"]
    labelled: LabelledTokens

    @property
    def features(self) -> Float[Tensor, "rows d_in"]:
        """What a dense probe reads: x, or its mean over each text where the labels are of texts."""
        if not self.labelled.pooled:
            return self.x
        counts, owner = _texts(self.labelled)
        total = self.x.new_zeros(len(counts), self.x.shape[1]).index_add_(0, owner.to(self.x.device), self.x)
        return total / counts[:, None].to(total)

    def codes(self, dictionary: Dictionary) -> Codes:
        """What single probes read: what latents add (`Dictionary.contributions`), or its mean over each text."""
        codes = dictionary.contributions(dictionary.encode(self.x), self.x)
        return _averaged(codes, self.labelled) if self.labelled.pooled else codes


@dataclass(frozen=True, eq=False)
class Probed:
    """The probes of one set of features, one a task, and what they do on held-out tokens.

    Attributes:
        name: Of the dictionary, or of what is probed in its place.
        site: Where.
        columns: The feature of each task; -1 where all are read together.
        weight: Of its probe, in log odds an activation; NaN where all are read together.
        threshold: On the log odds; at this or above, a token is said to be true.
        sums: By sequence: "n" rows, "true" ones, "ce" in nats, and true positives "hits", "said" positives.
        dictionary: Which one, if it is one.
    """

    name: str
    site: str
    columns: Int[NDArray[np.int64], " tasks"]
    weight: Float[NDArray[np.float64], " tasks"]
    threshold: Float[NDArray[np.float64], " tasks"]
    sums: BySequence
    dictionary: Dictionary | None = None

    @cached_property
    def f1(self) -> NDArray[np.float64]:
        """F1 on held-out tokens, by task."""
        return self.sums.value(f1)


def ce(s: Sums) -> NDArray[np.float64]:
    """Cross-entropy by task, nats a row."""
    found: NDArray[np.float64] = s["ce"] / s["n"][..., None]
    return found


def f1(s: Sums) -> NDArray[np.float64]:
    """Harmonic mean of precision and recall, by task; 0 where nothing is both said and true."""
    return _ratio(2 * s["hits"], s["said"] + s["true"])


def precision(s: Sums) -> NDArray[np.float64]:
    """The share of what is said to be true that is."""
    return _ratio(s["hits"], s["said"])


def recall(s: Sums) -> NDArray[np.float64]:
    """The share of what is true that is said to be."""
    return _ratio(s["hits"], s["true"])


def relative(s: Sums) -> NDArray[np.float64]:
    """Cross-entropy over the entropy of the label, by task: the share of it that is left."""
    share = s["true"] / s["n"][..., None]
    return _ratio(ce(s), newton_logistic.entropy(torch.from_numpy(share)).numpy())


def _ratio(over: NDArray[np.float64], under: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(over, under, out=np.zeros_like(over), where=under > 0)


@torch.no_grad()
def captured(model: LanguageModel, site: str, labelled: LabelledTokens) -> Rows:
    """The activations of a sample at a site."""
    parts = []
    size = max(1, FORWARD_TOKENS // labelled.tokens.shape[1])
    pairs = zip(labelled.tokens.split(size), labelled.known.split(size), strict=True)
    for tokens, known in track(list(pairs), "capture", unit="batches"):
        parts.append(model.capture(tokens, site)[site][known.to(model.device)].float())
    return Rows(torch.cat(parts), labelled)


@torch.no_grad()
def of_dictionary(dictionary: Dictionary, site: str, train: Rows, held: Rows, *, ridge: float, seed: int) -> Probed:
    """The best latent of each task.

    Raises:
        DictlabError: A reconstruction is not finite.
    """
    check_finite(dictionary, dictionary.reconstruct(train.x[:FORWARD_TOKENS]))
    fitted, measured = train.codes(dictionary), held.codes(dictionary)
    found = _probed(
        dictionary.name, Sparse.of(fitted), lambda c: _chosen(fitted, c), lambda c: _chosen(measured, c), train, held,
        ridge,
    )  # fmt: skip
    return Probed(dictionary.name, site, *found[:3], BySequence(found[3], seed), dictionary)


@torch.no_grad()
def of_coordinates(site: str, train: Rows, held: Rows, *, ridge: float, seed: int) -> list[Probed]:
    """Floors and ceiling of a site: single channels, single principal components, and all of them together."""
    x, other = train.features, held.features
    mean = x.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov((x - mean).double().T))
    turn = vectors.flip(1).to(x)
    kept = int((values.flip(0) > 1e-9 * values.max()).sum().clamp_max(COMPONENTS))
    out = []
    for name, a, b in ((CHANNELS, x, other), (PRINCIPAL, (x - mean) @ turn, (other - mean) @ turn)):
        found = _probed(name, Dense(a.T.contiguous()), _of_matrix(a), _of_matrix(b), train, held, ridge)
        out.append(Probed(name, site, *found[:3], BySequence(found[3], seed)))
    whitening = turn[:, :kept] / values.flip(0)[:kept].sqrt().to(x)
    weight, bias = newton_logistic.dense((x - mean) @ whitening, train.labelled.labels.to(x.device), ridge=ridge)
    logits = [((part - mean) @ whitening) @ weight + bias for part in (x, other)]
    threshold, sums = _judged(logits[0], logits[1], train, held)
    tasks = len(train.labelled.tasks)
    nothing = np.full(tasks, -1), np.full(tasks, np.nan)
    return [*out, Probed(ALL, site, *nothing, threshold, BySequence(sums, seed))]


def _probed(
    name: str, columns: Columns, fitted: Pick, measured: Pick, train: Rows, held: Rows, ridge: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """The best column of each task, its weight, its threshold, and its sums on the held-out sample."""
    labels = train.labelled.labels.to(train.x.device)
    tasks = track(range(labels.shape[1]), f"probe {name}", unit="tasks")
    chosen = torch.tensor(
        [newton_logistic.best(columns, labels[:, task], ridge=ridge) for task in tasks], device=labels.device
    )
    values = fitted(chosen).double()
    probes = [newton_logistic.fit(Dense(values[:, [t]].T), labels[:, t], ridge=ridge) for t in range(len(chosen))]
    weight, bias = (torch.cat([getattr(probe, part) for probe in probes]) for part in ("weight", "bias"))
    threshold, sums = _judged(values * weight + bias, measured(chosen).double() * weight + bias, train, held)
    return chosen.cpu().numpy(), weight.cpu().numpy(), threshold, sums


def _judged(
    fitted: Float[Tensor, "rows tasks"], measured: Float[Tensor, "held tasks"], train: Rows, held: Rows
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Thresholds by the one sample, and sums over the sequences of the other; both given as log odds."""
    labels, truth = (rows.labelled.labels.to(fitted.device) for rows in (train, held))
    threshold = best_thresholds(fitted, labels)
    said = measured >= threshold
    owner = held.labelled.sequence.to(fitted.device)
    quantities = {
        "ce": cross_entropy(measured, truth),
        "true": truth.double(),
        "said": said.double(),
        "hits": (said & truth).double(),
    }
    total = {key: _by_sequence(value.double(), owner, len(held.labelled.tokens)) for key, value in quantities.items()}
    total["n"] = _by_sequence(torch.ones_like(owner, dtype=torch.double), owner, len(held.labelled.tokens))
    return threshold.double().cpu().numpy(), total


def best_thresholds(scores: Float[Tensor, "rows tasks"], labels: Tensor) -> Float[Tensor, " tasks"]:
    """The score of each task from which on to say "true", for the largest F1. Equal scores are never parted."""
    found = []
    for score, label in zip(scores.T, labels.T, strict=True):
        ordered, order = score.sort(descending=True)
        hits = label[order].double().cumsum(0)
        said = torch.arange(1, len(ordered) + 1, device=scores.device)
        whole = torch.cat([ordered[1:] < ordered[:-1], torch.ones(1, dtype=torch.bool, device=scores.device)])
        found.append(ordered[torch.where(whole, 2 * hits / (said + hits[-1]), -1.0).argmax()])
    return torch.stack(found)


def _by_sequence(values: Tensor, owner: Tensor, sequences: int) -> NDArray[np.float64]:
    total = values.new_zeros(sequences, *values.shape[1:]).index_add_(0, owner, values)
    found: NDArray[np.float64] = total.cpu().numpy()
    return found


def _of_matrix(x: Tensor) -> Pick:
    return lambda columns: x[:, columns]


def _chosen(codes: Codes, latents: Tensor) -> Float[Tensor, "rows chosen"]:
    """The activations of some latents, zeros included; a latent may be asked for twice."""
    different, place = latents.unique(return_inverse=True)
    number = torch.full((codes.n_latents,), -1, device=latents.device)
    number[different] = torch.arange(len(different), device=latents.device)
    kept = number[codes.indices] >= 0
    out = codes.values.new_zeros(codes.n_tokens, len(different))
    out[codes.rows[kept], number[codes.indices[kept]]] = codes.values[kept]
    return out[:, place]


def _texts(labelled: LabelledTokens) -> tuple[Tensor, Tensor]:
    """Tokens of each text, and the text of each token."""
    counts = labelled.known.sum(dim=1)
    return counts, torch.repeat_interleave(torch.arange(len(counts)), counts)


def _averaged(codes: Codes, labelled: LabelledTokens) -> Codes:
    """Mean codes of each text; one that is active at any of its tokens has an entry."""
    counts, owner = (part.to(codes.values.device) for part in _texts(labelled))
    keys, place = (owner[codes.rows] * codes.n_latents + codes.indices).unique(return_inverse=True)
    total = codes.values.new_zeros(len(keys)).index_add_(0, place, codes.values)
    text = keys // codes.n_latents
    offsets = offsets_of(torch.bincount(text, minlength=len(counts)))
    return Codes(total / counts[text], keys % codes.n_latents, offsets, codes.n_latents)
