"""What a stitching adds, in words and contexts: the inserted latents that are most useful, as cards."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from analyses.composition.insertion.latent_cards import CardContext, portrait_cards, portraits
from analyses.composition.insertion.single_insertions import SingleInsertions
from dictlab.data.activations import Activations, ModelActivations
from dictlab.reports.cards import Cards


def most_useful(pair: SingleInsertions, inserted: Bool[Tensor, " n_latents"], count: int) -> list[int]:
    """Of the inserted latents of LARGE, those that lower SMALL's MSE most when inserted alone; the best first."""
    latents = (inserted & torch.isfinite(pair.effects.change)).nonzero().squeeze(1)
    order = pair.effects.change[latents].argsort(stable=True)
    return [int(latent) for latent in latents[order][:count]]


def inserted_cards(
    pair: SingleInsertions,
    inserted: Bool[Tensor, " n_latents"],
    heldout: Activations,
    *,
    count: int,
    contexts: int,
    seed: int,
) -> dict[str, Cards]:
    """Cards of the most useful inserted latents of a larger dictionary; none without a model.

    Args:
        pair: What was measured of its latents.
        inserted: Which of them are in the result.
        heldout: Where they are looked for.
        count: Cards.
        contexts: Sequences to find them active in.
        seed: Of the sample.
    """
    if count == 0 or not isinstance(heldout, ModelActivations):
        return {}
    sequences = heldout.text.sample(heldout.model.tokenizer, heldout.context, contexts, seed=seed)
    context = CardContext(heldout.model, sequences, seed)
    latents = most_useful(pair, inserted, count)
    if not latents:
        return {}
    return {"inserted": portrait_cards(pair, portraits(pair, latents, context))}
