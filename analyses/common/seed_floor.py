"""What differs between two dictionaries, and the floor: what two seeds of one dictionary differ by.

The seed floor of a similarity of A with B is the mean of the same similarity between A and the dictionaries that differ
from A in seed alone. A difference from B that does not go below it means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

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
