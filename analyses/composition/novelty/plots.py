"""What the report of novelty draws: effects against cosines, curves of the cosine rule, changes in the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from sklearn.metrics import precision_recall_curve, roc_curve

from analyses.common import plotting
from analyses.composition.insertion.cosine_curves import share_novel
from analyses.composition.insertion.cosine_predictor import (
    ALL,
    BEST_YOUDEN,
    GIVEN,
    WEIGHTED_BY_EFFECT,
    WEIGHTINGS,
    PredictionAreas,
    ThresholdRule,
    labelled,
)
from analyses.composition.insertion.insertion_in_model import Changes, changes
from analyses.composition.insertion.insertion_tables import NOVEL, RECONSTRUCTION
from analyses.composition.insertion.single_insertions import SingleInsertions
from dictlab.numerics.statistics import BySequence, Estimate
from dictlab.reports.report import Plot


@plotting.applied
def effect_plot(pair: SingleInsertions, level: float) -> Plot:
    """Max cosine against change in MSE, one point a latent (Leask et al. 2025, figure 4).

    Args:
        pair: What was inserted.
        level: The mean max cosine of random directions.
    """
    alive, small, large, threshold = pair.alive, pair.small, pair.large, pair.threshold
    figure, (ax,) = plotting.axes(width=6.5, height=4.5)
    for number, (kind, mask) in enumerate(((NOVEL, alive.novel), (RECONSTRUCTION, ~alive.novel))):
        part = alive.at(mask)
        ax.scatter(
            part.cosine,
            part.change,
            s=9,
            alpha=0.6,
            lw=0,
            color=plotting.colour(number),
            marker=plotting.marker(number),
            label=f"{kind} ({len(part.latent)})",
        )
    typical = float(np.quantile(np.abs(alive.change), 0.25)) or 1e-12
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
        f"Each point is one of {len(alive.latent)} active latents of {large.name}: below the line it lowers the error "
        f"of {small.name}. Dashed: the published threshold. Dotted: the mean max cosine of random directions.",
    )


@plotting.applied
def prediction_plot(
    pair: SingleInsertions, prediction: Sequence[PredictionAreas], rules: Sequence[ThresholdRule]
) -> Plot:
    """ROC and precision-recall curves of the cosine, by number of latents and by their effect."""
    alive, small, large = pair.alive, pair.small.name, pair.large.name
    figure, (left, middle, right) = plotting.axes(3, width=4.6, height=4.2)
    known = {one.weighting: one for one in prediction if one.group == ALL}
    for number, weighting in enumerate(WEIGHTINGS):
        look: dict[str, Any] = {"color": plotting.colour(number), "ls": plotting.line(number), "lw": 1.6}
        name = "weighted by |change in MSE|" if weighting == WEIGHTED_BY_EFFECT else "each latent once"
        given = labelled(alive, weighting)
        false_positive_rate, recall, _ = roc_curve(
            given.novel, -given.cosine, sample_weight=given.weight, drop_intermediate=False
        )
        left.plot(false_positive_rate, recall, label=f"{name}: {_area(known[weighting].roc)}", **look)
        for ax, positive, score, chance, found in (
            (middle, given.novel, -given.cosine, share_novel(given), known[weighting].novel),
            (right, ~given.novel, given.cosine, 1 - share_novel(given), known[weighting].reconstruction),
        ):
            precision, recall, _ = precision_recall_curve(positive, score, sample_weight=given.weight)
            ax.plot(recall, precision, drawstyle="steps-pre", label=f"{name}: {_area(found)}", **look)
            ax.axhline(chance, color=plotting.colour(number), ls=":", lw=1, label=f"chance: {chance:.2f}")
        by_rule = {rule.rule: rule for rule in rules if (rule.group, rule.weighting) == (ALL, weighting)}
        _mark(left, by_rule[GIVEN], "x", number)
        _mark(left, by_rule[BEST_YOUDEN], "o", number)
    left.plot([0, 1], [0, 1], color="#666666", ls=":", lw=1, label="chance: 0.50")
    left.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC of the cosine rule")
    middle.set(xlabel="share of novel latents found", ylabel="precision", title="Positive: novel")
    right.set(xlabel="share of reconstruction latents found", ylabel="precision", title="Positive: reconstruction")
    for ax in (left, middle, right):
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.16), fontsize=7)
    return Plot(
        figure,
        f"How well the max cosine with {small} tells which of {len(alive.latent)} active latents of {large} are novel "
        f"by measured effect ({int(alive.novel.sum())}); 95 % bootstrap intervals over latents of the areas. Cross: "
        "the given threshold; circle: the best by Youden's J. Dotted: chance.",
    )


@plotting.applied
def model_effect_plot(pair: SingleInsertions, latents: Sequence[int], found: BySequence) -> Plot:
    """Change in MSE against change in CE and in KL, one point a latent that was run in the model."""
    novel = pair.novel.numpy()[list(latents)]
    figure, axes = plotting.axes(2, width=5.2, height=4.2)
    for ax, what in zip(axes, ("CE", "KL"), strict=True):
        for number, (kind, mask) in enumerate(((NOVEL, novel), (RECONSTRUCTION, ~novel))):
            x, y = (Changes(*(values[mask] for values in changes(found, of))) for of in ("MSE", what))
            bars = [np.abs(np.stack([of.value - of.low, of.high - of.value])) for of in (x, y)]
            ax.errorbar(
                x.value,
                y.value,
                xerr=bars[0],
                yerr=bars[1],
                fmt=plotting.marker(number),
                ms=4,
                lw=0.8,
                color=plotting.colour(number),
                label=f"{kind} ({int(mask.sum())})",
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
        f"Each point is a latent inserted alone into {pair.small.name}: changes on {found.n_sequences} held-out "
        "sequences, bars are 95 % bootstrap intervals over sequences. Below 0 is better for the model, left of 0 for "
        "the error. Classes are those of the training sample.",
    )


def _area(area: Estimate) -> str:
    return f"{area.value:.2f} [{area.low:.2f}, {area.high:.2f}]"


def _mark(ax: Axes, rule: ThresholdRule, marker: str, number: int) -> None:
    """A point of the ROC curve, with its threshold beside it."""
    x, y = 1 - rule.rates["specificity"], rule.rates["sensitivity"]
    ax.plot(x, y, marker=marker, ms=7, mfc="none", mew=1.5, ls="none", color=plotting.colour(number))
    ax.annotate(
        f"{rule.threshold:.2f}",
        (x, y),
        xytext=(6, -11),
        textcoords="offset points",
        fontsize=7,
        color=plotting.colour(number),
    )
