"""Resampling of dead latents: where the dictionary is worst, they begin anew (Bricken et al. 2023, appendix).

    p_t ~ L_t^2,  L_t = |x_t - x_hat_t|^2              a token for each dead latent
    decoder row   (x_t - b) at unit length
    encoder row   the same, 0.2 times as long as those of alive latents are on average
    b_enc 0, the variant's other weights as at the start of training, Adam's moments 0

Tokens are drawn without replacement from the batch at hand, that of all processes. (Bricken et al. draw from a hundred
batches, and take x_t whole.) Dead latents for which no token is left wait for the next resampling.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from dictlab.training.config import TrainConfig
from dictlab.training.variants import ForwardPass

ENCODER_LENGTH = 0.2  # of a new encoder row, as a share of the mean length of alive latents' rows


class ResampledRows(NamedTuple):
    """New weights of some of this process's latents.

    Attributes:
        latents: Which, by their index among this process's latents.
        decoder: Unit-length rows.
        encoder: Rows of the same directions.
    """

    latents: Int[Tensor, " resampled"]
    decoder: Float[Tensor, "resampled d_in"]
    encoder: Float[Tensor, "resampled d_in"]


def resampling_steps(config: TrainConfig) -> frozenset[int]:
    """The steps after which dead latents are resampled: at equal distances in the first half of the run."""
    half = config.steps // 2
    return frozenset(round(half * number / config.resample) for number in range(1, config.resample + 1))


@torch.no_grad()
def squared_errors(forward: ForwardPass) -> Float[Tensor, " batch"]:
    """L_t of the tokens of all processes."""
    return forward.ranks.gather_tokens((forward.x - forward.x_hat).square().sum(dim=1, keepdim=True)).squeeze(1)


@torch.no_grad()
def resampled_rows(
    forward: ForwardPass, errors: Float[Tensor, " batch"], dead: Bool[Tensor, " n_latents"], generator: torch.Generator
) -> ResampledRows | None:
    """New rows for dead latents, in the directions of tokens drawn in proportion to their squared error.

    Args:
        forward: The last forward, with the weights as they are after the step.
        errors: `squared_errors` of that forward.
        dead: This process's latents that have not fired for long.
        generator: Of the draw; the same in every process.

    Returns:
        None where no latent of any process is dead, or every token is reconstructed exactly.
    """
    ranks, dictionary = forward.ranks, forward.dictionary
    x, weight = ranks.gather_tokens(forward.x), errors.square()
    drawable = int((weight > 0).sum())
    all_dead = ranks.gather_latents(dead).nonzero().squeeze(1)[:drawable]
    if len(all_dead) == 0:
        return None
    tokens = torch.multinomial(weight.double().cpu(), len(all_dead), replacement=False, generator=generator)
    latents = ranks.latent_slice(forward.width)  # every process draws for all latents, and keeps its own
    mine = (all_dead >= latents.start) & (all_dead < latents.stop)
    tokens, own_dead = tokens.to(x.device)[mine], all_dead[mine] - latents.start
    rows = normalize(dictionary.normalisation(x[tokens])[0] - forward.weights["bias"], dim=1)
    length = ENCODER_LENGTH * _alive_encoder_length(forward, dead)
    return ResampledRows(own_dead, rows, length * rows)


def _alive_encoder_length(forward: ForwardPass, dead: Bool[Tensor, " n_latents"]) -> Float[Tensor, ""]:
    """Mean length of the encoder rows of alive latents; of all latents, if none is alive."""
    lengths, alive = forward.weights["encoder"].norm(dim=1), ~dead
    sums = torch.stack([lengths[alive].sum(), alive.sum(), lengths.sum()])
    sum_alive, n_alive, sum_all = forward.ranks.sum_over_latents(sums)
    return torch.where(n_alive > 0, sum_alive / n_alive, sum_all / forward.width)
