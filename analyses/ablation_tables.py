"""The tables and the plot of the sparsity of downstream effects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analyses import style
from analyses.estimates import Estimate, columns, draws, ratio
from dictlab.evaluate import bounds

LATENT, RANDOM, CHANNEL = "latent", "random direction", "residual channel"
NORMAL = 2 / math.pi
BINS = np.linspace(0, 1, 41)
DRAWN = 6
OWN = "own position"


class Effect(NamedTuple):
    """One ablation and what it did."""

    dictionary: str
    site: str
    kind: str
    sequence: int
    position: int
    token: str
    which: int
    activation: float
    sparsity: float
    effect: float
    own_position: float


def effects(found: Sequence[Effect]) -> pd.DataFrame:
    """One row an ablation; channels belong to no dictionary."""
    frame = pd.DataFrame(found, columns=list(Effect._fields))
    frame = frame.rename(columns={"own_position": OWN})
    return frame.assign(dictionary=frame["dictionary"].replace("", None))


def overview(frame: pd.DataFrame, names: Sequence[str], tokens: int, numbers: int, seed: int) -> pd.DataFrame:
    """One row a dictionary, and one for the channels of each site.

    Args:
        frame: Every ablation.
        names: Of the dictionaries.
        tokens: At which something was ablated.
        numbers: Logits that an effect could be spread over.
        seed: Of the resampling.
    """

    def mean(name: str, some: pd.DataFrame, column: str) -> dict[str, Any]:
        return columns(name, ratio(*_sums(some, column, tokens), seed))

    rows: list[dict[str, Any]] = []
    for name in names:
        own = frame[frame["dictionary"] == name]
        latent, random = (own[own["kind"] == kind] for kind in (LATENT, RANDOM))
        row: dict[str, Any] = {"features": name, "active latents seen": len(latent)}
        row |= mean("sparsity", latent, "sparsity") | mean("random", random, "sparsity")
        sums = _sums(latent, "sparsity", tokens), _sums(random, "sparsity", tokens)
        row |= columns("over random", _over(*sums, seed))
        row |= _size(latent, numbers) | mean(OWN, latent, OWN) | mean(f"random {OWN}", random, OWN)
        rows.append(row)
    for site, own in frame[frame["kind"] == CHANNEL].groupby("site", sort=False):
        row = {"features": f"channels at {site}"} | mean("sparsity", own, "sparsity") | _size(own, numbers)
        rows.append(row | mean(OWN, own, OWN))
    return pd.DataFrame(rows).astype({"active latents seen": "Int64"})


def summary(frame: pd.DataFrame) -> str:
    """The sparsest and the densest, beside random directions and channels."""
    channels = frame[frame["active latents seen"].isna()]
    own = frame[frame["sparsity"].notna()].drop(channels.index)  # without dictionaries that were silent
    ends = own.sort_values("sparsity").iloc[[0, -1]] if len(own) > 1 else own
    said = [
        f"{row['features']}: a latent's effect is spread over {row['sparsity']:.1%} [{row['sparsity low']:.1%}, "
        f"{row['sparsity high']:.1%}] of the logits, a random direction's over {row['random']:.1%}."
        for _, row in ends.iterrows()
    ]
    said += [f"{row['features'].capitalize()}: {row['sparsity']:.1%}." for _, row in channels.iterrows()]
    return " ".join(said).replace("%", " %")


@style.applied
def drawn(frame: pd.DataFrame, table: pd.DataFrame, names: Sequence[str]) -> Figure:
    """How sparse single effects are, and what they are on average."""
    figure, (left, right) = style.axes(2, width=5.4, height=max(3.6, 0.24 * len(table) + 1.2))
    series = [(name, frame[(frame["dictionary"] == name) & (frame["kind"] == LATENT)]) for name in names[:DRAWN]]
    series += [(f"{kind}s", frame[frame["kind"] == kind]) for kind in (RANDOM, CHANNEL)]
    for number, (name, some) in enumerate(series):
        known = some["sparsity"].dropna()
        left.stairs(
            np.histogram(known, BINS)[0] / max(1, len(known)), BINS, label=name, lw=1.4,
            color=style.colour(number), ls=style.line(number),
        )  # fmt: skip
    left.set(xlabel="share of the logits that an effect is spread over", ylabel="share of ablations")
    left.set_title("How sparse is a single effect?")
    left.legend(fontsize=7)
    places = np.arange(len(table))[::-1]
    for number, (column, label) in enumerate((("sparsity", "latent or channel"), ("random", "random direction"))):
        ends = np.stack([table[column] - table[f"{column} low"], table[f"{column} high"] - table[column]])
        right.errorbar(
            table[column], places, xerr=np.nan_to_num(ends).clip(min=0), ls="none", ms=5, elinewidth=1, label=label,
            marker=style.marker(number), color=style.colour(number),
        )  # fmt: skip
    for ax in (left, right):
        ax.axvline(NORMAL, color="0.4", lw=1, ls="--")
    right.set(xlabel="mean share of the logits", yticks=places, title="Are latents sparser than chance?")
    right.set_yticklabels(style.short(list(table["features"])), fontsize=8)
    right.legend(fontsize=8)
    return figure


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
    found = draws(*latent, seed) / draws(*random, seed)
    value = latent[0].sum() / latent[1].sum() / (random[0].sum() / random[1].sum())
    return Estimate(float(value), *bounds(found[np.isfinite(found)]))


def _size(some: pd.DataFrame, numbers: int) -> dict[str, float]:
    return {"logits": float(some["sparsity"].mean()) * numbers, "effect": float(some["effect"].mean())}
