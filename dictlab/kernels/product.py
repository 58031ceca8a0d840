"""The one dense product of an encoder, `h @ W + b`.

oneDNN's product adds the bias on its way out, and is faster than torch's own (MKL) on processors that MKL was not
written for. It runs in torch's threads: those of another library's BLAS would fight with them for the cores.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def affine(
    h: Float[Tensor, "tokens d_in"], W: Float[Tensor, "d_in n_latents"], b: Float[Tensor, " n_latents"]
) -> Float[Tensor, "tokens n_latents"]:
    """`h @ W + b`, without gradients."""
    if len(h) and _for_onednn(h) and W.dtype == b.dtype == h.dtype:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(h, W.T, b, "none", [], "")
        return out
    return torch.addmm(b, h, W)


def _for_onednn(h: Tensor) -> bool:
    return h.device.type == "cpu" and h.dtype == torch.float32 and torch.backends.mkldnn.is_available()
