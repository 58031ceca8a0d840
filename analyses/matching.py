"""Which latent of one dictionary is which latent of another?

Max cosine similarity between decoder directions (Braun et al. 2024, section 4.2; MMCS in Sharkey et al. 2022):

    nearest_A(i) = argmax_j cos(a_i, b_j)          MMCS(A -> B) = mean_i max_j cos(a_i, b_j)

signed, many to one, and not symmetric: MMCS(A -> B) asks how much of A is in B. It grows with the number of candidates
in B, so every value stands beside the value that chance gives. Dead latents are left out first, and counted.

One-to-one assignment of latents, whose mean cosine does not grow with duplicates (Paulo and Belrose 2025; Song et al.
2025, signed here), of the decoder's directions and apart from that of the encoder's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses import style
from analyses.inputs import DictionaryLike, check_same_place, open_dictionaries
from analyses.levels import NULL_ROWS, alive_directions, alive_latents, chance, mean_interval, random_directions
from analyses.neighbours import Neighbours, nearest, neighbours
from analyses.pairs import assignment_table, matched, pair_table, threshold_table
from dictlab.dictionary import Dictionary
from dictlab.errors import check_at_least
from dictlab.report import Plot, Report, Table

__all__ = ["Neighbours", "alive_directions", "chance", "matching", "mean_interval", "nearest", "neighbours"]


def matching(a: DictionaryLike, b: DictionaryLike, *, top: int = 3, threshold: float = 0.7, seed: int = 0) -> Report:
    """Which latent of A is which latent of B, by the cosine of their decoder directions?

    Args:
        a: A dictionary.
        b: Another one at the same site.
        top: Neighbours listed for each latent.
        threshold: Cosine from which two latents count as the same.
        seed: Of chance levels and intervals.

    Example:
        dictlab report matching a.safetensors b.safetensors --top 5
    """
    check_at_least(1, top=top)
    check_at_least(0, seed=seed)
    a, b = (dictionary.to("cpu") for dictionary in open_dictionaries([a, b], in_place=True))
    check_same_place([a, b])
    latents, others = alive_latents(a), alive_latents(b)
    forward, backward = neighbours(a.W_dec, b.W_dec, top=top, of_a=latents, of_b=others)
    mutual = backward.rows[forward.rows[:, 0], 0] == torch.arange(len(forward.rows))
    rows = [
        _summary(one, other, found, int(mutual.sum()), threshold, seed)
        for one, other, found in ((a, b, forward), (b, a, backward))
    ]
    pairs = matched(a, b, latents, others)
    one_to_one = assignment_table(a, b, pairs, seed)
    shares = threshold_table(forward, backward, mutual, pairs)
    first, mean = rows[0], one_to_one.iloc[0]
    return Report(
        title=f"Which latents do {a.name} and {b.name} share?",
        summary=(
            f"A latent of {a.name} has a mean max cosine of {first['MMCS']:.3f} with {b.name} "
            f"(chance: {first['chance (isotropic)']:.3f}, shaped {first['chance (shaped)']:.3f}); "
            f"{first['share above threshold']:.0%} lie above {threshold:g}, and {int(mutual.sum())} pairs are each "
            f"other's nearest. One to one, the mean cosine of {len(pairs.decoder.rows)} pairs is {mean['MCC']:.3f} "
            f"(chance: {mean['chance (isotropic)']:.3f}, shaped {mean['chance (shaped)']:.3f})."
        ),
        tables={
            "overview": Table(
                pd.DataFrame(rows), "Mean max cosine similarity both ways; 95 % bootstrap intervals over latents."
            ),
            "assignment": Table(one_to_one, "One-to-one assignment by cosine, of decoders and of encoders."),
            "thresholds": Table(shares, "Share of the smaller dictionary's latents (of each, for max cosines)."),
            "pairs": Table(pair_table(pairs, latents, others, forward, mutual), "The pairs by decoder."),
            "latents": Table(
                _listed(latents, others, forward, mutual), f"The {top} nearest latents of {b.name} for each alive one."
            ),
        },
        plots={
            "cosines": _histogram(a, b, forward, backward, rows),
            "thresholds": _curves(shares, len(pairs.decoder.rows)),
        },
        settings={"top": top, "threshold": threshold, "seed": seed},
        inputs=(a, b),
    )


def _summary(
    a: Dictionary, b: Dictionary, found: Neighbours, mutual: int, threshold: float, seed: int
) -> dict[str, Any]:
    best = found.cosine[:, 0]
    low, high = mean_interval(best, seed)
    candidates = alive_latents(b)
    levels = [
        float(nearest(draw, b.W_dec, of_b=candidates).cosine.mean())
        for draw in (
            random_directions(b.W_dec, NULL_ROWS, shaped=shaped, seed=seed, of_b=candidates) for shaped in (False, True)
        )
    ]
    return {
        "from": a.name,
        "to": b.name,
        "alive latents": len(best),
        "dead latents": a.n_emitting - len(best),
        "MMCS": float(best.mean()),
        "low": low,
        "high": high,
        "chance (isotropic)": levels[0],
        "chance (shaped)": levels[1],
        "share above threshold": float((best >= threshold).float().mean()),
        "mutual nearest": mutual,
        "share mutual": mutual / len(best),
    }


def _listed(latents: Tensor, others: Tensor, found: Neighbours, mutual: Tensor) -> pd.DataFrame:
    top = found.rows.shape[1]
    return pd.DataFrame(
        {
            "latent": latents.repeat_interleave(top).numpy(),
            "rank": np.tile(np.arange(1, top + 1), len(latents)),
            "neighbour": others[found.rows.flatten()].numpy(),
            "cosine": found.cosine.flatten().numpy(),
            "mutual": mutual.repeat_interleave(top).numpy() & (np.tile(np.arange(top), len(latents)) == 0),
        }
    )


@style.applied
def _histogram(
    a: Dictionary, b: Dictionary, forward: Neighbours, backward: Neighbours, rows: list[dict[str, Any]]
) -> Plot:
    figure, (ax,) = style.axes(width=6.5)
    for number, (name, found) in enumerate(((f"{a.name} in {b.name}", forward), (f"{b.name} in {a.name}", backward))):
        ax.hist(
            found.cosine[:, 0].numpy(),
            bins=style.bins([forward.cosine[:, 0], backward.cosine[:, 0]]),
            density=True,
            histtype="step",
            lw=1.8,
            color=style.colour(number),
            ls=style.line(number),
            label=name,
        )
    ax.axvline(rows[0]["chance (shaped)"], color="#666666", ls=":", label="chance (shaped)")
    ax.set(xlabel="max cosine with a latent of the other", ylabel="density", title="How much of each is in the other")
    ax.legend()
    n = f"{len(forward.rows)} and {len(backward.rows)} alive latents"
    return Plot(figure, f"Distribution of the max cosine of decoder directions, both ways; {n}. Dotted: chance.")


@style.applied
def _curves(shares: pd.DataFrame, n: int) -> Plot:
    figure, (ax,) = style.axes(width=6.5)
    for number, name in enumerate(shares.columns[1:]):
        ax.plot(
            shares["threshold"],
            shares[name],
            color=style.colour(number),
            marker=style.marker(number),
            ms=4,
            label=name,
        )
    ax.set(xlabel="cosine from which two latents are the same", ylabel="share of latents", ylim=(0, 1.02))
    ax.set(title="How much is shared depends on the threshold")
    ax.legend()
    return Plot(figure, f"Share of latents that have a match at or above each cosine; {n} pairs in the assignment.")
