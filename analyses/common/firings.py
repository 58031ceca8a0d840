"""At which tokens of a sample are some latents active, and how strongly? One pass over the sample.

Tokens are counted through all sequences: token t of sequence s has the index s * context + t.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from dictlab.data.activations import forward_size
from dictlab.dictionary import Dictionary
from dictlab.evaluation.evaluate import check_finite
from dictlab.evaluation.sites import site_of
from dictlab.model.language_model import LanguageModel
from dictlab.runtime.progress import track


class LatentFirings(NamedTuple):
    """The non-zero activations of one latent in a sample.

    Attributes:
        token: Indices of the tokens at which it is active, counted through all sequences, ascending.
        activation: Its activation at each of them, as the length of what it adds to the reconstruction, with its sign
            (`Dictionary.contributions`).
    """

    token: Int[ndarray, " active"]
    activation: Float[ndarray, " active"]


class Firings(NamedTuple):
    """The non-zero activations of some latents in a sample.

    Attributes:
        latents: Of each latent, in the order asked for.
        share: Non-zero activations of these latents over those of all latents.
    """

    latents: list[LatentFirings]
    share: float


@torch.no_grad()
def collect_firings(
    dictionary: Dictionary,
    model: LanguageModel,
    sequences: Int[Tensor, "sequences context"],
    latents: Sequence[int],
    n_leading: int = 0,
    counted: Bool[Tensor, "sequences context"] | None = None,
) -> Firings:
    """Where some latents are active. Memory: their non-zero activations.

    Args:
        dictionary: On the model's device, and reading its activations.
        model: The language model.
        sequences: Token ids.
        latents: Indices of latents, ascending.
        n_leading: Tokens that lead each sequence, such as the beginning-of-text token; these are left out.
        counted: Tokens that count, on the CPU; the others are not encoded. All by default.

    Raises:
        DictlabError: An activation is not finite.
    """
    counted = torch.ones(sequences.shape, dtype=torch.bool) if counted is None else counted
    selected = torch.zeros(dictionary.n_latents, dtype=torch.bool, device=model.device)
    selected[list(latents)] = True
    site, context = site_of(dictionary), sequences.shape[1]
    size = forward_size(model.device, context)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    n_active = 0
    pairs = zip(sequences.split(size), counted.split(size), strict=True)
    for number, (tokens, mask) in enumerate(track(list(pairs), "activations", unit="batches")):
        x = model.capture(tokens, site)[site]
        counting = x[mask.to(x.device)].float()
        codes = dictionary.encode(counting)
        check_finite(dictionary, codes.values[:, None])
        rows = mask.flatten().nonzero().squeeze(1)[codes.rows.cpu()]  # tokens of the batch
        active = (codes.values.cpu() != 0) & (rows % context >= n_leading)
        n_active += int(active.sum())
        active &= selected[codes.indices].cpu()
        values = dictionary.contributions(codes, counting).values.cpu()[active].double()
        parts.append((rows[active] + number * size * context, codes.indices.cpu()[active], values))
    token, latent, activation = (torch.cat(part) for part in zip(*parts, strict=True))
    order = torch.argsort(latent, stable=True)
    ends = torch.searchsorted(latent[order], torch.tensor(list(latents)), right=True)[:-1].tolist()
    split = (np.split(part[order].numpy(), ends) for part in (token, activation))
    return Firings([LatentFirings(*pair) for pair in zip(*split, strict=True)], len(token) / max(1, n_active))
