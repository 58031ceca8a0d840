"""Are activations too small, and what do other numbers of active latents give: tables, plots and the summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analyses.common import plotting
from analyses.quality.shrinkage.measurement import (
    AS_TRAINED,
    CE,
    L0,
    MSE,
    REFINED,
    THRESHOLD,
    TOPK,
    ShrinkageMeasurement,
)
from dictlab.dictionary import Dictionary
from dictlab.numerics.statistics import Estimate, estimate_columns, interval_words
from dictlab.reports.report import Plot, Report, Table

INTERVAL = interval_words("sequences")
BINS = np.linspace(0, 2.5, 51)
LOOKS = {TOPK: "-", THRESHOLD: ":"}
PANELS = {  # axis and title of each loss
    MSE: ("normalised MSE", "Does more of the code reconstruct better?"),
    CE: ("CE increase (nats/token)", "… and serve the model better?"),
}
DRAWN = 8  # dictionaries that lines can be told apart of


def shrinkage_report(
    measured: Sequence[ShrinkageMeasurement],
    dictionaries: Sequence[Dictionary],
    size: str,
    thresholds_from: str,
    settings: dict[str, Any],
    warnings: Sequence[str],
) -> Report:
    """The report of a measurement: both tables with their captions, the plots, the summary and warnings.

    Args:
        measured: Of each dictionary.
        dictionaries: As they were given.
        size: How much was measured, in words.
        thresholds_from: What thresholds were chosen on, in words.
        settings: Of the analysis.
        warnings: What must be said of the data.
    """
    n = f"n = {size}; {INTERVAL}"
    model = " CE increase in nats a token." if CE in measured[0].losses else ""
    return Report(
        title="Are activations too small, and is the number of active latents the best?",
        summary=summary(measured),
        tables={
            "overview": Table(
                overview_table(measured),
                f"{n}. size: summed lengths of what refined activations write over those of plain ones; grown: share "
                "of active latents whose activation grows; silenced: share that becomes 0. normalised MSE: over the "
                f"error of predicting the mean of this sample.{model} Changes are refined less plain, paired.",
            ),
            "recovery": Table(
                recovery_table(measured),
                f"{n}. rule: the k' largest of each token, or all above a threshold (setting) with so many on average "
                f"on {thresholds_from}; trained: the number of active latents is that of training.",
            ),
        },
        plots={
            "refinement": Plot(
                refinement_plot(measured),
                f"Each active latent's refined over plain activation, the last bin with all above; {n}.",
            ),
            "recovery": Plot(recovery_plot(measured), f"{n}. A ring marks the dictionary as it was trained."),
        },
        settings=settings,
        inputs=tuple(dictionaries),
        warnings=(*_cautions(measured), *warnings),
    )


def _cautions(measured: Sequence[ShrinkageMeasurement]) -> list[str]:
    """What the numbers of a dictionary cannot say."""
    cautions = []
    if len(measured[0].sums["tokens"]) < 2:
        cautions.append("One sequence: no intervals. Measure on more with `contexts=...`, where there are more.")
    for one in measured:
        if len(one.versions) == 2:
            cautions.append(
                f"{one.name}: its activation function ({one.dictionary.activation.kind}) does more than cut "
                "pre-activations off, so no other rules were tried."
            )
        if not len(one.ratios):
            cautions.append(f"{one.name}: no latent is active on this sample, so there is nothing to refine.")
    if measured[0].sums["variance"].sum() == 0:
        cautions.append("Activations do not vary on this sample: there is no normalised MSE.")
    return cautions


def overview_table(measured: Sequence[ShrinkageMeasurement]) -> pd.DataFrame:
    """One row a dictionary: what refinement changes."""
    rows = []
    for one in measured:
        row: dict[str, Any] = {"dictionary": one.name, L0: one.values(L0)[0].value}
        row |= estimate_columns("size", one.size)
        row |= {"grown": one.share(one.ratios > 1), "silenced": one.share(one.ratios == 0)}
        for loss in one.losses:
            plain, refined = one.values(loss)[:2]
            row |= {loss: plain.value, f"{loss} refined": refined.value}
            row |= estimate_columns(f"{loss} change", one.change(loss))
        rows.append(row)
    return pd.DataFrame(rows)


def recovery_table(measured: Sequence[ShrinkageMeasurement]) -> pd.DataFrame:
    """One row a dictionary and rule."""
    rows = []
    for one in measured:
        l0, losses = one.values(L0), {loss: one.values(loss) for loss in one.losses}
        for i, version in enumerate(one.versions):
            if version.rule == REFINED:
                continue
            row: dict[str, Any] = {"dictionary": one.name, "rule": version.rule, "setting": version.setting}
            row[L0] = l0[i].value
            for loss, values in losses.items():
                row |= estimate_columns(loss, values[i])
            rows.append(row | {"trained": version.rule == AS_TRAINED})
    return pd.DataFrame(rows)


def summary(measured: Sequence[ShrinkageMeasurement]) -> str:
    """What refinement does to activations and error, and where the best L0 is."""
    known = sorted((one for one in measured if np.isfinite(one.size.value)), key=lambda one: one.size.value)
    shown = measured if len(measured) <= 2 else known[:1] + known[1:][-1:]
    sentences = []
    for one in shown:
        relative = Estimate(_percent(one.change(MSE), one.values(MSE)[0].value).value / 100)
        text = f"refined activations are {one.size.words('.3f')} times as large, the MSE changes by"
        sentences.append(f"{one.name}: {text} {relative.words('+.1%')}{_ce_in_words(one)}.")
    if len(measured) == 1:
        sentences += _best_k(measured[0])
    return " ".join(sentences) or "No latent of any dictionary is active on this sample."


def _ce_in_words(one: ShrinkageMeasurement) -> str:
    if CE not in one.losses:
        return ""
    plain, refined = (Estimate(number.value).words(".3f") for number in one.values(CE)[:2])
    return f", the CE increase from {plain} to {refined} nats a token"


def _best_k(one: ShrinkageMeasurement) -> list[str]:
    """A sentence on the k' with the least error, if any was tried and has one."""
    errors, trained = one.values(MSE), one.values(L0)[0].value
    tried = [i for i, version in enumerate(one.versions) if version.rule == TOPK and np.isfinite(errors[i].value)]
    if not tried:
        return []
    best = min(tried, key=lambda i: errors[i].value)
    return [
        f"By the largest k' its MSE is least at k' = {one.versions[best].setting:.0f} ({errors[best].value:.3f}; as "
        f"trained {errors[0].value:.3f} at L0 {trained:.1f})."
    ]


def _percent(change: Estimate, of: float) -> Estimate:
    """A change in per cent of a value; NaN where that is 0."""
    return Estimate(*(100 * end / of if of else np.nan for end in change))


@plotting.applied
def refinement_plot(measured: Sequence[ShrinkageMeasurement]) -> Figure:
    """How activations change, and what that gains."""
    figure, (left, right) = plotting.axes(2, width=5.4, height=max(3.6, 0.24 * len(measured) + 1.2))
    for number, one in enumerate(measured[:DRAWN]):
        counts = np.histogram(one.ratios.clip(0, BINS[-1]), BINS)[0] / max(1, len(one.ratios))
        left.stairs(counts, BINS, color=plotting.colour(number), ls=plotting.line(number), lw=1.3, label=one.name)
    left.axvline(1, color="0.4", lw=1)
    left.set(xlabel="refined / plain activation", ylabel="share of active latents", title="Were activations too small?")
    left.legend(fontsize=7)
    places = np.arange(len(measured))[::-1]
    for number, loss in enumerate(measured[0].losses):
        relative = [_percent(one.change(loss), one.values(loss)[0].value) for one in measured]
        plotting.estimates(right, relative, places + 0.1 - 0.2 * number, number, along="y", ms=5, label=loss)
    right.axvline(0, color="0.4", lw=1)
    right.set(xlabel="change by refinement (%)", title="What does refinement gain?")
    plotting.named_rows(right, places, [one.name for one in measured], fontsize=8)
    right.legend(fontsize=8)
    return figure


@plotting.applied
def recovery_plot(measured: Sequence[ShrinkageMeasurement]) -> Figure:
    """Error and, where there is a model, CE increase against L0, by rule; a ring where it was trained."""
    losses = measured[0].losses
    figure, panels = plotting.axes(len(losses), width=5.4, height=4.2)
    for ax, loss in zip(panels, losses, strict=True):
        for number, one in enumerate(measured[:DRAWN]):
            _recovered(ax, one, loss, number)
        unit, title = PANELS[loss]
        ax.set(xlabel="L0 (active latents/token)", ylabel=unit, title=title, xscale="log")
        if any(value.value > 0 for one in measured for value in one.values(loss)):
            ax.set_yscale("log")
    names = [
        Line2D([], [], color=plotting.colour(i), marker=plotting.marker(i), label=one.name)
        for i, one in enumerate(measured[:DRAWN])
    ]
    rules = [Line2D([], [], color="0.3", ls=look, label=rule) for rule, look in LOOKS.items()]
    rules.append(Line2D([], [], ls="none", marker="o", ms=11, mfc="none", mec="black", label="as trained"))
    figure.legend(handles=[*names, *rules], loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _recovered(ax: Axes, one: ShrinkageMeasurement, loss: str, number: int) -> None:
    l0, values = ([estimate.value for estimate in one.values(measure)] for measure in (L0, loss))
    for rule, look in LOOKS.items():
        points = sorted(
            (l0[i], values[i]) for i, version in enumerate(one.versions) if version.rule == rule and values[i] > 0
        )
        x, y = np.array(points).reshape(-1, 2).T
        ax.plot(x, y, color=plotting.colour(number), ls=look, marker=plotting.marker(number), ms=3.5)
    ax.plot(l0[:1], values[:1], ls="none", marker="o", ms=11, mfc="none", mec="black")
