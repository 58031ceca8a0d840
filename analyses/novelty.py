"""What does a larger dictionary know that a smaller one does not?

Insert one latent i of LARGE into SMALL, alone, without any refit (Bussmann, Leask et al. 2024; Leask et al. 2025):

    x_hat' = x_hat_small + f_i d_i

It is *novel* if the mean squared error falls, a *reconstruction* latent if it rises: then SMALL already has what it
adds. With r = x - x_hat_small the change follows from two running sums, for all latents in one pass:

    change_i = ( E[f_i^2] |d_i|^2 - 2 E[f_i (d_i . r)] ) / d_in

The scale that would serve best is beta_i = E[f_i (d_i . r)] / (E[f_i^2] |d_i|^2); the change is negative where
beta_i > 1/2. The published stand-in for this test is the cosine rule: novel where the max decoder cosine with SMALL is
below a threshold (0.7 for GPT-2, 0.4 for Gemma). Both are computed, and how far they agree.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from sklearn.metrics import roc_auc_score
from torch import Tensor

from analyses import style
from analyses.inputs import (
    DictionaryLike,
    ModelLike,
    TextLike,
    check_same_place,
    context_of,
    in_model,
    open_dictionaries,
    open_model,
    open_text,
)
from analyses.matching import Neighbours, chance, nearest
from dictlab import activations
from dictlab.codes import Codes
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluate import site_of
from dictlab.kernels.sparse import products_at
from dictlab.report import Plot, Report, Table


class Effects(NamedTuple):
    """What inserting each latent of LARGE alone does to SMALL's error, `[n_large]` each.

    Attributes:
        change: Change in MSE (mean over tokens and coordinates), in the activations' units squared.
        error: Standard error of `change` over sequences; NaN for a single sequence.
        scale: The factor that would serve best; NaN for a latent that never fired.
        firing_rate: Share of tokens at which the latent was active.
        tokens: Tokens measured.
        sequences: Sequences measured.
    """

    change: Float[Tensor, " n_large"]
    error: Float[Tensor, " n_large"]
    scale: Float[Tensor, " n_large"]
    firing_rate: Float[Tensor, " n_large"]
    tokens: int
    sequences: int


@torch.no_grad()
def insertion_effects(
    small: Dictionary, large: Dictionary, batches: Iterable[Float[Tensor, "batch context d_in"]]
) -> Effects:
    """The effect of inserting each latent of LARGE alone into SMALL, for all of them in one pass over activations.

    Exact: equal to one forward a latent, to float rounding. The output bias stays SMALL's. Cost: encoding, and
    (active latents) x d_in a token. Memory: (sequences a batch) x n_large.

    Args:
        small: The dictionary that is added to.
        large: The dictionary whose latents are added.
        batches: Activations, sequence by sequence; sequences of equal length.
    """
    n = large.n_latents
    energy, overlap, squares = (torch.zeros(n, dtype=torch.double) for _ in range(3))
    firings = torch.zeros(n, dtype=torch.long)
    tokens, sequences = 0, 0
    norm = large.W_dec.square().sum(dim=1).double().cpu()
    for batch in batches:
        x = batch.flatten(0, 1)
        residual = x - small.reconstruct(x)
        codes = large.encode(x)
        scale = torch.as_tensor(large.normalisation(x)[1].scale)
        f = (codes.values * _at_entries(scale, codes)).double().cpu()
        p = products_at(codes, residual, large.W_dec).double().cpu()
        index, row = codes.indices.cpu(), codes.rows.cpu() // batch.shape[1]
        own_energy = torch.zeros(len(batch), n, dtype=torch.double).index_put_(
            (row, index), f.square(), accumulate=True
        )
        own_overlap = torch.zeros(len(batch), n, dtype=torch.double).index_put_((row, index), f * p, accumulate=True)
        energy += own_energy.sum(dim=0)
        overlap += own_overlap.sum(dim=0)
        squares += ((own_energy * norm - 2 * own_overlap) / (batch.shape[1] * large.d_in)).square().sum(dim=0)
        firings += codes.firings().cpu()
        tokens += len(x)
        sequences += len(batch)
    change = (energy * norm - 2 * overlap) / (tokens * large.d_in)
    spread = (squares / sequences - change.square()).clamp_min(0)
    return Effects(
        change=change,
        error=(spread / (sequences - 1)).sqrt() if sequences > 1 else torch.full_like(change, torch.nan),
        scale=overlap / (energy * norm),
        firing_rate=firings / tokens,
        tokens=tokens,
        sequences=sequences,
    )


def _at_entries(scale: Tensor, codes: Codes) -> Tensor:
    return scale.reshape(-1)[codes.rows] if scale.numel() > 1 else scale


def novelty(
    small: DictionaryLike,
    large: DictionaryLike,
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    tokens: int = 131_072,
    threshold: float = 0.7,
    seed: int = 0,
    device: str = "cpu",
) -> Report:
    """Which latents of LARGE bring something that SMALL lacks, by their measured effect and by their cosine?

    Args:
        small: The dictionary that is added to.
        large: A dictionary at the same site, whose latents are added one at a time.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from; its training split is used.
        tokens: Tokens to measure on.
        threshold: Cosine below which the published rule calls a latent novel.
        seed: Of the sample of text and the chance level.
        device: Where to run: cpu, cuda, ...

    Example:
        dictlab report novelty small.safetensors large.safetensors --threshold 0.5
    """
    check_at_least(0, seed=seed)
    small, large = open_dictionaries([small, large])
    check_same_place([small, large])
    model, text = open_model(model, [small, large], device), open_text(text).as_split("train")
    small, large = in_model([small, large], model)
    context = context_of([small, large], model)
    where = {"text": text.name, "model": model.name, "context": context}
    batches = activations.sample(model, text, site_of(small), context=context, tokens=tokens, seed=seed)
    effects = insertion_effects(small, large, batches)
    latents = latent_table(effects, nearest_alive(large, small), threshold)
    alive = latents[latents["class"] != "dead"]
    if alive.empty:
        raise DictlabError(f"{large.name}: no latent was active on {effects.tokens} tokens of {text.name}.")
    share, by_cosine = (float((alive[name] == "novel").mean()) for name in ("class", "class by cosine"))
    level = chance(small.W_dec[small.alive], shaped=True, seed=seed)
    return Report(
        title=f"What does {large.name} know that {small.name} does not?",
        summary=(
            f"Inserted alone, {share:.0%} of {len(alive)} active latents of {large.name} lower the error of "
            f"{small.name} (novel); the cosine rule at {threshold:g} calls {by_cosine:.0%} novel. " + _predicts(alive)
        ),
        tables={
            "latents": Table(latents, effects_caption(effects)),
            "agreement": Table(
                agreement(latents), f"Active latents by measured effect and by the cosine rule at {threshold:g}."
            ),
        },
        plots={"effects": effect_plot(latents, threshold, level, small, large)},
        settings={"tokens": effects.tokens, "threshold": threshold, "seed": seed} | where,
        inputs=(small, large),
    )


def nearest_alive(large: Dictionary, small: Dictionary) -> Neighbours:
    """For each latent of LARGE, the alive latent of SMALL with the nearest decoder direction."""
    candidates = small.alive.nonzero().squeeze(1)
    found = nearest(large.W_dec, small.W_dec[candidates])
    return Neighbours(found.cosine, candidates[found.rows])


def latent_table(effects: Effects, neighbours: Neighbours, threshold: float) -> pd.DataFrame:
    """One row a latent of LARGE, most useful first: effect, cosine, and the class by each rule."""
    dead = effects.firing_rate == 0
    cosine = neighbours.cosine[:, 0].cpu()
    frame = pd.DataFrame(
        {
            "latent": np.arange(len(cosine)),
            "class": _classes(effects.change < 0, dead),
            "change in MSE": effects.change.numpy(),
            "standard error": effects.error.numpy(),
            "best scale": effects.scale.numpy(),
            "firing rate": effects.firing_rate.numpy(),
            "max cosine": cosine.numpy(),
            "parent": neighbours.rows[:, 0].cpu().numpy(),
            "class by cosine": _classes(cosine < threshold, dead),
        }
    )
    return frame.sort_values("change in MSE", kind="stable", ignore_index=True)


def agreement(latents: pd.DataFrame) -> pd.DataFrame:
    """How many latents each rule calls novel, and how often they agree."""
    counts = latents[latents["class"] != "dead"].groupby(["class", "class by cosine"]).size()
    return counts.rename("latents").reset_index()


@style.applied
def effect_plot(latents: pd.DataFrame, threshold: float, level: float, small: Dictionary, large: Dictionary) -> Plot:
    """Max cosine against change in MSE, one point a latent (Leask et al. 2025, figure 4)."""
    alive = latents[latents["class"] != "dead"]
    figure, (ax,) = style.axes(width=6.5, height=4.5)
    for number, kind in enumerate(("novel", "reconstruction")):
        part = alive[alive["class"] == kind]
        ax.scatter(
            part["max cosine"],
            part["change in MSE"],
            s=9,
            alpha=0.6,
            lw=0,
            color=style.colour(number),
            marker=style.marker(number),
            label=f"{kind} ({len(part)})",
        )
    typical = float(alive["change in MSE"].abs().quantile(0.25)) or 1e-12
    ax.set_yscale("symlog", linthresh=typical)
    ax.axhline(0, color="black", lw=0.8)
    ax.axvline(threshold, color="#666666", ls="--", lw=1, label=f"cosine rule, {threshold:g}")
    ax.axvline(level, color="#666666", ls=":", lw=1, label=f"chance (shaped), {level:.2f}")
    ax.set(
        xlabel=f"max cosine with a latent of {small.name}",
        ylabel="change in MSE when inserted alone\n(activation², symlog)",
        title=f"Each latent of {large.name}, inserted alone",
    )
    ax.legend(loc="best")
    return Plot(
        figure,
        f"Each point is one of {len(alive)} active latents of {large.name}: below the line it lowers the error of "
        f"{small.name}. Dashed: the published threshold. Dotted: the mean max cosine of random directions.",
    )


def _classes(novel: Tensor, dead: Tensor) -> np.ndarray:
    return np.where(dead.numpy(), "dead", np.where(novel.numpy(), "novel", "reconstruction"))


def _predicts(alive: pd.DataFrame) -> str:
    novel = alive["class"] == "novel"
    if novel.nunique() < 2:
        return "All are of one class, so there is nothing for cosine to predict."
    area = roc_auc_score(novel, -alive["max cosine"])
    return f"As a predictor of the measured effect, cosine has an area under the ROC curve of {area:.2f}."


def effects_caption(effects: Effects) -> str:
    """What the columns of `latent_table` are."""
    return (
        f"Most useful first. Change in MSE in activation², standard error over {effects.sequences} sequences "
        f"({effects.tokens} tokens), best scale, firing rate, nearest latent (parent)."
    )
