"""Some latents of LARGE, looked at more closely: which ones, what they are, and whether the model minds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from analyses.composition.insertion_in_model import (
    behaviour_caption,
    behaviour_sentence,
    behaviour_table,
    insertion_behaviour,
)
from analyses.composition.latent_cards import Scenery, portrait_cards, portrait_table, portraits
from analyses.composition.novelty_plots import behaviour_plot
from analyses.composition.seed_control import Inserted
from dictlab import seeds
from dictlab.errors import DictlabError
from dictlab.reports.cards import Cards
from dictlab.reports.report import Plot, Table

Choose = Literal["useful", "random"]


class Closeup(NamedTuple):
    """What was found of the latents that were looked at more closely."""

    tables: dict[str, Table]
    plots: dict[str, Plot]
    cards: dict[str, Cards]
    said: str


def looked_at(pair: Inserted, latents: Sequence[int], choose: Choose, count: int, seed: int) -> list[int]:
    """Which latents of LARGE are looked at more closely, most useful first unless they were named.

    Raises:
        DictlabError: LARGE has no latent of a number that was named.
    """
    unknown = [i for i in latents if not 0 <= i < pair.large.n_latents]
    if unknown:
        raise DictlabError(
            f"latents: {pair.large.name} has latents 0 to {pair.large.n_latents - 1}, and none called {unknown[0]}."
        )
    if latents:
        return list(dict.fromkeys(latents))
    alive: list[int] = pair.alive["latent"].tolist()
    if choose == "useful":
        return alive[: min(count, int(pair.novel.sum()))]
    order = torch.randperm(len(alive), generator=seeds.generator(seed, "latents looked at"))[:count].tolist()
    return [alive[i] for i in sorted(order)]


def look_closely(
    pair: Inserted,
    shown: Sequence[int],
    run: Sequence[int],
    scenery: Scenery,
    held: Int[Tensor, "sequences context"] | None,
) -> Closeup:
    """What some latents are, and what others (or the same) do to the model's output on held-out sequences."""
    tables: dict[str, Table] = {}
    plots: dict[str, Plot] = {}
    cards: dict[str, Cards] = {}
    said, frame = "", None
    if held is not None and run:
        found = insertion_behaviour(pair.small, pair.large, run, scenery.model, held, seed=scenery.seed)
        frame = behaviour_table(pair.latents, run, found)
        said, caption = behaviour_sentence(frame), behaviour_caption(found, pair.small.name)
        tables["behaviour"] = Table(frame, caption)
        plots["behaviour"] = behaviour_plot(frame, found.n_sequences, pair.small.name)
    if shown:
        drawn = portraits(pair.small, pair.large, shown, pair.effects, scenery)
        cards["portraits"] = portrait_cards(pair.latents, drawn, pair.effects, pair.small, pair.large, frame)
        tables["portraits"] = Table(portrait_table(pair.latents, drawn), cards["portraits"].caption)
    return Closeup(tables, plots, cards, said)
