"""Given the codes, which decoder and bias explain the activations best?

With the encoder frozen this is linear, and needs no training: ridge regression on the codes g, pulled towards the
directions D_0 that the latents came with, and a free bias (g, y and s as in `pool_sample`):

    min  sum_t |y_t - s_t b - g_t D|^2 + sum_j lambda_j |d_j - d_0j|^2

    lambda_j = ridge mean_i(sum_t g_ti^2 |d_0i|^2) / |d_0j|^2

with the mean over latents i that are active on the sample. Encoder and decoder of a latent share a scale that the
function does not depend on: codes c g_j with directions d_j / c. Their penalty is c^2 lambda_j, so that what a latent
adds to a reconstruction is refitted to the same, whatever units its code is in.

By the normal equations, of which any subset of the latents has its own rows and columns. Codes are sparse, so a token
costs the square of its active latents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor

from analyses.pool.pool_sample import PoolSample, encode_sample
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError

RIDGES = (
    1e-3,
    1e-2,
    1e-1,
    1.0,
    10.0,
)  # of the mean energy that a latent adds; what is best grows with the width
VALIDATION = 5  # one token in five, the last ones, decides between them
LARGEST_REFIT = 8192  # latents; the normal equations take a few matrices of their square in float64: 3 GB
PROBED_TOKENS = 2048  # that are encoded to see whether a decoder can be refitted at all

Refit = Literal["decoder", "bias", "none"]


@torch.no_grad()
def check_refittable(dictionaries: Sequence[Dictionary], x: Float[Tensor, "*tokens d_in"]) -> None:
    """Refuse decoders that are too large to be refitted, by a few tokens: more of a sample, more latents are active.

    Args:
        dictionaries: Each is going to be refitted.
        x: Activations, some of the sample or all.

    Raises:
        DictlabError: More latents of one are active on these tokens than can be refitted; the most is named.
    """
    tokens = x.reshape(-1, x.shape[-1])[:PROBED_TOKENS]
    for dictionary in dictionaries:
        if dictionary.n_latents > LARGEST_REFIT:
            codes = dictionary.encode(tokens.to(dictionary.W_dec.device))
            active = len(codes.indices[codes.values != 0].unique())
            if active > LARGEST_REFIT:
                raise _too_large(dictionary.name, f"{active:,} of its {dictionary.n_latents:,}", len(tokens))


def check_active_refittable(names: Sequence[str], active: Sequence[int], tokens: int) -> None:
    """The same of a whole sample, given how many latents of each dictionary are active on it.

    Raises:
        DictlabError: One has more than can be refitted.
    """
    for name, count in zip(names, active, strict=True):
        if count > LARGEST_REFIT:
            raise _too_large(name, f"{count:,}", tokens)


def _too_large(name: str, active: str, tokens: int) -> DictlabError:
    return DictlabError(
        f"{name}: {active} latents are active on {tokens:,} tokens, and a decoder of at most {LARGEST_REFIT:,} active "
        "latents can be refitted: its normal equations take several matrices of their square. Use `refit='bias'` or "
        "`refit='none'`, which have no such limit, or smaller dictionaries."
    )


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

    def solution(self, before: Float[Tensor, "n+1 d_in"], penalties: Float[Tensor, " n"]) -> Float[Tensor, "n+1 d_in"]:
        """The best decoder and bias, pulled towards what they were before; the bias is free.

        Args:
            before: D_0 and its bias.
            penalties: lambda_j; see `ridge_penalties`.
        """
        penalty = torch.cat([penalties, 1e-9 * self.gram[-1, -1:]])
        factor = torch.linalg.cholesky(self.gram + penalty.diag())
        return before + torch.cholesky_solve(self.moment - self.gram @ before, factor)

    def ridge_solution(self, before: Float[Tensor, "n+1 d_in"], ridge: float) -> Float[Tensor, "n+1 d_in"]:
        """`solution` with the `ridge_penalties` of these latents on this sample."""
        return self.solution(before, ridge_penalties(self.gram.diagonal()[:-1], before[:-1], ridge))


def ridge_penalties(
    energies: Float[Tensor, " n"], directions: Float[Tensor, "n d_in"], ridge: float
) -> Float[Tensor, " n"]:
    """lambda_j = ridge mean_i(sum_t g_ti^2 |d_i|^2) / |d_j|^2, in the units of each latent's own code.

    For directions of unit length that is one lambda, a share of the mean energy of a latent. An active latent whose
    direction is zero has no length to measure by: its lambda_j = ridge sum_t g_tj^2 is that of a latent which adds as
    much as the mean one. Dead latents stay as they were under any penalty; theirs is 1.

    Args:
        energies: sum_t g_tj^2.
        directions: d_j that the latents came with.
        ridge: lambda as a share of the mean energy that an active latent adds.
    """
    squares, active = directions.square().sum(dim=1), energies > 0
    mean = (energies * squares)[active].mean()
    penalties = ridge * torch.where(squares > 0, mean / squares, energies)
    return torch.where(active, penalties, 1.0)


def normal_equations(sample: PoolSample) -> NormalEquations:
    """Of all latents of a sample.

    Raises:
        DictlabError: There are too many of them.
    """
    if sample.n_latents > LARGEST_REFIT:
        raise DictlabError(
            f"refitting a decoder of {sample.n_latents} latents needs several matrices of their square; "
            f"{LARGEST_REFIT} is the most. Use `refit='bias'`."
        )
    design = _design(sample)
    target = sample.target.astype(np.float64)
    gram, moment = torch.from_numpy((design.T @ design).toarray()), torch.from_numpy(design.T @ target)
    return NormalEquations(gram, moment, float(np.square(target).sum()), len(target))


def split_equations(sample: PoolSample) -> tuple[NormalEquations, NormalEquations]:
    """Normal equations of the first four fifths of the tokens, and of the last fifth."""
    first = sample.n_tokens - sample.n_tokens // VALIDATION
    return normal_equations(sample.tokens(slice(first))), normal_equations(sample.tokens(slice(first, None)))


def fit_decoder(
    fitted: NormalEquations, rest: NormalEquations, before: Float[Tensor, "n+1 d_in"]
) -> tuple[Float[Tensor, "n+1 d_in"], float]:
    """The best decoder and bias for all tokens, and the ridge it is pulled with.

    The ridge is that of `RIDGES` which, fitted on the first part of the tokens, explains the rest best.

    Args:
        fitted: Of the first part.
        rest: Of the rest.
        before: What the latents came with, bias last.
    """
    ridge = min(RIDGES, key=lambda share: rest.error(fitted.ridge_solution(before, share)))
    return (fitted + rest).ridge_solution(before, ridge), ridge


@torch.no_grad()
def refit_decoder(
    dictionary: Dictionary, batches: Iterable[Float[Tensor, "*tokens d_in"]], *, ridge: float | None = None
) -> Dictionary:
    """A dictionary with the decoder and output bias that explain these activations best, in closed form.

    Directions of latents that never fire stay as they were. Rows no longer have unit length. The ridge that was used
    is in the result's `metadata.training`.

    Args:
        dictionary: Whose decoder is to be refitted.
        batches: Activations to fit, in random order.
        ridge: As in `ridge_penalties`; by default that of `fit_decoder`.

    Raises:
        DictlabError: There are too many latents for the normal equations.
    """
    sample = encode_sample(dictionary, batches)
    before = torch.cat([dictionary.W_dec, dictionary.b_out[None]]).double().cpu()
    if ridge is None:
        solution, ridge = fit_decoder(*split_equations(sample), before)
    else:
        solution = normal_equations(sample).ridge_solution(before, ridge)
    after = solution.float()
    return replace(
        dictionary,
        W_dec=after[:-1].to(dictionary.W_dec),
        b_out=after[-1].to(dictionary.b_out),
        metadata=replace(dictionary.metadata, training=dictionary.metadata.training | {"ridge": ridge}),
    )


@torch.no_grad()
def refit_bias(dictionary: Dictionary, batches: Iterable[Float[Tensor, "*tokens d_in"]]) -> Dictionary:
    """A dictionary with the output bias that explains these activations best, b + E[x - x_hat]; all else frozen.

    With a per-token scale s of the input normalisation: b + E[s (x - x_hat)] / E[s^2].
    """
    top, bottom = torch.zeros(dictionary.d_in, dtype=torch.double), 0.0
    for batch in batches:
        x = batch.reshape(-1, batch.shape[-1])
        scale = torch.as_tensor(dictionary.normalisation(x)[1].scale).expand(len(x), 1).double().cpu()
        top += (scale * (x - dictionary.reconstruct(x)).double().cpu()).sum(dim=0)
        bottom += float(scale.square().sum())
    return replace(dictionary, b_out=dictionary.b_out + (top / bottom).to(dictionary.b_out))


def _design(sample: PoolSample) -> sparse.csr_array:
    """Regressors, [g, s]."""
    return sparse.hstack([sample.codes.astype(np.float64), sample.scale[:, None]], format="csr")
