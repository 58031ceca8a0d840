"""A part of a pool as a dictionary, under every refit: nothing, the bias, the decoder, or some steps of gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.pool.dictionary_pool import part_of
from analyses.pool.gradient_refit import Parameters, finetuned
from analyses.pool.pool_sample import Observations, observe
from analyses.pool.ridge_refit import best_ridge, normal_equations, refit_bias
from analyses.pool.threshold_calibration import Calibration, standing_alone
from dictlab.dictionary import Dictionary

Refit = Literal["none", "bias", "decoder", "biases by gradient", "all by gradient"]
CLOSED: tuple[Refit, ...] = ("none", "bias", "decoder")
BY_GRADIENT: tuple[Refit, ...] = ("biases by gradient", "all by gradient")


@dataclass(frozen=True, eq=False)
class Sample:
    """What everything is chosen and refitted on.

    Attributes:
        pool: All latents of all donors.
        batches: Activations.
        observations: What the pool does on them.
        b_out: The output bias where nothing is refitted.
        steps: Of gradient.
        seed: Of the order of tokens in these.
    """

    pool: Dictionary
    batches: Sequence[Float[Tensor, "*tokens d_in"]]
    observations: Observations
    b_out: Float[Tensor, " d_in"]
    steps: int
    seed: int


def hybrid(sample: Sample, chosen: Bool[Tensor, " n_pool"], refit: Refit, name: str) -> Dictionary:
    """Some latents of a pool as a dictionary.

    By gradient everything starts from the best decoder, biases alone from the best output bias: what a closed form
    gives is not left to Adam.

    Args:
        sample: The pool, and what it is refitted on.
        chosen: Which latents.
        refit: What is refitted, encoders frozen but for the last.
        name: Of the result.

    Raises:
        DictlabError: There are too many latents to refit their decoder.
    """
    if refit in ("decoder", "all by gradient"):
        made = _with_decoder(sample.pool, chosen, sample.observations, name)
    else:
        made = part_of(sample.pool, chosen, b_out=sample.b_out, name=name)
        made = made if refit == "none" else refit_bias(made, sample.batches)
    if refit in BY_GRADIENT:
        parameters: Parameters = "biases" if refit == BY_GRADIENT[0] else "all"
        tuned = finetuned(made, sample.batches, parameters, steps=sample.steps, seed=sample.seed)
        made = _noted(tuned.dictionary, steps=sample.steps, best_step=tuned.step)
    return _noted(replace(made, name=name), refit=refit)


def compact(sample: Sample, made: Dictionary, refit: Refit, by: Calibration) -> tuple[Dictionary, Dictionary]:
    """A hybrid whose latents have thresholds of their own: as they come, and refitted again in closed form."""
    name = f"{made.name}, compact"
    alone = standing_alone(made, sample.batches, by=by, name=f"{name}, not refitted again")
    if refit == "none":
        return alone, replace(alone, name=name)
    if refit == "bias":
        return alone, replace(refit_bias(alone, sample.batches), name=name)
    return alone, with_decoder(alone, sample.batches, name)


def with_decoder(dictionary: Dictionary, batches: Sequence[Float[Tensor, "*tokens d_in"]], name: str) -> Dictionary:
    """A dictionary with the best decoder and bias for its own codes, latents that only compete left alone."""
    everything = torch.ones(dictionary.n_latents, dtype=torch.bool)
    return _with_decoder(dictionary, everything, observe(dictionary, batches), name)


def _with_decoder(pool: Dictionary, chosen: Tensor, observations: Observations, name: str) -> Dictionary:
    latents = (chosen.cpu() & torch.from_numpy(observations.firing_rate > 0)).nonzero().squeeze(1)
    seen = observations.columns(latents.numpy())
    before = torch.cat([pool.W_dec.cpu()[latents], pool.b_out.cpu()[None]]).double()
    ridge = best_ridge(seen, before)
    after = normal_equations(seen).solution(before, ridge).float()
    directions = pool.W_dec.clone()
    directions[latents.to(directions.device)] = after[:-1].to(directions)
    made = part_of(pool, chosen, W_dec=directions, b_out=after[-1].to(pool.b_out), name=name)
    return _noted(made, ridge=ridge)


def _noted(dictionary: Dictionary, **how: object) -> Dictionary:
    return replace(dictionary, metadata=replace(dictionary.metadata, training=dictionary.metadata.training | how))
