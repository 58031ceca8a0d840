"""Tables and plots of a comparison of two or more dictionaries by the directions of their latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor

from analyses.common import plotting
from analyses.common.chance import KINDS, Levels
from analyses.common.neighbours import Neighbours
from analyses.common.seed_floor import SEEDS, Similarity
from analyses.similarity.coactivation_report import OFF, QUADRANTS
from analyses.similarity.latent_pairs import Matched, Pair
from dictlab.dictionary import Dictionary
from dictlab.reports.report import Plot, Scatter
from dictlab.statistics import mean_interval

THRESHOLDS = tuple(t / 100 for t in range(30, 100, 5))
STRATA = 10
LINES = 8  # pairs that one panel can show

Rates = Mapping[str, Tensor]  # by dictionary


def direction_similarities(pair: Pair, levels: Levels, threshold: float, seed: int) -> list[Similarity]:
    """Everything that cosines say about a pair."""
    ways = ((pair.a, pair.b, pair.forward), (pair.b, pair.a, pair.backward))
    found = []
    for of, to, nearest in ways:
        best = nearest.cosine[:, 0]
        low, high = mean_interval(best, seed)
        level, n = levels[to.name], f"{len(best)} latents"
        one = Similarity("MMCS", of.name, to.name, float(best.double().mean()), low, high, n=n, directed=True)
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
    mean, (low, high) = float(values.double().mean()), mean_interval(values, seed)
    one = Similarity(measure, pair.a.name, pair.b.name, mean, low, high, n=f"{len(values)} pairs")
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


def histogram(pairs: Sequence[Pair], overview: pd.DataFrame) -> Plot:
    """Max cosines, one line an ordered pair."""
    shown = [
        (of, to, nearest.cosine[:, 0])
        for pair in pairs[: LINES // 2]
        for of, to, nearest in ((pair.a, pair.b, pair.forward), (pair.b, pair.a, pair.backward))
    ]
    return _histogram(shown, overview, 2 * len(pairs))


@plotting.applied
def _histogram(shown: Sequence[tuple[Dictionary, Dictionary, Tensor]], overview: pd.DataFrame, total: int) -> Plot:
    figure, (ax,) = plotting.axes(width=7.0)
    edges, curves = plotting.bins([values for *_, values in shown]), len(shown) > 2
    for number, (of, to, values) in enumerate(shown):
        how: dict[str, Any] = {"color": plotting.colour(number), "ls": plotting.line(number), "lw": 1.6}
        how["label"] = f"{of.name} in {to.name} ({len(values)})"
        if curves:
            ax.ecdf(values.numpy(), complementary=True, **how)
        else:
            ax.hist(values.numpy(), bins=edges, density=True, histtype="step", **how)
    ax.axvline(overview["chance (shaped)"].mean(), color="#666666", ls=":", label="chance (shaped)")
    _floor_line(ax, overview.loc[overview["relation"] == SEEDS, "MMCS"])
    ax.set(xlabel="max cosine with a latent of the other", title="How much of each is in the other")
    ax.set(ylabel="share with this cosine or more" if curves else "density", xlim=(edges[0], 1.01))
    figure.legend(loc="outside lower center", ncols=2, fontsize=7)
    left = f" {len(shown)} of {total} ordered pairs are shown." if len(shown) < total else ""
    return Plot(
        figure,
        "Distribution of the max cosine of decoder directions; in brackets, alive latents. Grey dotted: mean of random "
        f"directions; grey dashed: mean between seeds, where two dictionaries differ in that alone.{left}",
    )


@plotting.applied
def matrix(opened: Sequence[Dictionary], overview: pd.DataFrame) -> Plot:
    """Mean max cosine of every ordered pair, as a matrix."""
    names = [d.name for d in opened]
    means = overview.pivot(index="from", columns="to", values="MMCS").reindex(index=names, columns=names)
    size = max(4.0, 0.75 * len(names) + 2.5)
    figure, (ax,) = plotting.axes(width=size + 1, height=size)
    image = ax.imshow(means, vmin=0, vmax=1, cmap="cividis")
    for (i, j), value in np.ndenumerate(means.to_numpy()):
        if i != j:
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    ax.set_yticks(range(len(names)), plotting.short(names))
    ax.set_xticks(range(len(names)), plotting.short(names), rotation=30, ha="right")
    ax.set(xlabel="found in", ylabel="latents of", title="Mean max cosine of every ordered pair")
    ax.grid(False)
    figure.colorbar(image, ax=ax, label="cosine", shrink=0.8)
    low, high = overview["chance (shaped)"].min(), overview["chance (shaped)"].max()
    return Plot(
        figure, f"Mean max cosine of the row's latents with the column's; chance (shaped): {low:.2f}–{high:.2f}."
    )


@plotting.applied
def threshold_curves(shares: pd.DataFrame) -> Plot:
    """For two dictionaries every way of being the same; for more, the aligned share of each pair."""
    figure, (ax,) = plotting.axes(width=7.0)
    pairs = list(shares.groupby(["from", "to"], sort=False))
    one = len(pairs) == 1
    measures = list(shares.columns[3:]) if one else ["aligned"]
    lines = [(n if one else f"{a}, {b}", part, n) for (a, b), part in pairs[:LINES] for n in measures]
    for number, (label, part, name) in enumerate(lines):
        ax.plot(
            part["threshold"],
            part[name],
            color=plotting.colour(number),
            marker=plotting.marker(number),
            ms=4,
            label=label,
        )
    ax.set(xlabel="cosine from which two latents are the same", ylim=(0, 1.02))
    ax.set(ylabel="share of latents" if one else "share aligned", title="How much is shared depends on the threshold")
    ax.legend(fontsize=7)
    left = f" {LINES} of {len(pairs)} pairs are shown." if len(pairs) > LINES else ""
    return Plot(
        figure,
        "Share of latents that have a match at or above each cosine. Aligned: decoders and encoders pick the same "
        f"partner, and both cosines reach it; of the smaller dictionary's latents.{left}",
    )


@plotting.applied
def strata_plot(strata: pd.DataFrame, rates: str) -> Plot:
    """MCC by decile of the firing rate, one line a pair."""
    figure, (ax,) = plotting.axes(width=7.0)
    pairs = list(strata.groupby(["from", "to"], sort=False))
    for number, ((a, b), part) in enumerate(pairs[:LINES]):
        middle = np.sqrt(part["rate from"].clip(lower=1e-7) * part["rate to"].clip(lower=1e-7))
        ax.errorbar(
            middle,
            part["MCC"],
            yerr=plotting.error_lengths(part["MCC"], part["low"], part["high"]),
            color=plotting.colour(number),
            marker=plotting.marker(number),
            ms=4,
            lw=1.2,
            label=f"{a}, {b}" + (" (seeds)" if part["relation"].iloc[0] == SEEDS else ""),
        )
    ax.axhline(strata["chance (shaped)"].mean(), color="#666666", ls=":", label="chance (shaped)")
    ax.set(xscale="log", xlabel="firing rate (share of tokens; deciles)", ylabel="mean cosine of pairs (signed)")
    ax.set(title="Do latents that fire often match better?")
    ax.legend(fontsize=7)
    return Plot(
        figure,
        "One-to-one pairs by decile of the firing rate of the smaller dictionary's latent "
        f"({rates}); 95 % bootstrap intervals over latents. Dotted: random directions.",
    )


@plotting.applied
def quadrant_plot(points: pd.DataFrame, cosine: float, correlation: float, n: str) -> Scatter:
    """Decoder cosine against activation correlation, one point a pair of latents."""
    figure, (ax,) = plotting.axes(width=6.5, height=5.0)
    colours = {kind: plotting.colour(number) for number, kind in enumerate(QUADRANTS.values())}
    for number, (kind, colour) in enumerate(colours.items()):
        part = points[points["quadrant"] == kind]
        ax.scatter(
            part["cosine"],
            part["correlation"],
            s=12 if kind in OFF else 6,
            alpha=0.7 if kind in OFF else 0.35,
            lw=0,
            color=colour,
            marker=plotting.marker(number),
            label=f"{kind} ({len(part)})",
        )
    ax.axvline(cosine, color="#666666", ls="--", lw=1)
    ax.axhline(correlation, color="#666666", ls="--", lw=1)
    a, b = (points[c].iloc[0] if len(points) else "" for c in ("from", "to"))
    ax.set(xlabel="cosine of decoder directions", ylabel="correlation of activations over tokens")
    ax.set(title="Same direction and same trigger are two questions")
    ax.legend(fontsize=7, loc="upper left")
    return Scatter(
        figure,
        f"Latents of {a} and {b}, each with its nearest by direction and by correlation: {len(points)} pairs; {n}. "
        "Dashed: the thresholds.",
        frame=points,
        x="cosine",
        y="correlation",
        group="quadrant",
        labels=("latent", "partner", "nearest by", "Jaccard"),
        colours=colours,
    )


def quadrant_plots(points: Sequence[pd.DataFrame], cosine: float, correlation: float, n: str) -> Mapping[str, Scatter]:
    """One a pair of dictionaries, the first of them."""
    return {
        "quadrants" if not number else f"quadrants_{number + 1}": quadrant_plot(frame, cosine, correlation, n)
        for number, frame in enumerate(points[:LINES])
    }


def _floor_line(ax: Axes, between_seeds: pd.Series) -> None:
    if len(between_seeds):
        ax.axvline(between_seeds.mean(), color="#666666", ls="--", label="mean between seeds")
