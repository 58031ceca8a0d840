"""Tables of single insertions, for every report that shows them: one row a latent, and how far two rules agree."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd

from analyses.composition.insertion.single_insertions import SingleInsertions

NOVEL, RECONSTRUCTION, DEAD = "novel", "reconstruction", "dead"  # what tables call a latent


def latent_table(pair: SingleInsertions) -> pd.DataFrame:
    """One row a latent of LARGE, most useful first: effect, cosine, and the class by each rule."""
    effects, order = pair.effects, pair.most_useful_first
    columns = {
        "latent": np.arange(len(order)),
        "class": classes(pair),
        "change in MSE": effects.change.numpy(),
        "standard error": effects.error.numpy(),
        "best scale": effects.scale.numpy(),
        "firing rate": effects.firing_rate.numpy(),
        "max cosine": pair.neighbours.cosine[:, 0].cpu().numpy(),
        "parent": pair.neighbours.rows[:, 0].cpu().numpy(),
        "class by cosine": classes(pair, by_cosine=True),
    }
    return pd.DataFrame({name: values[order] for name, values in columns.items()})


def latents_of(pair: SingleInsertions) -> dict[str, list[str | None]]:
    """For each column of latents' numbers of `latent_table`, the dictionary that each row's latent is of."""
    n = len(pair.most_useful_first)
    return {"latent": [pair.large.name] * n, "parent": [pair.small.name] * n}


def classes(pair: SingleInsertions, *, by_cosine: bool = False) -> np.ndarray:
    """What tables call each latent of LARGE: novel, reconstruction or dead, by its measured effect or by cosine."""
    novel = pair.novel_by_cosine if by_cosine else pair.novel
    return np.where(pair.effects.dead.numpy(), DEAD, np.where(novel.numpy(), NOVEL, RECONSTRUCTION))


def effects_caption(pair: SingleInsertions) -> str:
    """What the columns of `latent_table` are."""
    return (
        f"Most useful first. Change in MSE in activation², standard error over {pair.effects.sequences} sequences "
        f"({pair.effects.tokens} tokens), best scale, firing rate, nearest latent (parent)."
    )


def agreement_table(pair: SingleInsertions) -> pd.DataFrame:
    """How many active latents each rule calls novel, and how often they agree."""
    names, rows = {True: NOVEL, False: RECONSTRUCTION}, []
    for by_effect, by_cosine in product((True, False), repeat=2):
        count = int(((pair.alive.novel == by_effect) & (pair.alive.novel_by_cosine == by_cosine)).sum())
        if count:
            rows.append((names[by_effect], names[by_cosine], count))
    return pd.DataFrame(rows, columns=["class", "class by cosine", "latents"])
