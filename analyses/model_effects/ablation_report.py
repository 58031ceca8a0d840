"""How many logits does a latent move: tables with their captions, plots, and the summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.common import plotting
from analyses.model_effects.logit_sparsity import CHANNEL, LATENT, RANDOM, AblationEffect
from dictlab.dictionary import Dictionary
from dictlab.evaluation.recorded_selection import all_tokens_warning
from dictlab.reports.report import Plot, Report, Table
from dictlab.statistics import Estimate, estimate_columns, interval, interval_words, ratio, ratio_draws

INTERVAL = interval_words("tokens")
OWN = "own position"
RARE = 0.1  # share of tokens from which on a latent is no more rare
NORMAL = 2 / math.pi
DRAWN = 6  # dictionaries of which curves can be told apart
READ = (
    f"Left: ablations up to each share, of the first {DRAWN} dictionaries and of all random directions and channels; "
    "dashed: 2/π, as of independent normal numbers. Others: means."
)


def ablation_report(
    found: Sequence[AblationEffect], opened: Sequence[Dictionary], settings: dict[str, Any], notes: list[str]
) -> Report:
    """The report of an analysis of ablations: every table with its caption, the plots, the summary and warnings."""
    frame = effects_table(found)
    numbers = settings["vocabulary"] * settings["n_positions"]
    overview = overview_table(frame, opened, settings["tokens"], numbers, settings["seed"])
    n = f"n = {settings['tokens']} tokens of as many held-out sequences; {INTERVAL}"
    made = {
        "overview": Table(
            overview,
            f"{n}. sparsity: mean share of the {numbers} logits ({settings['vocabulary']} a position) that an effect "
            "is spread over; logits: the same as a number; own position: mean share of the "
            f"{settings['vocabulary']} logits at the token itself; effect: mean root of the summed squares, in logits. "
            f"rare: latents alone that are active at less than {RARE:.0%} of tokens. random: directions of the "
            "same length at the same tokens. L0: active latents at these tokens.".replace("%", " %"),
        ),
        "effects": Table(frame, "Every ablation: which latent (or channel) at which token, and what it does."),
    }
    warnings = list(notes)
    if still := int(frame["sparsity"].isna().sum()):
        warnings.append(f"{still} of {len(frame)} ablations changed no logit; they are left out of the means.")
    drawn = {"sparsity": Plot(sparsity_plot(frame, overview), f"{n}. {READ}")}
    if overview["L0"].nunique() > 2:
        drawn["l0"] = Plot(l0_plot(overview), f"{n}. Small and hollow: random directions of the same lengths.")
    return Report(
        title="How many logits does a latent move?",
        summary=summary(overview),
        tables=made,
        plots=drawn,
        settings=settings,
        inputs=tuple(opened),
        warnings=(*warnings, *all_tokens_warning(opened)),
    )


def effects_table(found: Sequence[AblationEffect]) -> pd.DataFrame:
    """One row an ablation; channels belong to no dictionary."""
    frame = pd.DataFrame(found, columns=list(AblationEffect._fields)).rename(columns={"own_position": OWN})
    return frame.assign(dictionary=frame["dictionary"].replace("", None))


def overview_table(
    frame: pd.DataFrame, dictionaries: Sequence[Dictionary], tokens: int, numbers: int, seed: int
) -> pd.DataFrame:
    """One row a dictionary, and one for the channels of each site.

    Args:
        frame: Every ablation.
        dictionaries: Which.
        tokens: At which something was ablated.
        numbers: Logits that an effect could be spread over.
        seed: Of the resampling.
    """

    def mean(name: str, some: pd.DataFrame, column: str) -> dict[str, Any]:
        return estimate_columns(name, ratio(*_sums(some, column, tokens), seed))

    rows: list[dict[str, Any]] = []
    for dictionary in dictionaries:
        own = frame[frame["dictionary"] == dictionary.name]
        latent, random = (own[own["kind"] == kind] for kind in (LATENT, RANDOM))
        active = latent.drop_duplicates("sequence")["active"].sum() / tokens
        row: dict[str, Any] = {"features": dictionary.name, "L0": active, "ablated": len(latent)}
        row |= mean("sparsity", latent, "sparsity") | mean("random", random, "sparsity")
        sums = _sums(latent, "sparsity", tokens), _sums(random, "sparsity", tokens)
        row |= estimate_columns("over random", _over(*sums, seed)) | _size(latent, numbers)
        row |= mean("rare", latent[latent["rate"] < RARE], "sparsity")
        row |= mean(OWN, latent, OWN) | mean(f"random {OWN}", random, OWN)
        about = dictionary.metadata.objective or "unknown", dictionary.activation.kind
        rows.append(row | {"width": dictionary.n_latents, "family": " ".join(about)})
    channels = frame[frame["kind"] == CHANNEL]
    for site, own in channels.groupby("site", sort=False):
        name = "residual channels" if channels["site"].nunique() == 1 else f"channels at {site}"
        row = {"features": name, "ablated": len(own)} | mean("sparsity", own, "sparsity") | _size(own, numbers)
        rows.append(row | mean(OWN, own, OWN))
    return pd.DataFrame(rows).astype({"width": "Int64"})


def summary(frame: pd.DataFrame) -> str:
    """The sparsest and the densest, beside random directions and channels."""
    channels = frame[frame["width"].isna()]
    own = frame[frame["sparsity"].notna()].drop(channels.index)  # without dictionaries that were silent
    ends = own.sort_values("sparsity").iloc[[0, -1]] if len(own) > 1 else own
    said = [
        f"{row['features']}: a latent's effect is spread over {row['sparsity']:.1%} [{row['sparsity low']:.1%}, "
        f"{row['sparsity high']:.1%}] of the logits, a random direction's over {row['random']:.1%}."
        for _, row in ends.iterrows()
    ]
    said += [f"{row['features'].capitalize()}: {row['sparsity']:.1%}." for _, row in channels.iterrows()]
    return " ".join(said).replace("%", " %")


def _sums(some: pd.DataFrame, column: str, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum of what is known of a column at each token, and how many they are."""
    known = some[some[column].notna()]
    sequence = known["sequence"].to_numpy()
    total = np.bincount(sequence, known[column], minlength=tokens)
    return total, np.bincount(sequence, minlength=tokens).astype(float)


def _over(latent: tuple[np.ndarray, np.ndarray], random: tuple[np.ndarray, np.ndarray], seed: int) -> Estimate:
    """Mean sparsity of latents over that of random directions, paired by token."""
    if not latent[1].any() or not random[1].any():
        return Estimate(math.nan, math.nan, math.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = ratio_draws(*latent, seed) / ratio_draws(*random, seed)
    value = latent[0].sum() / latent[1].sum() / (random[0].sum() / random[1].sum())
    return Estimate(float(value), *interval(draws))


def _size(some: pd.DataFrame, numbers: int) -> dict[str, float]:
    return {"logits": float(some["sparsity"].mean()) * numbers, "effect": float(some["effect"].mean())}


@plotting.applied
def sparsity_plot(frame: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """How sparse single effects are; and their means, over all positions and at the token itself."""
    figure, (left, *right) = plotting.axes(3, width=4.6, height=max(3.8, 0.25 * len(table) + 1.6))
    names = list(table["features"][table["width"].notna()])[:DRAWN]
    series = [(name, frame[(frame["dictionary"] == name) & (frame["kind"] == LATENT)]) for name in names]
    series += [(f"{kind}s", frame[frame["kind"] == kind]) for kind in (RANDOM, CHANNEL)]
    for number, (name, some) in enumerate(series):
        if len(known := some["sparsity"].dropna().sort_values()):
            left.step(
                known, np.arange(1, len(known) + 1) / len(known), where="post", label=name, lw=1.4,
                color=plotting.colour(number), ls=plotting.line(number),
            )  # fmt: skip
    left.axvline(NORMAL, color="0.4", lw=1, ls="--")
    left.set(xlabel="share of the logits that an effect is spread over", ylabel="share of ablations", xlim=(0, None))
    left.set_title("How sparse is a single effect?")
    left.legend(fontsize=7, loc="lower right")
    for ax, measure, title in zip(
        right, ("sparsity", OWN), ("… on average, over all positions?", "… at the token itself?"), strict=True
    ):
        _means(ax, table, measure)
        ax.set(xlabel="mean share of the logits", title=title)
    right[1].tick_params(labelleft=False)
    figure.legend(*right[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _means(ax: Axes, table: pd.DataFrame, measure: str) -> None:
    places = np.arange(len(table))[::-1]
    for number, (column, label) in enumerate(
        ((measure, "latent, or channel"), (_random(measure), "random direction of the same length"))
    ):
        ax.errorbar(
            table[column], places + 0.12 - 0.24 * number, xerr=plotting.bar_lengths(table, column), ls="none", ms=4.5,
            elinewidth=1, label=label, marker=plotting.marker(number), color=plotting.colour(number),
        )  # fmt: skip
    ax.set_yticks(places, plotting.short(list(table["features"])), fontsize=8)


@plotting.applied
def l0_plot(table: pd.DataFrame) -> Figure:
    """Means against the number of active latents, a series for each family and width; random directions beside."""
    figure, panels = plotting.axes(2, width=5.0, height=4.2)
    own = table[table["L0"].notna() & table["sparsity"].notna()]
    places = (
        ("sparsity", "Are effects sparser where more latents are active?"),
        (OWN, "… at the token itself?"),
    )
    for ax, (measure, title) in zip(panels, places, strict=True):
        for number, ((family, width), some) in enumerate(own.groupby(["family", "width"], sort=False)):
            some = some.sort_values("L0")
            look: Any = {"color": plotting.colour(number), "marker": plotting.marker(number)}
            ax.errorbar(
                some["L0"], some[measure], yerr=plotting.bar_lengths(some, measure), ms=5, lw=1, elinewidth=1,
                ls=plotting.line(number), label=f"{family}, {width} latents", **look,
            )  # fmt: skip
            ax.plot(some["L0"], some[_random(measure)], ls="none", ms=4, mfc="none", **look)
        ax.set(xscale="log", xlabel="L0 (active latents/token)", ylabel="mean share of the logits", title=title)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _random(measure: str) -> str:
    return "random" if measure == "sparsity" else f"random {measure}"
