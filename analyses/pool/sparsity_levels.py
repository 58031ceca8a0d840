"""A dictionary at another sparsity: the same latents, with more or fewer of them active a token.

    TopK, AbsTopK, BatchTopK    another k
    JumpReLU, ReLU, Gated       thresholds t_j >= 0 multiplied by one factor, where all of them are positive; else one
                                constant c >= 0 under all of them in units of what latents write, max(t_j, c / |d_j|),
                                since encoder and decoder share a scale; where d_j = 0 the length counts as 1 (a Gated
                                latent is a JumpReLU latent)
    Union                       each part to the same share of its active latents

This is what can be asked of a trained dictionary without training; the points that it gives are the dictionary's own
sparsity curve. A ReLU latent is active wherever its pre-activation is positive, so there is no curve on the denser
side of a ReLU dictionary, and none beyond thresholds of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.pool.threshold_calibration import standing_alone
from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import AbsTopK, Activation, BatchTopK, Gated, JumpReLU, ReLU, TopK
from dictlab.dictionary.union import Union
from dictlab.errors import DictlabError

PRE_ACTIVATIONS = 1 << 25  # on which thresholds are set: 128 MiB
THRESHOLD_TOKENS = 16_384  # on which they are set, at most
CLOSE = 0.01  # two values of L0 that differ by this share or less are one level


def threshold_tokens(batches: Sequence[Float[Tensor, "*tokens d_in"]], n_latents: int) -> Float[Tensor, "tokens d_in"]:
    """The first activations of a sample, on which thresholds are set; the same for everything that is compared.

    Args:
        batches: The sample.
        n_latents: Of the pool that everything is taken from, which bounds the memory of pre-activations.
    """
    count, blocks, held = min(THRESHOLD_TOKENS, max(1, PRE_ACTIVATIONS // n_latents)), [], 0
    for batch in batches:
        blocks.append(batch.reshape(-1, batch.shape[-1]))
        held += len(blocks[-1])
        if held >= count:
            break
    return torch.cat(blocks)[:count]


@torch.no_grad()
def at_l0(dictionary: Dictionary, l0: float, x: Float[Tensor, "tokens d_in"], name: str | None = None) -> Dictionary:
    """The dictionary with its sparsity changed so that about `l0` latents are active a token.

    Where latents are ranked, k is the nearest whole number; where they have thresholds, L0 on `x` is the largest that
    is at most `l0`, or the dictionary's densest if that is less. Measure L0 of the result: it need not be `l0`.

    Args:
        dictionary: Whose latents.
        l0: Active latents a token that are wanted.
        x: Activations on which L0 is counted.
        name: Of the result; the dictionary's own by default.

    Raises:
        DictlabError: Its activation function has no sparsity to change (GroupMax).
    """
    base = replace(dictionary, name=dictionary.name if name is None else name)
    own = float(base.encode(x).l0().double().mean())
    if abs(own - l0) <= CLOSE * max(own, l0) / 10 or own == 0:
        return base
    if isinstance(base.activation, Gated):
        base = standing_alone(base, [x])
    lengths = base.W_dec.norm(dim=1)
    lengths = torch.where(lengths > 0, lengths, 1.0)
    return replace(base, activation=_at_share(base.activation, base.pre_activations(x), lengths, l0 / own, base.name))


def _at_share(
    activation: Activation,
    z: Float[Tensor, "tokens n_latents"],
    lengths: Float[Tensor, " n_latents"],
    share: float,
    name: str,
) -> Activation:
    """The activation function under which `share` times as many latents are active on pre-activations z.

    Args:
        activation: As it is.
        z: Pre-activations.
        lengths: |d_j|.
        share: Of the active latents.
        name: Of the dictionary.
    """
    if isinstance(activation, TopK | AbsTopK | BatchTopK):
        return replace(activation, k=min(max(1, round(activation.k * share)), z.shape[1]))
    if isinstance(activation, Union):
        widths = [width for width, _ in activation.parts]
        parts = zip(activation.parts, z.split(widths, dim=1), lengths.split(widths), strict=True)
        return replace(activation, parts=tuple((w, _at_share(a, z, norms, share, name)) for (w, a), z, norms in parts))
    if isinstance(activation, ReLU | JumpReLU):
        limits = activation.threshold.to(z) if isinstance(activation, JumpReLU) else z.new_zeros(z.shape[1])
        limits = limits.clamp(min=0)
        wanted = share * float((z > limits).sum()) / len(z)
        return JumpReLU(thresholds_for_l0(limits * lengths, z * lengths, wanted) / lengths)
    raise DictlabError(
        f"{name}: activation function {activation.kind} has no k or threshold to change, so there is no sparsity curve."
    )


def thresholds_for_l0(
    limits: Float[Tensor, " n_latents"], z: Float[Tensor, "tokens n_latents"], l0: float
) -> Float[Tensor, " n_latents"]:
    """Thresholds above which `l0` of z are at most, on average: all scaled alike, or one constant under all of them."""
    count = int(l0 * len(z))
    if bool((limits > 0).all()):
        return limits * _smallest_level((z / limits)[z > 0], count)
    return limits.clamp(min=_smallest_level(z[z > limits], count))


def _smallest_level(values: Float[Tensor, " n"], count: int) -> float:
    """The smallest number, 0 or more, that at most `count` of the values are above; between two of them."""
    if count >= len(values):
        return 0.0
    largest = values.double().topk(count + 1).values
    above = float(largest[-2]) if count else 2 * float(largest[-1])
    return (above + float(largest[-1])) / 2
