"""How sparse are the effects of a dictionary's latents on average, beside random directions and channels?

Means over ablations are ratios of sums over tokens, with bootstrap intervals over tokens: each is in a sequence of its
own. Ablations that change no logit have no sparsity and are in no mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from analyses.model_effects.ablation.logit_sparsity import CHANNEL, LATENT, RANDOM, AblationEffect
from dictlab.dictionary import Dictionary
from dictlab.numerics.statistics import NAN, Array, Estimate, interval, ratio, ratio_draws

RARE = 0.1  # share of tokens from which on a latent is no more rare


class AblationEstimates(NamedTuple):
    """Mean effects of one set of features: the latents of a dictionary, or the channels of a site.

    Attributes:
        name: Of the dictionary, or what channels are called.
        dictionary: Which one; None of channels.
        n_ablated: Ablations.
        sparsity: Mean share of the logits of all positions that an effect is spread over.
        own_position: The same of the logits at the token itself.
        effect: Mean root of the summed squares, in logits.
        l0: Active latents a token; NaN of channels.
        random: `sparsity` of random directions of the same lengths.
        random_own_position: Their `own_position`.
        over_random: `sparsity` over that of random directions, paired by token.
        rare: `sparsity` of the latents that are active at less than RARE of the tokens.
    """

    name: str
    dictionary: Dictionary | None
    n_ablated: int
    sparsity: Estimate
    own_position: Estimate
    effect: float
    l0: float = NAN
    random: Estimate = Estimate(NAN)
    random_own_position: Estimate = Estimate(NAN)
    over_random: Estimate = Estimate(NAN)
    rare: Estimate = Estimate(NAN)


def estimate_ablations(
    effects: Sequence[AblationEffect], dictionaries: Sequence[Dictionary], sequences: Sequence[int], seed: int
) -> list[AblationEstimates]:
    """The estimates of each dictionary, in the order given, and behind them of the channels of each site.

    Args:
        effects: Every ablation.
        dictionaries: Which.
        sequences: Of the sample, in each of which latents were ablated at one token.
        seed: Of the resampling.
    """
    estimates = [
        _of_dictionary(d, [e for e in effects if e.dictionary == d.name], sequences, seed) for d in dictionaries
    ]
    channels = [e for e in effects if e.kind == CHANNEL]
    sites = list(dict.fromkeys(e.site for e in channels))
    for site in sites:
        at_site = [e for e in channels if e.site == site]
        name = "residual channels" if len(sites) == 1 else f"channels at {site}"
        estimates.append(AblationEstimates(name, None, len(at_site), *_means(at_site, sequences, seed), _size(at_site)))
    return estimates


def _of_dictionary(
    dictionary: Dictionary, effects: Sequence[AblationEffect], sequences: Sequence[int], seed: int
) -> AblationEstimates:
    latents, random = ([e for e in effects if e.kind == kind] for kind in (LATENT, RANDOM))
    rare = [e for e in latents if e.rate < RARE]
    sparsity, own_position = _means(latents, sequences, seed)
    random_sparsity, random_own_position = _means(random, sequences, seed)
    return AblationEstimates(
        dictionary.name,
        dictionary,
        len(latents),
        sparsity,
        own_position,
        _size(latents),
        l0=sum({e.sequence: e.active for e in latents}.values()) / len(sequences),
        random=random_sparsity,
        random_own_position=random_own_position,
        over_random=_over(_sums(latents, "sparsity", sequences), _sums(random, "sparsity", sequences), seed),
        rare=_means(rare, sequences, seed)[0],
    )


def _means(effects: Sequence[AblationEffect], sequences: Sequence[int], seed: int) -> tuple[Estimate, Estimate]:
    """Mean sparsity over all positions, and at the token itself."""
    over_all, at_token = (ratio(*_sums(effects, name, sequences), seed) for name in ("sparsity", "own_position"))
    return over_all, at_token


def _size(effects: Sequence[AblationEffect]) -> float:
    """Mean effect, in logits; NaN where nothing was ablated."""
    return float(np.mean([e.effect for e in effects])) if effects else NAN


def _sums(effects: Sequence[AblationEffect], name: str, sequences: Sequence[int]) -> tuple[Array, Array]:
    """Sum of what is known of an attribute at each token, and how many effects that is, `[tokens]` each."""
    row = {sequence: i for i, sequence in enumerate(sequences)}
    known = [(row[e.sequence], value) for e in effects if not math.isnan(value := getattr(e, name))]
    rows, values = np.array(known, dtype=np.float64).reshape(-1, 2).T
    total, count = (np.bincount(rows.astype(np.int64), w, len(sequences)) for w in (values, np.ones_like(values)))
    return total.astype(np.float64), count.astype(np.float64)


def _over(latent: tuple[Array, Array], random: tuple[Array, Array], seed: int) -> Estimate:
    """Mean sparsity of latents over that of random directions, paired by token."""
    if not latent[1].any() or not random[1].any():
        return Estimate(NAN)
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = ratio_draws(*latent, seed) / ratio_draws(*random, seed)
    value = latent[0].sum() / latent[1].sum() / (random[0].sum() / random[1].sum())
    return Estimate(float(value), *interval(draws))
