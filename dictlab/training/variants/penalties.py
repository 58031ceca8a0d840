"""What keeps codes sparse, and what keeps latents alive?

With c the codes, d the width of the activation, x_hat its reconstruction, means over tokens t:

    l1     mean_t |c_t|_p / d, p = 1 by default                     Braun et al. 2024, section 2; their code for p
    aux    |e - e_hat|^2 / |e - mean e|^2, e = x - x_hat            AuxK: Gao et al. 2024, appendix A.2

where e_hat decodes the k_aux strongest dead latents, without bias.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import TopK
from dictlab.dictionary.codes import Codes, DenseCodes
from dictlab.dictionary.kernels.error import squared_error
from dictlab.dictionary.normalisation import unscaled
from dictlab.training.distributed.ranks import SINGLE_PROCESS, Ranks

AUX_WEIGHT = 1 / 32


def l1(codes: Codes | DenseCodes, d_in: int, p: float = 1.0, ranks: Ranks = SINGLE_PROCESS) -> Float[Tensor, ""]:
    """mean over tokens of |c|_p / d, to be weighted by lambda, for codes that are nowhere negative.

    With p = 1 the gradient is the same number everywhere, so that no matrix of it is made; the encoder's passes it on
    where a latent is active. With any other an entry that is 0 has none.
    """
    if p == 1.0:
        return ranks.sum_over_latents(codes.values.sum()) / (codes.n_tokens * d_in)
    sums = ranks.sum_over_latents(codes.sum_by_token(_power(codes.values, p)))
    return _power(sums, 1 / p).sum() / (codes.n_tokens * d_in)


def aux_k(
    dictionary: Dictionary,
    x: Float[Tensor, "tokens d_in"],
    x_hat: Float[Tensor, "tokens d_in"],
    dead: Int[Tensor, " dead"],
    k: int,
    ranks: Ranks = SINGLE_PROCESS,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, ""]:
    """How badly the k strongest dead latents explain the error, as a share of the error's variance; 0 if none is dead.

    The error is detached, the decode has no bias, and only dead latents compete. (OpenAI's code multiplies
    pre-activations by a mask instead, so that a dead latent with a negative one loses to zeros and learns nothing.)

    Args:
        dictionary: The weights.
        x: The activations, in the model's units.
        x_hat: Their reconstructions.
        dead: Which latents are.
        k: How many of them a token.
        ranks: The processes that share the tokens and the latents.
        dtype: Of the product that chooses among them; see `sparse.encode`.
    """
    if not ranks.any_rank(len(dead) > 0):
        return x.new_zeros(())
    h, factor, undo = unscaled(dictionary.normalisation, x)
    error = (x - x_hat.detach()) / undo.scale
    encoder, b_enc = dictionary.W_enc.T[dead], dictionary.b_enc[dead]  # rows: whole stretches of memory
    entries = ranks.encode(h, encoder.T, b_enc, TopK(k), dictionary.b_pre, factor, dtype)
    e_hat = ranks.decode(entries, dictionary.W_dec[dead])
    varied = ranks.all_reduce_mean((error - ranks.all_reduce_mean(error.mean(dim=0))).square().mean())
    share = squared_error(e_hat, error) / varied
    return torch.nan_to_num(share, posinf=0.0)  # where nothing is left to explain


def _power(values: Tensor, exponent: float) -> Tensor:
    """values^exponent where they are positive, elsewhere 0, and no gradient there."""
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1) ** exponent, 0)


def nearest_power_of_two(x: float) -> int:
    """The power of two nearest in ratio, 1 at least."""
    return 1 << max(0, round(math.log2(max(x, 1.0))))


def ramp(progress: float, warmup: float) -> float:
    """What a coefficient that rises from 0 over the first `warmup` of the run is multiplied by."""
    return 1.0 if progress >= warmup else progress / warmup
