"""Several dictionaries as one pool of latents, of which any part is a dictionary again.

A pool has all latents of its donors side by side, in their order. Pre-biases and constant input scales are folded into
the encoders, so that no latent changes when it moves, and every latent fires by its own donor's rule: a latent from a
TopK dictionary fires where it beats its old rivals. Rivals that a part leaves out still compete, but emit nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dictlab.__about__ import VERSION
from dictlab.dictionary import Dictionary, Metadata
from dictlab.dictionary.activation_functions import Activation
from dictlab.dictionary.normalisation import to_record
from dictlab.dictionary.union import Union, emitting, side_by_side
from dictlab.errors import DictlabError


def pool_of(dictionaries: Sequence[Dictionary], name: str = "pool") -> Dictionary:
    """All latents of the dictionaries in their order, each by its own dictionary's rule; output bias the first's.

    Args:
        dictionaries: The donors, at one site.
        name: Of the result.

    Raises:
        DictlabError: They normalise their inputs in different ways, so that no one encoder can serve all.
    """
    return pool_of_folded(with_common_normalisation(dictionaries), name)


def pool_of_folded(folded: Sequence[Dictionary], name: str = "pool") -> Dictionary:
    """The pool of dictionaries that `with_common_normalisation` has folded already."""
    emits = torch.cat([emitting(d.activation, d.n_latents) for d in folded])
    parts = [part for d in folded for part in activation_parts(d.activation, d.n_latents)]
    first = folded[0]
    return Dictionary(
        W_enc=torch.cat([d.W_enc for d in folded], dim=1),
        b_enc=torch.cat([d.b_enc for d in folded]),
        W_dec=torch.where(emits[:, None].to(first.W_dec.device), torch.cat([d.W_dec for d in folded]), 0.0),
        b_pre=first.b_pre,
        b_out=first.b_out,
        activation=side_by_side(parts, emits),
        normalisation=first.normalisation,
        metadata=_metadata(folded),
        name=name,
    )


def part_of(
    pool: Dictionary,
    chosen: Bool[Tensor, " n_pool"],
    *,
    W_dec: Float[Tensor, "n_pool d_in"] | None = None,
    b_out: Float[Tensor, " d_in"] | None = None,
    name: str = "stitched",
) -> Dictionary:
    """Some latents of a pool as a dictionary of their own: their codes are those that they have in the pool.

    Latents that compete keep their donor's whole encoder to decide by; a donor without a chosen latent is left out.

    Args:
        pool: Of `pool_of`.
        chosen: Which latents may be active.
        W_dec: Other decoder directions, for all latents of the pool.
        b_out: Another output bias.
        name: Of the result.
    """
    chosen = chosen.cpu() & emitting(pool.activation, pool.n_latents)
    parts, kept, start = [], [], 0
    for width, activation in activation_parts(pool.activation, pool.n_latents):
        own = chosen[start : start + width]
        latents = own.nonzero().squeeze(1) if activation.elementwise else torch.arange(width if own.any() else 0)
        if len(latents):
            parts.append((len(latents), activation.at(latents) if activation.elementwise else activation))
            kept.append(latents + start)
        start += width
    rows = torch.cat(kept) if kept else torch.zeros(0, dtype=torch.long)
    emits = chosen[rows]
    directions = pool.W_dec if W_dec is None else W_dec
    return replace(
        pool,
        W_enc=pool.W_enc[:, rows],
        b_enc=pool.b_enc[rows],
        W_dec=torch.where(emits[:, None].to(directions.device), directions[rows], 0.0),
        b_out=pool.b_out if b_out is None else b_out,
        activation=side_by_side(parts, emits),
        firing_rate=None if pool.firing_rate is None else pool.firing_rate[rows] * emits.to(pool.firing_rate.device),
        name=name,
    )


def with_common_normalisation(dictionaries: Sequence[Dictionary]) -> list[Dictionary]:
    """All with everything folded into their encoders that keeps latents of the one from serving in another.

    Constant scales and pre-biases always; the centring of each token where another dictionary does not centre.

    Raises:
        DictlabError: They normalise their inputs in ways that no one encoder can serve.
    """
    own = [dictionary.folded() for dictionary in dictionaries]
    if any(d.normalisation != own[0].normalisation for d in own):
        own = [d.uncentred() for d in own]
    odd = next((d for d in own if d.normalisation != own[0].normalisation), None)
    if odd is not None:
        kinds = " and ".join(str(to_record(d.normalisation)) for d in (own[0], odd))
        raise DictlabError(f"{own[0].name} and {odd.name} cannot be stitched: their input normalisations are {kinds}.")
    return own


def activation_parts(activation: Activation, n_latents: int) -> tuple[tuple[int, Activation], ...]:
    """The parts of a union that a dictionary becomes: itself, or those that it was stitched from."""
    if isinstance(activation, Union):
        return activation.parts
    return ((n_latents, activation),) if n_latents else ()


def _metadata(dictionaries: Sequence[Dictionary]) -> Metadata:
    return replace(
        dictionaries[0].metadata,
        objective="stitched",
        seed=None,
        tokens=None,
        training={},
        metrics={},
        sources=tuple(dictionary.name for dictionary in dictionaries),
        library=f"dictlab {VERSION}",
        foreign={},
        notes=(),
    )
