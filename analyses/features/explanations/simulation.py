"""Do explanations say where latents are active, and does the model still work on what they say?

For a latent j with activations a and simulated activations s, both as lengths of what it adds to the reconstruction,
over all tokens of a held-out sample:

    precision   share of the tokens with s != 0 at which a != 0
    recall      share of the tokens with a != 0 at which s != 0
    F1          2 both / (tokens with s != 0 + tokens with a != 0)

Explanation reconstruction: the activations of the chosen latents are replaced by c_j s, with c_j = E[s a] / E[s^2] on
training text (least squares), and the reconstruction is spliced into the model.

Source: Gao et al. 2024, explanation metrics; there recall is over 16 active tokens a latent, here over all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from analyses.common.firings import Firings, LatentFirings
from analyses.features.explanations.bigram_baseline import Bigrams
from analyses.features.explanations.n2g import Example, Padding
from analyses.features.explanations.n2g_trie import Pattern, Trie
from dictlab.dictionary import Dictionary
from dictlab.dictionary.codes import Codes, offsets_of
from dictlab.evaluation.evaluate import BATCH_TOKENS, check_finite
from dictlab.evaluation.sites import site_of
from dictlab.model.language_model import LanguageModel
from dictlab.model.output_divergence import LOGITS, next_tokens
from dictlab.numerics import seeds
from dictlab.runtime.progress import track
from dictlab.token_selection import TokenSelection

Sums = dict[str, NDArray[np.float64]]
MEASURES = ("precision", "recall", "F1")
LEVELS = ("reconstruction", "simulated", "zeroed", "bigram")


class Score(NamedTuple):
    """How one explanation did, as counts by sequence."""

    fired: Float[ndarray, " sequences"]
    active: Float[ndarray, " sequences"]
    both: Float[ndarray, " sequences"]


class ExplainedLatent(NamedTuple):
    """One latent, its explanation, and what came of it on held-out text."""

    latent: int
    patterns: list[Pattern]
    score: Score
    simulated: LatentFirings
    active: LatentFirings
    active_in_training: LatentFirings
    factor: float


@dataclass(frozen=True, eq=False)
class ExplainedDictionary:
    """What was measured of one dictionary.

    Attributes:
        dictionary: Which.
        latents: The explained ones.
        share: Share of the active latents of all tokens that count that are explained ones.
        sums: Cross-entropies by sequence (`simulation.spliced`).
        seed: Seed of the bootstrap.
    """

    dictionary: Dictionary
    latents: list[ExplainedLatent]
    share: float
    sums: Sums
    seed: int


class ExplanationSample(NamedTuple):
    """What every dictionary is explained with: a model, token ids of both splits, which of them count, and how much."""

    model: LanguageModel
    selection: TokenSelection
    train: Int[Tensor, "sequences context"]
    held: Int[Tensor, "sequences context"]
    bigrams: Bigrams
    padding: Padding
    latents: int
    examples: int
    longest: int
    seed: int


def rates(score: Score) -> tuple[float, float, float]:
    """Precision, recall and F1 over all sequences; NaN where there was nothing to measure on."""
    fired, active, both = (float(part.sum()) for part in score)
    return _over(both, fired), _over(both, active), _over(2 * both, fired + active)


def _over(above: float, below: float) -> float:
    return above / below if below else float("nan")


def drawn_examples(
    latents: Sequence[int],
    found: Firings,
    sequences: Int[Tensor, "sequences context"],
    count: int,
    *,
    longest: int,
    seed: int,
    first: int = 0,
) -> list[Example]:
    """Up to `count` random active tokens of each latent, with up to `longest` tokens of what leads to them."""
    generator, length = seeds.generator(seed, "activations to explain"), sequences.shape[1]
    made = []
    for latent, (places, values) in zip(latents, found.latents, strict=True):
        for i in torch.randperm(len(places), generator=generator)[:count].tolist():
            row, position = divmod(int(places[i]), length)
            start = max(first, position + 1 - longest)
            made.append(Example(latent, tuple(sequences[row, start : position + 1].tolist()), float(values[i])))
    return made


def simulated(
    tries: Sequence[Trie],
    sequences: Int[Tensor, "sequences context"],
    first: int = 0,
    counted: Bool[Tensor, "sequences context"] | None = None,
) -> list[LatentFirings]:
    """What each trie says of each token that counts; of all by default."""
    tokens = sequences.numpy()
    mask = None if counted is None else counted.flatten().numpy()
    simulations = []
    for trie in track(tries, "simulation", unit="latents"):
        simulation = trie.simulate(tokens, first)
        if mask is not None:
            simulation = LatentFirings(*(part[mask[simulation.token]] for part in simulation))
        simulations.append(simulation)
    return simulations


def factor(simulated: LatentFirings, active: LatentFirings) -> float:
    """E[s a] / E[s^2]; 0 where nothing is simulated."""
    _, s, a = np.intersect1d(simulated.token, active.token, assume_unique=True, return_indices=True)
    square = float(np.square(simulated.activation).sum())
    return float((simulated.activation[s] * active.activation[a]).sum()) / square if square else 0.0


def score(simulated: LatentFirings, active: LatentFirings, shape: tuple[int, int]) -> Score:
    """Counts by sequence, for contexts of `shape` (sequences, tokens of each)."""
    both = np.intersect1d(simulated.token, active.token, assume_unique=True)
    tokens = (simulated.token, active.token, both)
    counts = (np.bincount(own // shape[1], minlength=shape[0]).astype(float) for own in tokens)
    return Score(*counts)


def with_simulation(
    codes: Codes, latents: Int[Tensor, " chosen"], places: Tensor, indices: Tensor, values: Tensor
) -> Codes:
    """Codes whose entries of some latents are replaced by others.

    Args:
        codes: What the encoder says.
        latents: Whose entries are taken out.
        places: Tokens of the entries that are put in.
        indices: Their latents.
        values: Their activations.
    """
    out = torch.zeros(codes.n_latents, dtype=torch.bool, device=codes.indices.device)
    out[latents] = True
    kept = ~out[codes.indices]
    rows = torch.cat([codes.rows[kept], places])
    order = torch.argsort(rows, stable=True)
    return Codes(
        torch.cat([codes.values[kept], values.to(codes.values)])[order],
        torch.cat([codes.indices[kept], indices])[order],
        offsets_of(torch.bincount(rows, minlength=codes.n_tokens)),
        codes.n_latents,
    )


@torch.no_grad()
def spliced(
    dictionary: Dictionary,
    model: LanguageModel,
    sequences: Int[Tensor, "sequences context"],
    latents: Sequence[int],
    simulations: Sequence[LatentFirings],
    factors: Sequence[float],
    bigrams: Bigrams,
    counted: Bool[Tensor, "sequences context"] | None = None,
) -> Sums:
    """Cross-entropies, in nats, summed over the tokens of each sequence that count.

    Args:
        dictionary: On the model's device, and reading its activations.
        model: The language model.
        sequences: Held-out token ids.
        latents: Which are replaced.
        simulations: What is simulated of each, at tokens of these sequences that count.
        factors: What each simulation is multiplied by.
        bigrams: The baseline.
        counted: Tokens that count, on the CPU; the others keep their activations. All by default.

    Returns:
        `clean`, `reconstruction`, `simulated`, `zeroed`, `bigram`, `predicted` (tokens that count and have a next one)
        and `tokens` (that count), `[sequences]` each.
    """
    counted = torch.ones(sequences.shape, dtype=torch.bool) if counted is None else counted
    chosen = torch.tensor(list(latents), device=model.device)
    place = torch.cat([torch.from_numpy(s.token) for s in simulations])
    index = torch.repeat_interleave(chosen.cpu(), torch.tensor([len(s.token) for s in simulations]))
    value = torch.cat([torch.from_numpy(s.activation * c) for s, c in zip(simulations, factors, strict=True)])
    size, length = max(1, BATCH_TOKENS // sequences.shape[1]), sequences.shape[1]
    site, start_of = site_of(dictionary), model.block_input(site_of(dictionary))
    parts: list[Tensor] = []
    pairs = zip(sequences.split(size), counted.split(size), strict=True)
    for number, (tokens, mask) in enumerate(track(list(pairs), "splice", unit="batches")):
        clean = model.capture(tokens, list(dict.fromkeys([site, start_of, model.last_site])))
        start = number * size * length
        inside = (place >= start) & (place < start + tokens.numel())
        row = (mask.flatten().cumsum(0) - 1)[place[inside] - start]  # among the tokens that count
        entries = tuple(t.to(model.device) for t in (row, index[inside], value[inside]))
        none = tuple(t[:0] for t in entries)

        versions = _versions(dictionary, clean[site], mask.to(model.device), chosen, (entries, none))
        altered = (
            model.final_residual(x.to(clean[site].dtype), site, residual=clean[start_of], tokens=tokens)
            for x in versions
        )
        leaving, after = (clean[model.last_site], *altered), next_tokens(tokens.to(model.device))
        after = torch.where(mask.to(after.device), after, -1)
        parts.append(torch.stack([_losses(model, streams, after) for streams in leaving]).cpu())
    sums = dict(zip(("clean", "reconstruction", "simulated", "zeroed"), torch.cat(parts, dim=1).numpy(), strict=True))
    predicting = counted[:, :-1].numpy()
    sums["bigram"] = np.where(predicting, bigrams.losses(sequences.numpy()), 0.0).sum(axis=1)
    sums["predicted"] = predicting.sum(axis=1).astype(np.float64)
    sums["tokens"] = counted.numpy().sum(axis=1).astype(np.float64)
    return sums


def _losses(
    model: LanguageModel, leaving: Float[Tensor, "batch context d_model"], after: Int[Tensor, "batch context"]
) -> Float[Tensor, " batch"]:
    """Cross-entropies summed over each sequence, a block of logits at a time; none where `after` is -1."""
    size = max(1, LOGITS // model.vocabulary)
    blocks = zip(leaving.flatten(0, 1).split(size), after.flatten().split(size), strict=True)
    ce = [cross_entropy(model.unembed(x).float(), own, ignore_index=-1, reduction="none") for x, own in blocks]
    return torch.cat(ce).view(after.shape).double().sum(dim=1)


def _versions(
    dictionary: Dictionary,
    x: Float[Tensor, "batch context d_in"],
    counted: Bool[Tensor, "batch context"],
    chosen: Int[Tensor, " chosen"],
    replaced: Sequence[tuple[Tensor, ...]],
) -> Iterator[Float[Tensor, "batch context d_in"]]:
    """The reconstruction as it is, and with each replacement of the chosen latents, at the tokens that count."""
    rows = x[counted].float()
    codes = dictionary.encode(rows)
    versions = (with_simulation(codes, chosen, *_as_codes(dictionary, rows, *put)) for put in replaced)
    for version in (codes, *versions):
        x_hat = dictionary.decode(version, rows)
        check_finite(dictionary, x_hat)
        new = x.float().clone()
        new[counted] = x_hat
        yield new


def _as_codes(
    dictionary: Dictionary, rows: Float[Tensor, "tokens d_in"], places: Tensor, indices: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Entries of codes that add so much to the reconstruction: the inverse of `Dictionary.contributions`."""
    counts = torch.bincount(places, minlength=len(rows))
    order = torch.argsort(places, stable=True)
    ones = torch.ones(len(places), dtype=rows.dtype, device=rows.device)
    each = dictionary.contributions(Codes(ones, indices[order], offsets_of(counts), dictionary.n_latents), rows)
    return places[order], indices[order], lengths[order].to(each.values) / each.values
