"""The activations of a model at a site: a shuffled stream of them, and what they are like on average."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictlab import seeds
from dictlab.errors import check_at_least
from dictlab.lm import LanguageModel
from dictlab.text import Text

BUFFER = 1 << 17  # vectors that a stream is shuffled in
FORWARD_TOKENS = 8192  # tokens given to the model at once


def shuffled(
    model: LanguageModel,
    text: Text,
    site: str,
    *,
    context: int,
    batch: int,
    buffer: int = BUFFER,
    seed: int = 0,
    repeat: bool = True,
) -> Iterator[Float[Tensor, "batch d_in"]]:
    """Activation vectors in random order, out of a buffer that is refilled whenever half of it is used.

    Args:
        model: The language model.
        text: Where its tokens come from.
        site: Where in the model.
        context: Tokens a context.
        batch: Vectors a batch; at the end of the text, what does not fill one is dropped.
        buffer: Vectors held; memory is bounded by three times `buffer * d_in` numbers, and one forward.
        seed: Decides the order of documents and vectors.
        repeat: Go round the text for ever, in another order each time.
    """
    generator = seeds.generator(seed, "order of activations")
    pool: list[Tensor] = []
    held = 0
    forwards = text.batches(model.tokenizer, context, max(1, FORWARD_TOKENS // context), seed=seed, repeat=repeat)
    for tokens in forwards:
        x = model.capture(tokens, site)[site].flatten(0, 1)
        pool.append(x)
        held += len(x)
        if held >= max(buffer, 2 * batch):
            mixed = _mixed(pool, generator)
            pool.clear()
            out = held // 2 - held // 2 % batch
            yield from mixed[:out].split(batch)
            pool, held = [mixed[out:].clone()], held - out
    if pool:
        mixed = _mixed(pool, generator)
        yield from mixed[: held - held % batch].split(batch)


def sample(
    model: LanguageModel, text: Text, site: str, *, context: int, tokens: int, seed: int = 0
) -> Iterator[Float[Tensor, "batch context d_in"]]:
    """Activations, sequence by sequence, of contexts drawn from all over a text: about `tokens` tokens of them."""
    check_at_least(context, tokens=tokens)
    return captured(model, site, text.sample(model.tokenizer, context, tokens // context, seed=seed))


def captured(
    model: LanguageModel, site: str, sequences: Int[Tensor, "n context"]
) -> Iterator[Float[Tensor, "batch context d_in"]]:
    """Activations of some sequences of tokens, a few sequences at a time."""
    for batch in sequences.split(max(1, FORWARD_TOKENS // sequences.shape[1])):
        yield model.capture(batch, site)[site]


@dataclass(frozen=True)
class Statistics:
    """Moments of activations.

    Attributes:
        n: Tokens seen.
        mean: E[x].
        variance: E |x - E[x]|^2, summed over coordinates.
        covariance: E[(x - E[x]) (x - E[x])^T], where it was asked for.
    """

    n: int
    mean: Float[Tensor, " d_in"]
    variance: float
    covariance: Float[Tensor, "d_in d_in"] | None


def statistics(batches: Iterable[Float[Tensor, "*tokens d_in"]], *, covariance: bool = False) -> Statistics:
    """Mean, total variance and, on demand, covariance, in one pass in float64.

    Sums are taken about the mean of the first batch, so that a large mean costs no precision.

    Raises:
        ValueError: There was not a single token.
    """
    n, about = 0, None
    for batch in batches:
        x = batch.reshape(-1, batch.shape[-1]).double()
        if about is None:
            about = x.mean(dim=0)
            first = torch.zeros_like(about)
            second = about.new_zeros(len(about), len(about)) if covariance else torch.zeros_like(about)
        x = x - about
        n += len(x)
        first += x.sum(dim=0)
        second += x.T @ x if covariance else x.square().sum(dim=0)
    if about is None or n == 0:
        raise ValueError("statistics of no activations at all")
    shift = first / n
    if covariance:
        matrix = second / n - torch.outer(shift, shift)
        return Statistics(n, (about + shift).float(), float(matrix.trace()), matrix.float())
    return Statistics(n, (about + shift).float(), float((second / n - shift.square()).sum()), None)


def _mixed(pool: list[Tensor], generator: torch.Generator) -> Tensor:
    everything = torch.cat(pool)
    return everything[torch.randperm(len(everything), generator=generator).to(everything.device)]
