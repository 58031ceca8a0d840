"""What a stitching is worth: tables with their captions, plots, summary and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses.common import plotting
from analyses.common.chance import chance_levels
from analyses.composition.insertion.insertion_tables import agreement_table, effects_caption, latent_table, latents_of
from analyses.composition.insertion.single_insertions import SingleInsertions
from analyses.composition.novelty.plots import effect_plot
from analyses.composition.stitching.equal_l0_report import (
    curve_table,
    equal_l0_plot,
    equal_l0_sentence,
    equal_l0_table,
    percent_at_equal_l0,
)
from analyses.composition.stitching.stitching_result import StitchingResult
from analyses.quality.measured_points import Point
from dictlab.dictionary import Dictionary
from dictlab.dictionary.normalisation import Centred
from dictlab.evaluation.metrics import METRICS
from dictlab.numerics.statistics import interval
from dictlab.reports.report import Plot, Table

REFITTED = {"decoder": "and the decoder refitted", "bias": "and the bias refitted", "none": "and nothing refitted"}
PANELS = {  # of the plot: axis and title of each metric
    "explained_variance": ("unexplained variance (share)", "How much is left unexplained?"),
    "ce_increase": ("CE increase (nats/token)", "CE increase when spliced in"),
}
QUALITIES = ("l0", "mse", "ce_increase", "kl", "explained_variance")
DIFFERENCES = ("mse", "ce_increase", "kl", "l0")


def stitching_tables(result: StitchingResult) -> dict[str, Table]:
    """All tables."""
    small, evaluation = result.parents[0], result.stitched.evaluation
    model = ", CE and KL in nats a token" if evaluation.has_model else ""
    larger = [parent.dictionary for parent in result.parents[1:]]
    several = len(larger) > 1
    into = " into what has been stitched so far; parents are numbered there" if several else ""
    insertions = result.shown.insertions
    return {
        "quality": Table(
            _quality_table(result),
            f"Measured on {evaluation.size}. MSE in activation²{model}. “Inserted” is without any refit. MSE at equal "
            "L0: by how many per cent the MSE is larger than that of the best parent at this row's L0, refitted as "
            "the result is; best: the row where it is smallest.",
        ),
        "equal_l0": Table(
            equal_l0_table(result.points, result.curves),
            "Each error beside that of the best parent at the same L0, on the parents' sparsity curves; difference in "
            "per cent with a paired 95 % bootstrap interval over sequences. Errors of what is sparser than every "
            "parent can be made are left out.",
        ),
        "sparsity_curves": Table(
            curve_table(result.curves),
            f"Each parent at several sparsities, {REFITTED[result.refit].removeprefix('and ')}.",
        ),
        "differences": Table(
            _difference_table(result.points, small),
            f"Each less {small.name}, with paired 95 % bootstrap intervals over sequences.",
        ),
        "latents": Table(
            _stacked([latent_table(one) for one in insertions], larger),
            f"Each latent of {names_in_words(larger)}, inserted alone{into}. {effects_caption(insertions[0])}",
            _latents_of(insertions),
        ),
        "agreement": Table(
            _stacked([agreement_table(one) for one in insertions], larger),
            f"Active latents by effect and by the cosine rule at {result.threshold:g}.",
        ),
        "metrics": Table(
            pd.concat([point.evaluation.table() for point in result.points], ignore_index=True),
            "Every metric, 95 % interval.",
        ),
    }


def stitching_plots(result: StitchingResult) -> dict[str, Plot]:
    """Errors against L0 beside the parents' curves, all qualities, and the effects of each larger one's latents."""
    plots = {"equal_l0": equal_l0_plot(result.points, result.stitched, result.curves)}
    plots["quality"] = quality_plot(result.points)
    for number, one in enumerate(result.shown.insertions, start=1):
        level = chance_levels(one.small, result.seed)["shaped"]
        plots["effects" if number == 1 else f"effects_{number}"] = effect_plot(one, level)
    return plots


def stitching_summary(result: StitchingResult) -> str:
    """How much the result is better or worse than the best parent, what it is made of, and the parents as they came."""
    stitched, parents = result.stitched, result.parents
    low, high = stitched.interval("mse")
    span = "" if np.isnan(low) else f" [{low:.4g}, {high:.4g}]"
    before = ", ".join(f"{p.name} {p.value('mse'):.4g} (L0 {p.value('l0'):.1f})" for p in parents)
    suffers = f", CE increase {stitched.value('ce_increase'):.3g}" if stitched.evaluation.has_model else ""
    verdict = equal_l0_sentence(result.compared, refitted=result.refit != "none")
    return (
        f"{verdict} {_chosen(result)} {REFITTED[result.refit]}, the held-out MSE is "
        f"{stitched.value('mse'):.4g}{span} at L0 {stitched.value('l0'):.1f}{suffers}; before: {before}."
    )


def _chosen(result: StitchingResult) -> str:
    """How many latents of which dictionaries the result is made of."""
    small, offered = result.parents[0], sum(parent.dictionary.n_latents for parent in result.parents[1:])
    how_much = (
        f"{result.n_kept} of {small.dictionary.n_latents} latents of {small.name} and {result.n_inserted} of "
        f"{offered} others"
    )
    one = competition_words(result.stitched.dictionary)
    if result.rule == "path":
        return f"At point {result.choice.point} of the path, with {how_much}{one},"
    if result.rule == "optimal":
        return f"With {how_much}, found by search{one},"
    if result.n_kept == small.dictionary.n_emitting:
        return f"With {result.n_inserted} of {offered} latents inserted by {result.rule}{one}"
    return f"With {how_much}, inserted by {result.rule} and cut to the budget{one},"


def competition_words(stitched: Dictionary) -> str:
    """By which rule the latents of a stitched dictionary are active, where it is one for all and ranks them anew."""
    calibrated = "competition" in stitched.metadata.training
    return f", all under one {stitched.activation.kind}" if calibrated else ""


def stitching_warnings(result: StitchingResult) -> tuple[str, ...]:
    """Which parent and which other candidate are better, that the cosine rule harms, and that a mean is lost."""
    stitched, parents, warnings = result.stitched, result.parents, []
    if len(parents) == 2 and 0 in (result.n_kept, result.n_inserted):
        parent = parents[1] if result.n_kept == 0 else parents[0]
        warnings.append(
            f"Every selected latent is one of {parent.name}: nothing of the other dictionary was worth its place, and "
            "any difference from that parent comes from the refit and the activation function, not from stitching."
        )
    for parent in (parents[0], parents[-1]):
        difference = stitched.value("mse") - parent.value("mse")
        if difference > 0:
            low, high = interval(stitched.evaluation.draws("mse") - parent.evaluation.draws("mse"))
            certain = "" if low > 0 else ", within the noise"
            span = f"{difference:+.4g} [{low:+.4g}, {high:+.4g}]"
            warnings.append(f"The stitched dictionary is WORSE than {parent.name}: MSE {span}{certain}.")
    best = min(result.points, key=lambda point: point.value("mse"))
    worse = any("WORSE" in warning for warning in warnings)
    if worse and best is not stitched and best not in parents:
        warnings.append(
            f"The best that was measured is “{best.name}”: MSE {best.value('mse'):.4g} at L0 {best.value('l0'):.1f}; "
            "see `select=...` and `refit=...`."
        )
    return (
        *stitched.evaluation.cautions,
        *warnings,
        *(_cosine_harms(parents[0], result.unrefitted["cosine"]) if result.rule == "cosine" else ()),
        *result.choice.cautions,
        *result.cautions,
        *_mean_lost([parent.dictionary for parent in parents]),
    )


def _cosine_harms(small: Point, inserted: Point) -> tuple[str, ...]:
    """What the cosine rule does before any refit, where that is harm."""
    low, _ = interval(inserted.evaluation.draws("mse") - small.evaluation.draws("mse"))
    if inserted.value("mse") <= small.value("mse") or not low > 0:
        return ()
    return (
        f"The cosine rule inserts latents that {small.name} has no need of: unrefitted they raise the MSE from "
        f"{small.value('mse'):.4g} to {inserted.value('mse'):.4g}. What is gained after a refit is due to the "
        "refit and a higher L0; `select='effect'` chooses by what is measured.",
    )


def _mean_lost(parents: Sequence[Dictionary]) -> tuple[str, ...]:
    small, others = parents[0], [d.name for d in parents[1:] if d.normalisation.kind != Centred.kind]
    if small.normalisation.kind != Centred.kind or not others:
        return ()
    return (
        f"{small.name} gives each token the mean that it takes away; {', '.join(others)} does not, and neither does "
        "the result: a layer norm after the site takes it away all the same, but the squared error counts it.",
    )


def names_in_words(dictionaries: Sequence[Dictionary]) -> str:
    """Their names in a sentence."""
    names = [dictionary.name for dictionary in dictionaries]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _quality_table(result: StitchingResult) -> pd.DataFrame:
    """One row a dictionary; latents that only compete are not counted."""
    percents = np.array([percent_at_equal_l0(point, result.curves) for point in result.points])
    best = int(np.nanargmin(percents)) if np.isfinite(percents).any() else -1
    return pd.DataFrame(
        [
            {
                "dictionary": point.name,
                "best": "<--" if number == best else "",
                "latents": point.dictionary.n_emitting,
                METRICS["l0"].label: point.value("l0"),
                METRICS["mse"].label: point.value("mse"),
                "MSE at equal L0 (%)": percents[number],
                **{METRICS[key].label: point.value(key) for key in point.evaluation.among(QUALITIES[2:])},
            }
            for number, point in enumerate(result.points)
        ]
    )


def _difference_table(points: Sequence[Point], small: Point) -> pd.DataFrame:
    """Paired differences from SMALL, with 95 % bootstrap intervals."""
    rows = []
    for point in points:
        if point is small:
            continue
        for key in point.evaluation.among(DIFFERENCES):
            low, high = interval(point.evaluation.draws(key) - small.evaluation.draws(key))
            difference = point.value(key) - small.value(key)
            rows.append((point.name, METRICS[key].label, difference, low, high, METRICS[key].unit))
    return pd.DataFrame(rows, columns=["dictionary", "metric", "difference", "low", "high", "unit"])


def _stacked(frames: Sequence[pd.DataFrame], larger: Sequence[Dictionary]) -> pd.DataFrame:
    """Tables of all larger dictionaries, one below the other, with their names where there are several."""
    if len(larger) > 1:
        frames = [frame.assign(dictionary=large.name) for frame, large in zip(frames, larger, strict=True)]
    return pd.concat(frames, ignore_index=True)


def _latents_of(insertions: Sequence[SingleInsertions]) -> dict[str, list[str | None]]:
    """The dictionaries of the latents of the stacked tables: parents are SMALL's in the first of them alone."""
    each = [latents_of(one) for one in insertions]
    unknown: list[str | None] = [None] * sum(len(one["parent"]) for one in each[1:])
    return {"latent": [name for one in each for name in one["latent"]], "parent": [*each[0]["parent"], *unknown]}


@plotting.applied
def quality_plot(points: Sequence[Point]) -> Plot:
    """Unexplained variance and, where there is a model, CE increase of each dictionary that was measured."""
    names, first = [point.name for point in points], points[0].evaluation
    keys = first.among(PANELS)
    figure, panels = plotting.axes(len(keys), width=5.2, height=max(3.6, 0.42 * len(points) + 0.9))
    for ax, key in zip(panels, keys, strict=True):
        label, title = PANELS[key]
        values = np.array([point.value(key) for point in points])
        spans = np.array([point.interval(key) for point in points]).T
        if key == "explained_variance":
            values, spans = 1 - values, 1 - spans[::-1]
        height = np.arange(len(points))[::-1]
        error = np.clip(np.abs(spans - values), 0, None)
        colours = [plotting.colour(i) for i in range(len(points))]
        ax.barh(height, values, xerr=error, color=colours, height=0.6, ecolor="black")
        shown = plotting.short(names) if ax is panels[0] else []
        ax.set(yticks=height, yticklabels=shown, xlabel=label, title=title)
        for y, value, point in zip(height, values, points, strict=True):
            note = f" {value:.3g}" + (f"  (L0 {point.value('l0'):.0f})" if ax is panels[0] else "")
            look: dict[str, Any] = {"va": "center", "ha": "left", "fontsize": 8, "textcoords": "offset points"}
            ax.annotate(note, (value, y), xytext=(4, 7), **look)
        ax.set_xlim(right=1.25 * ax.get_xlim()[1])  # room for what stands beside the longest bar
    return Plot(figure, f"Measured on {first.size}; bars: 95 % bootstrap interval over sequences.")
