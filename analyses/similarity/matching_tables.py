"""What a comparison of directions says, in similarities and tables of latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.common.neighbours import Neighbours
from analyses.common.similarity_table import Similarity
from analyses.similarity.latent_pairs import KINDS, Matched, Pair
from dictlab.dictionary import Dictionary
from dictlab.statistics import mean_interval

THRESHOLDS = tuple(t / 100 for t in range(30, 100, 5))
STRATA = 10

Levels = Mapping[str, Mapping[str, float]]  # by dictionary, by kind
Rates = Mapping[str, Tensor]  # by dictionary


def direction_similarities(pair: Pair, levels: Levels, threshold: float, seed: int) -> list[Similarity]:
    """Everything that cosines say about a pair."""
    ways = ((pair.a, pair.b, pair.forward), (pair.b, pair.a, pair.backward))
    found = []
    for of, to, nearest in ways:
        best = nearest.cosine[:, 0]
        low, high = mean_interval(best, seed)
        level, n = levels[to.name], f"{len(best)} latents"
        one = Similarity("MMCS", of.name, to.name, float(best.mean()), low, high, n=n, directed=True)
        found.append(one._replace(isotropic=level["isotropic"], shaped=level["shaped"]))
    chosen, chance = pair.matched, {kind: pair.chance[kind].matched for kind in KINDS}
    mutual = torch.zeros(len(chosen.decoder.rows))
    mutual[: int(pair.mutual.sum())] = 1
    found += [
        _mean("mutual nearest, share", pair, mutual, {k: pair.chance[k].mutual for k in KINDS}, seed),
        _mean("MCC, decoder", pair, chosen.decoder.cosine, {k: c.decoder.mean for k, c in chance.items()}, seed),
        _mean("MCC, encoder", pair, chosen.encoder.cosine, {k: c.encoder.mean for k, c in chance.items()}, seed),
        _mean("encoder and decoder agree, share", pair, chosen.agree.float(), _shares(chance, None), seed),
        _mean(f"aligned at {threshold:g}, share", pair, aligned(chosen, threshold), _shares(chance, threshold), seed),
    ]
    return found


def aligned(chosen: Matched, threshold: float) -> Tensor:
    """Whether both assignments hold a pair and both its cosines reach a threshold; 0 or 1."""
    return (chosen.agree & (chosen.decoder.cosine >= threshold) & (chosen.encoder_cosine >= threshold)).float()


def overview_table(similarities: pd.DataFrame, pairs: Sequence[Pair], threshold: float) -> pd.DataFrame:
    """One row an ordered pair: mean max cosine, mutual and one-to-one pairs."""
    key = similarities.set_index(["measure", "from", "to"])
    rows = []
    for pair in pairs:
        for of, to, nearest in ((pair.a, pair.b, pair.forward), (pair.b, pair.a, pair.backward)):
            mmcs, both = key.loc[("MMCS", of.name, to.name)], (pair.a.name, pair.b.name)
            best, n_mutual = nearest.cosine[:, 0], int(pair.mutual.sum())
            row = {"from": of.name, "to": to.name, "MMCS": mmcs["value"]} | {c: mmcs[c] for c in ("low", "high")}
            row |= {c: mmcs[c] for c in ("chance (isotropic)", "chance (shaped)", "seed floor")}
            row["share above threshold"] = float((best >= threshold).float().mean())
            row |= {"mutual nearest": n_mutual, "share mutual": n_mutual / len(best)}
            row |= {f"one to one, {m}": key.loc[(f"MCC, {m}", *both), "value"] for m in ("decoder", "encoder")}
            row |= {"alive latents": len(best), "dead latents": of.n_emitting - len(best)}
            row |= {"relation": mmcs["relation"], "seeds": mmcs["seeds"]}
            rows.append(row)
    return pd.DataFrame(rows)


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


def threshold_table(pairs: Sequence[Pair]) -> pd.DataFrame:
    """Shares of latents at or above each cosine, by stricter and stricter ways of being the same."""
    return pd.DataFrame([_shares_at(pair, t) for pair in pairs for t in THRESHOLDS])


def strata_similarities(pair: Pair, rates: Rates, seed: int) -> tuple[list[Similarity], list[tuple[float, float]]]:
    """MCC by decile of the firing rate of the smaller dictionary's latents; and the rates that each decile spans."""
    own = rates[pair.small.name][pair.a_latents if pair.small is pair.a else pair.b_latents]
    chance = {kind: pair.chance[kind].matched.decoder.mean for kind in KINDS}
    found, spans = [], []
    for number, part in enumerate(own.argsort(stable=True).tensor_split(min(STRATA, len(own))), start=1):
        name = f"MCC, decile {number} of firing rate"
        found.append(_mean(name, pair, pair.matched.decoder.cosine[part], chance, seed))
        spans.append((float(own[part].min()), float(own[part].max())))
    return found, spans


def strata_table(similarities: pd.DataFrame, spans: Sequence[tuple[float, float]]) -> pd.DataFrame:
    """The strata's similarities with the rates that they span."""
    frame = similarities.rename(columns={"value": "MCC"}).drop(columns=["shuffled, mean", "shuffled, p"])
    frame["decile"] = frame.pop("measure").str.extract(r"(\d+)")[0].astype(int)
    frame["rate from"], frame["rate to"] = zip(*spans, strict=True)
    first = ["relation", "seeds", "from", "to", "decile", "rate from", "rate to"]
    return frame[[*first, *(c for c in frame.columns if c not in first)]]


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


def _mean(measure: str, pair: Pair, values: Tensor, chance: Mapping[str, float], seed: int) -> Similarity:
    low, high = mean_interval(values, seed)
    one = Similarity(measure, pair.a.name, pair.b.name, float(values.mean()), low, high, n=f"{len(values)} pairs")
    return one._replace(isotropic=chance["isotropic"], shaped=chance["shaped"])


def _shares(chance: Mapping[str, Matched], threshold: float | None) -> dict[str, float]:
    return {
        kind: float((found.agree.float() if threshold is None else aligned(found, threshold)).mean())
        for kind, found in chance.items()
    }


def _shares_at(pair: Pair, t: float) -> dict[str, object]:
    decoder, encoder = pair.matched.decoder.cosine, pair.matched.encoder_cosine
    return {
        "from": pair.a.name,
        "to": pair.b.name,
        "threshold": t,
        "max cosine, A in B": float((pair.forward.cosine[:, 0] >= t).float().mean()),
        "max cosine, B in A": float((pair.backward.cosine[:, 0] >= t).float().mean()),
        "mutual nearest": int((pair.mutual & (pair.forward.cosine[:, 0] >= t)).sum()) / len(decoder),
        "assigned, decoder": float((decoder >= t).float().mean()),
        "assigned, both": float(((decoder >= t) & (encoder >= t)).float().mean()),
        "aligned": float(aligned(pair.matched, t).mean()),
        "aligned, chance (shaped)": float(aligned(pair.chance["shaped"].matched, t).mean()),
    }


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
