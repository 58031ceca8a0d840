"""Given the codes, which decoder and bias explain the activations best?

With the encoder frozen this is linear, and needs no training: ridge regression on the codes, pulled towards the
directions D_0 that the latents came with, and a free bias:

    min  sum_t |x_t - b - f_t D|^2 + lambda |D - D_0|^2

By the normal equations; codes are sparse, so a token costs the square of its active latents.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # shares of the mean energy of a latent; what is best grows with the width
VALIDATION = 5  # one token in five, the last ones, decides between them
LARGEST_REFIT = 8192  # latents; the normal equations take a few matrices of their square in float64: 3 GB

Refit = Literal["decoder", "bias", "none"]


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
        ridge: lambda as a share of the mean energy sum_t f_ti^2 of a latent; by default that of `RIDGES` which, fitted
            on the first four fifths of the tokens, explains the last fifth best.

    Raises:
        DictlabError: There are too many latents for the normal equations.
    """
    n = dictionary.n_latents
    if n > LARGEST_REFIT:
        raise DictlabError(
            f"{dictionary.name}: refitting a decoder of {n} latents needs several matrices of their square; "
            f"{LARGEST_REFIT} is the most. Use --refit bias."
        )
    designs, targets = zip(*(_design(dictionary, batch.reshape(-1, batch.shape[-1])) for batch in batches), strict=True)
    design, target = sparse.vstack(designs).tocsr(), np.concatenate(targets)
    before = torch.cat([dictionary.W_dec, dictionary.b_out[None]]).double().cpu()
    if ridge is None:
        ridge = _best_ridge(design, target, before)
    after = _solve(*_moments(design, target), before, ridge).float()
    training = dictionary.metadata.training | {"ridge": ridge}
    return replace(
        dictionary,
        W_dec=after[:-1].to(dictionary.W_dec),
        b_out=after[-1].to(dictionary.b_out),
        metadata=replace(dictionary.metadata, training=training),
    )


def _best_ridge(design: sparse.csr_array, target: np.ndarray, before: Tensor) -> float:
    """The ridge with the smallest error on tokens that were not fitted."""
    first = len(target) - len(target) // VALIDATION
    moments = _moments(design[:first], target[:first])

    def error(ridge: float) -> float:
        fitted = design[first:] @ _solve(*moments, before, ridge).numpy()
        return float(np.square(target[first:] - fitted).sum())

    return min(RIDGES, key=error)


def _moments(design: sparse.csr_array, target: np.ndarray) -> tuple[Tensor, Tensor]:
    """F^T F and F^T X."""
    return torch.from_numpy((design.T @ design).toarray()), torch.from_numpy(design.T @ target)


def _solve(gram: Tensor, moment: Tensor, before: Tensor, ridge: float) -> Tensor:
    """Decoder and bias, pulled towards what they were before; the bias is free."""
    energies = gram.diagonal()[:-1]
    pull = ridge * energies[energies > 0].mean() if bool((energies > 0).any()) else torch.ones(())
    penalty = torch.full((len(gram),), float(pull), dtype=torch.double)
    penalty[-1] = 1e-9 * gram[-1, -1]
    return before + torch.cholesky_solve(moment - gram @ before, torch.linalg.cholesky(gram + penalty.diag()))


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


def _design(dictionary: Dictionary, x: Tensor) -> tuple[sparse.csr_array, np.ndarray]:
    """Regressors of x, [codes, 1] times the normalisation's scale, and what they are to explain."""
    codes = dictionary.encode(x)
    undo = dictionary.normalisation(x)[1]
    scale = torch.as_tensor(undo.scale).expand(len(x), 1).double().cpu().numpy()
    shape = (codes.n_tokens, codes.n_latents)
    entries = (codes.values.double().cpu().numpy(), codes.indices.cpu().numpy(), codes.offsets.cpu().numpy())
    design = sparse.hstack([sparse.csr_array(entries, shape=shape), np.ones((len(x), 1))]).tocsr()
    return sparse.csr_array(design.multiply(scale)), (x - undo.shift).double().cpu().numpy()
