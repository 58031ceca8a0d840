"""Dense products with a bias, `h @ W + b`, by the fastest single-precision product at hand.

oneDNN's adds the bias on its way out, and is faster than torch's own (MKL) on processors that MKL was not written for.
runs in torch's threads: those of another library's BLAS would fight with them for the cores.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def affine(
    h: Float[Tensor, "tokens d_in"], W: Float[Tensor, "d_in d_out"], b: Float[Tensor, " d_out"] | None = None
) -> Float[Tensor, "tokens d_out"]:
    """`h @ W + b`, without gradients."""
    if h.numel() and _for_onednn(h) and W.dtype == h.dtype and (b is None or b.dtype == h.dtype):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(h, W.T, b, "none", [], "")
        return out
    return h @ W if b is None else torch.addmm(b, h, W)


class FrozenProducts(TorchFunctionMode):
    """While it is entered, frozen linear layers of float32 on the CPU take their products from `affine`.

    Their gradient towards the input does as well. Everything else is left as it is.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One call of torch."""
        if (
            func is functional.linear
            and not kwargs
            and args[0].dim() > 1
            and _for_onednn(args[0])
            and _frozen(*args[1:])
        ):
            return _Linear.apply(*args, *[None] * (3 - len(args)))
        return func(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return affine(x.flatten(0, -2), weight.T, bias).view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return affine(g.flatten(0, -2), ctx.weight).view(*g.shape[:-1], ctx.weight.shape[1]), None, None


def _for_onednn(h: Tensor) -> bool:
    return h.device.type == "cpu" and h.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def _frozen(*weights: Tensor | None) -> bool:
    return not any(weight is not None and weight.requires_grad for weight in weights)
