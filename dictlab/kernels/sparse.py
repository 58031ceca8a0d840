"""Encode and decode at the cost of the active latents.

With k active latents of n, only the encoder's product is dense. Everything after it touches k rows a token:

    x_hat_t = sum_j f_tj d_j            decode            a weighted sum of gathered rows
    dL/df_tj = d_j . g_t                at the entries    a sampled dense-dense product
    dL/dd_j = sum_t f_tj g_t            transposed        a weighted sum of gathered rows, entries sorted by latent
    dL/de_j = sum_t (dL/dz_tj) h_t      transposed        the same, with the inputs, in the same order
    dL/dc   = -sum_j (sum_t dL/dz_tj) e_j                 one matrix-vector product

with f the codes, d_j a decoder row, e_j an encoder column, h = x - c the encoder's input and g = dL/dx_hat. The
pre-activations z exist for a block of tokens at a time. Plain torch operators, so they run wherever torch does.

An entry of a sparse product costs several times one of a dense product, so where many latents are active, the same sums
are taken as dense products. Both are exact. (Where nobody needs the entries, as in training with an L1 penalty, `full`
never lists them.)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import embedding_bag

from dictlab.codes import ByLatent, Codes, concatenate
from dictlab.product import affine
from dictlab.sparsity import Activation

DENSE = 0.25  # share of active latents from which on dense products are faster: benchmarks/density.py --of products
BLOCK = 1 << 21  # pre-activations held at once: 8 MiB in float32, so that they are still in the cache when looked at
ROWS = 256  # but so many tokens at least, or the product would read the encoder too often

with warnings.catch_warnings():  # torch says once a process that its CSR tensors are young
    warnings.simplefilter("ignore")
    torch.zeros(1, 1).to_sparse_csr()


def encode(
    x: Float[Tensor, "tokens d_in"],
    W_enc: Float[Tensor, "d_in n_latents"],
    b_enc: Float[Tensor, " n_latents"],
    activation: Activation,
    centre: Float[Tensor, " d_in"] | None = None,
    settle: Callable[[Codes], Codes] | None = None,
) -> Codes:
    """Codes of x: `activation((x - centre) @ W_enc + b_enc)`, differentiable in all of its tensors.

    Args:
        settle: Which of these entries are kept, seen those of all tokens; the others have no gradient either.
    """
    by_latent = ByLatent()
    values, indices, offsets = _Encode.apply(x, centre, W_enc, b_enc, activation, by_latent, settle)
    return Codes(values, indices, offsets, W_enc.shape[1], by_latent)


def decode(codes: Codes, W_dec: Float[Tensor, "n_latents d_in"]) -> Float[Tensor, "tokens d_in"]:
    """`codes.dense() @ W_dec`, differentiable in the codes' values and in W_dec."""
    out: Tensor = _Decode.apply(codes.values, codes.indices, codes.offsets, W_dec, codes.by_latent)
    return out


def products_at(
    codes: Codes, left: Float[Tensor, "tokens d"], right: Float[Tensor, "n_latents d"]
) -> Float[Tensor, " nnz"]:
    """`left[t] . right[j]` at each entry (t, j) of the codes, and nowhere else."""
    if is_dense(codes):
        return (left @ right.T)[codes.rows, codes.indices]
    if by_triton(left):
        by_entries: Tensor = _triton().products_at(codes, left, right)
        return by_entries
    pattern = torch.sparse_csr_tensor(
        codes.offsets,
        codes.indices,
        left.new_zeros(len(codes.indices)),
        (codes.n_tokens, codes.n_latents),
        check_invariants=False,
    )
    out: Tensor = torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values()
    return out


def transposed(codes: Codes, rows: Float[Tensor, "tokens d"]) -> Float[Tensor, "n_latents d"]:
    """`codes.dense().T @ rows`."""
    if is_dense(codes):
        return summed(codes).to(rows.dtype).T @ rows
    if by_triton(rows):
        by_entries: Tensor = _triton().transposed(codes, rows)
        return by_entries
    columns = codes.columns
    weights = codes.values.to(rows.dtype)[columns.order]
    return embedding_bag(
        columns.rows, rows, columns.starts, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def combined(codes: Codes, rows: Float[Tensor, "n_latents d"]) -> Float[Tensor, "tokens d"]:
    """`codes.dense() @ rows`, without gradients."""
    if is_dense(codes):
        return summed(codes).to(rows.dtype) @ rows
    if by_triton(rows):
        by_entries: Tensor = _triton().combined(codes, rows)
        return by_entries
    return embedding_bag(
        codes.indices, rows, codes.offsets[:-1], mode="sum", per_sample_weights=codes.values.to(rows.dtype)
    )


def by_triton(tensor: Tensor) -> bool:
    """Whether Triton's kernels serve this tensor: on a GPU, where Triton is installed, as it is with torch for CUDA."""
    return tensor.is_cuda and tensor.dtype in (torch.float32, torch.bfloat16, torch.float16) and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _triton() -> Any:
    from dictlab.kernels import triton  # only where it is needed: importing it takes a while

    return triton


def is_dense(codes: Codes) -> bool:
    """Whether so many latents are active that dense products are faster."""
    return len(codes.values) > DENSE * codes.n_tokens * codes.n_latents


def summed(codes: Codes) -> Float[Tensor, "tokens n_latents"]:
    """The codes as a full matrix; entries that repeat add up."""
    matrix = codes.values.new_zeros(codes.n_tokens * codes.n_latents)
    return matrix.index_add_(0, codes.rows * codes.n_latents + codes.indices, codes.values).view(codes.n_tokens, -1)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        centre: Tensor | None,
        W_enc: Tensor,
        b_enc: Tensor,
        activation: Activation,
        by_latent: ByLatent,
        settle: Callable[[Codes], Codes] | None,
    ) -> tuple[Tensor, ...]:
        h = x if centre is None else x - centre
        size = len(h) if activation.batchwise else max(ROWS, BLOCK // max(1, W_enc.shape[1]))
        codes = concatenate([activation(affine(block, W_enc, b_enc)) for block in h.split(max(1, size))])
        codes = codes if settle is None else settle(codes)
        ctx.save_for_backward(h, W_enc, codes.values, codes.indices, codes.offsets)
        ctx.activation, ctx.by_latent = activation, by_latent
        ctx.mark_non_differentiable(codes.indices, codes.offsets)
        return codes.values, codes.indices, codes.offsets

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        h, W_enc, values, indices, offsets = ctx.saved_tensors
        for_x, for_centre, for_W, for_b = ctx.needs_input_grad[:4]
        slope = ctx.activation.slope(indices)
        slope = slope.to(values) if isinstance(slope, Tensor) else slope
        codes = Codes(grad_values * (values != 0) * slope, indices, offsets, W_enc.shape[1], ctx.by_latent)
        grad_x = combined(codes, W_enc.T) if for_x else None
        grad_W = transposed(codes, h).T if for_W else None
        grad_b = h.new_zeros(codes.n_latents).index_add_(0, indices, codes.values) if for_centre or for_b else None
        grad_centre = -(W_enc @ grad_b) if for_centre else None
        return grad_x, grad_centre, grad_W, grad_b, None, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, indices: Tensor, offsets: Tensor, W_dec: Tensor, by_latent: ByLatent | None
    ) -> Tensor:
        ctx.save_for_backward(values, indices, offsets, W_dec)
        ctx.by_latent = by_latent
        return combined(Codes(values, indices, offsets, len(W_dec)), W_dec)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, offsets, W_dec = ctx.saved_tensors
        g, codes = g.contiguous(), Codes(values, indices, offsets, len(W_dec), ctx.by_latent)
        grad_values = products_at(codes, g, W_dec) if ctx.needs_input_grad[0] else None
        grad_W = transposed(codes, g) if ctx.needs_input_grad[3] else None
        return grad_values, None, None, grad_W, None
