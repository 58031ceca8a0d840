"""How far is one residual stream from another, at one place of the model?

With a the stream of the original run at a place and a' that of the run with a dictionary spliced in, mu the mean of a
over the sample, sums over the tokens that count (Braun et al. 2024, section 4.1 and figures 2, 6, 10 to 12):

    MSE                  sum |a - a'|^2 / (tokens d)          relative error    sum |a - a'|^2 / sum |a|^2
    explained variance   1 - sum |a - a'|^2 / sum |a - mu|^2
      (layer norm)       the same of LN(a) and LN(a'), LN without weights, eps 1e-5
    cosine               mean of cos(a, a')                   norm ratio        mean of |a'| / |a|

Explained variance is also given *per token*, as the mean over tokens of 1 - |a - a'|^2 / |a - mu|^2, and *as
published*: per token, and at the site itself with the roles exchanged, so that the error is divided by the variance of
the reconstruction, as the paper's code does. Tokens with a = mu, or a = 0, have no such share, or ratio, and are in no
mean of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, layer_norm

from dictlab.numerics.statistics import Formula

LN_EPSILON = 1e-5
Sums = dict[str, Tensor]  # of each sequence of a batch, by name


class DepthMetric(NamedTuple):
    """A number that follows from the sums of `compare`: its unit, and how."""

    unit: str
    of: Formula


METRICS = {
    "MSE": DepthMetric("activation²", lambda s: s["squared_error"] / s["coordinates"]),
    "relative error": DepthMetric("share", lambda s: s["squared_error"] / s["squared_norm"]),
    "explained variance": DepthMetric("share", lambda s: 1 - s["squared_error"] / s["variance"]),
    "explained variance (layer norm)": DepthMetric("share", lambda s: 1 - s["normed_error"] / s["normed_variance"]),
    "cosine": DepthMetric("", lambda s: s["cosine"] / s["tokens"]),
    "norm ratio": DepthMetric("", lambda s: s["norm_ratio"] / s["nonzero"]),
    "norm ratio (first position)": DepthMetric("", lambda s: s["first_norm_ratio"] / s["first_nonzero"]),
    "norm ratio (other positions)": DepthMetric(
        "", lambda s: (s["norm_ratio"] - s["first_norm_ratio"]) / (s["nonzero"] - s["first_nonzero"])
    ),
    "explained variance (per token)": DepthMetric("share", lambda s: s["per_token"] / s["varying"]),
    "explained variance (layer norm, per token)": DepthMetric(
        "share", lambda s: s["normed_per_token"] / s["normed_varying"]
    ),
    "explained variance (as published)": DepthMetric("share", lambda s: s["published"] / s["published_varying"]),
    "explained variance (layer norm, as published)": DepthMetric(
        "share", lambda s: s["published_normed"] / s["published_normed_varying"]
    ),
}
OUTPUT = {
    "KL": DepthMetric("nats/token", lambda s: s["kl"] / s["tokens"]),
    "CE increase": DepthMetric("nats/token", lambda s: (s["ce"] - s["ce_clean"]) / s["predicted"]),
}


def compare(
    a: Float[Tensor, "batch context d"],
    b: Float[Tensor, "batch context d"],
    mean: Float[Tensor, " d"],
    normed_mean: Float[Tensor, " d"],
    counted: Bool[Tensor, "batch context"] | None = None,
) -> Sums:
    """Sums over the tokens of each sequence that count, from which every metric of `METRICS` follows.

    Args:
        a: The original.
        b: What stands in its place.
        mean: Of a over the sample.
        normed_mean: Of its layer norm.
        counted: Tokens that count; all by default.
    """
    a, b = a.double(), b.double()
    counted = torch.ones(a.shape[:2], dtype=torch.bool, device=a.device) if counted is None else counted
    error, variance = (a - b).square().sum(-1), (a - mean.double()).square().sum(-1)
    normed_a, normed_b = normed(a), normed(b)
    normed_error = (normed_a - normed_b).square().sum(-1)
    normed_variance = (normed_a - normed_mean.double()).square().sum(-1)
    norm = a.norm(dim=-1)
    varying, normed_varying, nonzero = (counted & (size > 0) for size in (variance, normed_variance, norm))
    tokens = counted.sum(dim=1).double()

    def total(values: Tensor, mask: Tensor = counted) -> Tensor:
        return torch.where(mask, values, 0.0).sum(dim=1).double()

    return {
        "squared_error": total(error),
        "squared_norm": total(norm.square()),
        "variance": total(variance),
        "per_token": total(1 - error / variance, varying),
        "varying": varying.sum(dim=1).double(),
        "normed_error": total(normed_error),
        "normed_variance": total(normed_variance),
        "normed_per_token": total(1 - normed_error / normed_variance, normed_varying),
        "normed_varying": normed_varying.sum(dim=1).double(),
        "cosine": total(cosine_similarity(a, b, dim=-1)),
        "norm_ratio": total(b.norm(dim=-1) / norm, nonzero),
        "nonzero": nonzero.sum(dim=1).double(),
        "first_norm_ratio": total((b.norm(dim=-1) / norm)[:, :1], nonzero[:, :1]),
        "first_nonzero": nonzero[:, 0].double(),
        "tokens": tokens,
        "coordinates": tokens * a.shape[-1],
    }


def as_published(sums: Mapping[str, Tensor]) -> Sums:
    """The sums of `compare` that explained variance as published follows from."""
    return {
        "published": sums["per_token"],
        "published_varying": sums["varying"],
        "published_normed": sums["normed_per_token"],
        "published_normed_varying": sums["normed_varying"],
    }


def normed(a: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens d"]:
    """The layer norm of each token, without weights."""
    return layer_norm(a, a.shape[-1:], eps=LN_EPSILON)
