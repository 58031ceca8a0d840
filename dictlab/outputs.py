"""How far do a model's next-token distributions move, without ever holding them all?

From residual streams leaving the last block: P clean, Q altered, logits p and q, d = q - p (natural logarithms, nats)

    KL(P || Q)  = log E_P[exp(d - E_P d)]          (each of its terms is small where d is: little is lost to rounding)
    CE          = -log Q(next token)
    entropy     = -sum_v P(v) log P(v)

Logits exist for one block of tokens at a time, and the clean ones of a block serve every alteration of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictlab.lm import LanguageModel

LOGITS = 1 << 22  # logits of a block, clean or altered: 16 MiB in float32
STEEP = 60.0  # a difference of logits above its mean by more than this is taken the long way: exp would overflow


class Outputs(NamedTuple):
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
def compare(
    model: LanguageModel,
    clean: Float[Tensor, "tokens d_model"],
    altered: Float[Tensor, "versions tokens d_model"],
    following: Int[Tensor, " tokens"],
) -> Outputs:
    """Outputs of several alterations of the same tokens. Memory: three blocks of logits, whatever the vocabulary.

    Args:
        model: The language model.
        clean: Residual streams leaving the last block, as `LanguageModel.carry` gives them.
        altered: The same, altered.
        following: The token that comes next; -1 where none is known.
    """
    versions, tokens = altered.shape[:2]
    kl, ce = (torch.empty(versions, tokens, device=clean.device) for _ in range(2))
    ce_clean, entropy = (torch.empty(tokens, device=clean.device) for _ in range(2))
    following = following.to(clean.device)
    size = max(1, LOGITS // model.vocabulary)
    for block in _slices(tokens, size):
        here = following[block]
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
    return Outputs(kl, ce, ce_clean, entropy)


def following(tokens: Int[Tensor, "batch context"]) -> Int[Tensor, "batch context"]:
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
