"""Every two of several dictionaries, compared: max cosines both ways, and the regions that only one of them fills."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from analyses.common.chance import alive_directions, oriented
from analyses.common.max_activating import LatentContexts, with_contexts
from analyses.common.neighbours import Neighbours, nearest
from analyses.common.seed_floor import relation
from analyses.similarity.density_regions import ALPHA, FULL, NEIGHBOURS, Pool, density_ratio, pooled, regions
from analyses.similarity.geometry_report import Latent
from dictlab.dictionary import Dictionary
from dictlab.progress import track
from dictlab.reports.report import Table

SHUFFLES_A_PAIR = 40  # for p-values that can reach ALPHA after correction for the pairs
CENTRAL = 3  # latents of a region that stand in its row


class Found(NamedTuple):
    """A region that one of two dictionaries fills, with p-value corrected for all pairs."""

    dictionary: Dictionary
    other: Dictionary
    latents: Int[np.ndarray, " members"]  # most central first
    ratios: Float[np.ndarray, " members"]
    ratio: float
    p: float


class Comparison(NamedTuple):
    """What comes of comparing every two dictionaries.

    Attributes:
        values: Max cosines over alive latents, by ordered pair of names.
        found: Regions, largest first.
        contrasts: One row an unordered pair: how many regions, and how much of a dictionary lies in them.
        permutations: Shuffles behind the p-values.
    """

    values: dict[tuple[str, str], Tensor]
    found: list[Found]
    contrasts: pd.DataFrame
    permutations: int

    def tables(self, contexts: LatentContexts | None) -> dict[str, Table]:
        """Contrasts, regions, and the latents of each region."""
        return {
            "contrasts": Table(self.contrasts, _CONTRASTS),
            "regions": Table(_region_table(self.found, contexts), self._caption()),
            "region_latents": Table(_region_latents(self.found, contexts), _LATENTS),
        }

    def _caption(self) -> str:
        return (
            f"Largest first: adjacent latents of a dictionary whose {NEIGHBOURS} nearest are its own more often "
            f"than {1 - FULL:.0%} of shuffles make them. Density ratio: its density over the other's, geometric mean. "
            f"P-value: share of {self.permutations} shuffles whose largest region is as large, times "
            f"{len(self.contrasts)} pairs of dictionaries; regions up to {ALPHA:g} are listed."
        )


_CONTRASTS = (
    "For every two dictionaries, the regions that one fills and the other leaves empty, and the share of its alive "
    "latents that lie in them. Between two seeds there should be none."
)
_LATENTS = "The latents of each region, most central first, and where each is most active."


def near(a: Dictionary, b: Dictionary, top: int) -> Neighbours:
    """For each alive latent of a the nearest alive ones of b, itself apart if b is a."""
    (of_a, latents), (of_b, others) = alive_directions(a), alive_directions(b)
    signed: dict[str, Any] = {"signed_a": a.signed[latents], "signed_b": b.signed[others]}
    return nearest(of_a, of_b, top=top, itself=a is not b, **signed)


def compare(opened: Sequence[Dictionary], permutations: int, seed: int) -> Comparison:
    """Max cosines and regions of every two dictionaries.

    Args:
        opened: The dictionaries.
        permutations: Shuffles of the labels; more where the correction for pairs asks for it.
        seed: Of the shuffles.
    """
    pairs = list(combinations(opened, 2))
    shuffles = max(permutations, SHUFFLES_A_PAIR * len(pairs))
    own = {d.name: near(d, d, NEIGHBOURS) for d in opened}
    values = {(name, name): found.cosine[:, 0] for name, found in own.items()}
    found: list[Found] = []
    rows = []
    for a, b in track(pairs, "pairs of dictionaries", unit="pairs"):
        ab, ba = near(a, b, NEIGHBOURS), near(b, a, NEIGHBOURS)
        values |= {(a.name, b.name): ab.cosine[:, 0], (b.name, a.name): ba.cosine[:, 0]}
        pool = pooled(own[a.name], ab, ba, own[b.name], NEIGHBOURS)
        these = _found(a, b, pool, shuffles, len(pairs), seed)
        rows.append(_contrast(a, b, these))
        found += these
    found.sort(key=lambda region: -len(region.latents))
    columns = ["relation", "dictionary", "other", "regions", "share", "regions of other", "share of other"]
    return Comparison(values, found, pd.DataFrame(rows, columns=columns), shuffles)


def _found(a: Dictionary, b: Dictionary, pool: Pool, shuffles: int, pairs: int, seed: int) -> list[Found]:
    """The regions of a pair that remain after correction."""
    ratios = density_ratio(pool)
    kept = []
    for region in regions(pool, permutations=shuffles, seed=seed):
        p = min(1.0, region.p * pairs)
        if p <= ALPHA:
            one, other = (a, b) if region.of_a else (b, a)
            directions, latents = alive_directions(one)
            rows = region.members - (0 if region.of_a else pool.n_a)
            members = oriented(directions[rows], one.signed[latents][rows])
            order = np.argsort(-(members @ members.mean(dim=0)).numpy(), kind="stable")
            around = ratios[region.members] if region.of_a else 1 / ratios[region.members]
            kept.append(Found(one, other, latents.numpy()[rows][order], around[order], region.ratio, p))
    return kept


def _contrast(a: Dictionary, b: Dictionary, found: Sequence[Found]) -> dict[str, object]:
    def of(one: Dictionary) -> tuple[int, float]:
        sizes = [len(region.latents) for region in found if region.dictionary is one]
        return len(sizes), sum(sizes) / int(one.alive.sum())

    row: dict[str, object] = {"relation": relation(a, b), "dictionary": a.name, "other": b.name}
    row["regions"], row["share"] = of(a)
    row["regions of other"], row["share of other"] = of(b)
    return row


def membership(found: Sequence[Found]) -> dict[Latent, str]:
    """The numbers of the regions that each latent is in."""
    held: dict[Latent, str] = {}
    for number, region in enumerate(found, 1):
        for latent in region.latents.tolist():
            key = (region.dictionary.name, latent)
            held[key] = f"{held[key]}, {number}" if key in held else str(number)
    return held


def _region_table(found: Sequence[Found], contexts: LatentContexts | None) -> pd.DataFrame:
    rows, shown_as = [], [] if contexts is None else [f"{contexts.called}s"]
    for number, region in enumerate(found, 1):
        central = region.latents[:CENTRAL].tolist()
        row = {
            "region": number,
            "filled by": region.dictionary.name,
            "not by": region.other.name,
            "latents": len(region.latents),
            "density ratio": region.ratio,
            "p-value": region.p,
            "most central": ", ".join(map(str, central)),
        }
        if contexts is not None:
            shown = contexts.of(region.dictionary.name, central)
            row[shown_as[0]] = "  |  ".join(texts[0] for texts in shown.values() if texts)
        rows.append(row)
    columns = ["region", "filled by", "not by", "latents", "density ratio", "p-value", "most central"]
    return pd.DataFrame(rows, columns=[*columns, *shown_as])


def _region_latents(found: Sequence[Found], contexts: LatentContexts | None) -> pd.DataFrame:
    rows = [
        {"region": number, "dictionary": region.dictionary.name, "latent": latent, "density ratio": ratio}
        for number, region in enumerate(found, 1)
        for latent, ratio in zip(region.latents.tolist(), region.ratios.tolist(), strict=True)
    ]
    return with_contexts(pd.DataFrame(rows, columns=["region", "dictionary", "latent", "density ratio"]), contexts)
