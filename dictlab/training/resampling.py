"""Latents that died begin anew where the dictionary is worst (Bricken et al. 2023, appendix on neuron resampling).

    p_t ~ L_t^2,  L_t = |x_t - x_hat_t|^2              a token for each dead latent
    decoder row   (x_t - b) at unit length
    encoder row   the same, 0.2 times as long as those of alive latents are on average
    b_enc 0, everything else of the latent as at the start of training, its moments in the optimizer 0

Tokens are drawn without replacement out of the batch at hand, that of all processes. (There, out of a hundred batches,
and x_t is taken whole.) Latents for which no token is left wait for the next time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dictlab import seeds
from dictlab.training.config import TrainConfig
from dictlab.training.variants import Pass

if TYPE_CHECKING:
    from dictlab.training.learner import Learner

LENGTH = 0.2  # of a new encoder row, in lengths of an alive one


def steps(config: TrainConfig) -> frozenset[int]:
    """After which steps it is done: at equal distances in the first half of the run."""
    half = config.steps // 2
    return frozenset(round(half * number / config.resample) for number in range(1, config.resample + 1))


@torch.no_grad()
def lost(now: Pass) -> Float[Tensor, " batch"]:
    """L_t, of the tokens of all processes."""
    return now.ranks.whole((now.x - now.x_hat).square().sum(dim=1, keepdim=True)).squeeze(1)


@torch.no_grad()
def revive(learner: Learner, now: Pass, lost: Float[Tensor, " batch"]) -> None:
    """Give dead latents new directions, drawn out of the tokens of a step by what `lost` said of them before it."""
    ranks = now.ranks
    x, loss = ranks.whole(now.x), lost.square()
    usable = int((loss > 0).sum())
    dead = ranks.joined(learner.dead).nonzero().squeeze(1)[:usable]
    if len(dead) == 0:
        return
    generator = seeds.generator(learner.member.seed, f"resampling after step {learner.steps}")
    tokens = torch.multinomial(loss.double().cpu(), len(dead), replacement=False, generator=generator)
    length = _length(learner, now)
    own = ranks.latents(now.width)  # every process draws for all latents, and takes what is for its own
    mine = (dead >= own.start) & (dead < own.stop)
    tokens, dead = tokens.to(x.device)[mine], dead[mine] - own.start
    rows = normalize(learner.normalisation(x[tokens])[0] - learner.bias, dim=1)
    new = {"decoder": rows, "encoder": LENGTH * length * rows, "b_enc": learner.b_enc.new_zeros(len(dead))}
    new |= {name: initial[dead] for name, initial in learner.initial.items()}
    for name, values in new.items():
        weight = learner.weights[name]
        weight[dead] = values
        for moment in learner.optimizer.state.get(weight, {}).values():
            if moment.shape == weight.shape:
                moment[dead] = 0
    if learner.average is not None:
        for average, weight in zip(learner.average, learner.parameters, strict=True):
            if len(average) == len(learner.since_fired):
                average[dead] = weight[dead]
    learner.since_fired[dead] = 0


def _length(learner: Learner, now: Pass) -> Tensor:
    """How long alive latents' encoder rows are, on average; or all, if none is alive."""
    lengths, alive = learner.encoder.norm(dim=1), ~learner.dead
    sums = torch.stack([lengths[alive].sum(), alive.sum(), lengths.sum()])
    of_alive, number, of_all = now.ranks.summed(sums)
    return torch.where(number > 0, of_alive / number, of_all / now.width)
