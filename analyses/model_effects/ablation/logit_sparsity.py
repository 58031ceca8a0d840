"""How large is an effect on the logits, and over how many of them is it spread?

Of a difference of logits d, T positions of a vocabulary of V (Gao et al. 2024, sparsity of downstream effects):

    v = d - median of d over the vocabulary, at each position             [T, V]
    sparsity = (|v|_1 / |v|_2)^2 / (V T),    in (0, 1]

1 / (V T) if a single logit moves, 2 / pi expected of independent normal numbers. Steps from one token share what the
tokens before it leave to it, and no more logits are held than a block of them, however many steps there are.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.common.patching import CleanRun
from dictlab.model.output_divergence import LOGITS

LATENT, RANDOM, CHANNEL = "latent", "random direction", "residual channel"


class LogitEffects(NamedTuple):
    """What some steps do.

    Attributes:
        sparsity: The share of all logits that each effect is spread over; NaN where there is no effect.
        size: The root of the sum of squares of v, in logits.
        first: The sparsity at the first position alone, of its V numbers.
    """

    sparsity: Float[Tensor, "*versions"]
    size: Float[Tensor, "*versions"]
    first: Float[Tensor, "*versions"]


class AblationEffect(NamedTuple):
    """One ablation and what it did.

    Attributes:
        dictionary: Its name; "" for channels.
        site: Where.
        kind: LATENT, RANDOM or CHANNEL.
        sequence: Of the sample.
        position: Of the token.
        token: As it is shown.
        active: Latents that are active at the token.
        which: The latent, or the channel.
        rate: Share of tokens at which the latent is active; NaN where that is not known.
        activation: Of the latent, or the channel.
        sparsity: Share of the logits of all positions that the effect is spread over.
        effect: Root of the sum of squares, in logits.
        own_position: Sparsity at the position of the token alone.
    """

    dictionary: str
    site: str
    kind: str
    sequence: int
    position: int
    token: str
    active: int
    which: int
    rate: float
    activation: float
    sparsity: float
    effect: float
    own_position: float


def sparsity(difference: Float[Tensor, "*versions positions vocabulary"]) -> Float[Tensor, "*versions"]:
    """The share of all logits that an effect is spread over; NaN where there is no effect."""
    return spread(difference).sparsity


def spread(difference: Float[Tensor, "*versions positions vocabulary"]) -> LogitEffects:
    """Sparsity and size of differences of logits."""
    v = difference - medians(difference)
    one = v.abs().sum(dim=-1).double()
    two = torch.linalg.vector_norm(v, dim=-1).double().square()
    positions, vocabulary = v.shape[-2:]
    share = _share(one.sum(dim=-1), two.sum(dim=-1), positions * vocabulary)
    return LogitEffects(share, two.sum(dim=-1).sqrt(), _share(one[..., 0], two[..., 0], vocabulary))


def _share(one: Tensor, two: Tensor, numbers: int) -> Tensor:
    """(|v|_1 / |v|_2)^2 over the numbers of v, of its two norms, the second squared."""
    return torch.where(two > 0, one.square() / (two * numbers), torch.nan)


def medians(values: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows 1"]:
    """The median of each row, the lower one of two. On a CPU by NumPy's selection, which takes half of torch's time."""
    if values.device.type != "cpu":
        return values.median(dim=-1, keepdim=True).values
    middle = (values.shape[-1] - 1) // 2
    rows, threads = values.flatten(0, -2).numpy(), torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(lambda some: np.partition(some, middle, axis=1)[:, middle], np.array_split(rows, threads))
        return torch.from_numpy(np.concatenate(list(parts))).view(*values.shape[:-1], 1)


@torch.no_grad()
def ablation_effects(tail: CleanRun, steps: Float[Tensor, "steps d_in"]) -> LogitEffects:
    """What each step away from the activation does to the logits from its token on.

    Args:
        tail: One sequence from that token on.
        steps: Each is subtracted from the activation at the first token of the tail.
    """
    model = tail.model
    clean = model.unembed(
        tail.final_residuals(tail.x[None])[0, 0]
    ).float()  # carried as the altered ones are: equal rounding
    found = []
    for some in steps.split(max(1, LOGITS // clean.numel())):
        versions = tail.x[None].float().repeat(len(some), 1, 1, 1)
        versions[:, 0, 0] -= some
        streams = tail.final_residuals(versions)[:, 0].flatten(0, 1)
        found.append(spread(model.unembed(streams).float().view(len(some), *clean.shape) - clean))
    return LogitEffects(*map(torch.cat, zip(*found, strict=True)))
