"""Similarities of pairs of dictionaries in one table, each beside what chance and another seed would give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from analyses.common.seed_floor import seed_floors, with_relations
from dictlab.dictionary import Dictionary

NONE = float("nan")


class Similarity(NamedTuple):
    """One number about two dictionaries, by name, with its 95 % interval; NaN is what there is none of.

    Attributes:
        measure: Which similarity.
        of: The dictionary asked about.
        to: The other one.
        value: The similarity.
        low: Lower end of its interval.
        high: Upper end of its interval.
        isotropic: The same, had one of the two uniformly random directions.
        shaped: The same, had one of the two random directions with the second moments of the other's.
        shuffled: Mean over permutations of who belongs to whom.
        p: Share of permutations at least as alike, the observed one among them.
        n: What the interval is over: latents, pairs, sequences or tokens.
        directed: Whether the other way round is another number.
    """

    measure: str
    of: str
    to: str
    value: float
    low: float = NONE
    high: float = NONE
    isotropic: float = NONE
    shaped: float = NONE
    shuffled: float = NONE
    p: float = NONE
    n: str = ""
    directed: bool = False


COLUMNS = {
    "of": "from",
    "isotropic": "chance (isotropic)",
    "shaped": "chance (shaped)",
    "shuffled": "shuffled, mean",
    "p": "shuffled, p",
    "n": "over",
}


def similarity_table(found: Sequence[Similarity], opened: Sequence[Dictionary]) -> pd.DataFrame:
    """One row a similarity, with what differs between the two and the seed floor."""
    frame = with_relations(pd.DataFrame(found).rename(columns=COLUMNS), opened)
    frame.insert(frame.columns.get_loc("chance (shaped)") + 1, "seed floor", seed_floors(frame, "value", "measure"))
    return frame.drop(columns="directed")


def relation_means(similarities: pd.DataFrame) -> pd.DataFrame:
    """For each measure and relation the mean over pairs, and the lowest and highest of them."""
    grouped = similarities.groupby(["measure", "relation", "seeds"], sort=False)["value"]
    frame = grouped.agg(["mean", "min", "max", "count"]).reset_index()
    return frame.rename(columns={"min": "lowest", "max": "highest", "count": "rows"})
