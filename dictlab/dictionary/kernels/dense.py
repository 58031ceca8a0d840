"""Encode and decode by dense products, for codes in which many latents are active.

A dictionary with an L1 penalty begins with half of its latents active. Entries of a sparse product cost several times
one of a dense product each, and listing them costs more; so the codes f stay a matrix, and nothing is listed:

    f = activation(h W_enc + b_enc),  x_hat = f W_dec
    dL/dz     = (g W_dec^T + dL/df) [f != 0] slope
    dL/dW_dec = f^T g,  dL/dW_enc = h^T dL/dz,  dL/db_enc = sum_t dL/dz_t,  dL/dc = -W_enc dL/db_enc

with h = s x - c and g = dL/dx_hat. Pre-activations and their gradients exist for a block of tokens at a time, and are
used while they are in the cache. Both ways are exact; `pays` says which one to take.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dictlab.dictionary.activation_functions import Elementwise
from dictlab.dictionary.codes import DenseCodes
from dictlab.dictionary.kernels.sparse import shifted
from dictlab.numerics.linear import affine

SHARE = 0.18  # of active latents from which on this is faster: benchmarks/speed/density.py
SAMPLE = 64  # tokens that are looked at to tell
BLOCK = 1 << 22  # pre-activations held at once: 16 MiB in float32, so that they are still in the cache when looked at
SUMMED = 1 << 24  # of their gradients held at once: weight gradients are sums, and adding up costs passes over them
ROWS = 512  # but so many tokens at least


@torch.no_grad()
def pays(
    x: Float[Tensor, "tokens d_in"],
    W_enc: Float[Tensor, "d_in n_latents"],
    b_enc: Float[Tensor, " n_latents"],
    activation: Elementwise,
    centre: Float[Tensor, " d_in"],
    factor: float = 1.0,
) -> bool:
    """Whether so many latents are active that dense products are faster, by a sample from all over the tokens."""
    sample = shifted(x[:: max(1, len(x) // SAMPLE)], centre, factor)
    active = activation.matrix(affine(sample, W_enc, b_enc)).count_nonzero()
    return bool(active > SHARE * len(sample) * W_enc.shape[1])


def reconstruct(
    x: Float[Tensor, "tokens d_in"],
    W_enc: Float[Tensor, "d_in n_latents"],
    b_enc: Float[Tensor, " n_latents"],
    activation: Elementwise,
    centre: Float[Tensor, " d_in"],
    factor: float,
    W_dec: Float[Tensor, "n_latents d_in"],
) -> tuple[DenseCodes, Float[Tensor, "tokens d_in"]]:
    """Codes of x, and what they decode to without a bias; both differentiable in all of the tensors."""
    values, y = _Reconstruct.apply(x, centre, W_enc, b_enc, W_dec, activation, factor)
    return DenseCodes(values), y


class _Reconstruct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        centre: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        activation: Elementwise,
        factor: float,
    ) -> tuple[Tensor, Tensor]:
        h = shifted(x, centre, factor)
        values, y = h.new_empty(len(h), W_enc.shape[1]), torch.empty_like(h)
        for rows in _blocks(values, BLOCK):
            block = activation.matrix(affine(h[rows], W_enc, b_enc))
            values[rows], y[rows] = block, affine(block, W_dec)
        ctx.save_for_backward(h, W_enc, W_dec, values)
        ctx.activation, ctx.factor = activation, factor
        ctx.set_materialize_grads(False)
        return values, y

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor | None, g: Tensor | None) -> tuple[Tensor | None, ...]:
        h, W_enc, W_dec, values = ctx.saved_tensors
        g = torch.zeros_like(h) if g is None else g
        slope = ctx.activation.slope(torch.arange(values.shape[1], device=values.device))
        grad_x = torch.empty_like(h) if ctx.needs_input_grad[0] else None
        grad_W_enc, grad_W_dec, grad_b = torch.zeros_like(W_enc), torch.zeros_like(W_dec.T), h.new_zeros(len(W_dec))
        for some in _blocks(values, SUMMED):
            dz = _gradient(values[some], None if grad_values is None else grad_values[some], g[some], W_dec, slope)
            grad_b += dz.sum(dim=0)
            grad_W_dec += affine(g[some].T.contiguous(), values[some])
            grad_W_enc += affine(h[some].T.contiguous(), dz)
            if grad_x is not None:
                grad_x[some] = affine(dz, W_enc.T) * ctx.factor
        return grad_x, -(W_enc @ grad_b), grad_W_enc, grad_b, grad_W_dec.T, None, None


def _gradient(
    values: Tensor, grad_values: Tensor | None, g: Tensor, W_dec: Tensor, slope: Tensor | float
) -> Float[Tensor, "tokens n_latents"]:
    """dL/dz."""
    dz = torch.empty_like(values)
    for rows in _blocks(values, BLOCK):
        block = affine(g[rows], W_dec.T)
        if grad_values is not None:
            block += grad_values[rows]
        if isinstance(slope, Tensor):
            block *= slope
        torch.mul(block, values[rows] != 0, out=dz[rows])
    return dz


def _blocks(values: Tensor, entries: int) -> list[slice]:
    """Tokens that are handled together."""
    size = max(ROWS, entries // max(1, values.shape[1]))
    return [slice(start, start + size) for start in range(0, len(values), size)]
