"""What does putting one more latent into a chosen set, or taking one out, do to its error?

With directions as they are, that is the quadratic form's own answer, kept up to date by one column a move:

    Q z  ->  Q z +- Q_:j

With the decoder of every set refitted (ridge lambda, pull towards the directions d that latents came with, bias free),
let A = G^T G + lambda and B = G^T Y + lambda D_0, the bias projected out of both. For a set S with inverse
K = (A_SS)^-1, decoder W = K B_S, and for the others the Schur complements and what is left of B

    s_j = A_jj - A_jS K A_Sj,      R_j = B_j - A_jS W

    adding j      changes the penalised sum of squares by   lambda |d_j|^2 - |R_j|^2 / s_j
    removing i                                              |w_i|^2 / K_ii - lambda |d_i|^2

the pull of the latents in the set counted, and that of no other. K, W, s and R follow a move by updates of rank one.
Rounding gathers in them, so they are worked out anew after some moves.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from analyses.pool.pool_sample import Observations
from analyses.pool.quadratic_error import Form
from analyses.pool.ridge_refit import NormalEquations, normal_equations

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
REFRESH = 256  # moves after which an inverse is worked out anew
SUMS = 4096  # ... and after which sums of few terms each are
CANDIDATES = 64  # latents that may be the best


class Moves(Protocol):
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

    def hopeless(self, latent: int, changes: Float[Array, " n_latents"]) -> bool:
        """Whether a bound shows that no latent in the place of this chosen one lowers the error."""
        ...

    def move(self, latent: int) -> None:
        """Remove the latent if it is chosen, add it if it is not."""
        ...


class AsTheyAre:
    """Moves with directions as they are; see `Moves`.

    With the best bias for each set, Q has a part -E[s g_i] E[s g_j] d_i . d_j / E[s^2] that is not sparse: by it every
    latent minds every move. A move changes it by the product of all directions with one vector v. It is worked out for
    the latents that may be the best; a bound on what it does to the others, |d_i| |v|, says whether they may.
    """

    _v_known: Array
    _along: Array

    def __init__(self, form: Form, start: Bool[Mask, " n_latents"]) -> None:
        self._form, self.chosen = form, start.copy()
        self._lengths = np.sqrt(np.clip(form.diagonal, 0, None))
        free = form.bias is None
        self._means = form.mean_codes / (form.mean_square_scale * form.d_in) if free else np.zeros(form.n_latents)
        self._reach = 2 * self._means * np.linalg.norm(form.directions.numpy(), axis=1)
        self._refresh()

    def changes(self) -> Array:
        self._catch_up()
        return self._nearly(None)

    def best(self, able: Mask, prices: Array, without: int | None = None) -> tuple[int, float]:
        if not able.any():
            return 0, float("inf")
        v = self._v - self._v_known
        if without is not None:
            v = v - self._form.mean_codes[without] * self._form.directions[without].double().numpy()
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

    def hopeless(self, latent: int, changes: Array) -> bool:
        """By Cauchy and Schwarz, Q_ij <= sqrt(Q_ii Q_jj)."""
        best = np.min(changes - 2 * self._lengths[latent] * self._lengths, where=~self.chosen, initial=0.0)
        return bool(changes[latent] + best >= 0)

    def move(self, latent: int) -> None:
        sign, form = (-1.0 if self.chosen[latent] else 1.0), self._form
        own = np.array([latent])
        known = self._sparse[latent] - self._means[latent] * self._along[latent]
        at = known + float(self._bias_part(own, self._v - self._v_known)[0]) * (0.5 * sign)
        self.error += float(form.diagonal[latent] + 2 * sign * (at - form.linear[latent]))
        others, values = form.together(latent)
        self._sparse[others] += sign * values
        self._v += sign * form.mean_codes[latent] * form.directions[latent].double().numpy()
        self.chosen[latent] = not self.chosen[latent]
        self._moved += 1
        if self._moved == SUMS:
            self._refresh()

    def _nearly(self, without: int | None) -> Array:
        """The changes, the dense part of Q as it was when all directions were last multiplied."""
        product = self._sparse - self._means * self._along
        if without is not None:
            others, values = self._form.together(without)
            product[others] -= values
        return self._form.changes(self.chosen, product)

    def _bias_part(self, latents: NDArray[np.int64], v: Array) -> Array:
        """What is to be added to the nearly right changes of some latents, v what the sum of means has moved by."""
        along = self._form.directions[torch.from_numpy(latents)].double().numpy() @ v
        moved: Array = np.where(self.chosen[latents], 2.0, -2.0) * self._means[latents] * along
        return moved

    def _catch_up(self) -> None:
        if (self._v != self._v_known).any():
            directions = self._form.directions
            self._along = (directions @ torch.from_numpy(self._v).to(directions)).double().numpy()
            self._v_known = self._v.copy()

    def _refresh(self) -> None:
        form, z = self._form, self.chosen.astype(np.float64)
        self._moved = 0
        self._v = (form.directions.T @ torch.from_numpy(z * form.mean_codes).float()).double().numpy()
        self._v_known = np.full(form.d_in, np.nan)
        self._catch_up()
        product = form.product(z)
        self._sparse = product + self._means * self._along
        self.error = form.error(self.chosen, product)


def pull_of(ridge: float, observations: Observations) -> float:
    """lambda: a share of the mean energy sum_t g_tj^2 of a latent that fires."""
    codes = observations.codes
    energies = np.bincount(codes.indices, np.square(codes.data, dtype=np.float64), observations.n_latents)
    return ridge * float(energies[energies > 0].mean()) if (energies > 0).any() else 1.0


class Refitted:
    """Moves with the decoder and bias of each set refitted; see `Moves`. Holds two square matrices of all latents."""

    _place: NDArray[np.int64]
    _inverse: Array
    _decoder: Array
    _left: Array
    _schur: Array

    def __init__(
        self, form: Form, start: Bool[Mask, " n_latents"], pull: float, equations: NormalEquations | None = None
    ) -> None:
        """Starts from a set.

        Args:
            form: The pool.
            start: The set.
            pull: lambda; see `pull_of`.
            equations: Those of the form's sample, if they are at hand.

        Raises:
            DictlabError: There are too many latents for their normal equations.
        """
        equations = normal_equations(form.observations) if equations is None else equations
        gram, moment = equations.gram.numpy(), equations.moment.numpy()
        energies = gram.diagonal()[:-1]
        before = form.directions.double().numpy()
        with_bias = gram[:-1, -1]
        self._gram = gram[:-1, :-1] - np.outer(with_bias, with_bias / gram[-1, -1])
        self._gram[np.diag_indices(len(before))] += pull
        self._right = moment[:-1] - np.outer(with_bias, moment[-1] / gram[-1, -1]) + pull * before
        self._pulls = pull * np.square(before).sum(axis=1)
        self._square = equations.square - float(np.square(moment[-1]).sum()) / gram[-1, -1]
        self._per = form.observations.n_tokens * form.d_in
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

    def hopeless(self, latent: int, changes: Array) -> bool:
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
