"""Given the codes, which decoder and bias explain the activations best?

With the encoder frozen this is linear, and needs no training: ridge regression on the codes g, pulled towards the
directions D_0 that the latents came with, and a free bias (g, y and s as in `observations`):

    min  sum_t |y_t - s_t b - g_t D|^2 + lambda |D - D_0|^2

By the normal equations, of which any subset of the latents has its own rows and columns: with A = G^T G + lambda,
G having s as its last column, W the solution and w_j its rows,

    leaving latent j out, and refitting the others, costs |w_j|^2 / (A^-1)_jj

in this sum (the pull on the latent that goes included). Codes are sparse, so a token costs the square of its active
latents.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse
from torch import Tensor

from analyses.pool.dictionary_pool import part_of
from analyses.pool.pool_sample import Observations, observe
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # shares of the mean energy of a latent; what is best grows with the width
VALIDATION = 5  # one token in five, the last ones, decides between them
LARGEST_REFIT = 8192  # latents; the normal equations take a few matrices of their square in float64: 3 GB

Refit = Literal["decoder", "bias", "none"]


@dataclass(frozen=True, eq=False)
class NormalEquations:
    """What least squares needs to know of a sample; bias last.

    Attributes:
        gram: G^T G.
        moment: G^T Y.
        square: sum |y|^2.
        tokens: In the sample.
    """

    gram: Float[Tensor, "n+1 n+1"]
    moment: Float[Tensor, "n+1 d_in"]
    square: float
    tokens: int

    def of(self, latents: Int[Tensor, " kept"]) -> NormalEquations:
        """Those of some latents, in the order given."""
        rows = torch.cat([latents, torch.tensor([len(self.gram) - 1])])
        return NormalEquations(self.gram[rows][:, rows], self.moment[rows], self.square, self.tokens)

    def __add__(self, other: NormalEquations) -> NormalEquations:
        """Those of both samples."""
        gram, moment = self.gram + other.gram, self.moment + other.moment
        return NormalEquations(gram, moment, self.square + other.square, self.tokens + other.tokens)

    def error(self, decoder: Float[Tensor, "n+1 d_in"]) -> float:
        """MSE of a decoder with its bias, mean over tokens and coordinates."""
        explained = 2 * (decoder * self.moment).sum() - (decoder * (self.gram @ decoder)).sum()
        return (self.square - float(explained)) / (self.tokens * decoder.shape[1])

    def solution(self, before: Float[Tensor, "n+1 d_in"], ridge: float) -> Float[Tensor, "n+1 d_in"]:
        """The best decoder and bias, pulled towards what they were before; the bias is free.

        Args:
            before: D_0 and its bias.
            ridge: lambda as a share of the mean energy sum_t g_ti^2 of a latent.
        """
        factor = torch.linalg.cholesky(self._penalised(ridge))
        return before + torch.cholesky_solve(self.moment - self.gram @ before, factor)

    def removal_costs(self, decoder: Float[Tensor, "n+1 d_in"], ridge: float) -> Float[Tensor, " n"]:
        """What leaving each latent out and refitting the others adds to the MSE (with the pull, see above).

        Args:
            decoder: The `solution` for the same ridge.
            ridge: As there.
        """
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self._penalised(ridge))).diagonal()
        return (decoder.square().sum(dim=1) / inverse)[:-1] / (self.tokens * decoder.shape[1])

    def _penalised(self, ridge: float) -> Tensor:
        energies = self.gram.diagonal()[:-1]
        pull = ridge * energies[energies > 0].mean() if bool((energies > 0).any()) else torch.ones(())
        penalty = torch.full((len(self.gram),), float(pull), dtype=torch.double)
        penalty[-1] = 1e-9 * self.gram[-1, -1]
        return self.gram + penalty.diag()


def normal_equations(observations: Observations) -> NormalEquations:
    """Of all latents of a sample.

    Raises:
        DictlabError: There are too many of them.
    """
    if observations.n_latents > LARGEST_REFIT:
        raise DictlabError(
            f"refitting a decoder of {observations.n_latents} latents needs several matrices of their square; "
            f"{LARGEST_REFIT} is the most. Use --refit bias."
        )
    design = _design(observations)
    target = observations.target.astype(np.float64)
    gram, moment = torch.from_numpy((design.T @ design).toarray()), torch.from_numpy(design.T @ target)
    return NormalEquations(gram, moment, float(np.square(target).sum()), len(target))


def best_ridge(observations: Observations, before: Float[Tensor, "n+1 d_in"]) -> float:
    """That of `RIDGES` which, fitted on the first four fifths of the tokens, explains the last fifth best."""
    first = observations.n_tokens - observations.n_tokens // VALIDATION
    equations, rest = normal_equations(observations.tokens(slice(first))), observations.tokens(slice(first, None))
    design = _design(rest)

    def error(ridge: float) -> float:
        return float(np.square(rest.target - design @ equations.solution(before, ridge).numpy()).sum())

    return min(RIDGES, key=error)


@dataclass(frozen=True, eq=False)
class Parts:
    """Parts of a pool, refitted on a sample that was encoded once.

    Attributes:
        pool: Of `pool.pooled`.
        observations: What its latents do on the sample, tokens in random order or sequence by sequence.
    """

    pool: Dictionary
    observations: Observations

    def made(self, chosen: Bool[np.ndarray, " n_pool"], refit: Refit, name: str) -> Dictionary:
        """Some latents of the pool as a dictionary, as they are, or with the bias or decoder that explains most.

        Raises:
            DictlabError: There are too many latents to refit their decoder.
        """
        latents = torch.from_numpy(chosen)
        if refit == "none":
            return part_of(self.pool, latents, name=name)
        if refit == "bias":
            return part_of(self.pool, latents, b_out=self._best_bias(chosen).to(self.pool.b_out), name=name)
        rows = latents.nonzero().squeeze(1)
        fitted, rest = (equations.of(at) for equations, at in self._equations(rows))
        before = torch.cat([self.pool.W_dec[rows], self.pool.b_out[None]]).double().cpu()
        ridge = min(RIDGES, key=lambda share: rest.error(fitted.solution(before, share)))
        after = (fitted + rest).solution(before, ridge).float().to(self.pool.W_dec)
        W_dec = self.pool.W_dec.clone()
        W_dec[rows] = after[:-1]
        made = part_of(self.pool, latents, W_dec=W_dec, b_out=after[-1], name=name)
        return replace(made, metadata=replace(made.metadata, training=made.metadata.training | {"ridge": ridge}))

    def _best_bias(self, chosen: Bool[np.ndarray, " n_pool"]) -> Float[Tensor, " d_in"]:
        seen = self.observations
        mean_codes = torch.from_numpy((seen.codes.T @ seen.scale) * chosen).double()
        left = torch.from_numpy(seen.scale @ seen.target) - mean_codes @ self.pool.W_dec.double().cpu()
        return left / float(np.square(seen.scale).sum())

    def _equations(self, rows: Int[Tensor, " kept"]) -> list[tuple[NormalEquations, Int[Tensor, " kept"]]]:
        """Of the first tokens and of the rest, for the whole pool where it is small; and where the rows are in them."""
        if self.observations.n_latents <= LARGEST_REFIT:
            return [(equations, rows) for equations in self._of_all]
        own = _halves(self.observations.columns(rows.numpy()))
        return [(equations, torch.arange(len(rows))) for equations in own]

    @cached_property
    def _of_all(self) -> tuple[NormalEquations, NormalEquations]:
        return _halves(self.observations)


def _halves(observations: Observations) -> tuple[NormalEquations, NormalEquations]:
    """Normal equations of the first four fifths of the tokens, and of the last fifth."""
    first = observations.n_tokens - observations.n_tokens // VALIDATION
    whole = slice(first), slice(first, None)
    return normal_equations(observations.tokens(whole[0])), normal_equations(observations.tokens(whole[1]))


@torch.no_grad()
def refit_decoder(
    dictionary: Dictionary, batches: Iterable[Float[Tensor, "*tokens d_in"]], *, ridge: float | None = None
) -> Dictionary:
    """The same encoder with the decoder and output bias that explain these activations best, in closed form.

    Directions of latents that never fire stay as they were. Rows no longer have unit length. The ridge that was used
    is in the result's `metadata.training`.

    Args:
        dictionary: Whose decoder is to be refitted.
        batches: Activations to fit, in random order.
        ridge: lambda as a share of the mean energy sum_t g_ti^2 of a latent; by default `best_ridge`.

    Raises:
        DictlabError: There are too many latents for the normal equations.
    """
    observations = observe(dictionary, batches)
    before = torch.cat([dictionary.W_dec, dictionary.b_out[None]]).double().cpu()
    equations = normal_equations(observations)
    if ridge is None:
        ridge = best_ridge(observations, before)
    after = equations.solution(before, ridge).float()
    return replace(
        dictionary,
        W_dec=after[:-1].to(dictionary.W_dec),
        b_out=after[-1].to(dictionary.b_out),
        metadata=replace(dictionary.metadata, training=dictionary.metadata.training | {"ridge": ridge}),
    )


@torch.no_grad()
def refit_bias(dictionary: Dictionary, batches: Iterable[Float[Tensor, "*tokens d_in"]]) -> Dictionary:
    """The same encoder and directions with the output bias that explains these activations best: b + E[(x - x_hat)].

    With a per-token scale s of the input normalisation: b + E[s (x - x_hat)] / E[s^2].
    """
    top, bottom = torch.zeros(dictionary.d_in, dtype=torch.double), 0.0
    for batch in batches:
        x = batch.reshape(-1, batch.shape[-1])
        scale = torch.as_tensor(dictionary.normalisation(x)[1].scale).expand(len(x), 1).double().cpu()
        top += (scale * (x - dictionary.reconstruct(x)).double().cpu()).sum(dim=0)
        bottom += float(scale.square().sum())
    return replace(dictionary, b_out=dictionary.b_out + (top / bottom).to(dictionary.b_out))


def refitted(dictionary: Dictionary, batches: list[Tensor], refit: Refit) -> Dictionary:
    """The dictionary after one of the refits."""
    if refit == "decoder":
        return refit_decoder(dictionary, batches)
    return refit_bias(dictionary, batches) if refit == "bias" else dictionary


def _design(observations: Observations) -> sparse.csr_array:
    """Regressors, [g, s]."""
    return sparse.hstack([observations.codes.astype(np.float64), observations.scale[:, None]], format="csr")
