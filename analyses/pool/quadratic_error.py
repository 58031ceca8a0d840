"""What does any subset of a pool of latents cost, and what does any change of it do? One quadratic form answers both.

With g, y and s as in `pool_sample`, chosen latents z in {0, 1}^n, decoder directions d_j and the means E over tokens:

    MSE(z) = constant - 2 h z + z Q z,      Q_ij = E[g_i g_j] d_i . d_j / d_in,    h_j = E[g_j y] . d_j / d_in

for a fixed output bias b, y standing for y - s b. With the bias that is best for each z, b = E[s (y - x_hat)] / E[s^2],
the same holds with E[g_i g_j] - E[s g_i] E[s g_j] / E[s^2] in place of E[g_i g_j], and h alike. So

    adding j costs     Q_jj + 2 ((Q z)_j - h_j)
    removing j costs   Q_jj - 2 ((Q z)_j - h_j)

Nothing is approximated and Q is never held: a column of it costs the tokens at which its latent is active times their
active latents, and Q z costs what one decoding of the sample costs. L0 is exact as well, the sum of the firing rates of
the chosen, because every latent fires by its own donor's rule whatever else is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from analyses.pool.pool_sample import PoolSample
from dictlab.dictionary.codes import Codes
from dictlab.dictionary.kernels.sparse import decode, products_at

ENTRIES = 1 << 24  # numbers in a block of decoded tokens


@dataclass(frozen=True, eq=False)
class QuadraticError:
    """The quadratic form of a pool on a sample of tokens, as `from_sample` works it out.

    Attributes:
        sample: The sample.
        directions: d_j, `[n_latents, d_in]`.
        constant: MSE with nothing but the bias.
        linear: h.
        diagonal: Q_jj.
        bias: The fixed output bias; None where it is the best one for every subset.
        mean_codes: E[s g_j].
        mean_square_scale: E[s^2].
    """

    sample: PoolSample
    directions: torch.Tensor
    constant: float
    linear: NDArray[np.float64]
    diagonal: NDArray[np.float64]
    bias: NDArray[np.float64] | None
    mean_codes: NDArray[np.float64]
    mean_square_scale: float

    @classmethod
    def from_sample(
        cls,
        sample: PoolSample,
        directions: Float[torch.Tensor, "n_latents d_in"],
        bias: Float[torch.Tensor, " d_in"] | None = None,
    ) -> QuadraticError:
        """The quadratic form of a pool.

        Args:
            sample: What the latents do on a sample of tokens.
            directions: What they add, in the units of the targets.
            bias: A fixed output bias; by default the best one for every subset.
        """
        directions = directions.detach().float().cpu()
        scale, codes = sample.scale, sample.codes
        b = np.zeros(directions.shape[1]) if bias is None else bias.detach().double().cpu().numpy()
        square, mean_square_scale = 0.0, float(np.square(scale).mean())
        linear, mean_target = np.zeros(sample.n_latents), np.zeros(len(b))
        for block, rows in token_blocks(sample, max(1, ENTRIES // len(b))):
            y = sample.target[rows] - scale[rows, None] * b
            square += float(np.square(y).sum())
            mean_target += scale[rows] @ y
            linear += _sums(block, torch.from_numpy(y).float(), directions)
        n, d = sample.n_tokens, len(b)
        energy = _per_latent(codes.indices, np.square(codes.data, dtype=np.float64), sample.n_latents) / n
        mean_codes = np.asarray(codes.T @ scale, dtype=np.float64) / n
        linear, mean_target, square = linear / n, mean_target / n, square / n
        if bias is None:
            energy = energy - mean_codes**2 / mean_square_scale
            along = (directions.double() @ torch.from_numpy(mean_target)).numpy()
            linear = linear - mean_codes * along / mean_square_scale
            square -= float(mean_target @ mean_target) / mean_square_scale
        norms = directions.double().square().sum(dim=1).numpy()
        return cls(
            sample=sample,
            directions=directions,
            constant=square / d,
            linear=linear / d,
            diagonal=energy * norms / d,
            bias=None if bias is None else b,
            mean_codes=mean_codes,
            mean_square_scale=mean_square_scale,
        )

    @property
    def n_latents(self) -> int:
        return len(self.linear)

    @property
    def d_in(self) -> int:
        return int(self.directions.shape[1])

    def column(self, latent: int) -> NDArray[np.float64]:
        """Q_:j, `[n_latents]`."""
        column, (others, values) = np.zeros(self.n_latents), self.together(latent)
        column[others] = values
        if self.bias is None:
            cosines = (self.directions @ self.directions[latent]).double().numpy()
            share = self.mean_codes[latent] / (self.mean_square_scale * self.d_in)
            column -= self.mean_codes * cosines * share
        return column

    def together(self, latent: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Latents that are ever active beside one, itself among them, and E[g_i g_j] d_i . d_j / d_in for these."""
        by_latent, codes = self.sample.by_latent, self.sample.codes
        own = slice(by_latent.indptr[latent], by_latent.indptr[latent + 1])
        beside = codes[by_latent.indices[own]]
        weights = np.repeat(by_latent.data[own].astype(np.float64), np.diff(beside.indptr))
        sums = _per_latent(beside.indices, weights * beside.data, self.n_latents)
        others = np.flatnonzero(sums)
        cosines = (self.directions[torch.from_numpy(others)] @ self.directions[latent]).double().numpy()
        return others, sums[others] * cosines / (self.sample.n_tokens * self.d_in)

    def product(self, weights: Float[np.ndarray, " n_latents"]) -> NDArray[np.float64]:
        """Q z for any weights z, at the cost of decoding the sample once."""
        out, scaled = np.zeros(self.n_latents), self._scaled(weights)
        for codes, _ in self._blocks():
            out += _sums(codes, decode(codes, scaled), self.directions)
        out /= self.sample.n_tokens
        if self.bias is None:
            mean = torch.from_numpy(weights * self.mean_codes) @ self.directions.double()
            out -= self.mean_codes * (self.directions.double() @ mean).numpy() / self.mean_square_scale
        return out / self.d_in

    def error(
        self, chosen: Bool[np.ndarray, " n_latents"], product: Float[np.ndarray, " n_latents"] | None = None
    ) -> float:
        """MSE of a subset.

        Args:
            chosen: Which latents.
            product: Q z, if it is at hand.
        """
        z = chosen.astype(np.float64)
        return float(self.constant - 2 * self.linear @ z + z @ (self.product(z) if product is None else product))

    def changes(
        self, chosen: Bool[np.ndarray, " n_latents"], product: Float[np.ndarray, " n_latents"]
    ) -> NDArray[np.float64]:
        """What adding each latent that is not chosen, or removing each that is, does to the MSE, `[n_latents]`.

        Args:
            chosen: Which latents.
            product: Q z of these.
        """
        return self.diagonal + np.where(chosen, -2.0, 2.0) * (product - self.linear)

    def l0(self, chosen: Bool[np.ndarray, " n_latents"]) -> float:
        """Active latents a token."""
        return float(self.sample.firing_rate[chosen].sum())

    def _scaled(self, weights: NDArray[np.float64]) -> torch.Tensor:
        return torch.from_numpy(weights).to(self.directions)[:, None] * self.directions

    def _blocks(self) -> Iterator[tuple[Codes, slice]]:
        return token_blocks(self.sample, max(1, ENTRIES // self.d_in))


def token_blocks(sample: PoolSample, size: int) -> Iterator[tuple[Codes, slice]]:
    """The codes of the sample as `Codes`, a block of tokens at a time."""
    for start in range(0, sample.n_tokens, size):
        rows = slice(start, start + size)
        part = sample.codes[rows]
        entries = (torch.from_numpy(part.data), torch.from_numpy(part.indices).long())
        yield Codes(*entries, torch.from_numpy(part.indptr).long(), sample.n_latents), rows


def _sums(codes: Codes, vectors: torch.Tensor, directions: torch.Tensor) -> NDArray[np.float64]:
    """sum_t g_tj (d_j . v_t) for each latent j."""
    terms = (codes.values * products_at(codes, vectors, directions)).double().numpy()
    return _per_latent(codes.indices.numpy(), terms, codes.n_latents)


def _per_latent(latents: NDArray[np.int64], terms: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    return np.bincount(latents, weights=terms, minlength=n).astype(np.float64, copy=False)
