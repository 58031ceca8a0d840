"""What differs between two dictionaries, and the floor: what two seeds of one dictionary differ by.

The seed floor of a similarity of A with B is the mean of the same similarity between A and the dictionaries that differ
from A in seed alone. A difference from B that does not go below it means nothing.

Similarities of pairs of dictionaries stand in one table, each beside what chance and another seed would give.
"""

from __future__ import annotations

import math
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
        relation: What differs between the two; this and the following from `with_seed_floors`.
        seeds: Whether their seeds are the same.
        seed_floor: Mean of the same similarity between seeds.
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
    relation: str = ""
    seeds: str = ""
    seed_floor: float = NONE


def with_seed_floors(found: Sequence[Similarity], opened: Sequence[Dictionary]) -> list[Similarity]:
    """Similarities with what differs between the two dictionaries, and the seed floor.

    Only similarities of the same measure are compared; of a directed one those that begin with the same dictionary,
    else those that share one. NaN for pairs of seeds themselves, and where there is none.
    """
    named = {d.name: d for d in opened}
    related = [
        s._replace(relation=relation(named[s.of], named[s.to]), seeds=seeds_of(named[s.of], named[s.to])) for s in found
    ]
    between: dict[str, list[Similarity]] = {}
    for s in related:
        if s.relation == SEEDS:
            between.setdefault(s.measure, []).append(s)
    return [s._replace(seed_floor=_seed_floor(s, between.get(s.measure, []))) for s in related]


def _seed_floor(one: Similarity, between_seeds: Sequence[Similarity]) -> float:
    if one.relation == SEEDS:
        return NONE
    shared = {one.of} if one.directed else {one.of, one.to}
    same = [s.value for s in between_seeds if shared & ({s.of} if one.directed else {s.of, s.to})]
    return mean_known(same)


def mean_known(values: Sequence[float]) -> float:
    """The mean of the values that are numbers; NaN if none is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else NONE


def similarity_columns(one: Similarity) -> dict[str, object]:
    """The columns of a table that a similarity fills, from its value on; all but the shuffled ones."""
    row: dict[str, object] = {"low": one.low, "high": one.high, "chance (isotropic)": one.isotropic}
    return row | {"chance (shaped)": one.shaped, "seed floor": one.seed_floor}


def similarity_table(similarities: Sequence[Similarity]) -> pd.DataFrame:
    """One row a similarity, with what differs between the two and the seed floor."""
    return pd.DataFrame(
        [
            {"relation": s.relation, "seeds": s.seeds, "measure": s.measure, "from": s.of, "to": s.to, "value": s.value}
            | similarity_columns(s)
            | {"shuffled, mean": s.shuffled, "shuffled, p": s.p, "over": s.n}
            for s in similarities
        ]
    )


def relation_table(similarities: Sequence[Similarity]) -> pd.DataFrame:
    """For each measure and relation the mean over pairs, and the lowest and highest of them."""
    grouped: dict[tuple[str, str, str], list[float]] = {}
    for s in similarities:
        grouped.setdefault((s.measure, s.relation, s.seeds), []).append(s.value)
    rows = []
    for key, values in grouped.items():
        known = [value for value in values if not math.isnan(value)]
        rows.append((*key, mean_known(values), min(known, default=NONE), max(known, default=NONE), len(known)))
    return pd.DataFrame(rows, columns=["measure", "relation", "seeds", "mean", "lowest", "highest", "rows"])
