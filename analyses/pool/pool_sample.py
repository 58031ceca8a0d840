"""What a pool of latents does on a sample of tokens, written down once: codes and what they are to explain.

A dictionary explains x_t by shift_t + s_t (b + sum_j f_tj d_j), with s and shift what its input normalisation gives
back. With g = s f and y = x - shift this is linear in the codes:

    y_t  ~  s_t b + sum_j g_tj d_j

Everything that can be asked of subsets, of their decoders and of their biases follows from g, y and s, and nothing is
encoded again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from dictlab.dictionary import Dictionary


@dataclass(frozen=True, eq=False)
class PoolSample:
    """Codes and targets on the same tokens.

    Attributes:
        codes: g, `[tokens, n_latents]` in compressed rows; no entry is zero.
        target: y, `[tokens, d_in]`.
        scale: s, `[tokens]`; ones where the normalisation keeps no scale.
    """

    codes: sparse.csr_array
    target: NDArray[np.float32]
    scale: NDArray[np.float64]

    @property
    def n_tokens(self) -> int:
        return len(self.target)

    @property
    def n_latents(self) -> int:
        return int(self.codes.shape[1])

    @property
    def firing_rate(self) -> NDArray[np.float64]:
        """Share of tokens at which each latent is active, `[n_latents]`."""
        return np.bincount(self.codes.indices, minlength=self.n_latents) / self.n_tokens

    @property
    def varies(self) -> bool:
        """Whether targets differ by more than the rounding of float32."""
        spread = np.ptp(self.target, axis=0)
        return bool((spread > 4 * np.finfo(np.float32).eps * np.abs(self.target).max()).any())

    @cached_property
    def by_latent(self) -> sparse.csc_array:
        """The codes in compressed columns, one a latent."""
        return self.codes.tocsc()

    def best_bias(
        self, chosen: Bool[np.ndarray, " n_latents"], directions: Float[Tensor, "n_latents d_in"]
    ) -> Float[Tensor, " d_in"]:
        """The output bias with which a subset has the smallest error: E[s (y - x_hat)] / E[s^2], in float64.

        Args:
            chosen: Which latents.
            directions: Decoder directions of all.
        """
        summed_codes = torch.from_numpy((self.codes.T @ self.scale) * chosen).double()
        left = torch.from_numpy(self.scale @ self.target) - summed_codes @ directions.double().cpu()
        return left / float(np.square(self.scale).sum())

    def tokens(self, which: slice) -> PoolSample:
        """Some of the tokens."""
        return PoolSample(self.codes[which], self.target[which], self.scale[which])

    def columns(self, latents: NDArray[np.int64]) -> PoolSample:
        """Some of the latents."""
        return PoolSample(self.codes[:, latents], self.target, self.scale)


@torch.no_grad()
def encode_sample(pool: Dictionary, batches: Iterable[Float[Tensor, "*tokens d_in"]]) -> PoolSample:
    """Encode activations once.

    Args:
        pool: Whose latents; see `dictionary_pool.pool_of`.
        batches: Activations.
    """
    codes, targets, scales = zip(*(_observed(pool, batch.reshape(-1, pool.d_in)) for batch in batches), strict=True)
    return PoolSample(sparse.vstack(codes, format="csr"), np.concatenate(targets), np.concatenate(scales))


def _observed(pool: Dictionary, x: Tensor) -> tuple[sparse.csr_array, NDArray[np.float32], NDArray[np.float64]]:
    codes = pool.encode(x)
    undo = pool.normalisation(x)[1]
    scale = torch.as_tensor(undo.scale).to(x).expand(len(x), 1).squeeze(1)
    values = (codes.values * scale[codes.rows]).float().cpu().numpy()
    entries = (values, codes.indices.cpu().numpy(), codes.offsets.cpu().numpy())
    matrix = sparse.csr_array(entries, shape=(codes.n_tokens, codes.n_latents))
    matrix.eliminate_zeros()
    return matrix, (x - undo.shift).float().cpu().numpy(), scale.double().cpu().numpy()
