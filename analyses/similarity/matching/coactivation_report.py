"""What a comparison of firing says: similarities, columns for matched pairs, and the pairs where direction and firing
part ways.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from analyses.common.chance import KINDS
from analyses.common.seed_floor import Similarity
from analyses.similarity.matching.assignment import pair_cosines
from analyses.similarity.matching.coactivation import NAMES, Alike, alike, best_partners, shuffled_means, values
from analyses.similarity.matching.code_sample import Matrix, Sample, randomly_fired
from analyses.similarity.matching.latent_pairs import Pair
from dictlab.numerics import seeds

QUADRANTS = {
    (True, True): "same direction, same trigger",
    (True, False): "same direction, other trigger",
    (False, True): "other direction, same trigger",
    (False, False): "other direction, other trigger",
}
RANDOM = 256  # random latents that are run on the text
OFF = (QUADRANTS[True, False], QUADRANTS[False, True])


class LatentPoints(NamedTuple):
    """Latents with their nearest by direction and by correlation, both ways; each pair of latents once, `[n]` each.

    Attributes:
        of: The one dictionary.
        to: The other.
        latent: A latent of the one.
        partner: A latent of the other.
        by_direction: Whether one is the other's nearest by direction.
        by_correlation: Whether one is the other's nearest by correlation.
        cosine: Of their decoder directions.
        values: Correlation, Jaccard index and conditionals, in the order of `NAMES`.
        same_direction: Whether the cosine reaches its threshold.
        same_trigger: Whether the correlation reaches its threshold.
    """

    of: str
    to: str
    latent: Int[NDArray[np.int64], " n"]
    partner: Int[NDArray[np.int64], " n"]
    by_direction: NDArray[np.bool_]
    by_correlation: NDArray[np.bool_]
    cosine: Float[NDArray[np.float32], " n"]
    values: Float[NDArray[np.float64], "n 4"]
    same_direction: NDArray[np.bool_]
    same_trigger: NDArray[np.bool_]

    def at(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> LatentPoints:
        """Some of them."""
        return LatentPoints(
            self.of,
            self.to,
            self.latent[rows],
            self.partner[rows],
            self.by_direction[rows],
            self.by_correlation[rows],
            self.cosine[rows],
            self.values[rows],
            self.same_direction[rows],
            self.same_trigger[rows],
        )

    @property
    def correlation(self) -> Float[NDArray[np.float64], " n"]:
        """Of the activations."""
        return self.values[:, 0]


class Fired(NamedTuple):
    """A pair of dictionaries compared by what fires.

    Attributes:
        matched: The one-to-one pairs.
        similarities: Means over them, beside chance.
        points: Latents with their nearest by direction and by correlation, both ways; one row a pair of latents.
        listed: Those of them off the diagonal, with intervals.
    """

    matched: Alike
    similarities: list[Similarity]
    points: LatentPoints
    listed: pd.DataFrame


def fired(
    pair: Pair,
    sample: Sample,
    *,
    fewest: int,
    cosine: float,
    correlation: float,
    permutations: int,
    seed: int,
) -> Fired:
    """Compare two dictionaries by which tokens their latents fire on.

    Args:
        pair: Their comparison by direction.
        sample: Their codes.
        fewest: Tokens at which a latent must be active to take part.
        cosine: From which two latents have the same direction.
        correlation: From which they have the same trigger.
        permutations: Shuffles of who belongs to whom.
        seed: Of intervals, shuffles and random latents.
    """
    a, b = (sample.codes[d.name] for d in (pair.a, pair.b))
    of_a, of_b = pair.a_latents.numpy(), pair.b_latents.numpy()
    found = alike(a, b, of_a, of_b, sample.sequence, fewest=fewest, seed=seed, signed=pair.signed)
    chance = {kind: _chance(pair, sample, kind, fewest, seed) for kind in KINDS}
    means, p = shuffled_means(a, b, of_a, of_b, fewest=fewest, permutations=permutations, seed=seed, signed=pair.signed)
    n = f"{sample.n_sequences} sequences, {found.n} pairs"
    similarities = [
        Similarity(
            f"{name}, matched pairs",
            pair.a.name,
            pair.b.name,
            float(found.mean[k]),
            low=float(found.mean_low[k]),
            high=float(found.mean_high[k]),
            isotropic=float(chance["isotropic"][k]),
            shaped=float(chance["shaped"][k]),
            shuffled=float(means[k]),
            p=float(p[k]),
            n=n,
        )
        for k, name in enumerate(NAMES)
    ]
    points = _points(pair, a, b, fewest, cosine, correlation)
    return Fired(found, similarities, points, _listed(points, pair, sample, correlation, fewest, seed))


def firing_columns(found: Alike) -> pd.DataFrame:
    """What the table of pairs gains."""
    columns: dict[str, NDArray[np.float64]] = {}
    for k, name in enumerate(NAMES):
        columns |= {name: found.value[:, k], f"{name}, low": found.low[:, k], f"{name}, high": found.high[:, k]}
    return pd.DataFrame(columns)


def random_codes(pair: Pair, sample: Sample, kind: str, seed: int) -> tuple[Matrix, Matrix, Int[np.ndarray, " some"]]:
    """Random latents in place of the smaller dictionary's, which fire as often as those do.

    Returns:
        Their codes, those of the larger dictionary on the same tokens, and the latent of it that each is paired with.
    """
    chance = pair.chance[kind]
    rows = chance.matched.decoder.rows[:RANDOM]
    partners = pair.of_large[chance.matched.decoder.partners[:RANDOM]]
    rates = drawn_rates(sample.rates()[pair.small.name], len(rows), seed)
    codes = randomly_fired(sample.x, chance.directions[rows], rates)
    return codes, sample.codes[pair.large.name][: len(sample.x)], partners.numpy()


def drawn_rates(rates: Float[Tensor, " n"], count: int, seed: int) -> Float[Tensor, " count"]:
    """Firing rates for random latents: those of a dictionary's latents that fire at all, drawn with replacement."""
    active = rates[rates > 0] if bool((rates > 0).any()) else rates
    return active[torch.randint(len(active), (count,), generator=seeds.generator(seed, "rates of random latents"))]


def _chance(pair: Pair, sample: Sample, kind: str, fewest: int, seed: int) -> Float[np.ndarray, " 4"]:
    """Means over random latents and the latents of the larger dictionary that their directions are paired with."""
    codes, large, partners = random_codes(pair, sample, kind, seed)
    signed = (None, pair.large.signed.cpu().numpy())  # random latents are not negative
    least = max(2, fewest * len(sample.x) // sample.n_tokens)
    found = values(codes, large, np.arange(len(partners)), partners, fewest=least, signed=signed)
    kept = found[np.isfinite(found[:, 0])]
    means: NDArray[np.float64] = kept.mean(axis=0) if len(kept) else np.full(len(NAMES), np.nan)
    return means if pair.small is pair.a else means[[0, 1, 3, 2]]


def point_table(points: LatentPoints) -> pd.DataFrame:
    """One row a pair of latents."""
    both = zip(points.by_direction, points.by_correlation, strict=True)
    by = [" and ".join(way for way, is_by in zip(("direction", "correlation"), w, strict=True) if is_by) for w in both]
    columns = {"from": points.of, "to": points.to, "latent": points.latent, "partner": points.partner}
    columns |= {"nearest by": by, "cosine": points.cosine}
    columns |= {name: points.values[:, k] for k, name in enumerate(NAMES)}
    quadrants = zip(points.same_direction, points.same_trigger, strict=True)
    return pd.DataFrame(columns | {"quadrant": [QUADRANTS[bool(x), bool(y)] for x, y in quadrants]})


def _points(pair: Pair, a: Matrix, b: Matrix, fewest: int, cosine: float, correlation: float) -> LatentPoints:
    """Nearest by direction and by correlation, both ways, each pair of latents once."""
    by_a, by_b = best_partners(a, b, fewest, pair.signed)
    i, j = np.flatnonzero(by_a.latent >= 0), np.flatnonzero(by_b.latent >= 0)
    by_direction = [
        np.stack([pair.latents.numpy(), pair.others[pair.forward.rows[:, 0]].numpy()], axis=1),
        np.stack([pair.latents[pair.backward.rows[:, 0]].numpy(), pair.others.numpy()], axis=1),
    ]
    by_correlation = [np.stack([i, by_a.latent[i]], axis=1), np.stack([by_b.latent[j], j], axis=1)]
    listed = np.concatenate([*by_direction, *by_correlation])
    either, index = np.unique(listed, axis=0, return_inverse=True)
    n_by_direction, index = sum(map(len, by_direction)), index.reshape(-1)
    ways = np.zeros((2, len(either)), dtype=bool)
    ways[0, index[:n_by_direction]], ways[1, index[n_by_direction:]] = True, True
    one, other = either.T
    cosines, found = _decoder_cosines(pair, one, other), values(a, b, one, other, fewest=fewest, signed=pair.signed)
    same = (cosines >= cosine, found[:, 0] >= correlation)
    points = LatentPoints(pair.a.name, pair.b.name, one, other, ways[0], ways[1], cosines, found, same[0], same[1])
    return points.at(~np.isnan(found[:, 0]))


def _decoder_cosines(pair: Pair, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float32]:
    rows: tuple[Tensor, Tensor] = (torch.tensor(one), torch.tensor(other))
    found: NDArray[np.float32] = pair_cosines(pair.a.W_dec, pair.b.W_dec, *rows, pair.a.signed, pair.b.signed).numpy()
    return found


def _listed(
    points: LatentPoints, pair: Pair, sample: Sample, correlation: float, fewest: int, seed: int
) -> pd.DataFrame:
    """The off-diagonal quadrants, those furthest from the threshold first, with intervals of the correlation."""
    off = points.at(points.same_direction != points.same_trigger)
    off = off.at(np.abs(off.correlation - correlation).argsort(kind="stable")[::-1])
    a, b = (sample.codes[d.name] for d in (pair.a, pair.b))
    found = alike(a, b, off.latent, off.partner, sample.sequence, fewest=fewest, seed=seed, signed=pair.signed)
    low, high = found.low[:, 0], found.high[:, 0]
    frame = point_table(off)
    frame = frame.assign(low=low, high=high, clear=np.where(off.same_direction, high < correlation, low >= correlation))
    order = [0, 1, 10, 2, 3, 4, 5, 6, 11, 12, 13, 7, 8, 9]  # quadrant and interval in front
    return frame.iloc[:, order]
