"""Alive latents of two dictionaries paired one to one, by decoder and by encoder, and what the pairs are worth."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.assignment import Assignment, assignment, pair_cosines
from analyses.levels import alive_latents, mean_interval, random_directions
from analyses.neighbours import Neighbours
from dictlab.dictionary import Dictionary

THRESHOLDS = tuple(t / 100 for t in range(50, 100, 5))


class Matched(NamedTuple):
    """Alive latents paired one to one, by decoder and by encoder, and the other cosine of the decoder's pairs.

    Attributes:
        decoder: The assignment by decoder directions.
        encoder: The assignment by encoder columns.
        encoder_cosine: Of encoder columns, for the pairs of `decoder`.
        agree: Whether the encoders' assignment holds the same pair.
    """

    decoder: Assignment
    encoder: Assignment
    encoder_cosine: Float[Tensor, " pairs"]
    agree: Bool[Tensor, " pairs"]


def matched(a: Dictionary, b: Dictionary, latents: Int[Tensor, " n"], others: Int[Tensor, " m"]) -> Matched:
    """Pair some latents of a with some of b, one to one."""
    decoder = assignment(a.W_dec, b.W_dec, of_a=latents, of_b=others)
    encoder = assignment(a.W_enc.T, b.W_enc.T, of_a=latents, of_b=others)
    partner = torch.full((len(latents),), -1, dtype=torch.long)
    partner[encoder.rows] = encoder.partners
    cosine = pair_cosines(a.W_enc.T, b.W_enc.T, latents[decoder.rows], others[decoder.partners])
    return Matched(decoder, encoder, cosine, partner[decoder.rows] == decoder.partners)


def assignment_table(a: Dictionary, b: Dictionary, pairs: Matched, seed: int = 0) -> pd.DataFrame:
    """One row a matrix: its mean cosine over pairs (MCC), what it cannot exceed, and what random directions reach.

    The chance level is the MCC of as many random directions as the smaller dictionary has latents with the larger one.
    """
    small, large = sorted((a, b), key=lambda one: len(alive_latents(one)))
    of, n = alive_latents(large), len(pairs.decoder.rows)
    rows = []
    for name, found, weights in (("decoder", pairs.decoder, large.W_dec), ("encoder", pairs.encoder, large.W_enc.T)):
        low, high = mean_interval(found.cosine, seed)
        level = {
            shaped: assignment(random_directions(weights, n, shaped=shaped, seed=seed, of_b=of), weights, of_b=of).mean
            for shaped in (False, True)
        }
        rows.append(
            {
                "matrix": name,
                "latents of": small.name,
                "pairs": n,
                "MCC": found.mean,
                "low": low,
                "high": high,
                "bound": found.bound,
                "exact": found.exact,
                "chance (isotropic)": level[False],
                "chance (shaped)": level[True],
                "same pair in the other matrix": float(pairs.agree.float().mean()),
                "cosine of decoder pairs": float((found.cosine if name == "decoder" else pairs.encoder_cosine).mean()),
            }
        )
    return pd.DataFrame(rows)


def threshold_table(
    forward: Neighbours, backward: Neighbours, mutual: Bool[Tensor, " n"], pairs: Matched
) -> pd.DataFrame:
    """Shares of latents at or above each cosine, by stricter and stricter ways of being the same."""
    n = len(pairs.decoder.rows)
    decoder, encoder = pairs.decoder.cosine, pairs.encoder_cosine
    rows = [
        {
            "threshold": t,
            "max cosine, A in B": float((forward.cosine[:, 0] >= t).float().mean()),
            "max cosine, B in A": float((backward.cosine[:, 0] >= t).float().mean()),
            "mutual nearest": int((mutual & (forward.cosine[:, 0] >= t)).sum()) / n,
            "assigned, decoder": float((decoder >= t).float().mean()),
            "assigned, both": float(((decoder >= t) & (encoder >= t)).float().mean()),
            "aligned": float((pairs.agree & (decoder >= t) & (encoder >= t)).float().mean()),
        }
        for t in THRESHOLDS
    ]
    return pd.DataFrame(rows)


def pair_table(pairs: Matched, latents: Tensor, others: Tensor, forward: Neighbours, mutual: Tensor) -> pd.DataFrame:
    """One row a pair of the decoders' assignment, in numbers of latents."""
    rows, partners = pairs.decoder.rows, pairs.decoder.partners
    return pd.DataFrame(
        {
            "latent": latents[rows].numpy(),
            "partner": others[partners].numpy(),
            "cosine": pairs.decoder.cosine.numpy(),
            "encoder cosine": pairs.encoder_cosine.numpy(),
            "same pair by encoder": pairs.agree.numpy(),
            "mutual nearest": (mutual[rows] & (forward.rows[rows, 0] == partners)).numpy(),
        }
    )
