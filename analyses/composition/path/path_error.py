"""What happens along a path through subsets of a pool? The error at every point, from one pass over the tokens.

With codes g, targets y and scales s as in `pool_sample`, what is left at a token is r = y - s c - sum_j g_j d_j over
the latents that are there (c: any fixed bias). A latent that comes or goes changes r by -+ g_j d_j, and

    |r -+ g_j d_j|^2 - |r|^2 = g_j^2 |d_j|^2 -+ 2 g_j (d_j . r)

So each token's active latents are sorted by the steps at which they come and go, r is carried along, and the changes
are summed by step: exact, at (active latents) x d_in operations a token and order, and nothing is encoded or decoded
again. Biases come afterwards, from the mean residual mu = E[s r] at each point, which follows from E[s g_j]: with the
bias c + beta the error is E|r|^2 - 2 beta . mu + |beta|^2 E[s^2], smallest at beta = mu / E[s^2].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import sparse

from analyses.composition.path.path_steps import StepSchedule
from analyses.pool.pool_sample import PoolSample
from dictlab.runtime.progress import track

Bias = Literal["best", "keep", "blend"]
TOKENS = 4096  # tokens that are walked together
NUMBERS = 1 << 22  # held at once of the mean residuals at all points


@dataclass(frozen=True, eq=False)
class PathTrace:
    """Error and L0 at every point of a path through subsets of a pool.

    Attributes:
        schedule: When each latent comes and goes.
        sample: The sample.
        directions: d_j, `[n_pool, d_in]`.
        reference: c.
        own: Output biases of the dictionaries of the pool, less c: `[dictionaries, d_in]`.
        squares: E|r|^2 at each point, summed over coordinates.
        mean_square: |mu|^2 at each point.
        along: beta . mu for each dictionary's own bias and point.
        marks: Points at which sequences are told apart.
        by_sequence: Sum of |r|^2 over the tokens of each sequence at each mark.
    """

    schedule: StepSchedule
    sample: PoolSample
    directions: Float[np.ndarray, "n_pool d_in"]
    reference: Float[np.ndarray, " d_in"]
    own: Float[np.ndarray, "dictionaries d_in"]
    squares: NDArray[np.float64]
    mean_square: NDArray[np.float64]
    along: NDArray[np.float64]
    marks: NDArray[np.int64]
    by_sequence: NDArray[np.float64]

    @property
    def d_in(self) -> int:
        return len(self.reference)

    def mse(self, bias: Bias = "best") -> NDArray[np.float64]:
        """The error at each point, mean over tokens and coordinates.

        Args:
            bias: The best one at each point; or that of the dictionary that the stage starts from, until its last step
                (keep); or a blend of that and the next dictionary's by the share of the stage's steps done.
        """
        scale = _mean_square_scale(self.sample)
        if bias == "best":
            return (self.squares - self.mean_square / scale) / self.d_in
        first, second, share = self._blend(bias)
        points = np.arange(self.schedule.steps + 1)
        along = (1 - share) * self.along[first, points] + share * self.along[second, points]
        products = self.own @ self.own.T
        square = (
            (1 - share) ** 2 * products[first, first]
            + 2 * share * (1 - share) * products[first, second]
            + share**2 * products[second, second]
        )
        return (self.squares - 2 * along + square * scale) / self.d_in  # type: ignore[no-any-return]

    def bias(self, point: int, bias: Bias = "best") -> NDArray[np.float64]:
        """The output bias at a point, `[d_in]`."""
        if bias == "best":
            mean = _mean_residual(self.sample, self.directions, self.reference, self.schedule.chosen(point))
            return self.reference + mean / _mean_square_scale(self.sample)
        first, second, share = (part[point] for part in self._blend(bias))
        return self.reference + (1 - share) * self.own[first] + share * self.own[second]  # type: ignore[no-any-return]

    def sequences(self, bias: Bias = "best") -> Float[np.ndarray, "sequences marks"]:
        """The error of each sequence at each mark, mean over its tokens and coordinates."""
        sample, n = self.sample, len(self.by_sequence)
        length = sample.n_tokens // n
        together = sparse.csr_array(
            (np.ones(sample.n_tokens), np.arange(sample.n_tokens), np.arange(0, sample.n_tokens + 1, length))
        )
        codes = together @ sample.codes.multiply(sample.scale[:, None]).tocsr()
        targets = together @ (sample.scale[:, None] * (sample.target - sample.scale[:, None] * self.reference))
        scales = together @ np.square(sample.scale)
        out = np.empty_like(self.by_sequence)
        for i, point in enumerate(self.marks):
            beta = self.bias(int(point), bias) - self.reference
            along = targets @ beta - codes @ (self.schedule.chosen(int(point)) * (self.directions @ beta))
            out[:, i] = self.by_sequence[:, i] - 2 * along + beta @ beta * scales
        return out / (length * self.d_in)

    def l0(self) -> NDArray[np.float64]:
        """Active latents a token at each point."""
        return self.schedule.totals(self.sample.firing_rate)

    def _blend(self, bias: Bias) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Between which dictionaries' biases each point is, and how far."""
        stage = np.concatenate([[0], self.schedule.stage])
        done = np.zeros(len(stage))
        for number in range(int(stage.max()) + 1):
            steps = np.flatnonzero(self.schedule.stage == number) + 1
            share = np.arange(1, len(steps) + 1) / max(1, len(steps))
            done[steps] = share if bias == "blend" else share >= 1
        return stage, np.minimum(stage + 1, len(self.own) - 1), done


@torch.no_grad()
def trace_schedule(
    sample: PoolSample,
    directions: Float[torch.Tensor, "n_pool d_in"],
    schedule: StepSchedule,
    biases: Float[np.ndarray, "dictionaries d_in"],
    *,
    context: int,
    marks: Int[np.ndarray, " marks"] | None = None,
) -> PathTrace:
    """Error and L0 at every point of a schedule of steps, exactly, in one pass over the tokens.

    Args:
        sample: What the latents of the pool do on a sample of whole sequences of equal length.
        directions: What they add.
        schedule: When each of them comes and goes.
        biases: Output biases of the dictionaries of the pool.
        context: Tokens a sequence.
        marks: Points at which sequences are told apart; the ends of phases by default.
    """
    rows = directions.detach().float().cpu()
    exact = rows.double().numpy()
    none = np.zeros(rows.shape[1])
    # about the mean residual at the start: a large mean costs no precision then
    reference = _mean_residual(sample, exact, none, schedule.chosen(0)) / _mean_square_scale(sample)
    marked = schedule.phase_ends() if marks is None else np.unique(np.append(marks, 0))
    sums, by_sequence = _changes(sample, rows, schedule, reference, context, marked)
    codes = sample.codes
    mean_codes = np.asarray(codes.T @ sample.scale, dtype=np.float64) / sample.n_tokens
    start = _mean_residual(sample, exact, reference, schedule.chosen(0))
    own = biases - reference
    moves = [schedule.totals(mean_codes * (exact @ beta)) for beta in own]
    return PathTrace(
        schedule,
        sample,
        exact,
        reference,
        own,
        np.cumsum(sums) / sample.n_tokens,
        _mean_squares(schedule, start, mean_codes, exact),
        np.stack([beta @ start + move[0] - move for beta, move in zip(own, moves, strict=True)]),
        marked,
        np.cumsum(by_sequence, axis=1),
    )


def _changes(
    sample: PoolSample,
    directions: torch.Tensor,
    schedule: StepSchedule,
    reference: NDArray[np.float64],
    context: int,
    marks: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums over tokens of |r|^2 at the start and of its changes, by step, and by sequence and mark."""
    n_sequences, points = sample.n_tokens // context, schedule.steps + 1
    mark = np.searchsorted(marks, np.arange(points))  # the first mark at or after each point; past the last: none
    sums, by_sequence = np.zeros(points), np.zeros(n_sequences * (len(marks) + 1))
    norms = directions.double().square().sum(dim=1).float()
    for begin in track(range(0, sample.n_tokens, TOKENS), "path", unit="batches"):
        part = slice(begin, min(begin + TOKENS, sample.n_tokens))
        target = sample.target[part] - sample.scale[part, None] * reference
        step, token, change = _walked(sample.codes[part], torch.from_numpy(target).float(), directions, norms, schedule)
        sums += np.bincount(step, weights=change, minlength=points)
        cell = (begin + token) // context * (len(marks) + 1) + mark[step]
        by_sequence += np.bincount(cell, weights=change, minlength=len(by_sequence))
    return sums, by_sequence.reshape(n_sequences, -1)[:, : len(marks)]


def _walked(
    codes: sparse.csr_array,
    residual: torch.Tensor,
    directions: torch.Tensor,
    norms: torch.Tensor,
    schedule: StepSchedule,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The changes of |r|^2 at some tokens: at which step, at which token, how much. The start is a change at step 0."""
    n = len(residual)
    token = np.repeat(np.arange(n), np.diff(codes.indptr))
    enters, leaves = schedule.enters[codes.indices], schedule.leaves[codes.indices]
    comes, goes = enters <= schedule.steps, leaves <= schedule.steps
    token = np.concatenate([token[comes], token[goes]])
    step = np.concatenate([enters[comes], leaves[goes]])
    latent = np.concatenate([codes.indices[comes], codes.indices[goes]])
    value = np.concatenate([codes.data[comes], -codes.data[goes]])
    order = np.argsort(token * (schedule.steps + 1) + step, kind="stable")
    token, step, latent, value = token[order], step[order], latent[order], value[order]
    # The k-th events of all tokens are taken together, those of tokens with the most events first: these are slices.
    counts = np.bincount(token, minlength=n)
    kth = np.arange(len(token)) - (np.cumsum(counts) - counts)[token]
    by_count = np.argsort(-counts, kind="stable")
    place = np.empty(n, dtype=np.int64)
    place[by_count] = np.arange(n)
    ends = np.cumsum(np.bincount(kth)) if len(kth) else np.zeros(0, dtype=np.int64)
    where = np.concatenate([[0], ends])[kth] + place[token]
    turn = np.empty(len(token), dtype=np.int64)
    turn[where] = np.arange(len(token))
    left = residual[torch.from_numpy(by_count)]
    start = left.double().square().sum(dim=1).numpy()
    change = _carried(
        left, torch.from_numpy(latent[turn]).long(), torch.from_numpy(value[turn]), ends, directions, norms
    )
    return (
        np.concatenate([np.zeros(n, dtype=np.int64), step[turn]]),
        np.concatenate([by_count, token[turn]]),
        np.concatenate([start, change]),
    )


def _carried(
    left: torch.Tensor,
    latent: torch.Tensor,
    value: torch.Tensor,
    ends: NDArray[np.int64],
    directions: torch.Tensor,
    norms: torch.Tensor,
) -> NDArray[np.float64]:
    """What each event does to |r|^2, r being carried along in `left`."""
    along, begin = torch.empty(len(value)), 0
    for end in ends.tolist():
        rows, own = directions[latent[begin:end]], left[: end - begin]
        along[begin:end] = torch.linalg.vecdot(rows, own)
        own.addcmul_(rows, value[begin:end, None], value=-1)
        begin = end
    g = value.double()
    return (g.square() * norms[latent] - 2 * g * along).numpy()


def _mean_squares(
    schedule: StepSchedule, start: NDArray[np.float64], mean_codes: NDArray[np.float64], directions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """|mu|^2 at each point, some points at a time."""
    out, mean, at_once = np.empty(schedule.steps + 1), start, max(1, NUMBERS // len(start))
    out[0] = mean @ mean
    for first in range(1, schedule.steps + 1, at_once):
        last = min(first + at_once, schedule.steps + 1)
        change = np.zeros((last - first, len(start)))
        for point, sign in ((schedule.enters, -1.0), (schedule.leaves, 1.0)):
            own = np.flatnonzero((point >= first) & (point < last))
            np.add.at(change, point[own] - first, sign * mean_codes[own, None] * directions[own])
        change = mean + np.cumsum(change, axis=0)
        out[first:last], mean = np.square(change).sum(axis=1), change[-1]
    return out


def _mean_residual(
    sample: PoolSample, directions: NDArray[np.float64], bias: NDArray[np.float64], chosen: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """mu of a subset."""
    mean_codes = np.asarray(sample.codes.T @ sample.scale, dtype=np.float64) * chosen
    total = sample.scale @ sample.target.astype(np.float64) - np.square(sample.scale).sum() * bias
    return (total - mean_codes @ directions) / sample.n_tokens  # type: ignore[no-any-return]


def _mean_square_scale(sample: PoolSample) -> float:
    return float(np.square(sample.scale).mean())
