"""Non-negative least squares for many small problems at once.

    min over f >= 0 of  f^T G f / 2 - h^T f

by block principal pivoting (Kim and Park 2011, "Fast nonnegative matrix factorization"): guess which variables are
positive, solve for them, exchange those whose sign is wrong; all of them as long as that makes the wrong ones fewer,
else the last one alone (Murty's rule), which ends for certain. The first guess is that of a few sweeps of coordinate
descent, after which few exchanges are left. All problems take their steps together; the few whose exchanges do not end,
which happens with more variables than dimensions, are left to scipy's solver one by one.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from scipy.optimize import nnls as one_at_a_time
from torch import Tensor

from dictlab.errors import DictlabError

PATIENCE = 5  # full exchanges that may fail to help, before Murty's rule
STEPS = 50  # of exchanges; more variables than dimensions can make rounding send them round in circles
ROUNDS = 100_000  # of scipy's solver
SWEEPS = 30  # of coordinate descent, before the exchanges
LOADING = 1e-9  # added to the diagonal, as a share of its mean: two equal directions have no one answer
TOLERANCE = 1e-8  # of signs, as a share of the largest entry of f, or of h


def nnls(
    gram: Float[Tensor, "problems k k"],
    target: Float[Tensor, "problems k"],
    allowed: Bool[Tensor, "problems k"],
    start: Float[Tensor, "problems k"] | None = None,
) -> Float[Tensor, "problems k"]:
    """The non-negative minimisers.

    Args:
        gram: G of each problem, positive semidefinite.
        target: h.
        allowed: Variables that are there at all; the others, which fill up a rectangle, stay 0.
        start: What the answer is near to; 0 by default.

    Raises:
        DictlabError: Numbers are not finite.
    """
    gram, target = gram.double(), torch.where(allowed, target.double(), 0.0)
    if not (torch.isfinite(gram).all() and torch.isfinite(target).all()):
        raise DictlabError("a least-squares problem holds numbers that are not finite: are the weights damaged?")
    k = target.shape[1]
    eye = torch.eye(k, dtype=gram.dtype, device=gram.device)
    gram = gram + LOADING * gram.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] * eye
    slack = TOLERANCE * target.abs().amax(dim=1, keepdim=True)
    out = torch.zeros_like(target) if start is None else torch.where(allowed, start.double().clamp_min(0), 0.0)
    positive = _descended(gram, target, allowed, out) > 0
    fewest = torch.full((len(target),), k + 1, device=target.device)
    patience = torch.full_like(fewest, PATIENCE)
    left = torch.arange(len(target), device=target.device)
    for _ in range(STEPS):
        g, h, chosen, may = gram[left], target[left], positive[left], allowed[left]
        f = _solved(g, h, chosen, eye)
        slope = (g @ f[..., None])[..., 0] - h
        negative = f < -TOLERANCE * f.abs().amax(dim=1, keepdim=True)
        wrong = (chosen & negative) | (may & ~chosen & (slope < -slack[left]))
        count = wrong.sum(dim=1)
        out[left] = f.clamp_min(0)
        better = count < fewest[left]
        patience[left] = torch.where(better, PATIENCE, patience[left] - 1)
        fewest[left] = torch.minimum(count, fewest[left])
        last = wrong & (wrong.cumsum(dim=1) == count[:, None])  # the last wrong one of each problem
        positive[left] = chosen ^ torch.where((patience[left] >= 0)[:, None], wrong, last)
        left = left[count > 0]
        if not len(left):
            return out
    out[left] = torch.stack([_alone(gram[i], target[i], allowed[i]) for i in left.tolist()])
    return out


def _alone(gram: Tensor, target: Tensor, allowed: Tensor) -> Tensor:
    """One problem, by the method of Lawson and Hanson."""
    out = torch.zeros_like(target)
    root = torch.linalg.cholesky(gram[allowed][:, allowed])
    right = torch.linalg.solve_triangular(root, target[allowed][:, None], upper=False)[:, 0]
    out[allowed] = torch.from_numpy(one_at_a_time(root.T.cpu().numpy(), right.cpu().numpy(), maxiter=ROUNDS)[0]).to(out)
    return out


def _descended(gram: Tensor, target: Tensor, allowed: Tensor, start: Tensor) -> Tensor:
    """A few sweeps, one variable after the other at its best value with the others fixed."""
    f = start.clone()
    step = torch.where(allowed, 1 / gram.diagonal(dim1=1, dim2=2), 0.0)
    for _ in range(SWEEPS):
        for j in range(f.shape[1]):
            slope = (gram[:, j] * f).sum(dim=1) - target[:, j]
            f[:, j] = (f[:, j] - step[:, j] * slope).clamp_min(0) * allowed[:, j]
    return f


def _solved(gram: Tensor, target: Tensor, chosen: Tensor, eye: Tensor) -> Tensor:
    """The minimiser over the chosen variables, whatever its signs; 0 elsewhere."""
    both = chosen[:, :, None] & chosen[:, None, :]
    matrix = torch.where(both, gram, eye)
    found: Tensor = torch.linalg.solve(matrix, torch.where(chosen, target, 0.0))
    return torch.where(chosen, found, 0.0)
