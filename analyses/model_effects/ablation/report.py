"""How many logits does a latent move: tables with their captions, plots, and the summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.common import plotting
from analyses.model_effects.ablation.estimates import RARE, AblationEstimates
from analyses.model_effects.ablation.logit_sparsity import CHANNEL, LATENT, RANDOM, AblationEffect
from dictlab.dictionary import Dictionary
from dictlab.numerics.statistics import Estimate, estimate_columns, interval_words
from dictlab.reports.report import Plot, Report, Table

INTERVAL = interval_words("tokens")
OWN = "own position"
NORMAL = 2 / math.pi
DRAWN = 6  # dictionaries of which curves can be told apart
READ = (
    f"Left: ablations up to each share, of the first {DRAWN} dictionaries and of all random directions and channels; "
    "dashed: 2/π, as of independent normal numbers. Others: means."
)


def ablation_report(
    effects: Sequence[AblationEffect],
    estimates: Sequence[AblationEstimates],
    dictionaries: Sequence[Dictionary],
    settings: dict[str, Any],
    warnings: Sequence[str],
) -> Report:
    """The report of an analysis of ablations: every table with its caption, the plots, the summary and warnings."""
    vocabulary, tokens = settings["vocabulary"], settings["contexts"]
    numbers = vocabulary * settings["positions"]
    n = f"n = {tokens} tokens of as many held-out sequences (token selection {settings['token_selection']}); {INTERVAL}"
    plots = {"sparsity": Plot(sparsity_plot(effects, estimates), f"{n}. {READ}")}
    if len({one.l0 for one in estimates if one.dictionary}) > 2:
        plots["l0"] = Plot(l0_plot(estimates), f"{n}. Small and hollow: random directions of the same lengths.")
    return Report(
        title="How many logits does a latent move?",
        summary=summary(estimates),
        tables={
            "overview": Table(
                overview_table(estimates, numbers),
                f"{n}. sparsity: mean share of the {numbers} logits ({vocabulary} a position) that an effect is spread "
                f"over; logits: the same as a number; own position: mean share of the {vocabulary} logits at the token "
                "itself; effect: mean root of the summed squares, in logits. rare: latents alone that are active at "
                f"less than {RARE * 100:.0f} % of tokens. random: directions of the same length at the same tokens. "
                "L0: active latents at these tokens.",
            ),
            "effects": Table(
                effects_table(effects), "Every ablation: which latent (or channel) at which token, and what it does."
            ),
        },
        plots=plots,
        settings=settings,
        inputs=tuple(dictionaries),
        warnings=(*_cautions(effects, estimates), *warnings),
    )


def _cautions(effects: Sequence[AblationEffect], estimates: Sequence[AblationEstimates]) -> list[str]:
    """Dictionaries of which no latent is active, and ablations without an effect."""
    cautions = [
        f"{one.name}: none of its latents is active at these tokens, so none was taken away."
        for one in estimates
        if one.dictionary and not one.n_ablated
    ]
    if unchanged := sum(math.isnan(effect.sparsity) for effect in effects):
        cautions.append(f"{unchanged} of {len(effects)} ablations changed no logit; they are left out of the means.")
    return cautions


def effects_table(effects: Sequence[AblationEffect]) -> pd.DataFrame:
    """One row an ablation; channels belong to no dictionary."""
    columns = [OWN if name == "own_position" else name for name in AblationEffect._fields]
    return pd.DataFrame([(effect.dictionary or None, *effect[1:]) for effect in effects], columns=columns)


def overview_table(estimates: Sequence[AblationEstimates], numbers: int) -> pd.DataFrame:
    """One row a dictionary, and one for the channels of each site.

    Args:
        estimates: Of `estimate_ablations`.
        numbers: Logits that an effect could be spread over.
    """
    rows = []
    for one in estimates:
        row: dict[str, Any] = {"features": one.name, "L0": one.l0, "ablated": one.n_ablated}
        row |= estimate_columns("sparsity", one.sparsity) | estimate_columns("random", one.random)
        row |= estimate_columns("over random", one.over_random)
        row |= {"logits": one.sparsity.value * numbers, "effect": one.effect} | estimate_columns("rare", one.rare)
        row |= estimate_columns(OWN, one.own_position) | estimate_columns(f"random {OWN}", one.random_own_position)
        width = one.dictionary.n_latents if one.dictionary else None
        rows.append(row | {"width": width, "family": _family(one)})
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return pd.DataFrame(columns | {"width": pd.array(columns["width"], dtype="Int64")})


def _family(one: AblationEstimates) -> str | None:
    """Objective and activation function of a dictionary; None of channels."""
    if one.dictionary is None:
        return None
    return f"{one.dictionary.metadata.objective or 'unknown'} {one.dictionary.activation.kind}"


def summary(estimates: Sequence[AblationEstimates]) -> str:
    """The sparsest and the densest, beside random directions and channels."""
    known = [one for one in estimates if one.dictionary and not math.isnan(one.sparsity.value)]
    known.sort(key=lambda one: one.sparsity.value)
    sentences = [
        f"{one.name}: a latent's effect is spread over {one.sparsity.words('.1%')} of the logits, a random direction's "
        f"over {Estimate(one.random.value).words('.1%')}."
        for one in (known[:1] + known[-1:] if len(known) > 1 else known)
    ]
    if not known:
        sentences.append("No latent of any dictionary changes the logits at these tokens.")
    sentences += [
        f"{one.name.capitalize()}: {Estimate(one.sparsity.value).words('.1%')}."
        for one in estimates
        if one.dictionary is None
    ]
    return " ".join(sentences)


@plotting.applied
def sparsity_plot(effects: Sequence[AblationEffect], estimates: Sequence[AblationEstimates]) -> Figure:
    """How sparse single effects are; and their means, over all positions and at the token itself."""
    figure, (left, *right) = plotting.axes(3, width=4.6, height=max(3.8, 0.25 * len(estimates) + 1.6))
    names = [one.name for one in estimates if one.dictionary][:DRAWN]
    series = [(name, [e for e in effects if e.dictionary == name and e.kind == LATENT]) for name in names]
    series += [(f"{kind}s", [e for e in effects if e.kind == kind]) for kind in (RANDOM, CHANNEL)]
    for number, (name, part) in enumerate(series):
        if known := sorted(e.sparsity for e in part if not math.isnan(e.sparsity)):
            left.step(
                known, np.arange(1, len(known) + 1) / len(known), where="post", label=name, lw=1.4,
                color=plotting.colour(number), ls=plotting.line(number),
            )  # fmt: skip
    left.axvline(NORMAL, color="0.4", lw=1, ls="--")
    left.set(xlabel="share of the logits that an effect is spread over", ylabel="share of ablations", xlim=(0, None))
    left.set_title("How sparse is a single effect?")
    left.legend(fontsize=7, loc="lower right")
    _means(right[0], estimates, [one.sparsity for one in estimates], [one.random for one in estimates])
    _means(right[1], estimates, [one.own_position for one in estimates], [o.random_own_position for o in estimates])
    for ax, title in zip(right, ("… on average, over all positions?", "… at the token itself?"), strict=True):
        ax.set(xlabel="mean share of the logits", title=title)
    right[1].tick_params(labelleft=False)
    figure.legend(*right[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _means(
    ax: Axes, estimates: Sequence[AblationEstimates], latents: Sequence[Estimate], random: Sequence[Estimate]
) -> None:
    places = np.arange(len(estimates))[::-1]
    plotting.estimates(ax, latents, places + 0.12, 0, along="y", label="latent, or channel")
    plotting.estimates(ax, random, places - 0.12, 1, along="y", label="random direction of the same length")
    plotting.named_rows(ax, places, [one.name for one in estimates], fontsize=8)


@plotting.applied
def l0_plot(estimates: Sequence[AblationEstimates]) -> Figure:
    """Means against the number of active latents, a series for each family and width; random directions beside."""
    figure, panels = plotting.axes(2, width=5.0, height=4.2)
    known = [one for one in estimates if one.dictionary and not math.isnan(one.sparsity.value)]
    titles = ("Are effects sparser where more latents are active?", "… at the token itself?")
    for ax, title in zip(panels, titles, strict=True):
        at_token = ax is panels[1]
        for number, (name, series) in enumerate(_series(known)):
            l0 = [one.l0 for one in series]
            means = [one.own_position if at_token else one.sparsity for one in series]
            random = [(one.random_own_position if at_token else one.random).value for one in series]
            plotting.estimates(ax, means, l0, number, lw=1, ms=5, ls=plotting.line(number), label=name)
            ax.plot(
                l0, random, ls="none", ms=4, mfc="none", color=plotting.colour(number), marker=plotting.marker(number)
            )
        ax.set(xscale="log", xlabel="L0 (active latents/token)", ylabel="mean share of the logits", title=title)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _series(estimates: Sequence[AblationEstimates]) -> list[tuple[str, list[AblationEstimates]]]:
    """Dictionaries by family and width, in the order of L0."""

    def name(one: AblationEstimates) -> str:
        assert one.dictionary is not None
        return f"{_family(one)}, {one.dictionary.n_latents} latents"

    order = list(dict.fromkeys(map(name, estimates)))
    ordered = sorted(estimates, key=lambda one: (order.index(name(one)), one.l0))
    return [(key, list(group)) for key, group in groupby(ordered, name)]
