"""The same dictionary with the scale that a latent's encoder and decoder share taken out of it.

Encoder, bias and threshold times c, decoder direction over c: the same function for any c > 0. What is to be one for
all latents (a threshold, a learning rate) means nothing before c is fixed, and c is fixed here by |d_j| = 1.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from dictlab.dictionary.activation_functions import Activation, Gated, JumpReLU, ReLU
from dictlab.dictionary.dictionary import Dictionary
from dictlab.dictionary.union import Union


def with_unit_directions(dictionary: Dictionary) -> Dictionary:
    """The same function with |d_j| = 1, so that the activations are the lengths of what the latents write.

    Latents that compete (TopK and the like) share their scale: the mean length of their directions becomes 1. A zero
    row of the decoder stays one. A constant scale of the input is folded.
    """
    plain = dictionary.in_input_units()
    lengths = _lengths(plain.activation, plain.W_dec.norm(dim=1))
    return replace(
        plain,
        W_enc=plain.W_enc * lengths,
        b_enc=plain.b_enc * lengths,
        W_dec=plain.W_dec / lengths[:, None],
        activation=_rescaled(plain.activation, lengths),
    )


def _lengths(activation: Activation, norms: Float[Tensor, " n_latents"]) -> Float[Tensor, " n_latents"]:
    """What each latent's pre-activation is multiplied by."""
    if isinstance(activation, Union):
        parts = norms.split([width for width, _ in activation.parts])
        return torch.cat([_lengths(own, part) for (_, own), part in zip(activation.parts, parts, strict=True)])
    written = norms > 0
    if not activation.elementwise:
        return norms[written].mean().expand_as(norms) if written.any() else torch.ones_like(norms)
    return torch.where(written, norms, 1.0)


def _rescaled(activation: Activation, factors: Float[Tensor, " n_latents"]) -> Activation:
    """The function g for which g(c z) = c f(z), with a factor c for each latent; one for all that compete."""
    if isinstance(activation, Union):
        split = factors.split([width for width, _ in activation.parts])
        parts = zip(activation.parts, split, strict=True)
        return replace(activation, parts=tuple((width, _rescaled(own, part)) for (width, own), part in parts))
    if isinstance(activation, JumpReLU):
        return JumpReLU(activation.threshold * factors.to(activation.threshold))
    if isinstance(activation, Gated):
        c = factors.to(activation.b_gate)
        return Gated(activation.b_gate * c, activation.r_mag, activation.b_mag * c)
    if isinstance(activation, ReLU) or not activation.elementwise:
        return activation
    raise NotImplementedError(f"activation function {activation.kind} with a factor for each latent")
