"""What does each intervention of `replacements` cost the model, for each dictionary, sequence by sequence?

One clean forward of a batch serves all interventions of all dictionaries. x_hat is always that of the clean
activations. Everything is kept by token or by sequence, so that intervals can be had of anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

from analyses.common.patching import CleanRun, clean_runs
from analyses.model_effects.replacements import (
    COVARIANCE,
    INTERVENTIONS,
    ISOTROPIC,
    ErrorSample,
    SiteStatistics,
    norm_of,
    site_statistics,
)
from analyses.model_effects.step_curves import reach, references, sensitivity
from dictlab import seeds
from dictlab.data.activations import moments
from dictlab.dictionary import Dictionary
from dictlab.dictionary.codes import Codes
from dictlab.errors import DictlabError
from dictlab.evaluation.evaluate import check_finite, site_of
from dictlab.model.language_model import LanguageModel

BATCH_TOKENS = 2048
POOL_TOKENS = 4096  # the pool of activations from elsewhere holds about so many, eight sequences at least
POINTS = 60  # tokens of the strip plot, as many as the published one shows
CLOUDS = (ISOTROPIC, COVARIANCE)  # the points among which the reconstruction is placed
NAMES = tuple(INTERVENTIONS)

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
    model: LanguageModel, tokens: Int[Tensor, "contexts context"], sites: Iterable[str]
) -> dict[str, SiteStatistics]:
    """Moments (in float64, first positions left out) and a pool of activations at each site."""
    batches = tokens.split(max(1, BATCH_TOKENS // tokens.shape[1]))
    pooled = max(8, POOL_TOKENS // tokens.shape[1])
    found = {}
    for site in sites:
        pool: list[Tensor] = []

        def activations(site: str = site, pool: list[Tensor] = pool) -> Iterator[Tensor]:
            for batch in tqdm(batches, desc=f"covariance at {site}", leave=False):
                x = model.capture(batch, site)[site].float()
                if not x.isfinite().all():
                    raise DictlabError(f"{model.name}: its activations at {site} are not finite on this text.")
                if sum(map(len, pool)) < pooled:
                    pool.append(x)
                yield x[:, 1:]

        site_moments = moments(activations(), covariance=True)
        found[site] = site_statistics(site_moments, torch.cat(pool)[:pooled])
    return found


def measure_damage(
    dictionaries: Sequence[Dictionary],
    model: LanguageModel,
    tokens: Int[Tensor, "contexts context"],
    sites: Mapping[str, SiteStatistics],
    settings: DamageSettings,
) -> list[Arrays]:
    """Everything that is measured, for each dictionary; the first dimension of each array is the sequence.

    Interrupted by Ctrl-C, it returns what is complete, if that is two sequences or more.

    Raises:
        DictlabError: A reconstruction is not finite.
        KeyboardInterrupt: Fewer than two sequences were complete.
    """
    errors = {d.name: d.reconstruct(pool) - pool for d in dictionaries for pool in [sites[site_of(d)].pool]}
    rows: list[list[dict[str, Tensor]]] = []
    done, batches = 0, tokens.split(max(2, BATCH_TOKENS // tokens.shape[1]))
    try:
        with tqdm(total=len(batches) * len(dictionaries), desc="pathology", unit="dictionary-batch") as progress:
            for number, batch in enumerate(batches):
                swept = min(len(batch), max(0, settings.sweep_contexts - done))
                points = min(len(batch), max(0, POINTS - done))
                rows.append(
                    _batch(dictionaries, model, batch, sites, errors, settings, (number, swept, points), progress)
                )
                done += len(batch)
    except KeyboardInterrupt:
        if done < 2:
            raise
    return [
        {key: torch.cat([row[i][key].double().cpu() for row in rows if key in row[i]]).numpy() for key in rows[0][i]}
        for i in range(len(dictionaries))
    ]


@torch.no_grad()
def _batch(
    dictionaries: Sequence[Dictionary],
    model: LanguageModel,
    tokens: Int[Tensor, "batch context"],
    sites: Mapping[str, SiteStatistics],
    errors: Mapping[str, Tensor],
    settings: DamageSettings,
    extent: tuple[int, int, int],
    progress: tqdm,
) -> list[dict[str, Tensor]]:
    """All dictionaries on one batch. The same normal numbers serve each dictionary: their differences are paired.

    `extent`: number of the batch, and how many of its sequences are swept, and placed among random points.
    """
    number, swept, points = extent
    seen = clean_runs(model, tokens, list(sites))
    found = []
    beside: dict[str, Tensor] = {}
    for dictionary in dictionaries:
        site = site_of(dictionary)
        clean_run = seen[site]
        codes, x_hat = dictionary(clean_run.x.float())
        check_finite(dictionary, x_hat)
        generator = seeds.generator(settings.seed, f"perturbations {number}")
        sample = ErrorSample(
            clean_run.x.float(), x_hat, sites[site], errors[dictionary.name], generator, settings.draws
        )
        row = _described(sample, codes) | _everywhere(clean_run, sample, settings) | {"tokens": tokens}
        if points and settings.random_points:
            row |= _cloud(clean_run.first(points), sample.first(points), settings)
        if swept:
            part, few, here = clean_run.first(swept), sample.first(swept), _leading(codes, swept * tokens.shape[1])
            if site not in beside:
                beside[site] = references(part, few)
            row |= {"references": beside[site], "reach": reach(part, few)}
            row |= {"sensitivity": sensitivity(part, few, dictionary, here)}
        found.append(row)
        progress.update()
    return found


def _described(sample: ErrorSample, codes: Codes) -> dict[str, Tensor]:
    """What is known of each token that has a next one, before any damage."""
    x, x_hat = sample.x[:, :-1], sample.x_hat[:, :-1]
    return {
        "epsilon": norm_of(x_hat - x)[..., 0],
        "norm": norm_of(x)[..., 0],
        "norm_hat": norm_of(x_hat)[..., 0],
        "cosine": cosine_similarity(x, x_hat, dim=-1),
        "l0": codes.l0().view(sample.x.shape[:-1])[:, :-1],
    }


def _everywhere(clean_run: CleanRun, sample: ErrorSample, settings: DamageSettings) -> dict[str, Tensor]:
    """Every intervention at all tokens at once, and at one token alone; `[batch, interventions, positions]`."""
    at_position: list[Tensor] = []

    def replacements() -> Iterator[Tensor]:
        for intervention in INTERVENTIONS.values():
            made = intervention.make(sample)
            at_position.append(made[:, :, settings.position].clone())
            yield made

    out = clean_run.outputs(replacements())
    kl, ce = (t[..., :-1].split([len(made) for made in at_position]) for t in (out.kl, out.ce))
    clean = out.ce_clean[:, :-1]
    row = {
        "ce_clean": clean,
        "entropy": out.entropy[:, :-1],
        "kl": torch.stack([some.mean(dim=0) for some in kl], dim=1),
        "kl_once": torch.stack([some[0] for some in kl], dim=1),
        "ce": torch.stack([some.mean(dim=0) - clean for some in ce], dim=1),
    }
    if settings.positions_after:
        row["alone"] = _alone(clean_run.tail(settings.position, settings.positions_after + 1), at_position)
    return row


def _alone(tail: CleanRun, made: list[Tensor]) -> Float[Tensor, "batch interventions positions"]:
    """KL where only the first token of `tail` is replaced, and at the tokens after it."""
    new = torch.cat(made)
    versions = tail.x.float().expand(len(new), *tail.x.shape).clone()
    versions[:, :, 0] = new
    kl = tail.outputs([versions]).kl.split([len(m) for m in made])
    return torch.stack([some.mean(dim=0) for some in kl], dim=1)


def _cloud(clean_run: CleanRun, sample: ErrorSample, settings: DamageSettings) -> dict[str, Tensor]:
    """One token's KL under its reconstruction, and under many random points at the same distance."""
    here = slice(settings.position, settings.position + 1)
    at_token = sample._replace(x=sample.x[:, here], x_hat=sample.x_hat[:, here], n_draws=settings.random_points)
    points = (INTERVENTIONS[name].make(at_token) for name in CLOUDS)
    kl = clean_run.tail(settings.position, 1).outputs(chain([at_token.x_hat[None]], points)).kl[..., 0]
    return {"point": kl[0], "cloud": kl[1:].unflatten(0, (len(CLOUDS), settings.random_points)).permute(2, 0, 1)}


def _leading(codes: Codes, tokens: int) -> Codes:
    """The codes of the first tokens."""
    end = int(codes.offsets[tokens])
    return Codes(codes.values[:end], codes.indices[:end], codes.offsets[: tokens + 1], codes.n_latents)
