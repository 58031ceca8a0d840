"""Which principal directions of the activation does a dictionary not reconstruct, and does the model mind?

v_1, v_2, ... are the eigenvectors of the covariance of the activation x, largest variance first (Braun et al. 2024,
appendix on layer 10). With e = x - x_hat:

    not reconstructed along v_k     sum (e . v_k)^2 / sum ((x - mu) . v_k)^2        1 is what the mean alone gives
    correlation along v_k           Pearson r of x . v_k and x_hat . v_k, without the first position

Whether the model minds is asked of groups of directions, 1, 2, 3-4, 5-8, 9-16, ..., with P_g the projector on a group,
by the KL of the model's output from the original one:

    only this group wrong     x - P_g e               all else is as it was
    this group repaired       x_hat + P_g e           all else stays wrong
    resampled                 P_g x taken from another token (never the first position): what the group is worth at all
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.common import plotting
from dictlab.data.activations import Moments
from dictlab.reports.report import Plot
from dictlab.statistics import Array, BySequence, Formula

MOST = 10.0  # drawn; along a direction of hardly any variance the share has no bound
LOST = 0.5  # a direction with more than this share of its variance not reconstructed is called lost

WRONG, REPAIRED, RESAMPLED = "only this group wrong", "this group repaired", "resampled"


class Principal(NamedTuple):
    """Principal directions of an activation: its mean, the directions as columns, and the variance along each."""

    mean: Float[Tensor, " d_in"]
    directions: Float[Tensor, "d_in d_in"]
    variance: Float[Tensor, " d_in"]


class Group(NamedTuple):
    """Neighbouring principal directions, counted from 0; `stop` is not in it."""

    start: int
    stop: int

    @property
    def name(self) -> str:
        """As it is counted from 1: "1", "3-4"."""
        return str(self.stop) if self.stop - self.start == 1 else f"{self.start + 1}-{self.stop}"


def principal(found: Moments) -> Principal:
    """The principal directions of activations whose covariance is known."""
    assert found.covariance is not None
    variance, directions = torch.linalg.eigh(found.covariance.double())
    return Principal(found.mean, directions.flip(1).to(found.mean), variance.flip(0).clamp_min(0).to(found.mean))


def doubling_groups(n: int) -> list[Group]:
    """Groups of n directions, each twice as large as the last: 1, 2, 3-4, 5-8, ..."""
    edges = [0]
    while edges[-1] < n:
        edges.append(min(n, max(1, 2 * edges[-1])))
    return [Group(start, stop) for start, stop in pairwise(edges)]


def sums_along(
    x: Float[Tensor, "batch context d_in"], x_hat: Float[Tensor, "batch context d_in"], found: Principal
) -> dict[str, Float[Tensor, "batch d_in"]]:
    """Sums over the tokens of each sequence from which `not_reconstructed` and `correlation` follow."""
    p, q = ((v - found.mean) @ found.directions for v in (x, x_hat))
    p, q = p.double(), q.double()
    later_p, later_q = p[:, 1:], q[:, 1:]
    return {
        "error": (p - q).square().sum(dim=1),
        "variance": p.square().sum(dim=1),
        "n": torch.full_like(p[:, 0], p.shape[1] - 1),
        "p": later_p.sum(dim=1),
        "q": later_q.sum(dim=1),
        "pp": later_p.square().sum(dim=1),
        "qq": later_q.square().sum(dim=1),
        "pq": (later_p * later_q).sum(dim=1),
    }


def not_reconstructed(s: Mapping[str, Array]) -> Array:
    """Share of the variance along each direction that is not reconstructed; more than 1 is worse than the mean."""
    return s["error"] / s["variance"]


def correlation(s: Mapping[str, Array]) -> Array:
    """Pearson correlation of original and reconstruction along each direction; NaN where either is constant."""
    together = s["n"] * s["pq"] - s["p"] * s["q"]
    spread = (s["n"] * s["pp"] - s["p"] ** 2).clip(0) * (s["n"] * s["qq"] - s["q"] ** 2).clip(0)
    out: Array = np.divide(together, np.sqrt(spread), out=np.full_like(spread, np.nan), where=spread > 0)
    return out


def repaired_and_wrong(
    x: Float[Tensor, "batch context d_in"], x_hat: Float[Tensor, "batch context d_in"], found: Principal, group: Group
) -> dict[str, Float[Tensor, "batch context d_in"]]:
    """What to put in place of x: the original with only this group's error, and the reconstruction without it."""
    own = found.directions[:, group.start : group.stop]
    error = (x - x_hat) @ own @ own.T
    return {WRONG: x - error, REPAIRED: x_hat + error}


def resampled(
    x: Float[Tensor, "batch context d_in"], found: Principal, group: Group, generator: torch.Generator
) -> Float[Tensor, "batch context d_in"]:
    """x with its component in the group exchanged among all tokens of the batch, first positions left alone."""
    own = found.directions[:, group.start : group.stop]
    tokens = x[:, 1:].flatten(0, 1)
    order = torch.randperm(len(tokens), generator=generator).to(x.device)
    moved = tokens + (tokens[order] - tokens) @ own @ own.T
    return torch.cat([x[:, :1], moved.reshape(x[:, 1:].shape)], dim=1)


def direction_table(along: Mapping[str, BySequence]) -> pd.DataFrame:
    """One row a dictionary and principal direction."""
    frames = []
    for name, found in along.items():
        variance = found.value(lambda s: s["variance"])
        low, high = found.interval(not_reconstructed)
        share = found.value(not_reconstructed)
        frames.append(
            pd.DataFrame(
                {
                    "dictionary": name,
                    "direction": np.arange(1, len(share) + 1),
                    "share of variance": variance / variance.sum(),
                    "not reconstructed": share,
                    "not reconstructed low": low,
                    "not reconstructed high": high,
                    "correlation": found.value(correlation),
                    "lost": share > LOST,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def group_table(
    groups: Sequence[Group], along: Mapping[str, BySequence], kl: Mapping[str, BySequence], worth: BySequence
) -> pd.DataFrame:
    """One row a dictionary and group of directions: how much of it is wrong, and what that costs the model.

    Args:
        groups: The groups.
        along: By dictionary, the sums of `sums_along`.
        kl: By dictionary, KL summed by sequence, `[sequences, groups]`, under WRONG and REPAIRED, and `[sequences, 1]`
            under "all wrong"; `tokens` likewise.
        worth: KL summed by sequence under RESAMPLED, and `tokens`.
    """
    frames = []
    member = np.zeros((groups[-1].stop, len(groups)))  # which direction is in which group
    for index, group in enumerate(groups):
        member[group.start : group.stop, index] = 1
    for name, found in along.items():
        variance = found.value(lambda s: s["variance"]) @ member
        columns: dict[str, object] = {
            "dictionary": name,
            "directions": [group.name for group in groups],
            "share of variance": variance / variance.sum(),
        }
        for label, (sums, formula) in {
            "not reconstructed": (found, lambda s: (s["error"] @ member) / (s["variance"] @ member)),
            "share of error": (found, lambda s: (s["error"] @ member) / _positive(s["error"].sum(-1, keepdims=True))),
            "KL, only this group wrong": (kl[name], _mean_of(WRONG)),
            "KL, this group repaired": (kl[name], _mean_of(REPAIRED)),
            "KL removed by the repair": (kl[name], lambda s: (s["all wrong"] - s[REPAIRED]) / s["tokens"]),
            "KL, resampled": (worth, _mean_of(RESAMPLED)),
        }.items():
            low, high = sums.interval(formula)
            columns |= {label: sums.value(formula), f"{label} low": low, f"{label} high": high}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


@plotting.applied
def direction_plot(directions: pd.DataFrame, groups: pd.DataFrame, tokens: int, sequences: int) -> Plot:
    """What is not reconstructed along each direction, what each group costs alone, and what repairing it gives."""
    figure, (left, middle, right) = plotting.axes(3, width=4.8, height=4.4)
    for number, (name, part) in enumerate(directions.groupby("dictionary", sort=False)):
        look = {"color": plotting.colour(number), "ls": plotting.line(number), "lw": 1.4, "label": name}
        left.plot(part["direction"], part["not reconstructed"].clip(1e-4, MOST), **look)
        own = groups[groups["dictionary"] == name]
        places = np.arange(len(own)) + 0.12 * (number - (directions["dictionary"].nunique() - 1) / 2)
        for ax, label in ((middle, "KL, only this group wrong"), (right, "KL removed by the repair")):
            bars = np.clip([own[label] - own[f"{label} low"], own[f"{label} high"] - own[label]], 0, None)
            ax.errorbar(places, own[label], yerr=bars, marker=plotting.marker(number), ms=4, **look)
    one = groups[groups["dictionary"] == groups["dictionary"].iloc[0]]
    middle.plot(
        np.arange(len(one)), one["KL, resampled"], color="#666666", ls=":", label="resampled (what it is worth)"
    )
    left.axhline(1, color="#666666", lw=0.8)
    left.axhline(LOST, color="#666666", lw=0.8, ls=":", label=f"lost above {LOST:g}")
    left.set(
        xscale="log",
        yscale="log",
        xlabel="principal direction (1 has the largest variance)",
        ylabel="share of its variance not reconstructed",
        title="What is not reconstructed?",
    )
    middle.set(
        yscale="log", xlabel="group of principal directions", ylabel="KL (nats/token)", title="Only this group wrong"
    )
    right.axhline(0, color="black", lw=0.8)
    right.set(
        xlabel="group of principal directions", ylabel="KL removed (nats/token)", title="Only this group repaired"
    )
    for ax in (middle, right):
        ax.set_xticks(range(len(one)), list(one["directions"]), rotation=40, ha="right")
    left.legend(loc="upper left", bbox_to_anchor=(0, -0.2), fontsize=7)
    middle.legend(loc="upper left", bbox_to_anchor=(0, -0.26), fontsize=7)
    return Plot(
        figure,
        f"Errors by principal direction of the activation, {sequences} sequences ({tokens} tokens); bars: 95 % "
        "bootstrap intervals over sequences. Left: 1 (line) is what the mean alone gives; drawn up to 10. "
        "Dotted in the middle: the group's component taken from another token.",
    )


def _mean_of(key: str) -> Formula:
    return lambda s: s[key] / s["tokens"]


def _positive(total: Array) -> Array:
    """Nothing at all is wrong with a perfect dictionary: its shares are 0."""
    return np.maximum(total, np.finfo(float).tiny)
