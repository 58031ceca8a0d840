"""What does putting one more latent into a chosen set, or taking one out, do to its error, the decoder being fixed?

That is the quadratic form's own answer (see `quadratic_error`), kept up to date by one column a move:

    Q z  ->  Q z +- Q_:j

`refitted_updates` answers the same with the decoder of every set refitted.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from analyses.pool.quadratic_error import QuadraticError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
SUMS = 4096  # moves after which sums are worked out anew
CANDIDATES = 64  # latents that may be the best


class SubsetMoves(Protocol):
    """A chosen set, what it costs, and what each single move would do to that.

    Attributes:
        chosen: The set.
        error: What is minimised: MSE, with a refit that of the penalised sum of squares.
    """

    chosen: Mask
    error: float

    def changes(self) -> Float[Array, " n_latents"]:
        """What removing each latent that is chosen, or adding each that is not, does to the error."""
        ...

    def best(
        self, able: Bool[Mask, " n_latents"], prices: Float[Array, " n_latents"], without: int | None = None
    ) -> tuple[int, float]:
        """The latent whose move does most for its price, and what the move does to the error; infinite if none is able.

        Args:
            able: Those to be considered; with `without`, of those that are not chosen.
            prices: What changes are divided by.
            without: A chosen latent that is to count as gone already.
        """
        ...

    def swap_cannot_help(self, latent: int, changes: Float[Array, " n_latents"]) -> bool:
        """Whether a bound shows that no latent in the place of this chosen one lowers the error."""
        ...

    def move(self, latent: int) -> None:
        """Remove the latent if it is chosen, add it if it is not."""
        ...


class FixedDecoder:
    """Moves with directions as they are; see `SubsetMoves`.

    With the best bias for each set, Q has a part -E[s g_i] E[s g_j] d_i . d_j / E[s^2] that is not sparse: by it every
    latent minds every move. A move changes it by the product of all directions with one vector v. It is worked out for
    the latents that may be the best; a bound on what it does to the others, |d_i| |v|, says whether they may.
    """

    _v_known: Array
    _along: Array

    def __init__(self, quadratic: QuadraticError, start: Bool[Mask, " n_latents"]) -> None:
        self._quadratic, self.chosen = quadratic, start.copy()
        self._lengths = np.sqrt(np.clip(quadratic.diagonal, 0, None))
        free = quadratic.bias is None
        self._means = (
            quadratic.mean_codes / (quadratic.mean_square_scale * quadratic.d_in)
            if free
            else np.zeros(quadratic.n_latents)
        )
        self._reach = 2 * self._means * np.linalg.norm(quadratic.directions.numpy(), axis=1)
        self._refresh()

    def changes(self) -> Array:
        self._catch_up()
        return self._nearly(None)

    def best(self, able: Mask, prices: Array, without: int | None = None) -> tuple[int, float]:
        if not able.any():
            return 0, float("inf")
        v = self._v - self._v_known
        if without is not None:
            v = v - self._quadratic.mean_codes[without] * self._quadratic.directions[without].double().numpy()
        scores = np.where(able, self._nearly(without) / prices, np.inf)
        some = np.argpartition(scores, min(CANDIDATES, len(scores)) - 1)[:CANDIDATES]
        exact = np.where(able[some], (scores[some] * prices[some] + self._bias_part(some, v)) / prices[some], np.inf)
        best = int(exact.argmin())
        slack = float(np.linalg.norm(v))
        optimistic = scores - self._reach * (slack / prices)
        optimistic[some] = np.inf
        if optimistic.min() >= exact[best]:
            return int(some[best]), float(exact[best] * prices[some[best]])
        if without is None:
            self._catch_up()
            exact = np.where(able, self._nearly(None) / prices, np.inf)
        else:
            exact = np.where(able, scores + self._bias_part(np.arange(len(scores)), v) / prices, np.inf)
        best = int(exact.argmin())
        return best, float(exact[best] * prices[best])

    def swap_cannot_help(self, latent: int, changes: Array) -> bool:
        """By Cauchy and Schwarz, Q_ij <= sqrt(Q_ii Q_jj)."""
        best = np.min(changes - 2 * self._lengths[latent] * self._lengths, where=~self.chosen, initial=0.0)
        return bool(changes[latent] + best >= 0)

    def move(self, latent: int) -> None:
        sign, quadratic = (-1.0 if self.chosen[latent] else 1.0), self._quadratic
        own = np.array([latent])
        known = self._sparse[latent] - self._means[latent] * self._along[latent]
        at = known + float(self._bias_part(own, self._v - self._v_known)[0]) * (0.5 * sign)
        self.error += float(quadratic.diagonal[latent] + 2 * sign * (at - quadratic.linear[latent]))
        others, values = quadratic.together(latent)
        self._sparse[others] += sign * values
        self._v += sign * quadratic.mean_codes[latent] * quadratic.directions[latent].double().numpy()
        self.chosen[latent] = not self.chosen[latent]
        self._moved += 1
        if self._moved == SUMS:
            self._refresh()

    def _nearly(self, without: int | None) -> Array:
        """The changes, the dense part of Q as it was when all directions were last multiplied."""
        product = self._sparse - self._means * self._along
        if without is not None:
            others, values = self._quadratic.together(without)
            product[others] -= values
        return self._quadratic.changes(self.chosen, product)

    def _bias_part(self, latents: NDArray[np.int64], v: Array) -> Array:
        """What is to be added to the nearly right changes of some latents, v what the sum of means has moved by."""
        along = self._quadratic.directions[torch.from_numpy(latents)].double().numpy() @ v
        moved: Array = np.where(self.chosen[latents], 2.0, -2.0) * self._means[latents] * along
        return moved

    def _catch_up(self) -> None:
        if (self._v != self._v_known).any():
            directions = self._quadratic.directions
            self._along = (directions @ torch.from_numpy(self._v).to(directions)).double().numpy()
            self._v_known = self._v.copy()

    def _refresh(self) -> None:
        quadratic, z = self._quadratic, self.chosen.astype(np.float64)
        self._moved = 0
        self._v = (quadratic.directions.T @ torch.from_numpy(z * quadratic.mean_codes).float()).double().numpy()
        self._v_known = np.full(quadratic.d_in, np.nan)
        self._catch_up()
        product = quadratic.product(z)
        self._sparse = product + self._means * self._along
        self.error = quadratic.error(self.chosen, product)
