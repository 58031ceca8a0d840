"""What differs between two dictionaries, and the floor: what two seeds of one dictionary differ by.

The seed floor of a similarity of A with B is the mean of the same similarity between A and the dictionaries that differ
from A in seed alone. A difference from B that does not go below it means nothing.

Similarities of pairs of dictionaries stand in one table, each beside what chance and another seed would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from dictlab.dictionary import Dictionary

SEEDS = "cross-seed"


def relation(a: Dictionary, b: Dictionary) -> str:
    """What differs between two dictionaries, by their metadata."""
    if a is b:
        return "within"
    differs = [
        name
        for name, one, other in (
            ("objective", a.metadata.objective, b.metadata.objective),
            ("activation", a.activation.kind, b.activation.kind),
            ("width", a.n_latents, b.n_latents),
            ("tokens", a.metadata.tokens, b.metadata.tokens),
        )
        if one != other
    ]
    # A sparsity setting means something else under another objective or activation function.
    if not {"objective", "activation"} & set(differs) and _sparsity(a) != _sparsity(b):
        differs.append("sparsity")
    if not differs:
        return SEEDS if a.metadata.seed != b.metadata.seed else "same settings"
    return "cross-" + "-".join(differs)


def seeds_of(a: Dictionary, b: Dictionary) -> str:
    """Whether two dictionaries have one seed; those that do may have begun with the same directions."""
    one, other = a.metadata.seed, b.metadata.seed
    return "unknown" if one is None or other is None else "same" if one == other else "different"


def other_seeds(a: Dictionary, opened: Sequence[Dictionary]) -> list[str]:
    """The dictionaries that differ from a in seed alone, by name."""
    return [b.name for b in opened if relation(a, b) == SEEDS]


def with_relations(frame: pd.DataFrame, opened: Sequence[Dictionary]) -> pd.DataFrame:
    """A table of pairs (columns from, to), with what differs between the two in front."""
    named = {d.name: d for d in opened}
    both = [(named[a], named[b]) for a, b in zip(frame["from"], frame["to"], strict=True)]
    framed = frame.copy()
    framed.insert(0, "relation", [relation(a, b) for a, b in both])
    framed.insert(1, "seeds", [seeds_of(a, b) for a, b in both])
    return framed


def seed_floors(frame: pd.DataFrame, value: str, by: str) -> pd.Series:
    """The seed floor of each row of a table with relations; NaN for pairs of seeds themselves, and where there is none.

    Args:
        frame: One row a pair and measure, with the columns relation, from, to, directed. Only rows of the same
            measure are compared; of a directed measure those that begin with the same dictionary, else those that
            share one.
        value: The column that holds the similarity.
        by: The column that names the measure.
    """
    floor = pd.Series(float("nan"), index=frame.index)
    for _, rows in frame.groupby(by, sort=False):
        seeds = rows[rows["relation"] == SEEDS]
        for index, row in rows[rows["relation"] != SEEDS].iterrows():
            shared = {row["from"]} if row["directed"] else {row["from"], row["to"]}
            same = seeds["from"].isin(shared) if row["directed"] else seeds[["from", "to"]].isin(shared).any(axis=1)
            floor[index] = seeds.loc[same, value].mean()
    return floor


def without_floor(relations: Sequence[str]) -> tuple[str, ...]:
    """A warning where dictionaries differ, and no two in seed alone."""
    if SEEDS in relations or not any(name.startswith("cross-") for name in relations):
        return ()
    return ("No two of these dictionaries differ in seed alone, so there is no floor to compare differences with.",)


def _sparsity(dictionary: Dictionary) -> object:
    """Its k, or what it was trained with: a file of BatchTopK or JumpReLU has thresholds alone."""
    training = dictionary.metadata.training
    known = (getattr(dictionary.activation, "k", None), *(training.get(key) for key in ("k", "l0", "l1")))
    return next((value for value in known if value is not None), None)


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
