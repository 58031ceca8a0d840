"""The first latents of each explained dictionary as cards: their patterns, and where these fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from analyses.common.max_activating import excerpt
from analyses.features.explanations.estimates import measures
from analyses.features.explanations.n2g_trie import ANY, BEGINNING, Pattern, distinct_patterns, pattern_pieces
from analyses.features.explanations.simulation import ExplainedDictionary, ExplainedLatent
from dictlab.numerics.statistics import Estimate
from dictlab.reports.cards import Card, Cards, Passage, Piece

CARDS = 8  # latents of a dictionary that get one
SHOWN = 6  # patterns on a card
EXCERPTS = 2  # of what was missed, and of what was wrong


def pattern_cards(
    explained: Sequence[ExplainedDictionary], tokenizer: Any, held: Int[Tensor, "sequences context"]
) -> Cards:
    """Cards of the first latents of each dictionary."""
    cards = [_card(one, latent, tokenizer, held) for one in explained for latent in one.latents[:CARDS]]
    return Cards(
        tuple(cards),
        f"Patterns with the largest activations: {ANY} is any token, {BEGINNING} the beginning of a context; shaded by "
        f"importance. Missed and wrong are held-out tokens, between « and ». First {CARDS} latents of each dictionary.",
    )


def _card(
    one: ExplainedDictionary, latent: ExplainedLatent, tokenizer: Any, held: Int[Tensor, "sequences context"]
) -> Card:
    share = Estimate(float(latent.score.active.sum() / one.sums["tokens"].sum()))
    fields = {name: in_words(estimate) for name, estimate in measures(latent.score, one.seed).items()}
    fields["active on"] = f"{share.words('.2%')} of held-out tokens"
    for word, places in (
        ("missed at", np.setdiff1d(latent.active.token, latent.simulated.token)),
        ("wrong at", np.setdiff1d(latent.simulated.token, latent.active.token)),
    ):
        for i, place in enumerate(places[:: max(1, len(places) // EXCERPTS)][:EXCERPTS]):
            row, position = divmod(int(place), held.shape[1])
            fields[f"{word} ({i + 1})"] = excerpt(tokenizer, held[row], position)
    strongest = sorted(distinct_patterns(latent.patterns), key=lambda pattern: -abs(pattern.activation))[:SHOWN]
    shown = tuple(_passage(pattern, tokenizer) for pattern in strongest)
    name, patterns = one.dictionary.name, {"Patterns": shown} if shown else {}
    return Card(f"Latent {latent.latent} of {name}", fields, patterns, (name, latent.latent))


def in_words(estimate: Estimate) -> str:
    """An estimate, or that there was nothing to measure on."""
    return estimate.words(".2f") if np.isfinite(estimate.value) else "not measured: there was no such token"


def _passage(pattern: Pattern, tokenizer: Any) -> Passage:
    weights = [min(1.0, max(0.0, value)) if value == value else 0.0 for value in pattern.importance]
    pieces = [Piece(text, round(w, 3)) for text, w in zip(pattern_pieces(pattern, tokenizer), weights, strict=True)]
    lead = [Piece(BEGINNING)] if pattern.at_start else []
    return Passage((*lead, *pieces, Piece(f"   {pattern.activation:.3g}")), len(lead) + len(pieces) - 1)
