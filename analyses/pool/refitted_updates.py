"""What does putting one more latent into a chosen set, or taking one out, do to its error, every set being refitted?

With the decoder of every set refitted (penalties lambda_j of `ridge_refit.ridge_penalties`, towards the directions d
that latents came with, bias free), let codes be in units in which each penalty is 1: g_j / sqrt(lambda_j), with
directions sqrt(lambda_j) d_j. Let A = G^T G + 1 and B = G^T Y + D_0, the bias projected out of both. For a set S with
inverse K = (A_SS)^-1, decoder W = K B_S, and for the others the Schur complements and what is left of B

    s_j = A_jj - A_jS K A_Sj,      R_j = B_j - A_jS W

    adding j      changes the penalised sum of squares by   |d_j|^2 - |R_j|^2 / s_j
    removing i                                              |w_i|^2 / K_ii - |d_i|^2

the pull of the latents in the set counted, and that of no other. K, W, s and R follow a move by updates of rank one.
Rounding gathers in them, so they are worked out anew after some moves.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from analyses.pool.quadratic_error import QuadraticError
from analyses.pool.ridge_refit import NormalEquations, normal_equations, ridge_penalties

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
REFRESH = 256  # moves after which an inverse is worked out anew


def penalties_of(quadratic: QuadraticError, ridge: float) -> Float[Array, " n_latents"]:
    """lambda_j of all latents of a pool; see `ridge_refit.ridge_penalties`."""
    codes = quadratic.sample.codes
    energies = np.bincount(codes.indices, np.square(codes.data, dtype=np.float64), quadratic.n_latents)
    return ridge_penalties(torch.from_numpy(energies), quadratic.directions.double(), ridge).numpy()


class RefittedDecoder:
    """Moves with the decoder and bias of each set refitted; see `subset_updates.SubsetMoves`.

    Holds two square matrices of all latents.
    """

    _place: NDArray[np.int64]
    _inverse: Array
    _decoder: Array
    _left: Array
    _schur: Array

    def __init__(
        self,
        quadratic: QuadraticError,
        start: Bool[Mask, " n_latents"],
        penalties: Float[Array, " n_latents"],
        equations: NormalEquations | None = None,
    ) -> None:
        """Starts from a set.

        Args:
            quadratic: The pool.
            start: The set.
            penalties: lambda_j; see `penalties_of`.
            equations: Those of the same sample, if they are at hand.

        Raises:
            DictlabError: There are too many latents for their normal equations.
        """
        equations = normal_equations(quadratic.sample) if equations is None else equations
        gram, moment = equations.gram.numpy(), equations.moment.numpy()
        energies, units = gram.diagonal()[:-1], np.sqrt(penalties)
        before = quadratic.directions.double().numpy() * units[:, None]
        with_bias = gram[:-1, -1]
        self._gram = (gram[:-1, :-1] - np.outer(with_bias, with_bias / gram[-1, -1])) / np.outer(units, units)
        self._gram[np.diag_indices(len(before))] += 1.0
        self._right = (moment[:-1] - np.outer(with_bias, moment[-1] / gram[-1, -1])) / units[:, None] + before
        self._pulls = np.square(before).sum(axis=1)
        self._square = equations.square - float(np.square(moment[-1]).sum()) / gram[-1, -1]
        self._per = quadratic.sample.n_tokens * quadratic.d_in
        self._silent = energies == 0
        self.chosen = start.copy()
        self._refresh()

    def changes(self) -> Array:
        changes = np.zeros(len(self.chosen))
        place = self._place
        changes[place] = np.square(self._decoder).sum(axis=1) / self._inverse.diagonal() - self._pulls[place]
        rest = ~self.chosen & ~self._silent
        changes[rest] = self._pulls[rest] - np.square(self._left[rest]).sum(axis=1) / self._schur[rest]
        return changes / self._per

    def best(self, able: Mask, prices: Array, without: int | None = None) -> tuple[int, float]:
        changes = self.changes() if without is None else self._without(without)
        scores = np.where(able, changes / prices, np.inf)
        best = int(scores.argmin())
        return best, float(changes[best]) if able[best] else float("inf")

    def _without(self, latent: int) -> Array:
        """The changes of adding others, one latent gone."""
        along, share, row = self._removal(latent)
        schur = self._schur + along**2 / share
        left = np.square(self._left).sum(axis=1) + 2 * along * (self._left @ row) / share
        left += along**2 * float(row @ row) / share**2
        changes: Array = np.where(self.chosen | self._silent, 0.0, self._pulls - left / np.where(schur > 0, schur, 1.0))
        return changes / self._per

    def swap_cannot_help(self, latent: int, changes: Array) -> bool:
        return False

    def move(self, latent: int) -> None:
        self.error += float(self.changes()[latent])
        (self._remove if self.chosen[latent] else self._add)(latent)
        self._moved += 1
        if self._moved == REFRESH:
            self._refresh()

    def _removal(self, latent: int) -> tuple[Array, float, Array]:
        """A_:S K_:i, K_ii and w_i."""
        at = int(np.flatnonzero(self._place == latent)[0])
        column = self._inverse[:, at]
        return self._against(column), float(column[at]), self._decoder[at]

    def _remove(self, latent: int) -> None:
        along, share, row = self._removal(latent)
        self._schur += along**2 / share
        self._left += np.outer(along / share, row)
        at = int(np.flatnonzero(self._place == latent)[0])
        column = self._inverse[:, at].copy()
        self._decoder = np.delete(self._decoder - np.outer(column / share, row), at, axis=0)
        self._inverse -= np.outer(column / share, column)
        self._inverse = np.delete(np.delete(self._inverse, at, axis=0), at, axis=1)
        self._place = np.delete(self._place, at)
        self.chosen[latent] = False

    def _add(self, latent: int) -> None:
        own = self._inverse @ self._gram[self._place, latent]
        schur, row = float(self._schur[latent]), self._left[latent] / self._schur[latent]
        along = self._gram[:, latent] - self._against(own)
        self._schur -= along**2 / schur
        self._left -= np.outer(along, row)
        self._decoder = np.vstack([self._decoder - np.outer(own, row), row])
        edge = np.append(-own, 1.0) / schur
        grown = np.pad(self._inverse + np.outer(own / schur, own), ((0, 1), (0, 1)))
        grown[-1, :], grown[:, -1] = edge, edge
        self._inverse, self._place = grown, np.append(self._place, latent)
        self.chosen[latent] = True

    def _against(self, weights: Array) -> Array:
        """A_:S times weights of the set: by its own columns where they are few, else by all of A where it lies."""
        if len(weights) * 4 < len(self._gram):
            few: Array = self._gram[self._place].T @ weights
            return few
        everywhere = np.zeros(len(self._gram))
        everywhere[self._place] = weights
        out: Array = self._gram @ everywhere
        return out

    def _refresh(self) -> None:
        self._moved, self._place = 0, np.flatnonzero(self.chosen)
        own = self._gram[self._place]
        self._inverse = np.linalg.inv(own[:, self._place])
        self._decoder = self._inverse @ self._right[self._place]
        self._left = self._right - own.T @ self._decoder
        self._schur = self._gram.diagonal() - ((self._inverse @ own) * own).sum(axis=0)
        explained = float((self._decoder * self._right[self._place]).sum())
        self.error = (self._square + float(self._pulls[self.chosen].sum()) - explained) / self._per
