"""Figures of the novelty report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from sklearn.metrics import precision_recall_curve, roc_curve

from analyses.common import plotting
from analyses.composition.cosine_predictor import BOTH, BY_EFFECT, labelled, share_novel
from dictlab.dictionary import Dictionary
from dictlab.reports.report import Plot


@plotting.applied
def effect_plot(latents: pd.DataFrame, threshold: float, level: float, small: Dictionary, large: Dictionary) -> Plot:
    """Max cosine against change in MSE, one point a latent (Leask et al. 2025, figure 4)."""
    alive = latents[latents["class"] != "dead"]
    figure, (ax,) = plotting.axes(width=6.5, height=4.5)
    for number, kind in enumerate(("novel", "reconstruction")):
        part = alive[alive["class"] == kind]
        ax.scatter(
            part["max cosine"],
            part["change in MSE"],
            s=9,
            alpha=0.6,
            lw=0,
            color=plotting.colour(number),
            marker=plotting.marker(number),
            label=f"{kind} ({len(part)})",
        )
    typical = float(alive["change in MSE"].abs().quantile(0.25)) or 1e-12
    ax.set_yscale("symlog", linthresh=typical)
    ax.axhline(0, color="black", lw=0.8)
    ax.axvline(threshold, color="#666666", ls="--", lw=1, label=f"cosine rule, {threshold:g}")
    ax.axvline(level, color="#666666", ls=":", lw=1, label=f"chance (shaped), {level:.2f}")
    ax.set(
        xlabel=f"max cosine with a latent of {small.name}",
        ylabel="change in MSE when inserted alone\n(activation², symlog)",
        title=f"Each latent of {large.name}, inserted alone",
    )
    ax.legend(loc="best")
    return Plot(
        figure,
        f"Each point is one of {len(alive)} active latents of {large.name}: below the line it lowers the error of "
        f"{small.name}. Dashed: the published threshold. Dotted: the mean max cosine of random directions.",
    )


@plotting.applied
def prediction_plot(alive: pd.DataFrame, prediction: pd.DataFrame, found: pd.DataFrame, small: str, large: str) -> Plot:
    """ROC and precision-recall curves of the cosine, by number of latents and by their effect."""
    figure, (left, middle, right) = plotting.axes(3, width=4.6, height=4.2)
    known = prediction[prediction["latents"] == "all"].set_index("weighting")
    for number, weighting in enumerate(BOTH):
        look: dict[str, Any] = {"color": plotting.colour(number), "ls": plotting.line(number), "lw": 1.6}
        name = "weighted by |change in MSE|" if weighting == BY_EFFECT else "each latent once"
        given = labelled(alive, weighting)
        fall_out, recall, _ = roc_curve(given.novel, -given.cosine, sample_weight=given.weight, drop_intermediate=False)
        left.plot(fall_out, recall, label=f"{name}: {_area(known.loc[weighting], 'ROC AUC')}", **look)
        for ax, positive, score, chance in (
            (middle, given.novel, -given.cosine, share_novel(given)),
            (right, ~given.novel, given.cosine, 1 - share_novel(given)),
        ):
            kind = "novel" if ax is middle else "reconstruction"
            precision, recall, _ = precision_recall_curve(positive, score, sample_weight=given.weight)
            area = _area(known.loc[weighting], f"PR AUC ({kind})")
            ax.plot(recall, precision, drawstyle="steps-pre", label=f"{name}: {area}", **look)
            ax.axhline(chance, color=plotting.colour(number), ls=":", lw=1, label=f"chance: {chance:.2f}")
        rows = found[(found["latents"] == "all") & (found["weighting"] == weighting)].set_index("rule")
        _mark(left, rows.loc["given"], "x", number)
        _mark(left, rows.loc["best J"], "o", number)
    left.plot([0, 1], [0, 1], color="#666666", ls=":", lw=1, label="chance: 0.50")
    left.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC of the cosine rule")
    middle.set(xlabel="share of novel latents found", ylabel="precision", title="Positive: novel")
    right.set(xlabel="share of reconstruction latents found", ylabel="precision", title="Positive: reconstruction")
    for ax in (left, middle, right):
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.16), fontsize=7)
    given = labelled(alive, BOTH[0])
    return Plot(
        figure,
        f"How well the max cosine with {small} tells which of {len(alive)} active latents of {large} are novel by "
        f"measured effect ({int(given.novel.sum())}); 95 % bootstrap intervals over latents of the areas. Cross: the "
        "given threshold; circle: the best by Youden's J. Dotted: chance.",
    )


@plotting.applied
def behaviour_plot(table: pd.DataFrame, sequences: int, small: str) -> Plot:
    """Change in MSE against change in CE and in KL, one point a latent that was looked at."""
    figure, axes = plotting.axes(2, width=5.2, height=4.2)
    for ax, what in zip(axes, ("CE", "KL"), strict=True):
        for number, kind in enumerate(("novel", "reconstruction")):
            part = table[table["class"] == kind]
            x, y = "held-out change in MSE", f"change in {what}"
            bars = [np.abs(np.stack([part[of] - part[f"{of} low"], part[f"{of} high"] - part[of]])) for of in (x, y)]
            ax.errorbar(
                part[x],
                part[y],
                xerr=bars[0],
                yerr=bars[1],
                fmt=plotting.marker(number),
                ms=4,
                lw=0.8,
                color=plotting.colour(number),
                label=f"{kind} ({len(part)})",
            )
        ax.axhline(0, color="black", lw=0.8)
        ax.axvline(0, color="black", lw=0.8)
        ax.set(xlabel="change in MSE (activation²)", ylabel=f"change in {what} (nats/token)")
        ax.set(title=f"Does {what} fall with the error?")
        ax.ticklabel_format(style="sci", scilimits=(-2, 3), useMathText=True)
        ax.locator_params(nbins=6)
        ax.legend(loc="best")
    return Plot(
        figure,
        f"Each point is a latent inserted alone into {small}: changes on {sequences} held-out sequences, bars are "
        "95 % bootstrap intervals over sequences. Below 0 is better for the model, left of 0 for the error. Classes "
        "are those of the training sample.",
    )


def _area(row: pd.Series, name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name} low']:.2f}, {row[f'{name} high']:.2f}]"


def _mark(ax: Axes, row: pd.Series, marker: str, number: int) -> None:
    """A point of the ROC curve, with its threshold beside it."""
    x, y = 1 - row["specificity"], row["sensitivity"]
    ax.plot(x, y, marker=marker, ms=7, mfc="none", mew=1.5, ls="none", color=plotting.colour(number))
    ax.annotate(
        f"{row['threshold']:.2f}",
        (x, y),
        xytext=(6, -11),
        textcoords="offset points",
        fontsize=7,
        color=plotting.colour(number),
    )
