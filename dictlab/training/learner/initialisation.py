"""The weights of a dictionary before its first step: random directions, or those of a dictionary to start from.

A process that holds some of the latents makes their weights alone, equal to those that one process would make.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dictlab.dictionary import Dictionary
from dictlab.dictionary.normalisation import Normalisation
from dictlab.errors import DictlabError
from dictlab.numerics import seeds
from dictlab.training.distributed.ranks import Ranks
from dictlab.training.learner.warm_start import in_training_units
from dictlab.training.member import Member

ROWS = 4096  # drawn together; a multiple of 16, which torch's generator draws at once
TYPICAL = 256  # inputs that the length of the encoder's rows is taken from


def fresh(
    member: Member, centre: Float[Tensor, " d_in"], unit: float, variant_weights: Mapping[str, Tensor], ranks: Ranks
) -> dict[str, Tensor]:
    """Random unit decoder directions, the encoder tied to them, the bias at the geometric median of the activations.

    Args:
        member: The dictionary to make.
        centre: Geometric median of the activations, in the model's units.
        unit: One of the dictionary's units in the model's.
        variant_weights: Initial values of the variant's own weights, of this process's latents.
        ranks: The processes.
    """
    d_in, latents = len(centre), ranks.latent_slice(member.width)
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
    } | dict(variant_weights)
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


def warm_start(
    member: Member, centre: Float[Tensor, " d_in"], unit: float, variant_weights: Mapping[str, Tensor], latents: slice
) -> tuple[dict[str, Tensor], Normalisation]:
    """The weights of the dictionary that a member starts from, in training units, and its input normalisation.

    Raises:
        DictlabError: It reads activations of another width.
    """
    assert member.start is not None
    if member.start.d_in != len(centre):
        raise DictlabError(
            f"{member.start.name} reads activations of width {member.start.d_in}; this site's have {len(centre)}."
        )
    start = member.start if latents == slice(0, member.width) else _at_latents(member.start, latents)
    scaled = in_training_units(start.to(centre.device), 1 / unit)
    weights = {"encoder": scaled.W_enc.T, "b_enc": scaled.b_enc, "decoder": scaled.W_dec, "bias": scaled.b_out}
    weights |= dict(variant_weights) | member.variant.adopted(scaled)
    return {name: t.contiguous() for name, t in weights.items()}, scaled.normalisation


def _at_latents(dictionary: Dictionary, latents: slice) -> Dictionary:
    """A dictionary of some of its latents. Competition between latents (TopK) is then up to `Ranks.encode`."""
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
    """Mean norm of reconstructions over that of inputs; the encoder is divided by it."""
    entries = ranks.encode(h, weights["encoder"].T, weights["b_enc"], member.variant.choose(weights))
    out = ranks.decode(member.variant.emit(entries, weights), weights["decoder"])
    gain: Tensor = out.norm(dim=1).mean() / h.norm(dim=1).mean()
    return gain


def geometric_median(
    x: Float[Tensor, "sample d_in"], rounds: int = 100, tolerance: float = 1e-6
) -> Float[Tensor, " d_in"]:
    """The point with the smallest sum of distances to the sample (Weiszfeld's iteration)."""
    centre = x.mean(dim=0)
    for _ in range(rounds):
        weight = 1 / (x - centre).norm(dim=1).clamp_min(1e-12)
        new = (weight[:, None] * x).sum(dim=0) / weight.sum()
        moved = (new - centre).norm()
        centre = new
        if moved <= tolerance * (1 + centre.norm()):
            break
    return centre
