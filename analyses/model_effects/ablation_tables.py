"""The tables of the sparsity of downstream effects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dictlab.dictionary import Dictionary
from dictlab.statistics import Estimate, estimate_columns, interval, ratio, ratio_draws

LATENT, RANDOM, CHANNEL = "latent", "random direction", "residual channel"
OWN = "own position"
RARE = 0.1  # share of tokens from which on a latent is no more rare


class Effect(NamedTuple):
    """One ablation and what it did."""

    dictionary: str
    site: str
    kind: str
    sequence: int
    position: int
    token: str
    active: int
    which: int
    rate: float
    activation: float
    sparsity: float
    effect: float
    own_position: float


def effects(found: Sequence[Effect]) -> pd.DataFrame:
    """One row an ablation; channels belong to no dictionary."""
    frame = pd.DataFrame(found, columns=list(Effect._fields)).rename(columns={"own_position": OWN})
    return frame.assign(dictionary=frame["dictionary"].replace("", None))


def overview(
    frame: pd.DataFrame, dictionaries: Sequence[Dictionary], tokens: int, numbers: int, seed: int
) -> pd.DataFrame:
    """One row a dictionary, and one for the channels of each site.

    Args:
        frame: Every ablation.
        dictionaries: Which.
        tokens: At which something was ablated.
        numbers: Logits that an effect could be spread over.
        seed: Of the resampling.
    """

    def mean(name: str, some: pd.DataFrame, column: str) -> dict[str, Any]:
        return estimate_columns(name, ratio(*_sums(some, column, tokens), seed))

    rows: list[dict[str, Any]] = []
    for dictionary in dictionaries:
        own = frame[frame["dictionary"] == dictionary.name]
        latent, random = (own[own["kind"] == kind] for kind in (LATENT, RANDOM))
        active = latent.drop_duplicates("sequence")["active"].sum() / tokens
        row: dict[str, Any] = {"features": dictionary.name, "L0": active, "ablated": len(latent)}
        row |= mean("sparsity", latent, "sparsity") | mean("random", random, "sparsity")
        sums = _sums(latent, "sparsity", tokens), _sums(random, "sparsity", tokens)
        row |= estimate_columns("over random", _over(*sums, seed)) | _size(latent, numbers)
        row |= mean("rare", latent[latent["rate"] < RARE], "sparsity")
        row |= mean(OWN, latent, OWN) | mean(f"random {OWN}", random, OWN)
        about = dictionary.metadata.objective or "unknown", dictionary.activation.kind
        rows.append(row | {"width": dictionary.n_latents, "family": " ".join(about)})
    channels = frame[frame["kind"] == CHANNEL]
    for site, own in channels.groupby("site", sort=False):
        name = "residual channels" if channels["site"].nunique() == 1 else f"channels at {site}"
        row = {"features": name, "ablated": len(own)} | mean("sparsity", own, "sparsity") | _size(own, numbers)
        rows.append(row | mean(OWN, own, OWN))
    return pd.DataFrame(rows).astype({"width": "Int64"})


def summary(frame: pd.DataFrame) -> str:
    """The sparsest and the densest, beside random directions and channels."""
    channels = frame[frame["width"].isna()]
    own = frame[frame["sparsity"].notna()].drop(channels.index)  # without dictionaries that were silent
    ends = own.sort_values("sparsity").iloc[[0, -1]] if len(own) > 1 else own
    said = [
        f"{row['features']}: a latent's effect is spread over {row['sparsity']:.1%} [{row['sparsity low']:.1%}, "
        f"{row['sparsity high']:.1%}] of the logits, a random direction's over {row['random']:.1%}."
        for _, row in ends.iterrows()
    ]
    said += [f"{row['features'].capitalize()}: {row['sparsity']:.1%}." for _, row in channels.iterrows()]
    return " ".join(said).replace("%", " %")


def _sums(some: pd.DataFrame, column: str, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum of what is known of a column at each token, and how many they are."""
    known = some[some[column].notna()]
    sequence = known["sequence"].to_numpy()
    total = np.bincount(sequence, known[column], minlength=tokens)
    return total, np.bincount(sequence, minlength=tokens).astype(float)


def _over(latent: tuple[np.ndarray, np.ndarray], random: tuple[np.ndarray, np.ndarray], seed: int) -> Estimate:
    """Mean sparsity of latents over that of random directions, paired by token."""
    if not latent[1].any() or not random[1].any():
        return Estimate(math.nan, math.nan, math.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = ratio_draws(*latent, seed) / ratio_draws(*random, seed)
    value = latent[0].sum() / latent[1].sum() / (random[0].sum() / random[1].sum())
    return Estimate(float(value), *interval(draws))


def _size(some: pd.DataFrame, numbers: int) -> dict[str, float]:
    return {"logits": float(some["sparsity"].mean()) * numbers, "effect": float(some["effect"].mean())}
