"""One step of the weights: project the decoder's gradient, clip, Adam, decoder rows back to unit length, average.

    g_j <- g_j - (g_j . d_j) d_j        rows stay on the unit sphere to first order    Gao et al. 2024, section 2.1
    g   <- g min(1, clip / |g|)         |g| over all weights of one dictionary; g / |g| where clip is 0

Nothing here waits for the device, and no copy of a whole matrix is made: what it costs is reading the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

import torch
from jaxtyping import Float
from torch import Tensor

from dictlab.training.distributed.ranks import SINGLE_PROCESS, Ranks

ROWS = 1024  # decoder rows handled together: their products with the gradient stay in the cache


@torch.no_grad()
def project(gradient: Float[Tensor, "n_latents d_in"], rows: Float[Tensor, "n_latents d_in"]) -> None:
    """Take the part along each unit-length row out of its gradient, in place."""
    for own, directions in zip(gradient.split(ROWS), rows.split(ROWS), strict=True):
        own.addcmul_((own * directions).sum(dim=1, keepdim=True), directions, value=-1)


@torch.no_grad()
def clipped_step(
    optimizer: torch.optim.Adam,
    parameters: Sequence[Tensor],
    limit: float | None,
    ranks: Ranks = SINGLE_PROCESS,
    common: Sequence[bool] = (),
) -> None:
    """A step with gradients scaled down to the norm `limit` where theirs is larger, or to norm 1 where it is 0.

    The fused optimizer divides by a factor as it reads the gradients, and leaves them divided.

    Args:
        optimizer: Of the parameters.
        parameters: What is trained.
        limit: Of the norm over all parameters, and over the latents of all processes; None for none.
        ranks: The processes.
        common: For each parameter, whether it is common to all latents.
    """
    if limit is None:
        optimizer.step()
        return
    there = [p.grad is not None for p in parameters]
    norms = torch.stack(torch._foreach_norm([p.grad for p in parameters if p.grad is not None]))
    norm = ranks.gradient_norm(norms, list(compress(common, there)))
    scale = (norm + 1e-6).div(limit).clamp_min(1.0) if limit else norm.clamp_min(torch.finfo(norm.dtype).tiny)
    optimizer.grad_scale = scale  # type: ignore[attr-defined]
    optimizer.step()


@torch.no_grad()
def renormalise(rows: Float[Tensor, "n_latents d_in"]) -> None:
    """Rows back to unit length, in place; a zero row stays zero."""
    rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(1e-12))


@torch.no_grad()
def average(averages: Sequence[Tensor], parameters: Sequence[Tensor], decay: float, steps: int) -> None:
    """Exponential moving average after so many steps: equal to a zero-start one divided by 1 - decay^steps."""
    torch._foreach_lerp_(list(averages), list(parameters), (1 - decay) / (1 - decay**steps))
