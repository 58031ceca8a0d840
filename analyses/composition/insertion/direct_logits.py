"""Which tokens does a direction in the residual stream make likelier, and which less likely?

Over residual streams h that leave the last block, with U the model's own final norm and unembedding:

    logit(v) = E_h[ U(h + a d)_v - U(h)_v ],  less its mean over the vocabulary

d is the direction and a the length that it is added at. The norm is therefore the model's own, the streams are real
ones, and the direction is taken to reach the end as it is: what the blocks between the site and the end make of it is
left out (the direct effect alone).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.common.patching import counted_mask
from dictlab.data.activations import forward_size
from dictlab.model.language_model import LanguageModel
from dictlab.numerics import seeds
from dictlab.runtime.progress import track
from dictlab.token_selection import ALL, TokenSelection

STREAMS = 64  # residual streams averaged over
ADDS = ("hook_attn_out", "hook_mlp_out")  # what is written to the residual stream by addition


def writes_to_stream(model: LanguageModel, site: str) -> bool:
    """Whether a direction at this site is one of the residual stream."""
    place = model.locate(site)
    return place.kind.startswith("resid") or model.canonical_site(site).endswith(ADDS)


@torch.no_grad()
def leaving(
    model: LanguageModel,
    sequences: Int[Tensor, "sequences context"],
    *,
    streams: int = STREAMS,
    seed: int = 0,
    site: str | None = None,
    selection: TokenSelection = ALL,
) -> Float[Tensor, "streams d_model"]:
    """Residual streams that leave the last block, of tokens drawn from as many sequences.

    Args:
        model: The language model.
        sequences: Token ids.
        streams: How many.
        seed: Of the draw.
        site: Where tokens are looked at for whether they count; the last site by default.
        selection: Tokens that count: a token that does not is drawn again, among those of its sequence that do.
    """
    generator = seeds.generator(seed, "residual streams for logits")
    some = sequences[torch.randperm(len(sequences), generator=generator)[:streams]]
    position = torch.randint(some.shape[1], (streams,), generator=generator)
    number = torch.arange(streams) % len(some)
    counted = counted_mask(model, some, [site or model.last_site], selection)
    rows = counted.any(dim=1).nonzero().squeeze(1)
    number = rows[number % len(rows)]
    for i in (~counted[number, position]).nonzero().squeeze(1).tolist():
        possible = counted[number[i]].nonzero().squeeze(1)
        position[i] = possible[torch.randint(len(possible), (1,), generator=generator)]
    size = forward_size(model.device, some.shape[1])
    parts = track(some.split(size), "residual streams that leave the last block", unit="batches")
    caught = torch.cat([model.capture(part, model.last_site)[model.last_site] for part in parts])
    return caught[number.to(caught.device), position.to(caught.device)]


@torch.no_grad()
def logit_effects(
    model: LanguageModel,
    directions: Float[Tensor, "n d_model"],
    lengths: Float[Tensor, " n"],
    streams: Float[Tensor, "streams d_model"],
) -> Float[Tensor, "n vocabulary"]:
    """What each direction, added at a length, does to the logits, less the mean over the vocabulary; in nats.

    Args:
        model: The language model.
        directions: In the residual stream; the length is a multiple of theirs.
        lengths: By what each is multiplied.
        streams: What it is added to, as `leaving` gives them.
    """
    before = model.unembed(streams).float()
    found = []
    for step in (directions.to(streams) * lengths.to(streams)[:, None]).unbind():
        moved = (model.unembed(streams + step).float() - before).mean(dim=0)
        found.append((moved - moved.mean()).cpu())
    return torch.stack(found) if found else torch.zeros(0, model.vocabulary)


def extremes(effect: Float[Tensor, " vocabulary"], known: int, top: int) -> tuple[list[int], list[int]]:
    """The tokens promoted and suppressed most, strongest first, among the ids that the tokenizer knows."""
    order = effect[:known].argsort(descending=True, stable=True).tolist()
    return order[:top], order[::-1][:top]
