"""What does each intervention of `replacements` cost the model, for each dictionary, sequence by sequence?

One clean forward of a batch serves all interventions of all dictionaries. x_hat is always that of the clean
activations. Only tokens that count are replaced, and measured. Everything is kept by token or by sequence, so that
intervals can be had of anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from analyses.common.patching import CleanRun, check_some_count, clean_runs
from analyses.model_effects.pathology.replacements import (
    COVARIANCE,
    INTERVENTIONS,
    ISOTROPIC,
    ErrorSample,
    SiteStatistics,
    norm_of,
    site_statistics,
)
from analyses.model_effects.pathology.step_curves import reach, references, sensitivity
from dictlab.data.activations import moments
from dictlab.dictionary import Dictionary
from dictlab.dictionary.codes import Codes
from dictlab.errors import DictlabError
from dictlab.evaluation.evaluate import reconstruct_selected
from dictlab.evaluation.sites import site_of
from dictlab.model.language_model import LanguageModel
from dictlab.numerics import seeds
from dictlab.runtime.interruption import Completion
from dictlab.runtime.progress import Phase, track
from dictlab.token_selection import ALL, TokenSelection

BATCH_TOKENS = 2048
POOL_TOKENS = 4096  # the pool of activations from elsewhere holds about so many, eight sequences at least
POINTS = 60  # tokens of the strip plot, as many as the published one shows
CLOUDS = (ISOTROPIC, COVARIANCE)  # the points among which the reconstruction is placed

Arrays = dict[str, NDArray[np.float64]]


class DamageSettings(NamedTuple):
    """How much is measured.

    Attributes:
        draws: Of each random intervention, at every token.
        position: The token that is replaced alone.
        positions_after: Positions after it at which the damage is measured; 0 for no single-token interventions.
        random_points: Random points beside the reconstruction of that token; 0 for none.
        sweep_contexts: Sequences on which steps of many lengths are taken; 0 for none.
        seed: Of all random numbers.
    """

    draws: int
    position: int
    positions_after: int
    random_points: int
    sweep_contexts: int
    seed: int


@torch.no_grad()
def measure_sites(
    model: LanguageModel,
    tokens: Int[Tensor, "contexts context"],
    sites: Iterable[str],
    selection: TokenSelection = ALL,
) -> dict[str, SiteStatistics]:
    """Moments (in float64, first positions left out) and a pool of activations at each site.

    Raises:
        DictlabError: Activations are not finite, or fewer than two tokens count that are no first positions.
    """
    batches = tokens.split(max(1, BATCH_TOKENS // tokens.shape[1]))
    pooled = max(8, POOL_TOKENS // tokens.shape[1])
    statistics = {}
    for site in sites:
        pool: list[tuple[Tensor, Tensor]] = []

        def activations(site: str = site, pool: list[tuple[Tensor, Tensor]] = pool) -> Iterator[Tensor]:
            for batch in track(batches, f"covariance at {site}", unit="batches"):
                x = model.capture(batch, site)[site].float()
                if not x.isfinite().all():
                    raise DictlabError(f"{model.name}: its activations at {site} are not finite on this text.")
                counted = selection.mask([x], batch, model.tokenizer)
                if sum(len(mask) for _, mask in pool) < pooled:
                    pool.append((x, counted))
                yield x[:, 1:][counted[:, 1:]]

        try:
            site_moments = moments(activations(), covariance=True)
        except ValueError:
            site_moments = None
        x, counted = (torch.cat(parts)[:pooled] for parts in zip(*pool, strict=True))
        if site_moments is None or int(counted[:, 1:].sum()) < 2:
            raise DictlabError(
                f"token selection {selection}: fewer than two tokens of the training sample count at {site} beside "
                "first positions, and random errors are drawn from these. Give more text, or another "
                "`token_selection=...`."
            )
        statistics[site] = site_statistics(site_moments, x, counted)
    return statistics


def measure_damage(
    dictionaries: Sequence[Dictionary],
    model: LanguageModel,
    tokens: Int[Tensor, "contexts context"],
    sites: Mapping[str, SiteStatistics],
    settings: DamageSettings,
    selection: TokenSelection = ALL,
) -> tuple[list[Arrays], Completion]:
    """Everything that is measured, for each dictionary, and how much of it is complete.

    The first dimension of each array is the sequence. What was not measured is NaN: tokens that do not count.

    Raises:
        DictlabError: A reconstruction is not finite, or no token counts.
        KeyboardInterrupt: Fewer than two sequences were complete.
    """
    errors, alive = {}, {}
    for dictionary in dictionaries:
        pool = sites[site_of(dictionary)]
        codes, x_hat = reconstruct_selected(dictionary, pool.pool, pool.counted)
        errors[dictionary.name] = x_hat - pool.pool
        alive[dictionary.name] = _alive(dictionary, codes)
    rows: list[list[dict[str, Tensor]]] = []
    batches = tokens.split(max(2, BATCH_TOKENS // tokens.shape[1]))
    with (
        Completion(len(tokens)) as completion,
        Phase("pathology", len(batches) * len(dictionaries), unit="dictionary-batches") as progress,
    ):
        for number, batch in enumerate(batches):
            swept = min(len(batch), max(0, settings.sweep_contexts - completion.done))
            points = min(len(batch), max(0, POINTS - completion.done))
            runs = clean_runs(model, batch, list(sites), selection)
            extent = (number, swept, points)
            rows.append(_batch(dictionaries, runs, sites, errors, alive, settings, extent, progress))
            completion.add(len(batch))
    arrays = [
        {key: torch.cat([row[i][key].double().cpu() for row in rows if key in row[i]]).numpy() for key in rows[0][i]}
        for i in range(len(dictionaries))
    ]
    for measured in arrays:
        check_some_count(int(np.isfinite(measured["epsilon"]).sum()), selection)
    return arrays, completion


@torch.no_grad()
def _batch(
    dictionaries: Sequence[Dictionary],
    runs: Mapping[str, CleanRun],
    sites: Mapping[str, SiteStatistics],
    errors: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    settings: DamageSettings,
    extent: tuple[int, int, int],
    progress: Phase,
) -> list[dict[str, Tensor]]:
    """All dictionaries on one batch. The same normal numbers serve each dictionary: their differences are paired.

    `extent`: number of the batch, and how many of its sequences are swept, and placed among random points.
    """
    number, swept, points = extent
    rows = []
    beside: dict[str, Tensor] = {}
    for dictionary in dictionaries:
        site = site_of(dictionary)
        run = runs[site]
        codes, x_hat = reconstruct_selected(dictionary, run.x, run.counted)
        generator = seeds.generator(settings.seed, f"perturbations {number}")
        sample = ErrorSample(
            run.x.float(), x_hat, sites[site], errors[dictionary.name], generator, settings.draws, run.counted
        )
        row = _described(run, sample, codes) | _everywhere(run, sample, settings) | {"tokens": run.tokens}
        if points and settings.random_points:
            row |= _cloud(run.first(points), sample.first(points), settings)
        if swept:
            part, few = run.first(swept), sample.first(swept)
            if site not in beside:
                beside[site] = references(part, few)
            swept_codes = _leading(codes, int(part.counted.sum()))
            row |= {"references": beside[site], "reach": reach(part, few)}
            row |= {"sensitivity": sensitivity(part, few, dictionary, swept_codes, alive[dictionary.name])}
        rows.append(row)
        progress.advance()
    return rows


def _alive(dictionary: Dictionary, codes: Codes) -> Bool[Tensor, " n_latents"]:
    """Latents that are active on a sample, or were by the file in training."""
    fired = torch.bincount(codes.indices[codes.values != 0], minlength=dictionary.n_latents) > 0
    return fired if dictionary.firing_rate is None else fired | (dictionary.firing_rate.to(fired.device) > 0)


def _described(run: CleanRun, sample: ErrorSample, codes: Codes) -> dict[str, Tensor]:
    """What is known of each token that counts and has a next one, before any damage."""
    x, x_hat = sample.x[:, :-1], sample.x_hat[:, :-1]
    l0 = torch.zeros(run.counted.shape, device=x.device)
    l0[run.counted] = codes.l0().to(l0)
    described = {
        "epsilon": norm_of(x_hat - x)[..., 0],
        "norm": norm_of(x)[..., 0],
        "norm_hat": norm_of(x_hat)[..., 0],
        "cosine": cosine_similarity(x, x_hat, dim=-1),
        "l0": l0[:, :-1],
    }
    return {name: torch.where(run.predicting[:, :-1], values, torch.nan) for name, values in described.items()}


def _everywhere(run: CleanRun, sample: ErrorSample, settings: DamageSettings) -> dict[str, Tensor]:
    """Every intervention at all tokens at once, and at one token alone; `[batch, interventions, positions]`."""
    at_position: list[Tensor] = []

    def versions() -> Iterator[Tensor]:
        for intervention in INTERVENTIONS.values():
            replaced = intervention.make(sample)
            at_position.append(replaced[:, :, settings.position].clone())
            yield replaced

    out = run.outputs(versions())
    clean, entropy, kl, ce = (
        torch.where(run.predicting, values, torch.nan)[..., :-1]
        for values in (out.ce_clean, out.entropy, out.kl, out.ce)
    )
    kl_of, ce_of = (values.split([len(draws) for draws in at_position]) for values in (kl, ce))
    row = {
        "ce_clean": clean,
        "entropy": entropy,
        "kl": torch.stack([draws.mean(dim=0) for draws in kl_of], dim=1),
        "kl_once": torch.stack([draws[0] for draws in kl_of], dim=1),
        "ce": torch.stack([draws.mean(dim=0) - clean for draws in ce_of], dim=1),
    }
    if settings.positions_after:
        row["alone"] = _alone(run.tail(settings.position, settings.positions_after + 1), at_position)
    return row


def _alone(tail: CleanRun, replaced: list[Tensor]) -> Float[Tensor, "batch interventions positions"]:
    """KL where only the first token of `tail` is replaced, and at the tokens after it; NaN where it does not count."""
    new = torch.cat(replaced)
    versions = tail.x.float().expand(len(new), *tail.x.shape).clone()
    versions[:, :, 0] = new
    kl = torch.where(tail.counted & tail.counted[:, :1], tail.outputs([versions]).kl, torch.nan)
    return torch.stack([draws.mean(dim=0) for draws in kl.split([len(draws) for draws in replaced])], dim=1)


def _cloud(run: CleanRun, sample: ErrorSample, settings: DamageSettings) -> dict[str, Tensor]:
    """One token's KL under its reconstruction, and under many random points at the same distance."""
    here = slice(settings.position, settings.position + 1)
    at_token = sample._replace(
        x=sample.x[:, here], x_hat=sample.x_hat[:, here], n_draws=settings.random_points, counted=run.counted[:, here]
    )
    points = (INTERVENTIONS[name].make(at_token) for name in CLOUDS)
    tail = run.tail(settings.position, 1)
    kl = torch.where(tail.counted, tail.outputs(chain([at_token.x_hat[None]], points)).kl, torch.nan)[..., 0]
    return {"point": kl[0], "cloud": kl[1:].unflatten(0, (len(CLOUDS), settings.random_points)).permute(2, 0, 1)}


def _leading(codes: Codes, tokens: int) -> Codes:
    """The codes of the first tokens."""
    end = int(codes.offsets[tokens])
    return Codes(codes.values[:end], codes.indices[:end], codes.offsets[: tokens + 1], codes.n_latents)
