"""Which latent of one dictionary is which latent of another?

Max cosine similarity between decoder directions (Braun et al. 2024, section 4.2; MMCS in Sharkey et al. 2022):

    nearest_A(i) = argmax_j cos(a_i, b_j)          MMCS(A -> B) = mean_i max_j cos(a_i, b_j)

signed, many to one, and not symmetric: MMCS(A -> B) asks how much of A is in B. It grows with the number of candidates
in B, so every value stands beside the value that chance gives. Dead latents are left out first, and counted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor
from torch.nn.functional import normalize

from analyses import style
from analyses.inputs import DictionaryLike, check_same_place, open_dictionaries
from dictlab import seeds
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError, check_at_least
from dictlab.report import Plot, Report, Table

BLOCK = 4096  # rows, and columns, of the cosine matrix that are held at once
NULL_ROWS = 512  # random directions that a chance level is the mean of


class Neighbours(NamedTuple):
    """The nearest rows of another matrix, best first."""

    cosine: Float[Tensor, "n top"]
    rows: Int[Tensor, "n top"]


def nearest(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, top: int = 1, itself: bool = True, block: int = BLOCK
) -> Neighbours:
    """For each row of a, the `top` rows of b with the largest cosine.

    Rows need not have unit length; a zero row has the cosine 0 with everything. Memory is bounded by `block` squared,
    not by n x m.

    Args:
        a: Rows to find neighbours of.
        b: Candidates.
        top: How many.
        itself: False if a and b are the same rows, and a row is no neighbour of itself.
        block: Rows, and columns, taken at once.
    """
    parts = [_nearest_rows(rows, b, start * block, top, itself, block) for start, rows in enumerate(a.split(block))]
    return Neighbours(torch.cat([p.cosine for p in parts]), torch.cat([p.rows for p in parts]))


def _nearest_rows(rows: Tensor, b: Tensor, first: int, top: int, itself: bool, block: int) -> Neighbours:
    top = min(top, len(b) if itself else len(b) - 1)
    unit = normalize(rows, dim=1)
    best = Neighbours(unit.new_zeros(len(rows), 0), torch.zeros(len(rows), 0, dtype=torch.long, device=rows.device))
    for number, columns in enumerate(b.split(block)):
        cosine = unit @ normalize(columns, dim=1).T
        start = number * block
        if not itself:
            own = torch.arange(first, first + len(rows), device=rows.device) - start
            inside = (own >= 0) & (own < len(columns))
            cosine[inside.nonzero().squeeze(1), own[inside]] = -torch.inf
        values, indices = cosine.topk(min(top, len(columns)), dim=1)
        values, indices = torch.cat([best.cosine, values], dim=1), torch.cat([best.rows, indices + start], dim=1)
        kept, order = values.topk(min(top, values.shape[1]), dim=1)
        best = Neighbours(kept, indices.gather(1, order))
    return Neighbours(best.cosine.clamp(-1, 1), best.rows)  # rounding can pass 1


def chance(b: Float[Tensor, "m d"], *, shaped: bool, seed: int = 0, rows: int = NULL_ROWS) -> float:
    """Mean max cosine of random directions with the rows of b: what similarity is worth nothing.

    Args:
        b: The candidates.
        shaped: Draw directions with the second moments of b's own rows, instead of uniformly on the sphere. Trained
            directions crowd into the directions of large variance, so this is the stricter level.
        seed: Of the draw.
        rows: Directions drawn.
    """
    generator = seeds.generator(seed, "chance level")
    draw = torch.randn(rows, b.shape[1], generator=generator).to(b)
    if shaped:
        unit = normalize(b, dim=1)
        values, vectors = torch.linalg.eigh(unit.T @ unit / len(unit))
        draw = draw * values.clamp_min(0).sqrt() @ vectors.T
    return float(nearest(draw, b).cosine.mean())


def mean_interval(values: Float[Tensor, " n"], seed: int) -> tuple[float, float]:
    """95 % bootstrap interval over latents of a mean (percentile, 1,000 resamples)."""
    if len(values) < 2:
        return float("nan"), float("nan")
    found = stats.bootstrap(
        (values.numpy(),), np.mean, n_resamples=1000, method="percentile", batch=50, rng=np.random.default_rng(seed)
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


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
    a, b = (dictionary.to("cpu") for dictionary in open_dictionaries([a, b]))
    check_same_place([a, b])
    forward, backward = (_directed(one, other, top, seed) for one, other in ((a, b), (b, a)))
    mutual = backward.rows[forward.rows[:, 0], 0] == torch.arange(len(forward.rows))
    rows = [
        _summary(one, other, found, mutual, threshold, seed)
        for one, other, found in ((a, b, forward), (b, a, backward))
    ]
    overview = pd.DataFrame(rows)
    first = rows[0]
    return Report(
        title=f"Which latents do {a.name} and {b.name} share?",
        summary=(
            f"A latent of {a.name} has a mean max cosine of {first['MMCS']:.3f} with {b.name} "
            f"(chance: {first['chance (isotropic)']:.3f}, shaped {first['chance (shaped)']:.3f}); "
            f"{first['share above threshold']:.0%} lie above {threshold:g}, and {int(mutual.sum())} pairs are each "
            "other's nearest."
        ),
        tables={
            "overview": Table(overview, "Mean max cosine similarity both ways; 95 % bootstrap intervals over latents."),
            "latents": Table(
                _listed(a, b, forward, mutual), f"The {top} nearest latents of {b.name} for each alive latent."
            ),
        },
        plots={"cosines": _histogram(a, b, forward, backward, rows)},
        settings={"top": top, "threshold": threshold, "seed": seed},
        inputs=(a, b),
    )


def alive_directions(dictionary: Dictionary) -> tuple[Float[Tensor, "alive d_in"], Int[Tensor, " alive"]]:
    """Unit decoder directions of the latents that fire, and which latents they are.

    Raises:
        DictlabError: There are fewer than two.
    """
    latents = dictionary.alive.nonzero().squeeze(1)
    if len(latents) < 2:
        raise DictlabError(f"{dictionary.name}: {len(latents)} alive latents; a comparison needs two or more.")
    return dictionary.directions[latents], latents


def _directed(a: Dictionary, b: Dictionary, top: int, seed: int) -> Neighbours:
    return nearest(alive_directions(a)[0], alive_directions(b)[0], top=top)


def _summary(
    a: Dictionary, b: Dictionary, found: Neighbours, mutual: Tensor, threshold: float, seed: int
) -> dict[str, Any]:
    best = found.cosine[:, 0]
    low, high = mean_interval(best, seed)
    candidates = alive_directions(b)[0]
    return {
        "from": a.name,
        "to": b.name,
        "alive latents": len(best),
        "dead latents": a.n_emitting - len(best),
        "MMCS": float(best.mean()),
        "low": low,
        "high": high,
        "chance (isotropic)": chance(candidates, shaped=False, seed=seed),
        "chance (shaped)": chance(candidates, shaped=True, seed=seed),
        "share above threshold": float((best >= threshold).float().mean()),
        "mutual nearest": int(mutual.sum()),
    }


def _listed(a: Dictionary, b: Dictionary, found: Neighbours, mutual: Tensor) -> pd.DataFrame:
    latents, others = alive_directions(a)[1], alive_directions(b)[1]
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
