"""Mean squared error, without a matrix of errors or of their squares.

    L = mean (x_hat - x)^2          dL/dx_hat = 2 (x_hat - x) / size

Squares are summed for some rows at a time, while these are in the cache; the gradient is one pass.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

ROWS = 256  # of both matrices that are looked at together


def squared_error(x_hat: Float[Tensor, "tokens d_in"], x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, ""]:
    """`(x_hat - x).square().mean()`, differentiable in x_hat alone."""
    out: Tensor = _SquaredError.apply(x_hat, x)
    return out


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_hat: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(x_hat, x)
        rows = ROWS if x.device.type == "cpu" else max(1, len(x))
        parts = [
            (one - other).flatten().square().sum() for one, other in zip(x_hat.split(rows), x.split(rows), strict=True)
        ]
        return torch.stack(parts).sum() / x_hat.numel()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        x_hat, x = ctx.saved_tensors
        return (x_hat - x).mul_(g * (2 / max(1, x_hat.numel()))).to(x_hat.dtype), None
