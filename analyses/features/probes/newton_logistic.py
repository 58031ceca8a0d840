"""How well does each latent alone tell whether something is true of a token?

One logistic probe a latent, of its activation z, all latents of a task fitted together (Gao et al. 2024, probe loss):

    min over w, b of   sum_t [ softplus(w z_t + b) - y_t (w z_t + b) ] + w'^2 / (2 C),     w' = w std(z)

that is scikit-learn's LogisticRegression(C) behind its StandardScaler. Newton's method: with p = sigmoid(w z + b) and
s = p (1 - p), the gradient is (sum (p - y) z, sum (p - y)), the Hessian (sum s z^2, sum s z, sum s). At the tokens
where a latent is silent all terms are equal, so their number, and how many of them are true, is all that is needed:
the work is in the entries of the codes that are not 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from analyses.features.probes.sparse_columns import Columns

STEPS = 100
DECREMENT = {torch.float64: 1e-9, torch.float32: 1e-2}  # nats, over all tokens, that the last step gained at most
FIRST = 16  # columns that are fitted before any is passed over
HALVINGS = 30


class LogisticFit(NamedTuple):
    """A probe for each column.

    Attributes:
        weight: w, in units of log odds an activation.
        bias: b.
        loss: Cross-entropy on the tokens fitted on, without the ridge; nats a token.
    """

    weight: Float[Tensor, " columns"]
    bias: Float[Tensor, " columns"]
    loss: Float[Tensor, " columns"]


def fit(columns: Columns, labels: Bool[Tensor, " tokens"], *, ridge: float = 1.0) -> LogisticFit:
    """The best probe of every column alone.

    Args:
        columns: The features.
        labels: What is true of each token; some must be true and some not.
        ridge: C of scikit-learn: the inverse weight of the square of the standardised coefficient.

    Returns:
        Probes; of a column that is always 0, that of the constant alone.
    """
    y = labels.to(columns.values)
    parts = [_block(block, y, ridge) for block in columns.blocks()]
    return LogisticFit(*(torch.cat(part) for part in zip(*parts, strict=True)))


def best(columns: Columns, labels: Bool[Tensor, " tokens"], *, ridge: float = 1.0) -> int:
    """The column whose probe has the smallest loss: that of `fit`, without fitting those that cannot win.

    No probe has less loss than the entropy of the labels at the tokens where its column is 0, since there it gives all
    of them one probability. Columns are fitted in the order of this bound until it exceeds the least loss found.
    """
    bound = silent_entropy(columns, labels)
    order = torch.argsort(bound)
    least, winner, at, size = float("inf"), 0, 0, FIRST
    while at < len(order) and float(bound[order[at]]) < least:
        some = order[at : at + size]
        some = some[bound[some] < least].sort().values
        kept = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        kept[some] = True
        loss = fit(columns.only(kept), labels, ridge=ridge).loss
        lowest = int(loss.argmin())
        if float(loss[lowest]) < least:
            least, winner = float(loss[lowest]), int(some[lowest])
        at, size = at + size, 2 * size
    return winner


def silent_entropy(columns: Columns, labels: Bool[Tensor, " tokens"]) -> Float[Tensor, " columns"]:
    """Entropy of the labels at the tokens where a column is 0, as a share of all tokens; nats a token."""
    y = labels.to(columns.values)
    silent = columns.n_rows - columns.lengths
    true = (y.sum() - columns.sums(columns.at(y))).clamp_min(0)
    return entropy(true / silent.clamp_min(1)) * silent / columns.n_rows


def dense(
    x: Float[Tensor, "tokens d"], labels: Bool[Tensor, "tokens tasks"], *, ridge: float = 1.0, steps: int = 100
) -> tuple[Float[Tensor, "d tasks"], Float[Tensor, " tasks"]]:
    """Weights and biases of one probe a task on all columns together, by L-BFGS.

    Args:
        x: Features that are uncorrelated and of variance 1, so that every task is well conditioned.
        labels: What is true of each token.
        ridge: C of scikit-learn.
        steps: Of the solver, at most.
    """
    y = labels.to(x)
    share = y.mean(dim=0)
    curvature = (share * (1 - share)).sqrt()  # of a rare task the loss is flat: steps in units of its curvature
    weight = x.new_zeros(x.shape[1], y.shape[1], requires_grad=True)
    bias = (share.logit() * curvature).detach().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, history_size=20, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        w, b = weight / curvature, bias / curvature
        loss = binary_cross_entropy_with_logits(x @ w + b, y, reduction="sum") + w.square().sum() / (2 * ridge)
        (loss / len(x)).backward()
        return loss / len(x)

    with torch.enable_grad():
        optimizer.step(closure)
    return (weight / curvature).detach(), (bias / curvature).detach()


def cross_entropy(logits: Float[Tensor, ...], labels: Bool[Tensor, ...]) -> Float[Tensor, ...]:
    """-log of the probability given to what is true; nats."""
    found: Tensor = softplus(logits) - labels * logits
    return found


def entropy(share: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Of a label that is true with this probability: the cross-entropy of knowing no more than that; nats."""
    found: Tensor = torch.special.entr(share) + torch.special.entr(1 - share)
    return found


class _Local(NamedTuple):
    """Loss, gradient and Hessian at a point, by column."""

    loss: Tensor
    gradient: tuple[Tensor, Tensor]
    hessian: tuple[Tensor, Tensor, Tensor]

    def only(self, kept: Tensor) -> _Local:
        """The same of fewer columns."""
        (a, b), (aa, ab, bb) = self.gradient, self.hessian
        return _Local(self.loss[kept], (a[kept], b[kept]), (aa[kept], ab[kept], bb[kept]))


class _Task(NamedTuple):
    """Standardised columns, and what is true."""

    columns: Columns
    y: Tensor  # of each entry
    labels: Tensor  # of each token
    silent: Tensor  # tokens at which each column is 0
    silent_true: Tensor  # of these, those at which the label is true
    ridge: float

    def at(self, w: Tensor, b: Tensor) -> _Local:
        """Loss, ridge included, and its derivatives."""
        u, sums = self.columns.values, self.columns.sums
        logit = u * self.columns.each(w) + self.columns.each(b)
        p = logit.sigmoid()
        q = 1 - p
        residual, slope, at_zero = p - self.y, p * q, b.sigmoid()
        own = logit.relu() - logit * self.y - torch.maximum(p, q).log()  # softplus(logit) - y logit, for less
        loss = sums(own) + self.silent * softplus(b) - self.silent_true * b
        tilted = slope * u
        return _Local(
            loss + w.square() / (2 * self.ridge),
            (sums(residual * u) + w / self.ridge, sums(residual) + self.silent * at_zero - self.silent_true),
            (sums(tilted * u) + 1 / self.ridge, sums(tilted), sums(slope) + self.silent * at_zero * (1 - at_zero)),
        )

    def only(self, kept: Tensor) -> _Task:
        """The same with fewer columns."""
        columns = self.columns.only(kept)
        return _Task(
            columns, columns.at(self.labels), self.labels, self.silent[kept], self.silent_true[kept], self.ridge
        )


def _block(block: Columns, labels: Tensor, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """Newton's method for some columns; those that have converged are put aside."""
    scale = _spread(block)
    y = block.at(labels)
    true = block.sums(y)
    silent = (block.n_rows - block.lengths).to(y)
    standardised = block._replace(values=block.values / block.each(scale))
    task = _Task(standardised, y, labels, silent, labels.sum() - true, ridge)
    w, b = _start(task, true)
    loss = torch.empty_like(w)
    left = torch.arange(len(w), device=w.device)
    here = task.at(w, b)
    for _ in range(STEPS):
        (gw, gb), (hww, hwb, hbb) = here.gradient, here.hessian
        determinant = (hww * hbb - hwb * hwb).clamp_min(torch.finfo(w.dtype).tiny)
        step = (hbb * gw - hwb * gb) / determinant, (hww * gb - hwb * gw) / determinant
        gain = (gw * step[0] + gb * step[1]) / 2
        w[left], b[left], here = _shortened(task, (w[left], b[left]), step, here)
        loss[left] = here.loss
        going = gain > DECREMENT[w.dtype]
        if not going.any():
            break
        if going.sum() < 0.75 * len(going):
            task, left = task.only(going), left[going]
            here = here.only(going)
    return w / scale, b, (loss - w.square() / (2 * ridge)) / block.n_rows


def _spread(columns: Columns) -> Float[Tensor, " columns"]:
    """Standard deviation of each column over all tokens, zeros among them; 1 of a constant one."""
    mean = columns.sums(columns.values) / columns.n_rows
    silent = (columns.n_rows - columns.lengths) * mean.square()
    deviation = ((columns.sums((columns.values - columns.each(mean)).square()) + silent) / columns.n_rows).sqrt()
    return torch.where(deviation > 0, deviation, 1.0)


def _start(task: _Task, true: Tensor) -> tuple[Tensor, Tensor]:
    """The log odds where a column is 0 and where it is not, as if it had one value only; of a dense one a constant."""
    lengths = task.columns.lengths
    share = (true + task.silent_true) / (lengths + task.silent)
    b = ((task.silent_true + 0.5) / (task.silent - task.silent_true + 0.5)).log()
    on = ((true + 0.5) / (lengths - true + 0.5)).log()
    level = task.columns.sums(task.columns.values) / lengths.clamp_min(1)
    sparse = (lengths > 0) & (task.silent > 0) & (level.abs() > 0.1)
    w = torch.where(sparse, (on - b) / torch.where(sparse, level, 1.0), 0.0)
    return w, torch.where(sparse, b, share.logit())


def _shortened(
    task: _Task, point: tuple[Tensor, Tensor], step: tuple[Tensor, Tensor], here: _Local
) -> tuple[Tensor, Tensor, _Local]:
    """A step, halved for as long as it would raise the loss."""
    length = torch.ones_like(point[0])
    for _ in range(HALVINGS):
        w, b = point[0] - length * step[0], point[1] - length * step[1]
        there = task.at(w, b)
        worse = ~(there.loss <= here.loss * (1 + 4 * torch.finfo(w.dtype).eps))
        if not worse.any():
            return w, b, there
        length = torch.where(worse, length / 2, length)
    length = torch.where(worse, 0.0, length)
    w, b = point[0] - length * step[0], point[1] - length * step[1]
    return w, b, task.at(w, b)
