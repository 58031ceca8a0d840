"""Does a model keep attention sinks among the tokens that count, and how much of the variance do they hold?

In most language models the first position of a context, and a few others, has an activation tens to hundreds of times
as long as the rest (Sun et al. 2024, "Massive activations"). Where they count, mean squared error and explained
variance are those of a handful of positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dictlab.data.text import Text
from dictlab.model.language_model import LanguageModel
from dictlab.token_selection import ALL, NORM_MULTIPLE, TokenSelection, outliers

PROBE_CONTEXTS = 4  # that are looked at for attention sinks
WARNED_SHARE = 0.05  # of the variance: sinks that hold more change what is measured


def sinks_warning(sinks: Sinks | None, selection: TokenSelection) -> tuple[str, ...]:
    """What a report says where sinks count and hold a good part of the variance."""
    if sinks is None or not sinks.share > WARNED_SHARE:
        return ()
    share, where = sinks.share, f" at {sinks.site}" if sinks.site else ""
    return (
        f"Attention sinks{where} (positions whose norm exceeds {NORM_MULTIPLE:g} times the median) are counted (token "
        f"selection {selection}) and hold {share:.1%} of the variance: errors and explained variance are theirs "
        "to that extent. Leave them out with `token_selection='without-outliers'`.",
    )


class Sinks(NamedTuple):
    """Attention sinks in some contexts: positions whose norm exceeds `NORM_MULTIPLE` times the median of the context.

    Attributes:
        share: Of the variance about the mean that they hold, the most of all sites.
        positions: Of the contexts at which they are, each once.
        site: Where they hold most.
    """

    share: float
    positions: tuple[int, ...]
    site: str


@torch.no_grad()
def find_sinks(
    model: LanguageModel,
    text: Text,
    sites: Sequence[str],
    *,
    context: int,
    selection: TokenSelection = ALL,
    contexts: int = PROBE_CONTEXTS,
) -> Sinks | None:
    """Look for attention sinks among the tokens that count, in a few contexts; None where there are none."""
    tokens = torch.stack(list(islice(text.contexts(model.tokenizer, context), contexts)))
    captured = model.capture(tokens, list(sites))
    counted = selection.mask(captured.values(), tokens, model.tokenizer)
    worst = max((sinks_of(x.float(), counted, site) for site, x in captured.items()), key=lambda sinks: sinks.share)
    return worst if worst.positions else None


def sinks_of(x: Float[Tensor, "batch context d_in"], counted: Bool[Tensor, "batch context"], site: str = "") -> Sinks:
    """Attention sinks among the positions that count; none if `positions` is empty."""
    sinks = outliers(x) & counted
    rows = x[counted].double()
    squared = (x.double() - rows.mean(dim=0)).square().sum(dim=-1)
    total = float(squared[counted].sum())
    share = float(squared[sinks].sum()) / total if total > 0 else 0.0
    return Sinks(share, tuple(sinks.any(dim=0).nonzero().flatten().tolist()), site)
