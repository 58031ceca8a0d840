"""How far from the original does the model run, from a dictionary's site to the last block?

The model runs once without, and with each dictionary spliced in at the tokens that count. What is compared at each
place is defined in `stream_comparison.py`; which directions of the error matter is asked in `principal_directions.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.common.patching import check_some_count
from analyses.model_effects.downstream.principal_directions import (
    RESAMPLED,
    Principal,
    doubling_groups,
    principal,
    repaired_and_wrong,
    resampled,
    sums_along,
)
from analyses.model_effects.downstream.stream_comparison import Sums, as_published, compare, normed
from dictlab.data.activations import moments
from dictlab.dictionary import Dictionary
from dictlab.evaluation.evaluate import BATCH_TOKENS, reconstruct_selected
from dictlab.evaluation.sites import site_of
from dictlab.model.language_model import LanguageModel
from dictlab.model.output_divergence import OutputDivergence, kl_and_ce, next_tokens
from dictlab.numerics import seeds
from dictlab.numerics.statistics import BySequence
from dictlab.runtime.interruption import Completion
from dictlab.runtime.progress import track
from dictlab.token_selection import ALL, TokenSelection


class Means(NamedTuple):
    """Averages over the tokens that count: of the stream at each place, of its layer norm, and of reconstructions."""

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
        warnings: What a report must say of an interruption.
    """

    places: list[str]
    depth: dict[tuple[str, str], BySequence]
    output: dict[str, BySequence]
    along: dict[str, BySequence]
    repairs: dict[str, BySequence]
    worth: BySequence | None
    n_tokens: int
    n_sequences: int
    warnings: tuple[str, ...] = ()


def places_of(model: LanguageModel, site: str) -> list[str]:
    """The site, the residual stream entering each later block, and what leaves the last block."""
    last = f"blocks.{model.n_blocks - 1}.hook_resid_post"
    at = model.locate(site)
    ends_there = at.kind == "resid_post" and at.block == model.n_blocks - 1
    return [site, *model.later_sites(site), *([] if ends_there else [last])]


@torch.no_grad()
def measure(
    dictionaries: Sequence[Dictionary],
    model: LanguageModel,
    tokens: Int[Tensor, "contexts context"],
    *,
    selection: TokenSelection = ALL,
    directions: bool = True,
    seed: int = 0,
) -> DownstreamMeasurement:
    """Run the model on each batch once without, and with each dictionary; and, for directions, with each repair.

    Interrupted by Ctrl-C, it returns what is complete, if that is two sequences or more.

    Args:
        dictionaries: At one site; their names differ.
        model: Their model.
        tokens: What to run it on.
        selection: Tokens that count; the others are neither replaced nor measured.
        directions: Also resolve errors by principal direction, at two forwards from the site a group and dictionary.
        seed: Of the resampling.

    Raises:
        DictlabError: A reconstruction is not finite, or no token counts.
        KeyboardInterrupt: Fewer than two sequences were complete.
    """
    site = site_of(dictionaries[0])
    places = places_of(model, site)
    batches = tokens.split(max(1, BATCH_TOKENS // tokens.shape[1]))
    means = _means(dictionaries, model, places, batches, selection)
    basis = _principal(model, site, batches, selection) if directions else None
    generator = seeds.generator(seed, "resampled directions")
    rows: dict[tuple[str, ...], list[Sums]] = defaultdict(list)
    with Completion(len(tokens)) as completion:
        for batch in track(batches, "downstream", unit="batches"):
            for key, sums in list(_batch(dictionaries, model, places, means, basis, batch, selection, generator)):
                rows[key].append(sums)
            completion.add(len(batch))
    joined = {
        key: BySequence({name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}, seed)
        for key, parts in rows.items()
    }

    def named(kind: str) -> dict[str, BySequence]:
        return {key[1]: sums for key, sums in joined.items() if key[0] == kind}

    output = named("output")
    return DownstreamMeasurement(
        places,
        {(key[1], key[2]): sums for key, sums in joined.items() if key[0] == "depth"},
        output,
        named("along"),
        named("repairs"),
        joined.get(("worth",)),
        int(output[dictionaries[0].name].sums["tokens"].sum()),
        completion.done,
        completion.warnings,
    )


def _principal(
    model: LanguageModel, site: str, batches: Sequence[Int[Tensor, "batch context"]], selection: TokenSelection
) -> Principal:
    """Principal directions of the activations that count."""

    def counted() -> Iterator[Tensor]:
        for tokens in batches:
            x = model.capture(tokens, site)[site]
            yield x[selection.mask([x], tokens, model.tokenizer)]

    return principal(moments(counted(), covariance=True))


def _batch(
    dictionaries: Sequence[Dictionary],
    model: LanguageModel,
    places: Sequence[str],
    means: Means,
    basis: Principal | None,
    tokens: Int[Tensor, "batch context"],
    selection: TokenSelection,
    generator: torch.Generator,
) -> Iterator[tuple[tuple[str, ...], Sums]]:
    """Sums of one batch under ("depth", dictionary, place), ("output", dictionary), ... ; one clean forward for all."""
    site, later = places[0], places[1:]
    start = model.block_input(site)
    clean = model.capture(tokens, list(dict.fromkeys([start, *places, model.last_site])))
    x, after = clean[site], next_tokens(tokens).flatten()
    counted = selection.mask([x], tokens, model.tokenizer)
    predicting = counted & (next_tokens(tokens) >= 0).to(counted.device)
    n, n_predicted = (mask.sum(dim=1, keepdim=True).double().cpu() for mask in (counted, predicting))

    def outputs(ends: Sequence[Tensor]) -> OutputDivergence:
        altered = torch.stack([end.flatten(0, 1) for end in ends])
        return kl_and_ce(model, clean[model.last_site].flatten(0, 1), altered, after)

    def costs(versions: Sequence[Tensor]) -> Float[Tensor, "batch versions"]:
        """KL of the output from the original, summed by sequence, of what stands at the site instead."""
        ends = [model.final_residual(v.to(x.dtype), site, residual=clean[start], tokens=tokens) for v in versions]
        return _by_sequence(outputs(ends).kl, counted).T

    for dictionary in dictionaries:
        name, x_hat = dictionary.name, reconstruct_selected(dictionary, x, counted)[1]
        altered = model.resume_to(x_hat.to(x.dtype), site, later, residual=clean[start], tokens=tokens)
        out = outputs([altered.get(model.last_site, x_hat)])
        kl = _by_sequence(out.kl, counted)[0]
        at_site = compare(x, x_hat, means.stream[site], means.normed[site], counted)
        exchanged = compare(x_hat, x, means.x_hat[name], means.x_hat_normed[name], counted)
        yield ("depth", name, site), at_site | as_published(exchanged)
        for place in later:
            sums = compare(clean[place], altered[place], means.stream[place], means.normed[place], counted)
            yield ("depth", name, place), sums | as_published(sums)
        losses = zip(("ce", "ce_clean"), (out.ce, out.ce_clean[None]), strict=True)
        output = {key: _by_sequence(values, predicting)[0] for key, values in losses}
        yield ("output", name), output | {"kl": kl, "tokens": n[:, 0], "predicted": n_predicted[:, 0]}
        if basis is not None:
            yield ("along", name), sums_along(x, x_hat, basis, counted)
            tried = [repaired_and_wrong(x, x_hat, basis, group) for group in doubling_groups(x.shape[-1])]
            repairs = {key: costs([versions[key] for versions in tried]) for key in tried[0]}
            yield ("repairs", name), repairs | {"all wrong": kl[:, None], "tokens": n}
    if basis is not None:
        exchanges = [resampled(x.float(), basis, group, generator, counted) for group in doubling_groups(x.shape[-1])]
        yield ("worth",), {RESAMPLED: costs(exchanges), "tokens": n}


def _means(
    dictionaries: Sequence[Dictionary],
    model: LanguageModel,
    places: Sequence[str],
    batches: Sequence[Int[Tensor, "batch context"]],
    selection: TokenSelection,
) -> Means:
    """One pass for the averages that explained variance is measured from.

    Raises:
        DictlabError: No token counts, or a reconstruction is not finite.
    """
    site, n = places[0], 0
    totals: dict[tuple[str, str], Tensor] = {}

    def add(kind: str, name: str, values: Float[Tensor, "counted d"]) -> None:
        total = values.double().sum(dim=0)
        totals[kind, name] = totals[kind, name] + total if (kind, name) in totals else total

    for tokens in batches:
        captured = model.capture(tokens, places)
        counted = selection.mask([captured[site]], tokens, model.tokenizer)
        n += int(counted.sum())
        for place, a in captured.items():
            add("stream", place, a[counted])
            add("normed", place, normed(a[counted].double()))
        for dictionary in dictionaries:
            x_hat = reconstruct_selected(dictionary, captured[site], counted)[1][counted]
            add("x_hat", dictionary.name, x_hat)
            add("x_hat_normed", dictionary.name, normed(x_hat.double()))
    check_some_count(n, selection)
    return Means(
        *({name: total / n for (kind, name), total in totals.items() if kind == wanted} for wanted in Means._fields)
    )


def _by_sequence(
    values: Float[Tensor, "versions tokens"], counted: Bool[Tensor, "batch context"]
) -> Float[Tensor, "versions batch"]:
    """Sums over the tokens of each sequence that count."""
    by_token = values.view(-1, *counted.shape).double()
    return torch.where(counted, by_token, 0.0).sum(dim=-1).cpu()
