"""What are these latents? For each of some latents of LARGE: where it is active, what it writes, what is near it.

* where: the sequences of the sample with its largest activations, each token shaded by the latent's activation there;
* what it writes: the tokens that its decoder direction promotes and suppresses (`logits`);
* what is near: the alive latents of SMALL with the largest cosine, and where the nearest of them is most active.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.common.max_activating import AFTER, BEFORE, peaks
from analyses.common.neighbours import Neighbours
from analyses.common.token_texts import token_text, token_texts
from analyses.composition.insertion.direct_logits import extremes, leaving, logit_effects, writes_to_stream
from analyses.composition.insertion.insertion_effects import InsertionEffects
from analyses.composition.insertion.insertion_in_model import Changes
from analyses.composition.insertion.insertion_tables import classes
from analyses.composition.insertion.single_insertions import SingleInsertions, nearest_alive
from dictlab.data.activations import forward_size
from dictlab.dictionary import Dictionary
from dictlab.evaluation.sites import site_of
from dictlab.model.language_model import LanguageModel
from dictlab.reports.cards import Card, Cards, Passage, Piece
from dictlab.runtime.progress import track
from dictlab.token_selection import ALL, TokenSelection

CONTEXTS, PARENT_CONTEXTS = 4, 2  # shown of a latent, and of the latent of SMALL that is nearest
NEAREST = 3
TOKENS = 8  # promoted, and suppressed


class CardContext(NamedTuple):
    """The model that latents are shown in, the token ids to find them active in, and the seed of what is drawn.

    Tokens that do not count by `selection` are no peaks, shaded as silent, and in no mean of logits.
    """

    model: LanguageModel
    sequences: Int[Tensor, "sequences context"]
    seed: int
    selection: TokenSelection = ALL


class Portrait(NamedTuple):
    """One latent.

    Attributes:
        latent: Its number in LARGE.
        contexts: Where it is most active.
        parent_contexts: Where the nearest latent of SMALL is.
        near: Numbers and cosines of the nearest latents of SMALL.
        promoted: Tokens and their logits; None where directions at the site are none of the residual stream.
        suppressed: Tokens whose logits fall most, and by how much; None in the same case.
    """

    latent: int
    contexts: tuple[Passage, ...]
    parent_contexts: tuple[Passage, ...]
    near: tuple[tuple[int, float], ...]
    promoted: tuple[tuple[str, float], ...] | None
    suppressed: tuple[tuple[str, float], ...] | None


def portraits(pair: SingleInsertions, latents: Sequence[int], context: CardContext) -> list[Portrait]:
    """Portraits of some latents of LARGE.

    Args:
        pair: What was inserted; both dictionaries on the model's device, and reading its activations.
        latents: Which.
        context: The model, and the tokens to find them active in.
    """
    small, large = pair.small, pair.large
    found = nearest_alive(large, small, NEAREST)
    near = Neighbours(found.cosine[list(latents)].cpu(), found.rows[list(latents)].cpu())
    parents = near.rows[:, 0].tolist()
    of_small, of_large = peaks(
        [small, large], context.model, context.sequences, top=CONTEXTS, selection=context.selection
    )
    shown = passages(large, latents, of_large.sequence, of_large.position, of_large.activation, context)
    beside = passages(small, parents, of_small.sequence, of_small.position, of_small.activation, context)
    written = _written(large, latents, pair.effects, context)
    return [
        Portrait(
            latent,
            shown[latent],
            beside[parents[i]][:PARENT_CONTEXTS],
            tuple(zip(near.rows[i].tolist(), near.cosine[i].tolist(), strict=True)),
            *written[i],
        )
        for i, latent in enumerate(latents)
    ]


def passages(
    dictionary: Dictionary,
    latents: Sequence[int],
    sequence: Int[Tensor, "n_latents top"],
    position: Int[Tensor, "n_latents top"],
    activation: Float[Tensor, "n_latents top"],
    context: CardContext,
) -> dict[int, tuple[Passage, ...]]:
    """Text around the peaks of some latents, best first; pieces are weighted by activation beside the strongest.

    Args:
        dictionary: The latents' own, on the model's device, and reading its activations.
        latents: Which.
        sequence: Of each latent's peaks, best first, as `peaks` gives them.
        position: Of each peak in its sequence.
        activation: Of each peak; 0 where there is none.
        context: The model and the token ids.
    """
    chosen = list(dict.fromkeys(latents))
    needed = sequence[chosen][activation[chosen] > 0].unique()
    strength = _strengths(dictionary, chosen, needed, context)
    row_of = {number: row for row, number in enumerate(needed.tolist())}
    made: dict[int, tuple[Passage, ...]] = {}
    for i, latent in enumerate(chosen):
        weights = (strength[i] / activation[latent, 0].to(strength)).clamp(max=1)
        found = zip(
            sequence[latent].tolist(), position[latent].tolist(), (activation[latent] > 0).tolist(), strict=True
        )
        made[latent] = tuple(
            passage_around(context.model.tokenizer, context.sequences[number], weights[row_of[number]], at)
            for number, at, active in found
            if active
        )
    return made


@torch.no_grad()
def _strengths(
    dictionary: Dictionary, latents: Sequence[int], numbers: Int[Tensor, " n"], context: CardContext
) -> Float[Tensor, "latents n context"]:
    """Absolute activations of some latents in some sequences, each of which goes through the model once."""
    site = site_of(dictionary)
    tokens = context.sequences[numbers]
    strength = torch.zeros(len(latents), *tokens.shape)
    if not len(numbers):
        return strength
    row_of = torch.full((dictionary.n_latents,), -1)
    row_of[list(latents)] = torch.arange(len(latents))
    parts = tokens.split(forward_size(context.model.device, tokens.shape[1]))
    begin = 0
    for part in track(parts, f"contexts of {dictionary.name}", unit="batches"):
        x = context.model.capture(part, site)[site]
        counted = context.selection.mask([x], part, context.model.tokenizer)
        codes = dictionary.encode(x[counted])
        row, places = row_of[codes.indices.cpu()], counted.nonzero().cpu()[codes.rows.cpu()]
        wanted = row >= 0
        strength[row[wanted], begin + places[wanted, 0], places[wanted, 1]] = codes.values[wanted].abs().float().cpu()
        begin += len(part)
    return strength


def portrait_table(pair: SingleInsertions, found: Sequence[Portrait]) -> pd.DataFrame:
    """One row a portrait: what is measured of the latent, and what its card says."""
    latents = [one.latent for one in found]
    effects = pair.effects
    return pd.DataFrame(
        {
            "latent": latents,
            "class": classes(pair)[latents],
            "change in MSE": effects.change[latents].numpy(),
            "standard error": effects.error[latents].numpy(),
            "firing rate": effects.firing_rate[latents].numpy(),
            "promoted": [_listed(one.promoted) for one in found],
            "suppressed": [_listed(one.suppressed) for one in found],
            "nearest": [_near(one) for one in found],
        }
        | {
            f"context {k + 1}": [str(one.contexts[k]) if k < len(one.contexts) else None for one in found]
            for k in range(CONTEXTS)
        }
        | {"context of the nearest": [str(one.parent_contexts[0]) if one.parent_contexts else None for one in found]}
    )


def portrait_cards(
    pair: SingleInsertions, found: Sequence[Portrait], behaviour: Mapping[int, Mapping[str, Changes]] | None = None
) -> Cards:
    """The portraits as cards.

    Args:
        pair: What was inserted.
        found: Of `portraits`.
        behaviour: For each latent that was run in the model, its changes in CE and KL.
    """
    small, large, effects = pair.small, pair.large, pair.effects
    by_effect, by_cosine = classes(pair), classes(pair, by_cosine=True)
    cards = []
    for one in found:
        i = one.latent
        change, error = float(effects.change[i]), float(effects.error[i])
        fields = {
            "class": f"{by_effect[i]}; by cosine {by_cosine[i]}",
            "change in MSE": f"{change:+.4g} ± {error:.2g} ({effects.of_mse(change):+.2%} of SMALL's)",
            "best scale": f"{float(effects.scale[i]):.2f}",
            "active on": f"{float(effects.firing_rate[i]):.2%} of tokens, at {effects.strength[i]:.3g} on average",
            **_behaviour_fields((behaviour or {}).get(i, {})),
            "nearest in SMALL": _near(one),
        }
        if one.promoted is not None:
            fields |= {"promotes": _listed(one.promoted) or "", "suppresses": _listed(one.suppressed) or ""}
        parent = one.near[0][0] if one.near else None
        headings = {
            "Most active at": one.contexts,
            f"Latent {parent} of {small.name} is most active at": one.parent_contexts,
        }
        known = {heading: found for heading, found in headings.items() if found}
        cards.append(Card(f"Latent {one.latent} of {large.name}", fields, known, (large.name, one.latent)))
    return Cards(tuple(cards), _caption(pair, all(one.promoted is not None for one in found)))


def _caption(pair: SingleInsertions, with_tokens: bool) -> str:
    """How cards are to be read."""
    tokens = (
        "Promoted and suppressed tokens: logits, less their mean over the vocabulary, with the direction at its mean "
        "activation added to streams that leave the last block, through the model's own final norm."
        if with_tokens
        else "No tokens are listed: directions at this site are not directions of the residual stream."
    )
    return (
        f"Latents of {pair.large.name} inserted alone into {pair.small.name} (SMALL); contexts out of "
        f"{pair.effects.sequences} sequences ({pair.effects.tokens} tokens), shaded by activation. ± is a standard "
        f"error over sequences. {tokens}"
    )


def _behaviour_fields(changes: Mapping[str, Changes]) -> dict[str, str]:
    return {
        f"change in {what}": f"{change.value:+.2g} [{change.low:+.2g}, {change.high:+.2g}] nats/token"
        for what, change in changes.items()
    }


def _written(
    large: Dictionary, latents: Sequence[int], effects: InsertionEffects, context: CardContext
) -> list[tuple[Any, Any]]:
    """Tokens promoted and suppressed by each latent, or nothing where the site is not in the residual stream."""
    model, chosen = context.model, list(latents)
    if not writes_to_stream(model, site_of(large)):
        return [(None, None)] * len(chosen)
    strength = effects.strength[chosen].nan_to_num(0.0).float()
    streams = leaving(model, context.sequences, seed=context.seed, site=site_of(large), selection=context.selection)
    known = min(model.vocabulary, len(model.tokenizer))
    found = []
    for effect in logit_effects(model, large.W_dec[chosen], strength, streams):
        named = [
            tuple((token_text(model.tokenizer, i), float(effect[i])) for i in ids)
            for ids in extremes(effect, known, TOKENS)
        ]
        found.append((named[0], named[1]))
    return found


def passage_around(tokenizer: Any, tokens: Tensor, weights: Tensor, position: int) -> Passage:
    """The text around a token, the peak, each piece with its weight."""
    start = max(0, position - BEFORE)
    end = position + 1 + AFTER
    texts = token_texts(tokenizer, tokens[start:end].tolist(), position - start)
    pieces = (Piece(text, round(float(w), 3)) for text, w in zip(texts, weights[start:end], strict=True))
    return Passage(tuple(pieces), position - start)


def _listed(tokens: Sequence[tuple[str, float]] | None) -> str | None:
    return None if tokens is None else "  ".join(f"“{text}” {value:+.2f}" for text, value in tokens)


def _near(one: Portrait) -> str:
    return ", ".join(f"{latent} (cosine {cosine:.2f})" for latent, cosine in one.near)
