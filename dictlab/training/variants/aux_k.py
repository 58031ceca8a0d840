"""AuxK: dead latents learn to explain the error, which keeps latents alive (Gao et al. 2024, appendix A.2).

    aux    |e - e_hat|^2 / |e - mean e|^2, e = x - x_hat

where e_hat decodes the k_aux strongest dead latents, without bias.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import TopK
from dictlab.dictionary.kernels.error import squared_error
from dictlab.dictionary.normalisation import unscaled
from dictlab.training.distributed.ranks import SINGLE_PROCESS, Ranks

AUX_WEIGHT = 1 / 32


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


def nearest_power_of_two(x: float) -> int:
    """The power of two nearest in ratio, 1 at least."""
    return 1 << max(0, round(math.log2(max(x, 1.0))))
