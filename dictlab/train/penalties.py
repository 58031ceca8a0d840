"""What keeps codes sparse, and what keeps latents alive?

With c the codes, d the width of the activation, x_hat its reconstruction, means over tokens t:

    l1     mean_t |c_t|_p / d, p = 1 by default                     Braun et al. 2024, section 2; their code for p
    aux    |e - e_hat|^2 / |e - mean e|^2, e = x - x_hat            AuxK: Gao et al. 2024, appendix A.2

where e_hat decodes the k_aux strongest dead latents, without bias.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import mse_loss

from dictlab.codes import Codes
from dictlab.dictionary import Dictionary
from dictlab.train.parallel import ALONE, Ranks

AUX_WEIGHT = 1 / 32


def l1(codes: Codes, d_in: int, p: float = 1.0) -> Float[Tensor, ""]:
    """mean over tokens of |c|_p / d, to be weighted by lambda. An entry that is 0 has no gradient."""
    if p == 1.0:
        return codes.values.abs().sum() / (codes.n_tokens * d_in)
    entries = codes.values[codes.values != 0].abs() ** p
    sums = entries.new_zeros(codes.n_tokens).index_add(0, codes.rows[codes.values != 0], entries)
    return (sums[sums > 0] ** (1 / p)).sum() / (codes.n_tokens * d_in)


def aux_k(
    dictionary: Dictionary,
    x: Float[Tensor, "tokens d_in"],
    x_hat: Float[Tensor, "tokens d_in"],
    dead: Bool[Tensor, " n_latents"],
    k: int,
    ranks: Ranks = ALONE,
) -> Float[Tensor, ""]:
    """How badly the k strongest dead latents explain the error, as a share of the error's variance; 0 if none is dead.

    The error is detached, the decode has no bias, and only dead latents compete. (OpenAI's code multiplies
    pre-activations by the mask instead, so that a dead latent with a negative one loses to zeros and learns nothing.)
    """
    latents = dead.nonzero().squeeze(1)
    if len(latents) == 0:
        return x.new_zeros(())
    error = ((x - x_hat) / dictionary.normalisation(x)[1].scale).detach()
    z = dictionary.pre_activations(x, latents)
    values, chosen = z.topk(min(k, len(latents)), dim=1)
    strongest = torch.zeros_like(z).scatter(1, chosen, values.relu())
    e_hat = strongest @ dictionary.W_dec[latents]
    varied = ranks.average((error - ranks.average(error.mean(dim=0))).square().mean())
    share = mse_loss(e_hat, error) / varied
    return torch.nan_to_num(share, posinf=0.0)  # where nothing is left to explain


def nearest_power_of_two(x: float) -> int:
    """The power of two nearest in ratio, 1 at least."""
    return 1 << max(0, round(math.log2(max(x, 1.0))))


def ramp(progress: float, warmup: float) -> float:
    """What a coefficient that rises from 0 over the first `warmup` of the run is multiplied by."""
    return 1.0 if progress >= warmup else progress / warmup
