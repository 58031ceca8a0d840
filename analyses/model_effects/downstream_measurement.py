"""How far from the original does the model run, from a dictionary's site to the last block?

With a the residual stream of the original run at a place and a' that of the run with the dictionary spliced in, mu the
mean of a over the sample, sums over tokens (Braun et al. 2024, section 4.1 and figures 2, 6, 10 to 12):

    MSE                  sum |a - a'|^2 / (tokens d)          relative error    sum |a - a'|^2 / sum |a|^2
    explained variance   1 - sum |a - a'|^2 / sum |a - mu|^2
      (layer norm)       the same of LN(a) and LN(a'), LN without weights, eps 1e-5
    cosine               mean of cos(a, a')                   norm ratio        mean of |a'| / |a|

Explained variance is also given *per token*, as the mean over tokens of 1 - |a - a'|^2 / |a - mu|^2, and *as
published*: per token, and at the site itself with the roles exchanged, so that the error is divided by the variance of
the reconstruction, as the paper's code does. Which directions of the error matter is asked in
`principal_directions.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity, layer_norm
from tqdm import tqdm

from analyses.model_effects.principal_directions import (
    RESAMPLED,
    Principal,
    doubling_groups,
    principal,
    repaired_and_wrong,
    resampled,
    sums_along,
)
from dictlab import seeds
from dictlab.data.activations import moments
from dictlab.dictionary import Dictionary
from dictlab.evaluation.evaluate import BATCH_TOKENS, check_finite, site_of
from dictlab.model.language_model import LanguageModel
from dictlab.model.output_divergence import OutputDivergence, kl_and_ce, next_tokens
from dictlab.statistics import BySequence, Formula

LN_EPSILON = 1e-5
Sums = dict[str, Tensor]  # of each sequence of a batch, by name


class DepthMetric(NamedTuple):
    """A number that follows from the sums of `downstream.compare`: its unit, and how."""

    unit: str
    of: Formula


METRICS = {
    "MSE": DepthMetric("activation²", lambda s: s["squared_error"] / s["coordinates"]),
    "relative error": DepthMetric("share", lambda s: s["squared_error"] / s["squared_norm"]),
    "explained variance": DepthMetric("share", lambda s: 1 - s["squared_error"] / s["variance"]),
    "explained variance (layer norm)": DepthMetric("share", lambda s: 1 - s["normed_error"] / s["normed_variance"]),
    "cosine": DepthMetric("", lambda s: s["cosine"] / s["tokens"]),
    "norm ratio": DepthMetric("", lambda s: s["norm_ratio"] / s["tokens"]),
    "norm ratio (first position)": DepthMetric("", lambda s: s["first_norm_ratio"] / s["sequences"]),
    "norm ratio (other positions)": DepthMetric(
        "", lambda s: (s["norm_ratio"] - s["first_norm_ratio"]) / (s["tokens"] - s["sequences"])
    ),
    "explained variance (per token)": DepthMetric("share", lambda s: s["per_token"] / s["tokens"]),
    "explained variance (layer norm, per token)": DepthMetric("share", lambda s: s["normed_per_token"] / s["tokens"]),
    "explained variance (as published)": DepthMetric("share", lambda s: s["published"] / s["tokens"]),
    "explained variance (layer norm, as published)": DepthMetric(
        "share", lambda s: s["published_normed"] / s["tokens"]
    ),
}
OUTPUT = {
    "KL": DepthMetric("nats/token", lambda s: s["kl"] / s["tokens"]),
    "CE increase": DepthMetric("nats/token", lambda s: (s["ce"] - s["ce_clean"]) / s["predicted"]),
}


class Means(NamedTuple):
    """Averages over the sample: of the stream at each place, of its layer norm, and of reconstructions at the site."""

    stream: dict[str, Float[Tensor, " d"]]
    normed: dict[str, Float[Tensor, " d"]]
    x_hat: dict[str, Float[Tensor, " d_in"]]
    x_hat_normed: dict[str, Float[Tensor, " d_in"]]


class DownstreamMeasurement(NamedTuple):
    """Sums by sequence, from which metrics with intervals follow.

    Attributes:
        places: The site, the stream entering each later block, and what leaves the last block.
        depth: Of METRICS, by dictionary and place.
        output: Of OUTPUT, by dictionary.
        along: Along each principal direction, by dictionary (`principal_directions.sums_along`).
        repairs: KL under repairs of groups of directions, by dictionary.
        worth: KL where a group is resampled; None without directions.
        n_tokens: Tokens measured.
        n_sequences: Sequences measured.
    """

    places: list[str]
    depth: dict[tuple[str, str], BySequence]
    output: dict[str, BySequence]
    along: dict[str, BySequence]
    repairs: dict[str, BySequence]
    worth: BySequence | None
    n_tokens: int
    n_sequences: int


def places_of(model: LanguageModel, site: str) -> list[str]:
    """The site, the residual stream entering each later block, and what leaves the last block."""
    last = f"blocks.{model.n_blocks - 1}.hook_resid_post"
    at = model.locate(site)
    ends_there = at.kind == "resid_post" and at.block == model.n_blocks - 1
    return [site, *model.later_sites(site), *([] if ends_there else [last])]


def compare(
    a: Float[Tensor, "batch context d"],
    b: Float[Tensor, "batch context d"],
    mean: Float[Tensor, " d"],
    normed_mean: Float[Tensor, " d"],
) -> Sums:
    """Sums over the tokens of each sequence from which every metric of `METRICS` follows.

    Args:
        a: The original.
        b: What stands in its place.
        mean: Of a over the sample.
        normed_mean: Of its layer norm.
    """
    a, b = a.double(), b.double()
    error, variance = (a - b).square().sum(-1), (a - mean.double()).square().sum(-1)
    normed_a, normed_b = _normed(a), _normed(b)
    normed_error = (normed_a - normed_b).square().sum(-1)
    normed_variance = (normed_a - normed_mean.double()).square().sum(-1)
    ratio = b.norm(dim=-1) / a.norm(dim=-1)
    per_token = {
        "squared_error": error,
        "squared_norm": a.square().sum(-1),
        "variance": variance,
        "per_token": 1 - error / variance,
        "normed_error": normed_error,
        "normed_variance": normed_variance,
        "normed_per_token": 1 - normed_error / normed_variance,
        "cosine": cosine_similarity(a, b, dim=-1),
        "norm_ratio": ratio,
    }
    sums = {name: values.sum(dim=1) for name, values in per_token.items()}
    tokens = torch.full_like(sums["cosine"], a.shape[1])
    return sums | {
        "tokens": tokens,
        "coordinates": tokens * a.shape[-1],
        "sequences": torch.ones_like(tokens),
        "first_norm_ratio": ratio[:, 0],
    }


@torch.no_grad()
def measure(
    dictionaries: Sequence[Dictionary],
    model: LanguageModel,
    tokens: Int[Tensor, "contexts context"],
    *,
    directions: bool = True,
    seed: int = 0,
) -> DownstreamMeasurement:
    """Run the model on each batch once without, and with each dictionary; and, for directions, with each repair.

    Interrupted by Ctrl-C, it returns what is complete, if that is two sequences or more.

    Args:
        dictionaries: At one site; their names differ.
        model: Their model.
        tokens: What to run it on.
        directions: Also resolve errors by principal direction, at two forwards from the site a group and dictionary.
        seed: Of the resampling.

    Raises:
        DictlabError: A reconstruction is not finite.
        KeyboardInterrupt: Fewer than two sequences were complete.
    """
    site = site_of(dictionaries[0])
    places = places_of(model, site)
    batches = tokens.split(max(1, BATCH_TOKENS // tokens.shape[1]))
    site_moments = moments((model.capture(batch, site)[site] for batch in batches), covariance=directions)
    means = _means(dictionaries, model, site, places, batches)
    basis = principal(site_moments) if directions else None
    generator = seeds.generator(seed, "resampled directions")
    kept: dict[tuple[str, ...], list[Sums]] = defaultdict(list)
    done = 0
    try:
        for batch in tqdm(batches, desc="downstream", leave=False):
            for key, sums in list(_batch(dictionaries, model, site, places, means, basis, batch, generator)):
                kept[key].append(sums)
            done += len(batch)
    except KeyboardInterrupt:
        if done < 2:
            raise
    joined = {
        key: BySequence({name: torch.cat([r[name] for r in rows]).cpu().numpy() for name in rows[0]}, seed)
        for key, rows in kept.items()
    }

    def named(kind: str) -> dict[str, BySequence]:
        return {key[1]: sums for key, sums in joined.items() if key[0] == kind}

    return DownstreamMeasurement(
        places,
        {(key[1], key[2]): sums for key, sums in joined.items() if key[0] == "depth"},
        named("output"),
        named("along"),
        named("repairs"),
        joined.get(("worth",)),
        done * tokens.shape[1],
        done,
    )


def _batch(
    dictionaries: Sequence[Dictionary],
    model: LanguageModel,
    site: str,
    places: Sequence[str],
    means: Means,
    basis: Principal | None,
    tokens: Tensor,
    generator: torch.Generator,
) -> Iterator[tuple[tuple[str, ...], Sums]]:
    """Sums of one batch under ("depth", dictionary, place), ("output", dictionary), ... ; one clean forward for all."""
    start, later = model.block_input(site), places[1:]
    clean = model.capture(tokens, list(dict.fromkeys([start, *places, model.last_site])))
    x, after = clean[site], next_tokens(tokens).flatten()
    groups = doubling_groups(x.shape[-1]) if basis is not None else []
    n = torch.full((len(tokens), 1), tokens.shape[1], dtype=torch.double)

    def outputs(ends: Sequence[Tensor]) -> OutputDivergence:
        altered = torch.stack([end.flatten(0, 1) for end in ends])
        return kl_and_ce(model, clean[model.last_site].flatten(0, 1), altered, after)

    def costs(new: Sequence[Tensor]) -> Float[Tensor, "batch versions"]:
        """KL of the output from the original, summed by sequence, of what stands at the site instead."""
        ends = [model.final_residual(one.to(x.dtype), site, residual=clean[start], tokens=tokens) for one in new]
        return _by_sequence(outputs(ends).kl, tokens).T

    for dictionary in dictionaries:
        name, x_hat = dictionary.name, _finite(dictionary, x)
        altered = model.resume_to(x_hat.to(x.dtype), site, later, residual=clean[start], tokens=tokens)
        out = outputs([altered.get(model.last_site, x_hat)])
        kl = _by_sequence(out.kl, tokens)[0]
        at_site = compare(x, x_hat, means.stream[site], means.normed[site])
        exchanged = compare(x_hat, x, means.x_hat[name], means.x_hat_normed[name])
        yield ("depth", name, site), at_site | _published(exchanged)
        for place in later:
            found = compare(clean[place], altered[place], means.stream[place], means.normed[place])
            yield ("depth", name, place), found | _published(found)
        losses = {"ce": _by_sequence(out.ce, tokens)[0], "ce_clean": _by_sequence(out.ce_clean[None], tokens)[0]}
        yield ("output", name), {"kl": kl, "tokens": n[:, 0], "predicted": n[:, 0] - 1} | losses
        if basis is not None:
            yield ("along", name), sums_along(x, x_hat, basis)
            tried = [repaired_and_wrong(x, x_hat, basis, group) for group in groups]
            repairs = {key: costs([one[key] for one in tried]) for key in tried[0]}
            yield ("repairs", name), repairs | {"all wrong": kl[:, None], "tokens": n}
    if basis is not None:
        exchanges = [resampled(x, basis, group, generator) for group in groups]
        yield ("worth",), {RESAMPLED: costs(exchanges), "tokens": n}


def _means(
    dictionaries: Sequence[Dictionary],
    model: LanguageModel,
    site: str,
    places: Sequence[str],
    batches: Sequence[Tensor],
) -> Means:
    """One pass for the averages that explained variance is measured from."""
    totals: dict[tuple[str, str], Tensor] = {}

    def add(kind: str, name: str, values: Tensor) -> None:
        values = values.double().flatten(0, 1).sum(dim=0)
        totals[kind, name] = totals[kind, name] + values if (kind, name) in totals else values

    for tokens in batches:
        caught = model.capture(tokens, places)
        for place, a in caught.items():
            add("stream", place, a)
            add("normed", place, _normed(a.double()))
        for dictionary in dictionaries:
            x_hat = _finite(dictionary, caught[site])
            add("x_hat", dictionary.name, x_hat)
            add("x_hat_normed", dictionary.name, _normed(x_hat.double()))
    n = sum(tokens.numel() for tokens in batches)
    return Means(
        *({name: total / n for (kind, name), total in totals.items() if kind == wanted} for wanted in Means._fields)
    )


def _finite(dictionary: Dictionary, x: Tensor) -> Tensor:
    """The reconstruction, which must be made of numbers."""
    x_hat = dictionary.reconstruct(x.float())
    check_finite(dictionary, x_hat)
    return x_hat


def _published(sums: Mapping[str, Tensor]) -> Sums:
    return {"published": sums["per_token"], "published_normed": sums["normed_per_token"]}


def _normed(a: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens d"]:
    return layer_norm(a, a.shape[-1:], eps=LN_EPSILON)


def _by_sequence(values: Float[Tensor, "versions tokens"], tokens: Tensor) -> Float[Tensor, "versions batch"]:
    """Sums over the tokens of each sequence; where no next token is known, there is nothing to add."""
    return values.view(-1, *tokens.shape).double().nan_to_num(nan=0.0).sum(dim=-1).cpu()
