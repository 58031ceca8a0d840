"""Latents of several donors under one rule, as one ordinary encoder.

A stitched dictionary whose latents keep their donors' rules is a `Union`, which no other library knows. Here all of its
latents compete with each other instead:

    topk         the k largest pre-activations of each token
    batchtopk    the k n largest of n tokens that are encoded together
    jumprelu     those above a threshold: one for all latents that were ranked before; latents that have thresholds
                 keep them where they are larger (BatchTopK's rule for use, Bussmann et al. 2024)

so that L0 is what is asked for. For pre-activations of different donors to be comparable each is given the unit of what
its latent adds: rows of W_dec have length 1, and the encoder takes their lengths. After a refit lengths are others, so
scales are calibrated by refitting twice. Every step has a loss of its own, and `competition_steps` returns them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.pool.ridge_refit import Refit, refit_bias, refit_decoder
from analyses.pool.sparsity_levels import thresholds_for_l0
from analyses.pool.threshold_calibration import as_jumprelu
from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import Activation, BatchTopK, JumpReLU, TopK
from dictlab.dictionary.union import emitting
from dictlab.errors import DictlabError

Competition = Literal["topk", "batchtopk", "jumprelu"]


@torch.no_grad()
def in_one_competition(
    dictionary: Dictionary, kind: Competition, l0: float, x: Float[Tensor, "tokens d_in"], name: str | None = None
) -> Dictionary:
    """The latents of a dictionary that can be active, under one rule; decoder and output bias as they were.

    Args:
        dictionary: Of any activation function but AbsTopK, a union of such as well.
        kind: The rule.
        l0: Active latents a token: k is the nearest whole number, a threshold lets through at most so many on `x`.
        x: Activations that a threshold is set on.
        name: Of the result; the dictionary's own by default.

    Raises:
        DictlabError: Some of its codes are negative, or the rule is unknown.
    """
    if kind not in get_args(Competition):
        raise DictlabError(f"competition is {kind!r}; expected own, {', '.join(get_args(Competition))}.")
    own = dictionary.folded()
    kept = emitting(own.activation, own.n_latents).nonzero().squeeze(1).to(own.W_dec.device)
    scales, shifts, thresholds, _ = as_jumprelu(own)
    lengths = own.W_dec.norm(dim=1)
    lengths = torch.where(lengths > 0, lengths, 1.0)
    ordinary = replace(
        own,
        W_enc=(own.W_enc * scales * lengths)[:, kept],
        b_enc=((own.b_enc * scales + shifts) * lengths)[kept],
        W_dec=(own.W_dec / lengths[:, None])[kept],
        firing_rate=None,
        name=dictionary.name if name is None else name,
    )
    activation: Activation
    if kind == "jumprelu":
        limits = (thresholds * lengths)[kept].clamp(min=0)
        activation = JumpReLU(thresholds_for_l0(limits, ordinary.pre_activations(x), l0))
    else:
        k = min(max(1, round(l0)), len(kept))
        activation = TopK(k) if kind == "topk" else BatchTopK(k)
    return replace(ordinary, activation=activation)


def competition_steps(
    dictionary: Dictionary,
    kind: Competition,
    l0: float,
    batches: Sequence[Float[Tensor, "*tokens d_in"]],
    refit: Refit,
    x: Float[Tensor, "tokens d_in"],
) -> dict[str, Dictionary]:
    """A dictionary on its way into one competition, by what each step is called; the last one is the result.

    Args:
        dictionary: As its donors' rules make it, refitted or not.
        kind: The rule.
        l0: Active latents a token.
        batches: What is refitted on.
        refit: What is refitted.
        x: What thresholds are set on.
    """
    again: dict[Refit, Callable[[Dictionary], Dictionary]] = {
        "none": lambda step: step,
        "bias": lambda step: refit_bias(step, batches),
        "decoder": lambda step: refit_decoder(step, batches),
    }
    plain = in_one_competition(dictionary, kind, l0, x)
    steps = {f"one {kind}": plain}
    if refit != "none":
        steps[f"one {kind}, refitted"] = again[refit](plain)
    if refit == "decoder":
        scaled = in_one_competition(steps[f"one {kind}, refitted"], kind, l0, x)
        steps[f"one {kind}, rescaled, refitted"] = again[refit](scaled)
    return {name: _named(step, name, kind) for name, step in steps.items()}


def _named(step: Dictionary, name: str, kind: Competition) -> Dictionary:
    training = step.metadata.training | {"competition": kind}
    return replace(step, name=name, metadata=replace(step.metadata, training=training))
