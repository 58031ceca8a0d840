"""How far do a model's next-token distributions move, without ever holding them all?

From residual streams leaving the last block: P clean, Q altered, logits p and q, d = q - p (natural logarithms, nats)

    KL(P || Q)  = log E_P[exp(d - E_P d)]          (each of its terms is small where d is: little is lost to rounding)
    CE          = -log Q(next token)
    entropy     = -sum_v P(v) log P(v)

Logits exist for one block of tokens at a time, and the clean ones of a block serve every alteration of it. For
training, `kl_and_ce_losses` takes the gradients of a block while its logits are there:

    dKL / d(altered logits) = Q - P            dCE / d(altered logits) = Q - [v is the next token]

and carries them back through the model's own unembedding and final norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictlab.model.language_model import LanguageModel
from dictlab.numerics.linear import FrozenProducts

LOGITS = 1 << 22  # logits of a block, clean or altered: 16 MiB in float32
LOSS_LOGITS = 15 << 19  # the same for losses: 30 MiB, for larger tensors are given back to the system each time
GPU_LOGITS = 1 << 27  # either, on a GPU: 512 MiB, for it wants large products, and transformers waits for it in each
STEEP = 60.0  # a difference of logits above its mean by more than this is taken the long way: exp would overflow


class OutputDivergence(NamedTuple):
    """Clean next-token distributions, and how far alterations move them. In nats, each.

    Attributes:
        kl: KL(clean || altered).
        ce: Cross-entropy of the next token under the altered distribution; NaN where no next token is known.
        ce_clean: The same under the clean one.
        entropy: Of the clean distribution.
    """

    kl: Float[Tensor, "versions tokens"]
    ce: Float[Tensor, "versions tokens"]
    ce_clean: Float[Tensor, " tokens"]
    entropy: Float[Tensor, " tokens"]


@torch.no_grad()
def kl_and_ce(
    model: LanguageModel,
    clean: Float[Tensor, "tokens d_model"],
    altered: Float[Tensor, "versions tokens d_model"],
    targets: Int[Tensor, " tokens"],
) -> OutputDivergence:
    """KL and CE of several alterations of the same tokens. Memory: three blocks of logits, whatever the vocabulary.

    Args:
        model: The language model.
        clean: Residual streams leaving the last block, as `LanguageModel.final_residual` gives them.
        altered: The same, altered.
        targets: The token that comes next (`next_tokens`); -1 where none is known.
    """
    versions, tokens = altered.shape[:2]
    kl, ce = (torch.empty(versions, tokens, device=clean.device) for _ in range(2))
    ce_clean, entropy = (torch.empty(tokens, device=clean.device) for _ in range(2))
    targets = targets.to(clean.device)
    size = max(1, (LOGITS if clean.device.type == "cpu" else GPU_LOGITS) // model.vocabulary)
    for block in _slices(tokens, size):
        here = targets[block]
        p = model.unembed(clean[block]).float()
        log_p = p.log_softmax(dim=-1)
        probability = log_p.exp()
        ce_clean[block] = -_at(log_p, here)
        entropy[block] = -torch.linalg.vecdot(probability, log_p)
        for some in _slices(versions, max(1, size // len(p))):
            streams = altered[some, block]
            difference = model.unembed(streams.flatten(0, 1)).float().view(*streams.shape[:2], -1).sub_(p)
            own = _at(difference, here.expand(len(streams), -1))
            mean = torch.linalg.vecdot(difference, probability)
            kl[some, block] = _log_mean_exp(difference.sub_(mean[..., None]), log_p, probability)
            # log Q = log P + d - log E_P[exp d]
            ce[some, block] = ce_clean[block] - own + mean + kl[some, block]
    return OutputDivergence(kl, ce, ce_clean, entropy)


class DivergenceLosses(NamedTuple):
    """Means over tokens, in nats, differentiable in the altered streams; None where what it takes was not given.

    Attributes:
        kl: KL(clean || altered).
        ce: Cross-entropy of the next token under the altered distribution, over the tokens that have one.
    """

    kl: Float[Tensor, ""] | None
    ce: Float[Tensor, ""] | None


def kl_and_ce_losses(
    model: LanguageModel,
    altered: Float[Tensor, "tokens d_model"],
    *,
    clean: Float[Tensor, "tokens d_model"] | None = None,
    targets: Int[Tensor, " tokens"] | None = None,
) -> DivergenceLosses:
    """How far an alteration moves the output, as losses. Memory: a few blocks of logits, whatever the vocabulary.

    Args:
        model: The language model.
        altered: Residual streams leaving the last block, as `LanguageModel.final_residual` gives them.
        clean: The same without the alteration; KL needs them. No gradient flows to them.
        targets: The token that comes next, -1 where none is known; cross-entropy needs them.
    """
    kl, ce = _StreamedLosses.apply(altered, clean, targets, model)
    return DivergenceLosses(kl, ce)


class _StreamedLosses(torch.autograd.Function):
    """Values and gradients together, block by block: once the logits are gone, it would take both products again."""

    @staticmethod
    def forward(
        ctx: Any, altered: Tensor, clean: Tensor | None, targets: Tensor | None, model: LanguageModel
    ) -> tuple[Tensor | None, Tensor | None]:
        with_grad = ctx.needs_input_grad[0]
        targets = targets if targets is None else targets.to(altered.device, non_blocking=True)
        logits = LOSS_LOGITS if altered.device.type == "cpu" else GPU_LOGITS
        blocks = list(_slices(len(altered), max(1, logits // model.vocabulary)))
        found = [
            _block_losses(
                model,
                altered[block].detach(),
                None if clean is None else clean[block],
                None if targets is None else targets[block],
                with_grad,
            )
            for block in blocks
        ]
        kl, ce, by_kl, by_ce = (
            None if parts[0] is None else torch.cat(parts) for parts in zip(*found, strict=True)
        )  # each of a block's four, for all tokens
        n = len(altered)
        n_known = n if targets is None else (targets >= 0).sum()
        ctx.save_for_backward(
            by_kl if by_kl is None else by_kl.div_(n), by_ce if by_ce is None else by_ce.div_(n_known)
        )
        return kl if kl is None else kl.sum() / n, ce if ce is None else ce.sum() / n_known

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, upstream, strict=True)
        parts = [own * factor for own, factor in pairs if own is not None and factor is not None]
        return (sum(parts[1:], parts[0]), None, None, None)


def _block_losses(
    model: LanguageModel, altered: Tensor, clean: Tensor | None, targets: Tensor | None, with_grad: bool
) -> tuple[Tensor | None, ...]:
    """KL and CE of each token of a block, and their gradients at its streams."""
    with torch.set_grad_enabled(with_grad), FrozenProducts():
        streams = altered.requires_grad_(with_grad)
        logits = model.unembed(streams)
    log_q = logits.detach().float().log_softmax(dim=-1)
    kl = ce = by_kl = by_ce = p = None
    if targets is not None:
        known = targets >= 0
        ce = torch.where(known, -_at(log_q, targets), 0.0)
    if clean is not None:
        with torch.no_grad(), FrozenProducts():
            log_p = model.unembed(clean).float().log_softmax(dim=-1)
        p = log_p.exp()
        kl = torch.linalg.vecdot(p, log_p.sub_(log_q))
        del log_p
    if with_grad:
        q = log_q.exp_()
        if p is not None:
            at_logits = torch.sub(q, p, out=p).to(logits.dtype)
            (by_kl,) = torch.autograd.grad(logits, streams, at_logits, retain_graph=targets is not None)
        if targets is not None:
            at_logits = q.scatter_add_(1, targets.clamp_min(0)[:, None], q.new_full((len(q), 1), -1.0))
            (by_ce,) = torch.autograd.grad(logits, streams, at_logits.mul_(known[:, None]).to(logits.dtype))
    return kl, ce, by_kl, by_ce


def next_tokens(tokens: Int[Tensor, "batch context"]) -> Int[Tensor, "batch context"]:
    """The token that comes after each; -1 after the last of a sequence."""
    return torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -1)], dim=1)


def _log_mean_exp(d: Tensor, log_p: Tensor, probability: Tensor) -> Float[Tensor, "versions tokens"]:
    """log sum_v P(v) exp(d_v), of d with mean 0 under P; `d` is used up."""
    if float(d.max()) > STEEP:
        return d.add_(log_p).logsumexp(dim=-1)
    mean: Tensor = torch.linalg.vecdot(d.exp_(), probability) / probability.sum(dim=-1)
    return mean.log()


def _at(values: Float[Tensor, "*tokens vocabulary"], index: Int[Tensor, "*tokens"]) -> Float[Tensor, "*tokens"]:
    """The value of one entry a token; NaN where there is none."""
    found = values.gather(-1, index.clamp_min(0)[..., None])[..., 0]
    return torch.where(index >= 0, found, torch.nan)


def _slices(total: int, size: int) -> Iterator[slice]:
    return (slice(at, min(at + size, total)) for at in range(0, total, size))
