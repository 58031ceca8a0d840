"""Tables of how similar dictionaries are by the directions of their latents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.common.neighbours import Neighbours
from analyses.common.seed_floor import similarity_columns
from analyses.similarity.matching.direction_similarities import THRESHOLDS, OrderedPair, Stratum, ThresholdShares
from analyses.similarity.matching.latent_pairs import Pair
from dictlab.dictionary import Dictionary


def overview_table(both_ways: Sequence[OrderedPair]) -> pd.DataFrame:
    """One row an ordered pair."""
    return pd.DataFrame(
        [
            {"from": one.mmcs.of, "to": one.mmcs.to, "MMCS": one.mmcs.value}
            | similarity_columns(one.mmcs)
            | {
                "share above threshold": one.share_above_threshold,
                "mutual nearest": one.n_mutual,
                "share mutual": one.n_mutual / one.n_alive,
                **{f"one to one, {matrix}": value for matrix, value in one.one_to_one.items()},
                "alive latents": one.n_alive,
                "dead latents": one.n_dead,
                "relation": one.mmcs.relation,
                "seeds": one.mmcs.seeds,
            }
            for one in both_ways
        ]
    )


def assignment_table(pairs: Sequence[Pair]) -> pd.DataFrame:
    """How good the one-to-one assignments are: what none can exceed, and what each says of the other's matrix."""
    rows = []
    for pair in pairs:
        chosen = pair.matched
        for matrix, found in (("decoder", chosen.decoder), ("encoder", chosen.encoder)):
            row: dict[str, object] = {"from": pair.a.name, "to": pair.b.name, "matrix": matrix}
            row["latents of"] = pair.small.name
            row |= {"pairs": len(found.rows), "MCC": found.mean, "bound": found.bound, "exact": found.exact}
            own = found.cosine if matrix == "decoder" else chosen.encoder_cosine
            row |= {"same pair in the other matrix": float(chosen.agree.float().mean())}
            rows.append(row | {"cosine of decoder pairs": float(own.mean())})
    return pd.DataFrame(rows)


def threshold_table(shares: Sequence[ThresholdShares]) -> pd.DataFrame:
    """One row a pair and threshold."""
    return pd.DataFrame(
        [
            {"from": one.of, "to": one.to, "threshold": t} | {name: one.by_measure[name][i] for name in one.by_measure}
            for one in shares
            for i, t in enumerate(THRESHOLDS)
        ]
    )


def strata_table(deciles: Sequence[Stratum]) -> pd.DataFrame:
    """One row a pair and decile."""
    return pd.DataFrame(
        [
            {"relation": one.mcc.relation, "seeds": one.mcc.seeds, "from": one.mcc.of, "to": one.mcc.to}
            | {"decile": one.decile, "rate from": one.lowest_rate, "rate to": one.highest_rate, "MCC": one.mcc.value}
            | similarity_columns(one.mcc)
            | {"over": one.mcc.n}
            for one in deciles
        ]
    )


def pair_table(pair: Pair) -> pd.DataFrame:
    """One row a pair of the decoders' assignment, in numbers of latents."""
    rows, partners = pair.matched.decoder.rows, pair.matched.decoder.partners
    return pd.DataFrame(
        {
            "from": pair.a.name,
            "to": pair.b.name,
            "latent": pair.a_latents.numpy(),
            "partner": pair.b_latents.numpy(),
            "cosine": pair.matched.decoder.cosine.numpy(),
            "encoder cosine": pair.matched.encoder_cosine.numpy(),
            "same pair by encoder": pair.matched.agree.numpy(),
            "mutual nearest": (pair.mutual[rows] & (pair.forward.rows[rows, 0] == partners)).numpy(),
        }
    )


def neighbour_table(pair: Pair) -> pd.DataFrame:
    """The nearest latents of the other dictionary, for each alive latent of both."""
    back = torch.zeros(len(pair.others), dtype=torch.bool)
    back[pair.forward.rows[pair.mutual, 0]] = True
    return pd.concat(
        [
            _listed(pair.a, pair.b, pair.latents, pair.others, pair.forward, pair.mutual),
            _listed(pair.b, pair.a, pair.others, pair.latents, pair.backward, back),
        ],
        ignore_index=True,
    )


def _listed(
    a: Dictionary, b: Dictionary, latents: Tensor, others: Tensor, found: Neighbours, mutual: Tensor
) -> pd.DataFrame:
    top = found.rows.shape[1]
    return pd.DataFrame(
        {
            "from": a.name,
            "to": b.name,
            "latent": latents.repeat_interleave(top).numpy(),
            "rank": np.tile(np.arange(1, top + 1), len(latents)),
            "neighbour": others[found.rows.flatten()].numpy(),
            "cosine": found.cosine.flatten().numpy(),
            "mutual": mutual.repeat_interleave(top).numpy() & (np.tile(np.arange(top), len(latents)) == 0),
        }
    )
