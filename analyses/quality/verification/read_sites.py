"""Does a transcoder read the site that its file names, or one of its neighbours?

The usual fault of a transcoder's file is a wrong site and no wrong tensor: the residual stream in place of the norm's
output, or that output with its gain in place of without. A site of the right width raises no error, so each is tried:

    the streams that enter a block and its second half, and the outputs of the two norms, with and without gain and bias

For each, L0 and the explained variance of the activation at the site that is written. The right one is unmistakable
(Gemma Scope 1, layer 19, by Neuronpedia's script: L0 12.8 where 12 is stated, against 664).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.evaluation.sites import site_pair
from dictlab.model.language_model import LanguageModel
from dictlab.token_selection import TokenSelection

AROUND = (
    "hook_resid_pre",
    "ln1.hook_normalized",
    "ln1.hook_out",
    "hook_resid_mid",
    "ln2.hook_normalized",
    "ln2.hook_out",
)
BATCH_TOKENS = 2048
CLEAR = 0.01  # of explained variance: by less, two sites are not told apart


class SiteFit(NamedTuple):
    """How a transcoder does where it reads one site.

    Attributes:
        reads: The site.
        l0: Active latents a token.
        explained_variance: Of the activation at the site that it writes; negative where its mean would do better.
    """

    reads: str
    l0: float
    explained_variance: float


def candidates(model: LanguageModel, dictionary: Dictionary) -> list[str]:
    """The site that is stated first, then those of its block that the model has and that are other tensors."""
    stated = site_pair(dictionary).reads
    block = model.locate(stated).block
    sites = [stated]
    for name in AROUND if block is not None else ():
        site = f"blocks.{block}.{name}"
        try:
            width = model.capture(model.probe, site)[site].shape[-1]
            known = any(model.same_site(site, other) for other in sites)
        except DictlabError:  # this model has no such site
            continue
        if width == dictionary.d_in and not known:
            sites.append(site)
    return sites


@torch.no_grad()
def site_fits(
    dictionary: Dictionary,
    model: LanguageModel,
    sites: Sequence[str],
    tokens: Int[Tensor, "contexts context"],
    selection: TokenSelection,
) -> list[SiteFit]:
    """L0 and explained variance of a transcoder for each site that it might read, on the same tokens.

    Args:
        dictionary: A transcoder, as it is used on this model's activations.
        model: Its model.
        sites: Each of the width that it reads.
        tokens: What to run the model on.
        selection: Tokens that count, at the site that is stated and the one that is written.
    """
    pair = site_pair(dictionary)
    errors, active = torch.zeros(len(sites), dtype=torch.double), torch.zeros(len(sites), dtype=torch.double)
    n, total, squares = 0, torch.zeros(dictionary.d_out, dtype=torch.double), 0.0
    for batch in tokens.split(max(1, BATCH_TOKENS // tokens.shape[1])):
        clean = model.capture(batch, list(dict.fromkeys([*sites, *pair])))
        counted = selection.mask([clean[site] for site in dict.fromkeys(pair)], batch, model.tokenizer)
        y = clean[pair.writes][counted].double()
        n, total, squares = n + len(y), total + y.sum(dim=0).cpu(), squares + float(y.square().sum())
        for index, site in enumerate(sites):
            codes, y_hat = dictionary(clean[site][counted].float())
            errors[index] += float((y - y_hat.double()).square().sum())
            active[index] += float(codes.l0().sum())
    variance = squares - float(total.square().sum()) / max(1, n)
    if not n or not variance > 0:
        raise DictlabError(f"token selection {selection}: no two different activations count at {pair.writes}.")
    return [
        SiteFit(site, float(a) / n, 1 - float(e) / variance) for site, a, e in zip(sites, active, errors, strict=True)
    ]
