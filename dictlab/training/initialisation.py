"""What are the weights of a dictionary before its first step? Random directions, or those of one that is there.

A process that has some of the latents makes the weights of these alone, the ones that they would have in one process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dictlab import seeds
from dictlab.dictionary import Dictionary
from dictlab.dictionary.normalisation import Normalisation
from dictlab.errors import DictlabError
from dictlab.training.distributed.ranks import Ranks
from dictlab.training.member import Member
from dictlab.training.start import in_training_units

ROWS = 4096  # drawn together; a multiple of 16, which torch's generator draws at once
TYPICAL = 256  # inputs that the length of the encoder's rows is taken from


def fresh(
    member: Member, centre: Float[Tensor, " d_in"], unit: float, own: Mapping[str, Tensor], ranks: Ranks
) -> dict[str, Tensor]:
    """Random directions, encoder tied to them, the bias in the middle of the activations.

    Args:
        member: What the dictionary is to become.
        centre: The middle of the activations, in the model's units.
        unit: One of the dictionary's units in the model's.
        own: What the variant trains besides, of this process's latents.
        ranks: The processes.
    """
    d_in, latents = len(centre), ranks.latents(member.width)
    generator = seeds.generator(member.seed, f"initial directions, width {member.width}")
    drawn = torch.empty(latents.stop - latents.start, d_in)
    for start, rows in normal_rows(member.width, d_in, generator):
        first, last = max(start, latents.start), min(start + len(rows), latents.stop)
        if first < last:
            drawn[first - latents.start : last - latents.start] = rows[first - start : last - start]
    decoder = normalize(drawn, dim=1).to(centre.device)
    weights = {
        "encoder": decoder.clone(),
        "b_enc": torch.zeros(len(decoder), device=centre.device),
        "decoder": decoder,
        "bias": centre / unit,
    } | dict(own)
    typical = math.sqrt(d_in) * normalize(torch.randn(TYPICAL, d_in, generator=generator), dim=1)
    weights["encoder"] /= _gain(member, weights, typical.to(centre.device), ranks)
    return weights


def normal_rows(n: int, d: int, generator: torch.Generator) -> Iterator[tuple[int, Float[Tensor, "rows d"]]]:
    """`torch.randn(n, d, generator=generator)` in pieces, each with the number of its first row: the same numbers."""
    start = 0
    while start < n:
        rows = ROWS if start + 2 * ROWS <= n else n - start  # so that the last one is no few numbers
        yield start, torch.randn(rows, d, generator=generator)
        start += rows


def going_on(
    member: Member, centre: Float[Tensor, " d_in"], unit: float, own: Mapping[str, Tensor], latents: slice
) -> tuple[dict[str, Tensor], Normalisation]:
    """The weights of the dictionary that a member starts from, and what is done to its input.

    Raises:
        DictlabError: It reads activations of another width.
    """
    assert member.start is not None
    if member.start.d_in != len(centre):
        raise DictlabError(
            f"{member.start.name} reads activations of width {member.start.d_in}; this site's have {len(centre)}."
        )
    start = member.start if latents == slice(0, member.width) else _some(member.start, latents)
    brought = in_training_units(start.to(centre.device), 1 / unit)
    weights = {"encoder": brought.W_enc.T, "b_enc": brought.b_enc, "decoder": brought.W_dec, "bias": brought.b_out}
    weights |= dict(own) | member.variant.adopted(brought)
    return {name: t.contiguous() for name, t in weights.items()}, brought.normalisation


def _some(dictionary: Dictionary, latents: slice) -> Dictionary:
    """Some latents of a dictionary. (Where they compete with the others, somebody else sees to that.)"""
    return replace(
        dictionary,
        W_enc=dictionary.W_enc[:, latents],
        b_enc=dictionary.b_enc[latents],
        W_dec=dictionary.W_dec[latents],
        activation=dictionary.activation.at(torch.arange(latents.start, latents.stop)),
        firing_rate=None,
    )


@torch.no_grad()
def _gain(member: Member, weights: dict[str, Tensor], h: Float[Tensor, "sample d_in"], ranks: Ranks) -> Tensor:
    """How long reconstructions are, as a share of their inputs: one factor brings them to their length."""
    entries = ranks.encode(h, weights["encoder"].T, weights["b_enc"], member.variant.choose(weights))
    out = ranks.decode(member.variant.emit(entries, weights), weights["decoder"])
    gain: Tensor = out.norm(dim=1).mean() / h.norm(dim=1).mean()
    return gain
