"""Encode and decode at the cost of the active latents.

With k active latents of n, only the encoder's product is dense. Everything after it touches k rows a token:

    x_hat_t = sum_j f_tj d_j            decode            a weighted sum of gathered rows
    dL/df_tj = d_j . g_t                at the entries    a sampled dense-dense product
    dL/dd_j = sum_t f_tj g_t            transposed        a sparse-transpose times dense product
    dL/de_j = sum_t (dL/dz_tj) h_t      transposed        the same, with the inputs

with f the codes, d_j a decoder row, e_j an encoder column, h the encoder's input and g = dL/dx_hat. Plain torch
operators, so they run wherever torch does.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from dictlab.codes import Codes
from dictlab.sparsity import Activation

with warnings.catch_warnings():  # torch says once a process that its CSR tensors are young
    warnings.simplefilter("ignore")
    torch.zeros(1, 1).to_sparse_csr()


def encode(
    h: Float[Tensor, "tokens d_in"],
    W_enc: Float[Tensor, "d_in n_latents"],
    b_enc: Float[Tensor, " n_latents"],
    activation: Activation,
) -> Codes:
    """Codes of h: `activation(h @ W_enc + b_enc)`, differentiable in h, W_enc and b_enc."""
    values, indices, offsets = _Encode.apply(h, W_enc, b_enc, activation)
    return Codes(values, indices, offsets, W_enc.shape[1])


def decode(codes: Codes, W_dec: Float[Tensor, "n_latents d_in"]) -> Float[Tensor, "tokens d_in"]:
    """`codes.dense() @ W_dec`, differentiable in the codes' values and in W_dec."""
    out: Tensor = _Decode.apply(codes.values, codes.indices, codes.offsets, W_dec)
    return out


def products_at(
    codes: Codes, left: Float[Tensor, "tokens d"], right: Float[Tensor, "n_latents d"]
) -> Float[Tensor, " nnz"]:
    """`left[t] . right[j]` at each entry (t, j) of the codes, and nowhere else."""
    return _products_at(codes.indices, codes.offsets, left, right)


def transposed(codes: Codes, rows: Float[Tensor, "tokens d"]) -> Float[Tensor, "n_latents d"]:
    """`codes.dense().T @ rows`."""
    return _transposed(codes.values, codes.indices, codes.rows, rows, codes.n_latents)


def _products_at(indices: Tensor, offsets: Tensor, left: Tensor, right: Tensor) -> Tensor:
    pattern = torch.sparse_csr_tensor(
        offsets, indices, left.new_zeros(len(indices)), (len(offsets) - 1, len(right)), check_invariants=False
    )
    out: Tensor = torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values()
    return out


def _transposed(values: Tensor, indices: Tensor, rows: Tensor, dense: Tensor, n: int) -> Tensor:
    matrix = torch.sparse_coo_tensor(torch.stack([indices, rows]), values, (n, len(dense)), check_invariants=False)
    out: Tensor = torch.sparse.mm(matrix, dense)
    return out


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, W_enc: Tensor, b_enc: Tensor, activation: Activation) -> tuple[Tensor, ...]:
        codes = activation(torch.addmm(b_enc, h, W_enc))
        ctx.save_for_backward(h, W_enc, codes.values, codes.indices, codes.offsets)
        ctx.activation = activation
        ctx.mark_non_differentiable(codes.indices, codes.offsets)
        return codes.values, codes.indices, codes.offsets

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        h, W_enc, values, indices, offsets = ctx.saved_tensors
        slope = ctx.activation.slope(indices)
        slope = slope.to(values) if isinstance(slope, Tensor) else slope
        codes = Codes(grad_values * (values != 0) * slope, indices, offsets, W_enc.shape[1])
        grad_h = decode(codes, W_enc.T) if ctx.needs_input_grad[0] else None
        grad_W = transposed(codes, h).T if ctx.needs_input_grad[1] else None
        grad_b = None
        if ctx.needs_input_grad[2]:
            grad_b = h.new_zeros(codes.n_latents).index_add_(0, indices, codes.values)
        return grad_h, grad_W, grad_b, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, indices: Int[Tensor, " nnz"], offsets: Int[Tensor, " tokens+1"], W_dec: Tensor
    ) -> Tensor:
        ctx.save_for_backward(values, indices, offsets, W_dec)
        return embedding_bag(indices, W_dec, offsets[:-1], mode="sum", per_sample_weights=values.to(W_dec.dtype))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, offsets, W_dec = ctx.saved_tensors
        g = g.contiguous()
        grad_values = _products_at(indices, offsets, g, W_dec) if ctx.needs_input_grad[0] else None
        grad_W = transposed(Codes(values, indices, offsets, len(W_dec)), g) if ctx.needs_input_grad[3] else None
        return grad_values, None, None, grad_W
