"""Some latents of a pool as a dictionary, refitted: bias or decoder in closed form, or some steps of gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.pool import ridge_refit
from analyses.pool.dictionary_pool import part_of
from analyses.pool.gradient_refit import finetuned
from analyses.pool.pool_sample import PoolSample
from analyses.pool.ridge_refit import (
    NormalEquations,
    Refit,
    fit_decoder,
    refit_bias,
    refit_decoder,
    split_equations,
)
from analyses.pool.threshold_calibration import Calibration, standing_alone
from dictlab.dictionary import Dictionary

GradientRefit = Literal["biases by gradient", "all by gradient"]
CLOSED: tuple[Refit, ...] = ("none", "bias", "decoder")
BY_GRADIENT: tuple[GradientRefit, ...] = ("biases by gradient", "all by gradient")


@dataclass(frozen=True, eq=False)
class RefittedSubsets:
    """Subsets of a pool as dictionaries, refitted on a sample that was encoded once.

    Attributes:
        pool: Of `dictionary_pool.pool_of`.
        sample: What its latents do on the sample, tokens in random order or sequence by sequence.
    """

    pool: Dictionary
    sample: PoolSample

    def subset(
        self,
        chosen: Bool[np.ndarray, " n_pool"],
        refit: Refit,
        name: str,
        *,
        b_out: Float[Tensor, " d_in"] | None = None,
    ) -> Dictionary:
        """Some latents of the pool as they are, or with the bias or decoder that explains most; encoders frozen.

        Directions of latents that never fire stay as they were.

        Args:
            chosen: Which latents.
            refit: What is refitted.
            name: Of the result.
            b_out: The output bias where nothing is refitted; by default the pool's.

        Raises:
            DictlabError: There are too many latents to refit their decoder.
        """
        latents = torch.from_numpy(chosen)
        if refit == "none":
            return part_of(self.pool, latents, b_out=b_out, name=name)
        if refit == "bias":
            bias = self.sample.best_bias(chosen, self.pool.W_dec).to(self.pool.b_out)
            return part_of(self.pool, latents, b_out=bias, name=name)
        rows = torch.from_numpy(np.flatnonzero(chosen & (self.sample.firing_rate > 0)))
        before = torch.cat([self.pool.W_dec[rows], self.pool.b_out[None]]).double().cpu()
        solution, ridge = fit_decoder(*self._equations(rows), before)
        after = solution.float().to(self.pool.W_dec)
        W_dec = self.pool.W_dec.clone()
        W_dec[rows] = after[:-1]
        return noted(part_of(self.pool, latents, W_dec=W_dec, b_out=after[-1], name=name), ridge=ridge)

    def tuned(
        self,
        chosen: Bool[np.ndarray, " n_pool"],
        refit: GradientRefit,
        name: str,
        batches: Sequence[Float[Tensor, "*tokens d_in"]],
        *,
        steps: int,
        seed: int,
    ) -> Dictionary:
        """Some latents of the pool after some steps of gradient on biases, or on all weights.

        Steps begin at the best decoder, those on biases alone at the best output bias: what a closed form gives is not
        left to Adam.

        Args:
            chosen: Which latents.
            refit: What is tuned.
            name: Of the result.
            batches: The activations of the sample.
            steps: Of Adam.
            seed: Of the order of tokens in these.
        """
        biases = refit == "biases by gradient"
        start = self.subset(chosen, "bias" if biases else "decoder", name)
        result = finetuned(start, batches, "biases" if biases else "all", steps=steps, seed=seed)
        return replace(noted(result.dictionary, best_step=result.step), name=name)

    def _equations(self, rows: Int[Tensor, " kept"]) -> tuple[NormalEquations, NormalEquations]:
        """Of the first tokens and of the rest: parts of the whole pool's where it is small, else the rows' own."""
        if self.sample.n_latents <= ridge_refit.LARGEST_REFIT:
            fitted, rest = self._of_all
            return fitted.of(rows), rest.of(rows)
        return split_equations(self.sample.columns(rows.numpy()))

    @cached_property
    def _of_all(self) -> tuple[NormalEquations, NormalEquations]:
        return split_equations(self.sample)


def compacted(
    dictionary: Dictionary,
    batches: Sequence[Float[Tensor, "*tokens d_in"]],
    refit: Refit | GradientRefit,
    by: Calibration,
) -> tuple[Dictionary, Dictionary]:
    """A dictionary with a threshold for each latent in place of rivals: as it comes, and refitted again in closed form.

    Args:
        dictionary: Whose latents.
        batches: What thresholds are calibrated on, and what is refitted on.
        refit: How the dictionary was refitted; by gradient, its decoder is refitted again.
        by: What thresholds are to reproduce.
    """
    name = f"{dictionary.name}, compact"
    alone = standing_alone(dictionary, batches, by=by, name=f"{name}, not refitted again")
    if refit == "none":
        return alone, replace(alone, name=name)
    again = refit_bias(alone, batches) if refit == "bias" else refit_decoder(alone, batches)
    return alone, replace(again, name=name)


def noted(dictionary: Dictionary, **how: object) -> Dictionary:
    """The dictionary with how it was made in its metadata."""
    return replace(dictionary, metadata=replace(dictionary.metadata, training=dictionary.metadata.training | how))
