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
from analyses.common.search_cost import search_cost
from analyses.common.seed_floor import relation
from analyses.similarity.geometry.density_regions import ALPHA, FULL, NEIGHBOURS, Pool, density_ratio, pooled, regions
from analyses.similarity.geometry.direction_umap import Latent
from dictlab.dictionary import Dictionary
from dictlab.reports.report import Table
from dictlab.runtime.cost_estimate import CostEstimate
from dictlab.runtime.progress import track

SHUFFLES_A_PAIR = 40  # for p-values that can reach ALPHA after correction for the pairs
CENTRAL = 3  # latents of a region that stand in its row


class FilledRegion(NamedTuple):
    """A region that one of two dictionaries fills, with p-value corrected for all pairs."""

    dictionary: Dictionary
    other: Dictionary
    latents: Int[np.ndarray, " members"]  # most central first
    ratios: Float[np.ndarray, " members"]
    ratio: float
    p: float


class Contrast(NamedTuple):
    """The regions that one of two dictionaries fills and the other leaves empty.

    Attributes:
        relation: What differs between the two.
        dictionary: The one.
        other: The other one.
        regions: Regions that the one fills alone.
        share: Share of its alive latents that lie in them.
        regions_of_other: Regions that the other fills alone.
        share_of_other: Share of its alive latents that lie in them.
    """

    relation: str
    dictionary: str
    other: str
    regions: int
    share: float
    regions_of_other: int
    share_of_other: float

    @property
    def n_regions(self) -> int:
        """Regions that either fills alone."""
        return self.regions + self.regions_of_other


class PairwiseGeometry(NamedTuple):
    """What comes of comparing every two dictionaries.

    Attributes:
        values: Max cosines over alive latents, by ordered pair of names.
        regions: Regions, largest first.
        contrasts: Of each unordered pair: how many regions, and how much of a dictionary lies in them.
        permutations: Shuffles behind the p-values.
    """

    values: dict[tuple[str, str], Tensor]
    regions: list[FilledRegion]
    contrasts: list[Contrast]
    permutations: int

    def tables(self, contexts: LatentContexts | None) -> dict[str, Table]:
        """Contrasts, regions, and the latents of each region."""
        return {
            "contrasts": Table(_contrast_table(self.contrasts), _CONTRASTS),
            "regions": Table(_region_table(self.regions, contexts), self._caption()),
            "region_latents": Table(
                _region_latents(self.regions, contexts), _LATENTS, named_in={"latent": "dictionary"}
            ),
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


def compare(opened: Sequence[Dictionary], permutations: int, seed: int) -> PairwiseGeometry:
    """Max cosines and regions of every two dictionaries.

    Args:
        opened: The dictionaries.
        permutations: Shuffles of the labels; more where the correction for pairs asks for it.
        seed: Of the shuffles.
    """
    pairs = list(combinations(opened, 2))
    shuffles = max(permutations, SHUFFLES_A_PAIR * len(pairs))
    _cost(opened).announce()
    own = {d.name: near(d, d, NEIGHBOURS) for d in opened}
    values = {(name, name): found.cosine[:, 0] for name, found in own.items()}
    found: list[FilledRegion] = []
    contrasts = []
    for a, b in track(pairs, "pairs of dictionaries", unit="pairs"):
        ab, ba = near(a, b, NEIGHBOURS), near(b, a, NEIGHBOURS)
        values |= {(a.name, b.name): ab.cosine[:, 0], (b.name, a.name): ba.cosine[:, 0]}
        pool = pooled(own[a.name], ab, ba, own[b.name], NEIGHBOURS)
        these = _found(a, b, pool, shuffles, len(pairs), seed)
        contrasts.append(_contrast(a, b, these))
        found += these
    found.sort(key=lambda region: -len(region.latents))
    return PairwiseGeometry(values, found, contrasts, shuffles)


def _cost(opened: Sequence[Dictionary]) -> CostEstimate:
    """What the searches are going to cost: each dictionary with itself, and every two both ways."""
    return search_cost(
        "geometry",
        [(a.W_dec, b.W_dec) for a in opened for b in opened],
        lambda a, b: nearest(a, b, top=NEIGHBOURS),
        note="the search for nearest directions alone",
    )


def _found(a: Dictionary, b: Dictionary, pool: Pool, shuffles: int, pairs: int, seed: int) -> list[FilledRegion]:
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
            kept.append(FilledRegion(one, other, latents.numpy()[rows][order], around[order], region.ratio, p))
    return kept


def _contrast(a: Dictionary, b: Dictionary, found: Sequence[FilledRegion]) -> Contrast:
    def of(one: Dictionary) -> tuple[int, float]:
        sizes = [len(region.latents) for region in found if region.dictionary is one]
        return len(sizes), sum(sizes) / int(one.alive.sum())

    return Contrast(relation(a, b), a.name, b.name, *of(a), *of(b))


def membership(found: Sequence[FilledRegion]) -> dict[Latent, tuple[int, ...]]:
    """The numbers of the regions that each latent is in."""
    numbers: dict[Latent, tuple[int, ...]] = {}
    for number, region in enumerate(found, 1):
        for latent in region.latents.tolist():
            key = (region.dictionary.name, latent)
            numbers[key] = (*numbers.get(key, ()), number)
    return numbers


def _contrast_table(contrasts: Sequence[Contrast]) -> pd.DataFrame:
    columns = ["relation", "dictionary", "other", "regions", "share", "regions of other", "share of other"]
    return pd.DataFrame(contrasts, columns=columns)


def _region_table(found: Sequence[FilledRegion], contexts: LatentContexts | None) -> pd.DataFrame:
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


def _region_latents(found: Sequence[FilledRegion], contexts: LatentContexts | None) -> pd.DataFrame:
    rows = [
        (number, region.dictionary.name, latent, ratio)
        for number, region in enumerate(found, 1)
        for latent, ratio in zip(region.latents.tolist(), region.ratios.tolist(), strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["region", "dictionary", "latent", "density ratio"])
    return with_contexts(frame, [name for _, name, *_ in rows], [latent for *_, latent, _ in rows], contexts)
