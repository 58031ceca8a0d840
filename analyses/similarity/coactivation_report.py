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
from analyses.similarity.assignment import pair_cosines
from analyses.similarity.coactivation import NAMES, Alike, alike, best_partners, shuffled_means, values
from analyses.similarity.code_sample import Matrix, Sample, randomly_fired
from analyses.similarity.latent_pairs import Pair
from dictlab import seeds

QUADRANTS = {
    (True, True): "same direction, same trigger",
    (True, False): "same direction, other trigger",
    (False, True): "other direction, same trigger",
    (False, False): "other direction, other trigger",
}
RANDOM = 256  # random latents that are run on the text
OFF = (QUADRANTS[True, False], QUADRANTS[False, True])


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
    points: pd.DataFrame
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


def _points(pair: Pair, a: Matrix, b: Matrix, fewest: int, cosine: float, correlation: float) -> pd.DataFrame:
    """Nearest by direction and by correlation, both ways, each pair of latents once."""
    by_a, by_b = best_partners(a, b, fewest, pair.signed)
    i, j = np.flatnonzero(by_a.latent >= 0), np.flatnonzero(by_b.latent >= 0)
    ways = [
        (pair.latents.numpy(), pair.others[pair.forward.rows[:, 0]].numpy(), "direction"),
        (pair.latents[pair.backward.rows[:, 0]].numpy(), pair.others.numpy(), "direction"),
        (i, by_a.latent[i], "correlation"),
        (by_b.latent[j], j, "correlation"),
    ]
    frame = pd.concat([pd.DataFrame({"latent": x, "partner": y, "nearest by": way}) for x, y, way in ways])
    frame = frame.groupby(["latent", "partner"], sort=True)["nearest by"].unique().map(" and ".join).reset_index()
    one, other = frame["latent"].to_numpy(), frame["partner"].to_numpy()
    frame["cosine"] = _decoder_cosines(pair, one, other)
    for k, column in enumerate(values(a, b, one, other, fewest=fewest, signed=pair.signed).T):
        frame[NAMES[k]] = column
    frame = frame.dropna(subset=["correlation"]).reset_index(drop=True)
    same = zip(frame["cosine"] >= cosine, frame["correlation"] >= correlation, strict=True)
    frame["quadrant"] = [QUADRANTS[bool(x), bool(y)] for x, y in same]
    frame.insert(0, "from", pair.a.name)
    frame.insert(1, "to", pair.b.name)
    return frame


def _decoder_cosines(pair: Pair, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float32]:
    rows: tuple[Tensor, Tensor] = (torch.tensor(one), torch.tensor(other))
    found: NDArray[np.float32] = pair_cosines(pair.a.W_dec, pair.b.W_dec, *rows, pair.a.signed, pair.b.signed).numpy()
    return found


def _listed(
    points: pd.DataFrame, pair: Pair, sample: Sample, correlation: float, fewest: int, seed: int
) -> pd.DataFrame:
    """The off-diagonal quadrants, those furthest from the threshold first, with intervals of the correlation."""
    off = points[points["quadrant"].isin(OFF)]
    off = off.iloc[(off["correlation"] - correlation).abs().argsort(kind="stable").to_numpy()[::-1]]
    of_a, of_b = off["latent"].to_numpy(), off["partner"].to_numpy()
    a, b = (sample.codes[d.name] for d in (pair.a, pair.b))
    found = alike(a, b, of_a, of_b, sample.sequence, fewest=fewest, seed=seed, signed=pair.signed)
    off = off.assign(low=found.low[:, 0], high=found.high[:, 0])
    off["clear"] = np.where(off["quadrant"] == OFF[0], off["high"] < correlation, off["low"] >= correlation)
    first = ["from", "to", "quadrant", "latent", "partner", "nearest by", "cosine", "correlation", "low", "high"]
    return off[[*first, "clear", *NAMES[1:]]].reset_index(drop=True)
