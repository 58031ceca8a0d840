"""What does one latent of LARGE do to SMALL's error when it is inserted alone?

Nothing is refitted (Bussmann, Leask et al. 2024; Leask et al. 2025):

    x_hat' = x_hat_small + f_i d_i

A latent is *novel* if the mean squared error falls, a *reconstruction* latent if not: then SMALL already has what it
adds. With r = x - x_hat_small the change follows from two running sums, for all latents in one pass:

    change_i = ( E[f_i^2] |d_i|^2 - 2 E[f_i (d_i . r)] ) / d_in

The scale that would serve best is beta_i = E[f_i (d_i . r)] / (E[f_i^2] |d_i|^2); the change is negative where
beta_i > 1/2. A latent that was never active, or that has no decoder direction, inserts nothing; it is *dead*.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.common.neighbours import Neighbours, nearest
from dictlab.dictionary import Dictionary
from dictlab.dictionary.codes import Codes
from dictlab.dictionary.kernels.sparse import products_at
from dictlab.errors import DictlabError
from dictlab.evaluation.evaluate import check_finite


class Effects(NamedTuple):
    """What inserting each latent of LARGE alone does to SMALL's error, `[n_large]` each.

    Attributes:
        change: Change in MSE (mean over tokens and coordinates), in the activations' units squared.
        error: Standard error of `change` over sequences; NaN for a single sequence.
        scale: The factor that would serve best; NaN for a dead latent.
        firing_rate: Share of tokens at which the latent was active.
        strength: Mean activation where it was active, in the activations' units; NaN where it never was.
        dead: Never active on these tokens, or without a decoder direction.
        tokens: Tokens measured.
        sequences: Sequences measured.
        mse: SMALL's own MSE on them.
        stretch: The factor by which SMALL's reconstruction, less its bias, would serve best; above 1 it is too short.
    """

    change: Float[Tensor, " n_large"]
    error: Float[Tensor, " n_large"]
    scale: Float[Tensor, " n_large"]
    firing_rate: Float[Tensor, " n_large"]
    strength: Float[Tensor, " n_large"]
    dead: Bool[Tensor, " n_large"]
    tokens: int
    sequences: int
    mse: float
    stretch: float

    def of_mse(self, change: float) -> float:
        """A change as a share of SMALL's MSE; NaN where that is 0."""
        return change / self.mse if self.mse > 0 else float("nan")


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

    Raises:
        DictlabError: What a dictionary makes of the activations is not all finite.
    """
    n = large.n_latents
    energy, overlap, squares, emitted = (torch.zeros(n, dtype=torch.double) for _ in range(4))
    firings = torch.zeros(n, dtype=torch.long)
    tokens, sequences, squared_error = 0, 0, 0.0
    own_length = torch.zeros(2, dtype=torch.double)
    norm = large.W_dec.square().sum(dim=1).double().cpu()
    for batch in batches:
        x = batch.flatten(0, 1)
        x_hat = small.reconstruct(x)
        check_finite(small, x_hat)
        residual = x - x_hat
        codes = large.encode(x)
        f, p = in_units(large, codes, x).double().cpu(), products_at(codes, residual, large.W_dec).double().cpu()
        cell = codes.rows.cpu() // batch.shape[1] * n + codes.indices.cpu()

        def by_sequence(values: Tensor, cell: Tensor = cell, sequences: int = len(batch)) -> Tensor:
            return torch.bincount(cell, weights=values, minlength=sequences * n).view(sequences, n)

        own_energy, own_overlap = by_sequence(f.square()), by_sequence(f * p)
        energy += own_energy.sum(dim=0)
        overlap += own_overlap.sum(dim=0)
        squares += ((own_energy * norm - 2 * own_overlap) / (batch.shape[1] * large.d_in)).square().sum(dim=0)
        emitted += by_sequence(f).sum(dim=0)
        firings += codes.active_counts().cpu()
        own_length += _lengths(small, x, x_hat)
        squared_error += float(residual.double().square().sum())
        tokens += len(x)
        sequences += len(batch)
    change = (energy * norm - 2 * overlap) / (tokens * large.d_in)
    if not bool(change.isfinite().all()):
        raise DictlabError(f"{large.name}: its codes are not all finite on the text; are its weights damaged?")
    spread = (squares / sequences - change.square()).clamp_min(0)
    return Effects(
        change=change,
        error=(spread / (sequences - 1)).sqrt() if sequences > 1 else torch.full_like(change, torch.nan),
        scale=overlap / (energy * norm),
        firing_rate=firings / tokens,
        strength=emitted / firings,
        dead=(firings == 0) | (norm == 0),
        tokens=tokens,
        sequences=sequences,
        mse=squared_error / (tokens * large.d_in),
        stretch=float(own_length[0] / own_length[1]) if own_length[1] > 0 else float("nan"),
    )


def in_units(dictionary: Dictionary, codes: Codes, x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, " nnz"]:
    """The codes' values times what the input normalisation undoes: what each latent adds is that times its row."""
    scale = torch.as_tensor(dictionary.normalisation(x)[1].scale)
    return codes.values * (scale.reshape(-1)[codes.rows] if scale.numel() > 1 else scale)


def _lengths(small: Dictionary, x: Tensor, x_hat: Tensor) -> Float[Tensor, " 2"]:
    """Sums of y . y_hat and of |y_hat|^2, with y what SMALL's latents alone would have to make of x."""
    undo = small.normalisation(x)[1]
    bias = small.b_out * undo.scale + undo.shift
    y, y_hat = (x - bias).double(), (x_hat - bias).double()
    return torch.stack([(y * y_hat).sum(), y_hat.square().sum()]).cpu()


def nearest_alive(large: Dictionary, small: Dictionary, top: int = 1) -> Neighbours:
    """For each latent of LARGE, the alive latents of SMALL with the nearest decoder directions.

    Raises:
        DictlabError: SMALL has no alive latent.
    """
    candidates = small.alive.nonzero().squeeze(1)
    if len(candidates) == 0:
        raise DictlabError(f"{small.name}: none of its {small.n_latents} latents is alive, so there is no nearest one.")
    found = nearest(large.W_dec, small.W_dec[candidates], top=top)
    return Neighbours(found.cosine, candidates[found.rows])


def latent_table(effects: Effects, neighbours: Neighbours, threshold: float) -> pd.DataFrame:
    """One row a latent of LARGE, most useful first: effect, cosine, and the class by each rule."""
    cosine = neighbours.cosine[:, 0].cpu()
    frame = pd.DataFrame(
        {
            "latent": np.arange(len(cosine)),
            "class": _classes(effects.change < 0, effects.dead),
            "change in MSE": effects.change.numpy(),
            "standard error": effects.error.numpy(),
            "best scale": effects.scale.numpy(),
            "firing rate": effects.firing_rate.numpy(),
            "max cosine": cosine.numpy(),
            "parent": neighbours.rows[:, 0].cpu().numpy(),
            "class by cosine": _classes(cosine < threshold, effects.dead),
        }
    )
    return frame.sort_values("change in MSE", kind="stable", ignore_index=True)


def agreement(latents: pd.DataFrame) -> pd.DataFrame:
    """How many latents each rule calls novel, and how often they agree."""
    counts = latents[latents["class"] != "dead"].groupby(["class", "class by cosine"]).size()
    return counts.rename("latents").reset_index()


def effects_caption(effects: Effects) -> str:
    """What the columns of `latent_table` are."""
    return (
        f"Most useful first. Change in MSE in activation², standard error over {effects.sequences} sequences "
        f"({effects.tokens} tokens), best scale, firing rate, nearest latent (parent)."
    )


def _classes(novel: Tensor, dead: Tensor) -> np.ndarray:
    return np.where(dead.numpy(), "dead", np.where(novel.numpy(), "novel", "reconstruction"))
