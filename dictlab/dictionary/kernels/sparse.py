"""Encode and decode at the cost of the active latents.

With k active latents of n, only the encoder's product is dense. Everything after it touches k rows a token:

    x_hat_t = sum_j f_tj d_j            decode            a weighted sum of gathered rows
    dL/df_tj = d_j . g_t                at the entries    a sampled dense-dense product
    dL/dd_j = sum_t f_tj g_t            transposed        a weighted sum of gathered rows, entries sorted by latent
    dL/de_j = sum_t (dL/dz_tj) h_t      transposed        the same, with the inputs, in the same order
    dL/dc   = -sum_j (sum_t dL/dz_tj) e_j                 one matrix-vector product

with f the codes, d_j a decoder row, e_j an encoder column, h = s x - c the encoder's input and g = dL/dx_hat. The
pre-activations z exist for a block of tokens at a time, and so does h: a batch is never copied whole. Plain torch
operators, so they run wherever torch does.

An entry of a sparse product costs several times one of a dense product, so where many latents are active, the same sums
are taken as dense products. Both are exact. (Where nobody needs the entries, as in training with an L1 penalty, `full`
never lists them.)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import embedding_bag

from dictlab.dictionary.activation_functions import Activation
from dictlab.dictionary.codes import CachedColumns, Codes, concatenate
from dictlab.numerics.linear import affine

DENSE = 0.25  # share of active latents from which on dense products are faster: benchmarks.speed.density
BLOCK = 1 << 21  # pre-activations held at once: 8 MiB in float32, so that they are still in the cache when looked at
ROWS = 256  # but so many tokens at least, or the product would read the encoder too often
GPU_BLOCK = 1 << 26  # on a GPU, which wants large products
COLUMNS = 64  # of a batch that are summed by latent at once: 1 MiB of 4,096 tokens, gathered out of the cache

with warnings.catch_warnings():  # torch says once a process that its CSR tensors are young
    warnings.simplefilter("ignore")
    torch.zeros(1, 1).to_sparse_csr()


def encode(
    x: Float[Tensor, "tokens d_in"],
    W_enc: Float[Tensor, "d_in n_latents"],
    b_enc: Float[Tensor, " n_latents"],
    activation: Activation,
    centre: Float[Tensor, " d_in"] | None = None,
    factor: float = 1.0,
    settle: Callable[[Codes], Codes] | None = None,
    dtype: torch.dtype | None = None,
) -> Codes:
    """Codes of x: `activation((factor * x - centre) @ W_enc + b_enc)`, differentiable in all of its tensors.

    Args:
        x: Activations.
        W_enc: Encoder.
        b_enc: Its bias.
        activation: Which latents are active, and how strongly.
        centre: What is subtracted from the activations.
        factor: What they are multiplied by before.
        settle: Which of these entries are kept, seen those of all tokens; the others have no gradient either.
        dtype: Of the dense product, from which it is chosen which latents are active; a smaller one than x has makes it
            faster. What the chosen ones emit is computed in x's own whatever it is.
    """
    by_latent = CachedColumns()
    dtype = None if dtype == x.dtype else dtype
    values, indices, offsets = _Encode.apply(x, centre, W_enc, b_enc, activation, by_latent, factor, settle, dtype)
    return Codes(values, indices, offsets, W_enc.shape[1], by_latent)


def decode(
    codes: Codes,
    W_dec: Float[Tensor, "n_latents d_in"],
    bias: Float[Tensor, " d_in"] | None = None,
    factor: float = 1.0,
) -> Float[Tensor, "tokens d_in"]:
    """`factor * (codes.dense() @ W_dec + bias)`, differentiable in the codes' values, W_dec and the bias."""
    out: Tensor = _Decode.apply(codes.values, codes.indices, codes.offsets, W_dec, codes.by_latent, bias, factor)
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


def transposed(
    codes: Codes, rows: Float[Tensor, "tokens d"], centre: Float[Tensor, " d"] | None = None, factor: float = 1.0
) -> Float[Tensor, "n_latents d"]:
    """`codes.dense().T @ (factor * rows - centre)`."""
    if is_dense(codes):
        return summed(codes).to(rows.dtype).T @ shifted(rows, centre, factor)
    if by_triton(rows):
        by_entries: Tensor = _triton().transposed(codes, shifted(rows, centre, factor))
        return by_entries
    columns = codes.columns
    weights = codes.values.to(rows.dtype)[columns.order]
    out = rows.new_empty(codes.n_latents, rows.shape[1])
    for some in _slices(rows.shape[1], COLUMNS if rows.device.type == "cpu" else rows.shape[1]):
        part = shifted(rows[:, some], None if centre is None else centre[some], factor).contiguous()
        out[:, some] = embedding_bag(
            columns.rows, part, columns.starts, mode="sum", per_sample_weights=weights, include_last_offset=True
        )
    return out


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


def shifted(
    x: Float[Tensor, "tokens d"],
    centre: Float[Tensor, " d"] | None,
    factor: float,
    out: Float[Tensor, "more d"] | None = None,
) -> Float[Tensor, "tokens d"]:
    """`factor * x - centre`, in one pass, in memory of one's own where it is given."""
    out = None if out is None else out[: len(x)]
    if centre is None:
        return x if factor == 1.0 else torch.mul(x, factor, out=out)
    return torch.sub(x, centre, out=out) if factor == 1.0 else torch.add(-centre, x, alpha=factor, out=out)


def by_triton(tensor: Tensor) -> bool:
    """Whether Triton's kernels serve this tensor: on a GPU, where Triton is installed, as it is with torch for CUDA."""
    return tensor.is_cuda and tensor.dtype in (torch.float32, torch.bfloat16, torch.float16) and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _triton() -> Any:
    from dictlab.dictionary.kernels import triton  # only where it is needed: importing it takes a while

    return triton


def is_dense(codes: Codes) -> bool:
    """Whether so many latents are active that dense products are faster."""
    return len(codes.values) > DENSE * codes.n_tokens * codes.n_latents


def summed(codes: Codes) -> Float[Tensor, "tokens n_latents"]:
    """The codes as a full matrix; entries that repeat add up."""
    matrix = codes.values.new_zeros(codes.n_tokens * codes.n_latents)
    return matrix.index_add_(0, codes.rows * codes.n_latents + codes.indices, codes.values).view(codes.n_tokens, -1)


def _slices(total: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, total, max(1, size))]


def falling(total: int, size: int) -> list[int]:
    """Sizes of blocks of about `size` that make up `total`, each smaller than the last by one.

    The system's allocator aligns what it gives, and so cannot give a freed block's place to the next one of the same
    size if anything small has been put behind it: pre-activations of a whole batch would then lie about.
    """
    count = math.ceil(total / max(1, size))
    if count < 2 or 2 * count**2 > total:  # too few tokens to be particular
        return [min(size, total - start) for start in range(0, total, max(1, size))] or [0]
    first = math.ceil((total + count * (count - 1) / 2) / count)
    sizes = [first - number for number in range(count - 1)]
    return [*sizes, total - sum(sizes)]


def _tokens(activation: Activation, x: Tensor, n_latents: int) -> int:
    """How many are encoded at once."""
    if activation.batchwise:
        return len(x)
    return max(ROWS, (BLOCK if x.device.type == "cpu" else GPU_BLOCK) // max(1, n_latents))


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        centre: Tensor | None,
        W_enc: Tensor,
        b_enc: Tensor,
        activation: Activation,
        by_latent: CachedColumns,
        factor: float,
        settle: Callable[[Codes], Codes] | None,
        dtype: torch.dtype | None,
    ) -> tuple[Tensor, ...]:
        blocks = x.split(falling(len(x), _tokens(activation, x, W_enc.shape[1])))
        h = torch.empty_like(blocks[0])  # one for all blocks: what lies between them would scatter their memory
        encoded = _exactly(W_enc, b_enc, activation) if dtype is None else _choosing_in(dtype, W_enc, b_enc, activation)
        codes = concatenate([encoded(shifted(own, centre, factor, h)) for own in blocks])
        codes = codes if settle is None else settle(codes)
        ctx.save_for_backward(x, centre, W_enc, codes.values, codes.indices, codes.offsets)
        ctx.activation, ctx.by_latent, ctx.factor = activation, by_latent, factor
        ctx.mark_non_differentiable(codes.indices, codes.offsets)
        return codes.values, codes.indices, codes.offsets

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, centre, W_enc, values, indices, offsets = ctx.saved_tensors
        for_x, for_centre, for_W, for_b = ctx.needs_input_grad[:4]
        slope = ctx.activation.slope(indices)
        slope = slope.to(values) if isinstance(slope, Tensor) else slope
        codes = Codes(grad_values * (values != 0) * slope, indices, offsets, W_enc.shape[1], ctx.by_latent)
        grad_x = combined(codes, W_enc.T) * ctx.factor if for_x else None
        grad_W = transposed(codes, x, centre, ctx.factor).T if for_W else None
        grad_b = x.new_zeros(codes.n_latents).index_add_(0, indices, codes.values) if for_centre or for_b else None
        grad_centre = -(W_enc @ grad_b) if for_centre else None
        return grad_x, grad_centre, grad_W, grad_b, None, None, None, None, None


def _exactly(W_enc: Tensor, b_enc: Tensor, activation: Activation) -> Callable[[Tensor], Codes]:
    """From the encoder's input to codes."""
    return lambda h: activation(affine(h, W_enc, b_enc))


def _choosing_in(dtype: torch.dtype, W_enc: Tensor, b_enc: Tensor, activation: Activation) -> Callable[[Tensor], Codes]:
    """The same, with latents chosen by a product in `dtype`, and their values by one in the input's, at them alone."""
    W, b = W_enc.to(dtype), b_enc.to(dtype)

    def encoded(h: Tensor) -> Codes:
        codes = activation(affine(h.to(dtype), W, b))
        z = products_at(codes, h, W_enc.T) + b_enc[codes.indices]
        return codes._replace(values=activation.emitted(z, codes.indices))

    return encoded


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        indices: Tensor,
        offsets: Tensor,
        W_dec: Tensor,
        by_latent: CachedColumns | None,
        bias: Tensor | None,
        factor: float,
    ) -> Tensor:
        values = values if factor == 1.0 else values * factor
        ctx.save_for_backward(values, indices, offsets, W_dec)
        ctx.by_latent, ctx.factor = by_latent, factor
        out = combined(Codes(values, indices, offsets, len(W_dec)), W_dec)
        return out if bias is None else out.add_(bias, alpha=factor)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, offsets, W_dec = ctx.saved_tensors
        for_values, for_W, for_bias = (ctx.needs_input_grad[at] for at in (0, 3, 5))
        g, codes = g.contiguous(), Codes(values, indices, offsets, len(W_dec), ctx.by_latent)
        grad_values = products_at(codes, g, W_dec) * ctx.factor if for_values else None
        grad_W = transposed(codes, g) if for_W else None
        grad_bias = g.sum(dim=0) * ctx.factor if for_bias else None
        return grad_values, None, None, grad_W, None, grad_bias, None
