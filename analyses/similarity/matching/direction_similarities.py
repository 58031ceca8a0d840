"""How similar are two dictionaries by the directions of their latents: all numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from analyses.common.chance import KINDS, Levels
from analyses.common.seed_floor import Similarity
from analyses.similarity.matching.latent_pairs import Matched, Pair
from dictlab.numerics.statistics import mean_interval

THRESHOLDS = tuple(t / 100 for t in range(30, 100, 5))
STRATA = 10

Rates = Mapping[str, Tensor]  # by dictionary


def direction_similarities(pair: Pair, levels: Levels, threshold: float, seed: int) -> list[Similarity]:
    """Everything that cosines say about a pair."""
    ways = ((pair.a, pair.b, pair.forward), (pair.b, pair.a, pair.backward))
    found = []
    for of, to, nearest in ways:
        best = nearest.cosine[:, 0]
        low, high = mean_interval(best, seed)
        level, n = levels[to.name], f"{len(best)} latents"
        one = Similarity("MMCS", of.name, to.name, float(best.double().mean()), low, high, n=n, directed=True)
        found.append(one._replace(isotropic=level["isotropic"], shaped=level["shaped"]))
    chosen, chance = pair.matched, {kind: pair.chance[kind].matched for kind in KINDS}
    mutual = torch.zeros(len(chosen.decoder.rows))
    mutual[: int(pair.mutual.sum())] = 1
    found += [
        _mean("mutual nearest, share", pair, mutual, {k: pair.chance[k].mutual for k in KINDS}, seed),
        _mean("MCC, decoder", pair, chosen.decoder.cosine, {k: c.decoder.mean for k, c in chance.items()}, seed),
        _mean("MCC, encoder", pair, chosen.encoder.cosine, {k: c.encoder.mean for k, c in chance.items()}, seed),
        _mean("encoder and decoder agree, share", pair, chosen.agree.float(), _shares(chance, None), seed),
        _mean(f"aligned at {threshold:g}, share", pair, aligned(chosen, threshold), _shares(chance, threshold), seed),
    ]
    return found


def aligned(chosen: Matched, threshold: float) -> Tensor:
    """Whether both assignments hold a pair and both its cosines reach a threshold; 0 or 1."""
    return (chosen.agree & (chosen.decoder.cosine >= threshold) & (chosen.encoder_cosine >= threshold)).float()


class OrderedPair(NamedTuple):
    """The latents of one dictionary looked for in another.

    Attributes:
        mmcs: Mean max cosine similarity.
        one_to_one: Mean cosine of the one-to-one pairs, by decoder and by encoder.
        share_above_threshold: Share of the latents whose max cosine reaches the threshold.
        n_mutual: Pairs that are each other's nearest.
        n_alive: Alive latents of the one.
        n_dead: Its dead ones.
    """

    mmcs: Similarity
    one_to_one: dict[str, float]
    share_above_threshold: float
    n_mutual: int
    n_alive: int
    n_dead: int


def ordered_pairs(similarities: Sequence[Similarity], pairs: Sequence[Pair], threshold: float) -> list[OrderedPair]:
    """Both ways of every pair: mean max cosine, mutual and one-to-one pairs."""
    by_key = {(s.measure, s.of, s.to): s for s in similarities}
    both_ways = []
    for pair in pairs:
        one_to_one = {m: by_key[f"MCC, {m}", pair.a.name, pair.b.name].value for m in ("decoder", "encoder")}
        for of, to, nearest in ((pair.a, pair.b, pair.forward), (pair.b, pair.a, pair.backward)):
            best = nearest.cosine[:, 0]
            share = float((best >= threshold).float().mean())
            counts = (int(pair.mutual.sum()), len(best), of.n_emitting - len(best))
            both_ways.append(OrderedPair(by_key["MMCS", of.name, to.name], one_to_one, share, *counts))
    return both_ways


class ThresholdShares(NamedTuple):
    """Shares of latents at or above each of `THRESHOLDS`, by stricter and stricter ways of being the same."""

    of: str
    to: str
    by_measure: dict[str, list[float]]


def threshold_shares(pair: Pair) -> ThresholdShares:
    """The shares of one pair of dictionaries."""
    rows = [_shares_at(pair, t) for t in THRESHOLDS]
    return ThresholdShares(pair.a.name, pair.b.name, {name: [row[name] for row in rows] for name in rows[0]})


class Stratum(NamedTuple):
    """A decile of the firing rate of the smaller dictionary's latents, and how well its pairs match."""

    decile: int
    lowest_rate: float
    highest_rate: float
    mcc: Similarity


def strata(pair: Pair, rates: Rates, seed: int) -> list[Stratum]:
    """MCC by decile of the firing rate of the smaller dictionary's latents; and the rates that each decile spans."""
    own = rates[pair.small.name][pair.a_latents if pair.small is pair.a else pair.b_latents]
    chance = {kind: pair.chance[kind].matched.decoder.mean for kind in KINDS}
    deciles = []
    for number, part in enumerate(own.argsort(stable=True).tensor_split(min(STRATA, len(own))), start=1):
        name = f"MCC, decile {number} of firing rate"
        mcc = _mean(name, pair, pair.matched.decoder.cosine[part], chance, seed)
        deciles.append(Stratum(number, float(own[part].min()), float(own[part].max()), mcc))
    return deciles


def _mean(measure: str, pair: Pair, values: Tensor, chance: Mapping[str, float], seed: int) -> Similarity:
    mean, (low, high) = float(values.double().mean()), mean_interval(values, seed)
    one = Similarity(measure, pair.a.name, pair.b.name, mean, low, high, n=f"{len(values)} pairs")
    return one._replace(isotropic=chance["isotropic"], shaped=chance["shaped"])


def _shares(chance: Mapping[str, Matched], threshold: float | None) -> dict[str, float]:
    return {
        kind: float((found.agree.float() if threshold is None else aligned(found, threshold)).mean())
        for kind, found in chance.items()
    }


def _shares_at(pair: Pair, t: float) -> dict[str, float]:
    decoder, encoder = pair.matched.decoder.cosine, pair.matched.encoder_cosine
    return {
        "max cosine, A in B": float((pair.forward.cosine[:, 0] >= t).float().mean()),
        "max cosine, B in A": float((pair.backward.cosine[:, 0] >= t).float().mean()),
        "mutual nearest": int((pair.mutual & (pair.forward.cosine[:, 0] >= t)).sum()) / len(decoder),
        "assigned, decoder": float((decoder >= t).float().mean()),
        "assigned, both": float(((decoder >= t) & (encoder >= t)).float().mean()),
        "aligned": float(aligned(pair.matched, t).mean()),
        "aligned, chance (shaped)": float(aligned(pair.chance["shaped"].matched, t).mean()),
    }
