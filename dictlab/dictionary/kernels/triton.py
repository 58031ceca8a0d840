"""The sparse products as Triton kernels, for CUDA (and, through Triton's interpreter, for tests without a GPU).

    combined      y_t  = sum_j f_tj r_j               one program a token and a block of columns
    products_at   p_tj = l_t . r_j                    one program a token
    transposed    y_j  = sum_t f_tj r_t               one program a latent and a block of columns

Each program sums in float32 and writes what it owns once: no atomic addition, so that equal inputs give equal bits. The
entries of a token, and of a latent, are walked one after the other; rows are read in whole.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dictlab.dictionary.codes import Codes

COLUMNS = 512  # of a row that a program holds at once


@triton.jit  # type: ignore[untyped-decorator]
def _gather_sum(out, rows, index, weight, starts, d, row_stride, out_stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """out[p] = sum over the entries e of p of weight[e] * rows[index[e]]."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < d
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    begin, end = tl.load(starts + program), tl.load(starts + program + 1)
    for entry in range(begin, end):
        row = tl.load(index + entry).to(tl.int64)
        factor = tl.load(weight + entry).to(tl.float32)
        total += factor * tl.load(rows + row * row_stride + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + program * out_stride + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _dots(out, left, right, index, starts, d, left_stride, right_stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """out[e] = left[token of e] . right[index[e]]; the token's row is read once for a block of columns."""
    token = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(starts + token), tl.load(starts + token + 1)
    for entry in range(begin, end):
        row = tl.load(index + entry).to(tl.int64)
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for first in range(0, d, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            inside = columns < d
            one = tl.load(left + token * left_stride + columns, mask=inside, other=0.0).to(tl.float32)
            other = tl.load(right + row * right_stride + columns, mask=inside, other=0.0).to(tl.float32)
            total += one * other
        tl.store(out + entry, tl.sum(total, axis=0).to(out.dtype.element_ty))


def combined(codes: Codes, rows: Tensor) -> Tensor:
    """`codes.dense() @ rows`; see `sparse.combined`."""
    return _summed(rows, codes.indices, codes.values, codes.offsets)


def transposed(codes: Codes, rows: Tensor) -> Tensor:
    """`codes.dense().T @ rows`; see `sparse.transposed`."""
    columns = codes.columns
    return _summed(rows, columns.rows, codes.values[columns.order], columns.starts)


def products_at(codes: Codes, left: Tensor, right: Tensor) -> Tensor:
    """`left[t] . right[j]` at each entry; see `sparse.products_at`."""
    left, right = _rows(left), _rows(right)
    out = left.new_empty(len(codes.indices))
    if len(out):
        d = left.shape[1]
        grid = (codes.n_tokens,)
        _dots[grid](out, left, right, codes.indices, codes.offsets, d, left.stride(0), right.stride(0), BLOCK=_block(d))
    return out


def _summed(rows: Tensor, index: Tensor, weight: Tensor, starts: Tensor) -> Tensor:
    rows, d = _rows(rows), rows.shape[1]
    out = rows.new_empty(len(starts) - 1, d)
    if out.numel():
        block = _block(d)
        grid = (len(out), triton.cdiv(d, block))
        _gather_sum[grid](out, rows, index, weight, starts, d, rows.stride(0), out.stride(0), BLOCK=block)
    return out


def _rows(matrix: Tensor) -> Tensor:
    """The matrix with whole rows in memory."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _block(d: int) -> int:
    return int(min(COLUMNS, triton.next_power_of_2(max(d, 16))))
