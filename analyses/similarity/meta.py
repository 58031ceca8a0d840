"""Are the latents of a large dictionary made of a smaller number of directions, and are these a small dictionary's?

A meta-dictionary is trained on the decoder directions of LARGE (Leask et al. 2025): each unit row d_i is one "token".
How much of them it explains, centred on their mean,

    1 - sum_i |d_i - d_hat_i|^2 / sum_i |d_i - mean(d)|^2

and without the mean in the denominator, since the paper does not say which it used. And whether its latents are those
that ordinary dictionaries of several widths have: max decoder cosine of each meta-latent with each of them, beside the
chance level and beside what LARGE itself, of which they are made, gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.common import plotting
from analyses.common.chance import alive_directions, max_cosine_levels
from analyses.common.neighbours import nearest
from analyses.common.opening import DictionaryLike, one_or_several, open_dictionaries
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError, check_at_least
from dictlab.numerics.statistics import Estimate, mean_interval, ratio_of_sums_interval
from dictlab.reports.report import Plot, Report, Table

BLOCK = 4096  # rows that are encoded at once


class Explained(NamedTuple):
    """How well a dictionary reconstructs directions.

    Attributes:
        centred: Share of their variance about their mean.
        plain: Share of their sum of squares.
        l0: Meta-latents active a direction.
        errors: |d_i - d_hat_i|^2 of each.
        fired: Whether each meta-latent was active for any.
    """

    centred: float
    plain: float
    l0: float
    errors: Float[Tensor, " n"]
    fired: Float[Tensor, " n_meta"]


class MetaSimilarity(NamedTuple):
    """How like the active meta-latents are to the latents of another dictionary.

    Attributes:
        dictionary: Its name.
        n_alive: Its alive latents.
        cosine: Max decoder cosine of each active meta-latent with them.
        mean: Mean of these, with its 95 % bootstrap interval over meta-latents.
        chance: What random directions reach on average, by the keys of `KINDS`.
        share_above_threshold: Share of the meta-latents at or above the threshold.
    """

    dictionary: str
    n_alive: int
    cosine: Float[Tensor, " active"]
    mean: Estimate
    chance: Mapping[str, float]
    share_above_threshold: float


@torch.no_grad()
def explained(meta: Dictionary, directions: Float[Tensor, "n d"]) -> Explained:
    """How much of unit directions a dictionary of them explains.

    Args:
        meta: The dictionary.
        directions: Rows of unit length.

    Raises:
        DictlabError: The width of the two differs.
    """
    errors, active, fired = [], 0.0, torch.zeros(meta.n_latents)
    for rows in directions.split(BLOCK):
        codes, x_hat = meta(rows)
        errors.append((rows - x_hat).double().square().sum(dim=1))
        active += float(codes.l0().sum())
        fired += codes.active_counts().float()
    error, total = torch.cat(errors), directions.double()
    spread = float((total - total.mean(dim=0)).square().sum())
    return Explained(
        1 - float(error.sum()) / spread if spread > 0 else float("nan"),
        1 - float(error.sum()) / float(total.square().sum()),
        active / len(directions),
        error,
        fired,
    )


def meta(
    meta: DictionaryLike,
    large: DictionaryLike,
    smaller: Sequence[DictionaryLike],
    *,
    threshold: float = 0.7,
    seed: int = 0,
) -> Report:
    """How much of LARGE's decoder directions does a meta-dictionary explain, and are its latents those of smaller ones?

    Args:
        meta: A dictionary trained on LARGE's decoder directions.
        large: The larger dictionary. Its decoder directions are explained.
        smaller: Ordinary dictionaries at LARGE's site, of any widths.
        threshold: Cosine of decoder directions from which two latents count as the same.
        seed: Seed of everything that is drawn at random.

    Returns:
        A report with these tables; in brackets what is there only where there is such a thing.

        explained: meta; of; directions; meta-latents; active; L0; explained (centred); low; high; explained (plain)
        cosines: dictionary; alive latents; mean max cosine; low; high; chance (isotropic); chance (shaped); share above
            threshold; is

    Example:
        dictlab report meta meta.safetensors large.safetensors small.safetensors smaller.safetensors
    """
    check_at_least(0, seed=seed)
    opened = [d.to("cpu") for d in open_dictionaries([meta, large, *one_or_several(smaller)], analysis="meta", least=2)]
    over, base, ordinary = opened[0], opened[1], opened[2:]
    for other in opened[1:]:
        if other.d_in != over.d_in:
            raise DictlabError(
                f"{over.name} reads directions of width {over.d_in}; those of {other.name} have {other.d_in}."
            )
    directions, _ = alive_directions(base)
    found = explained(over, directions)
    active = (found.fired > 0) & (over.W_dec != 0).any(dim=1)
    own, signed = over.directions[active], over.signed[active]
    if len(own) < 2:
        raise DictlabError(f"{over.name}: {len(own)} of its latents are active on the directions of {base.name}.")
    similarities = [meta_similarity(own, signed, other, threshold, seed) for other in (*ordinary, base)]
    return Report(
        title=f"Is {base.name} made of {over.name}?",
        summary=_summary(over, base, found, similarities[:-1]),
        tables={
            "explained": Table(
                pd.DataFrame([_row(over, base, found, len(own), seed)]),
                f"Of {len(directions)} unit decoder directions of {base.name}'s alive latents; centred: share of the "
                "variance about their mean; plain: of the sum of squares. 95 % bootstrap intervals over directions.",
            ),
            "cosines": Table(
                _cosine_table(similarities),
                "Max decoder cosine of each active meta-latent with the alive latents of each dictionary, signed; 95 % "
                "bootstrap intervals over meta-latents. Chance: random directions in place of the meta-latents.",
            ),
        },
        plots={"cosines": _histogram(similarities, over)},
        settings={"threshold": threshold, "seed": seed},
        inputs=tuple(opened),
        warnings=_warnings(over, base, found, len(directions)),
    )


def _row(over: Dictionary, base: Dictionary, found: Explained, active: int, seed: int) -> dict[str, Any]:
    directions, _ = alive_directions(base)
    spread = (directions.double() - directions.double().mean(dim=0)).square().sum(dim=1)
    high, low = (1 - end for end in ratio_of_sums_interval(found.errors, spread, seed))
    return {
        "meta": over.name,
        "of": base.name,
        "directions": len(directions),
        "meta-latents": over.n_latents,
        "active": active,
        "L0": found.l0,
        "explained (centred)": found.centred,
        "low": low,
        "high": high,
        "explained (plain)": found.plain,
    }


def meta_similarity(
    directions: Float[Tensor, "active d"],
    signed: Bool[Tensor, " active"],
    other: Dictionary,
    threshold: float,
    seed: int,
) -> MetaSimilarity:
    """Max decoder cosine of each active meta-latent with the alive latents of a dictionary.

    Args:
        directions: Unit decoder directions of the active meta-latents.
        signed: Meta-latents that emit values of either sign: their cosines are absolute.
        other: The dictionary.
        threshold: Cosine from which two latents count as the same.
        seed: Of the interval and of the random directions.
    """
    candidates, latents = alive_directions(other)
    best = nearest(directions, candidates, signed_a=signed, signed_b=other.signed[latents]).cosine[:, 0]
    return MetaSimilarity(
        other.name,
        len(latents),
        best,
        Estimate(float(best.mean()), *mean_interval(best, seed)),
        max_cosine_levels(candidates, seed, signed=other.signed[latents]),
        float((best >= threshold).float().mean()),
    )


def _cosine_table(similarities: Sequence[MetaSimilarity]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "dictionary": one.dictionary,
                "alive latents": one.n_alive,
                "mean max cosine": one.mean.value,
                "low": one.mean.low,
                "high": one.mean.high,
                **{f"chance ({kind})": level for kind, level in one.chance.items()},
                "share above threshold": one.share_above_threshold,
                "is": "base" if one is similarities[-1] else "ordinary",
            }
            for one in similarities
        ]
    )


def _summary(over: Dictionary, base: Dictionary, explained: Explained, ordinary: Sequence[MetaSimilarity]) -> str:
    sentence = (
        f"{over.name} explains {explained.centred:.1%} of the variance of {base.name}'s decoder directions about their "
        f"mean ({explained.plain:.1%} of their sum of squares) with {explained.l0:.1f} of {over.n_latents} latents a "
        "direction."
    )
    if not ordinary:
        return sentence
    best = max(ordinary, key=lambda one: one.mean.value)
    return (
        f"{sentence} Of the ordinary dictionaries, its {len(best.cosine)} active latents are most like those of "
        f"{best.dictionary}: mean max cosine {best.mean.value:.3f} [{best.mean.low:.3f}, {best.mean.high:.3f}] "
        f"(chance: {best.chance['isotropic']:.3f}, shaped {best.chance['shaped']:.3f})."
    )


def _warnings(over: Dictionary, base: Dictionary, found: Explained, directions: int) -> tuple[str, ...]:
    said = []
    if over.metadata.sources and base.name not in over.metadata.sources:
        said.append(f"{over.name} says that it was made from {', '.join(over.metadata.sources)}, not {base.name}.")
    if found.centred < 0:
        said.append(f"{over.name} explains less than the mean direction does: was it trained on other directions?")
    if over.n_latents >= directions:
        said.append(f"{over.name} has {over.n_latents} latents for {directions} directions: it can hold each of them.")
    return tuple(said)


@plotting.applied
def _histogram(similarities: Sequence[MetaSimilarity], over: Dictionary) -> Plot:
    figure, (ax,) = plotting.axes(width=6.5)
    bins = plotting.bins([one.cosine for one in similarities])
    for number, one in enumerate(similarities):
        colour = plotting.colour(number)
        ax.hist(
            one.cosine.numpy(),
            bins=bins,
            histtype="step",
            density=True,
            lw=1.8,
            color=colour,
            ls=plotting.line(number),
            label=one.dictionary,
        )
        ax.axvline(one.chance["shaped"], color=colour, ls=":", lw=1)
    ax.set(xlabel="max cosine with a latent of the dictionary", ylabel="density of meta-latents")
    ax.set_title("Are meta-latents latents of smaller dictionaries?")
    ax.legend(fontsize=8)
    n = len(similarities[0].cosine)
    return Plot(figure, f"{n} active latents of {over.name}; dotted: mean max cosine of random directions (shaped).")
