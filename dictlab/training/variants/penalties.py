"""Penalties that keep codes sparse. What keeps latents alive is in `aux_k`.

With c the codes and d the width of the activation, means over tokens t:

    l1     mean_t |c_t|_p / d, p = 1 by default                     Braun et al. 2024, section 2; their code for p
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from dictlab.dictionary.codes import Codes, DenseCodes
from dictlab.training.distributed.ranks import SINGLE_PROCESS, Ranks


def l1(codes: Codes | DenseCodes, d_in: int, p: float = 1.0, ranks: Ranks = SINGLE_PROCESS) -> Float[Tensor, ""]:
    """mean over tokens of |c|_p / d, to be weighted by lambda, for codes that are nowhere negative.

    With p = 1 the gradient is the same number everywhere, so that no matrix of it is made; the encoder's passes it on
    where a latent is active. With any other an entry that is 0 has none.
    """
    if p == 1.0:
        return ranks.sum_over_latents(codes.values.sum()) / (codes.n_tokens * d_in)
    sums = ranks.sum_over_latents(codes.sum_by_token(_power(codes.values, p)))
    return _power(sums, 1 / p).sum() / (codes.n_tokens * d_in)


def _power(values: Tensor, exponent: float) -> Tensor:
    """values^exponent where they are positive, elsewhere 0, and no gradient there."""
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1) ** exponent, 0)


def ramp(progress: float, warmup: float) -> float:
    """What a coefficient that rises from 0 over the first `warmup` of the run is multiplied by."""
    return 1.0 if progress >= warmup else progress / warmup
