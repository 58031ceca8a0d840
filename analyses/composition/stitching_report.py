"""What a stitching is worth: tables with their captions, plots, summary and warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analyses.common import plotting
from analyses.common.chance import chance_levels
from analyses.composition.insertion.insertion_tables import agreement_table, effects_caption, latent_table
from analyses.composition.novelty_plots import effect_plot
from analyses.composition.selection_rules import Choice
from analyses.pool.ridge_refit import Refit
from analyses.quality.measured_points import Point
from dictlab.dictionary import Dictionary
from dictlab.dictionary.normalisation import Centred
from dictlab.evaluation.metrics import METRICS
from dictlab.reports.report import Plot, Table
from dictlab.statistics import Estimate, interval

REFITTED = {"decoder": "and the decoder refitted", "bias": "and the bias refitted", "none": "and nothing refitted"}
PANELS = {  # of the plot: axis and title of each metric
    "explained_variance": ("unexplained variance (share)", "How much is left unexplained?"),
    "ce_increase": ("CE increase (nats/token)", "How much does the model suffer?"),
}
QUALITIES = ("l0", "mse", "explained_variance", "ce_increase", "kl")
DIFFERENCES = ("mse", "ce_increase", "kl", "l0")


@dataclass(frozen=True, eq=False)
class StitchingResult:
    """Everything that was measured of a stitching.

    Attributes:
        parents: As they were given, SMALL first.
        unrefitted: What each rule's choice is without a decoder refit, by rule.
        controls: Every parent, refitted in the same way; none where nothing is refitted.
        refitted: What the rules that were not selected make, with the same refit.
        stitched: The result.
        choices: What each rule chose.
        rule: The one that was selected.
        refit: What was refitted.
        threshold: Of the cosine rule.
        seed: Of chance levels.
        n_inserted: Latents of larger dictionaries in the result.
        n_kept: Latents of SMALL in it.
    """

    parents: Sequence[Point]
    unrefitted: Mapping[str, Point]
    controls: Sequence[Point]
    refitted: Mapping[str, Point]
    stitched: Point
    choices: Mapping[str, Choice]
    rule: str
    refit: Refit
    threshold: float
    seed: int
    n_inserted: int
    n_kept: int

    @property
    def points(self) -> list[Point]:
        """All that was measured, in the order of tables."""
        return [*self.parents, *self.unrefitted.values(), *self.controls, *self.refitted.values(), self.stitched]

    @property
    def choice(self) -> Choice:
        """What the selected rule chose."""
        return self.choices[self.rule]

    @property
    def best_parent(self) -> Point:
        """The parent with the smallest error, refitted as the result is."""
        return min(self.controls or self.parents, key=lambda point: point.value("mse"))

    @property
    def ratio_to_best(self) -> Estimate:
        """The result's MSE over that of the best parent, with its paired interval; NaN for a single sequence."""
        own, other = self.stitched, self.best_parent
        value = own.value("mse") / other.value("mse")
        if own.evaluation.n_sequences < 2:
            return Estimate(value)
        return Estimate(value, *interval(own.evaluation.draws("mse") / other.evaluation.draws("mse")))

    @property
    def shown(self) -> Choice:
        """The choice whose latents are listed: the selected rule's, or that by effect where it looks at none alone."""
        return self.choice if self.choice.insertions else self.choices["effect"]


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
            _quality_table(result.points),
            f"Measured on {evaluation.size}. MSE in activation²{model}. “Inserted” is without any refit. L0 differs "
            "between rows: this is no comparison at equal sparsity.",
        ),
        "differences": Table(
            _difference_table(result.points, small),
            f"Each less {small.name}, with paired 95 % bootstrap intervals over sequences.",
        ),
        "latents": Table(
            _stacked([latent_table(one) for one in insertions], larger),
            f"Each latent of {names_in_words(larger)}, inserted alone{into}. {effects_caption(insertions[0])}",
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
    """The qualities of all candidates, and the effects of the latents of each larger dictionary."""
    plots = {"quality": quality_plot(result.points)}
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
    return (
        f"{_beside_best(result)} {_chosen(result)} {REFITTED[result.refit]}, the held-out MSE is "
        f"{stitched.value('mse'):.4g}{span} at L0 {stitched.value('l0'):.1f}{suffers}; before: {before}."
    )


def _beside_best(result: StitchingResult) -> str:
    """The result's MSE and L0 beside those of the best parent."""
    best, ratio, stitched = result.best_parent, result.ratio_to_best, result.stitched
    percent = [100 * (end - 1) for end in ratio]
    verdict = "WORSE" if ratio.value > 1 else "better"
    span = "" if np.isnan(ratio.low) else f" [{percent[1]:+.1f}, {percent[2]:+.1f}]"
    noise = ", within the noise" if ratio.low <= 1 <= ratio.high else ""
    alike = "the best parent refitted in the same way" if result.controls else "the best parent"
    return (
        f"The stitched dictionary is {verdict} than {alike}{noise}: MSE {percent[0]:+.1f} %{span} at L0 "
        f"{stitched.value('l0'):.1f}, beside {best.name} at L0 {best.value('l0'):.1f}."
    )


def _chosen(result: StitchingResult) -> str:
    """How many latents of which dictionaries the result is made of."""
    small, offered = result.parents[0], sum(parent.dictionary.n_latents for parent in result.parents[1:])
    how_much = (
        f"{result.n_kept} of {small.dictionary.n_latents} latents of {small.name} and {result.n_inserted} of "
        f"{offered} others"
    )
    if result.rule == "path":
        return f"At point {result.choice.point} of the path, with {how_much},"
    if result.rule == "optimal":
        return f"With {how_much}, found by search,"
    return f"With {result.n_inserted} of {offered} latents inserted by {result.rule}"


def stitching_warnings(result: StitchingResult) -> tuple[str, ...]:
    """Which parent and which other candidate are better, that the cosine rule harms, and that a mean is lost."""
    stitched, parents, warnings = result.stitched, result.parents, []
    for parent in (parents[0], parents[-1]):
        difference = stitched.value("mse") - parent.value("mse")
        if difference > 0:
            low, high = interval(stitched.evaluation.draws("mse") - parent.evaluation.draws("mse"))
            certain = "" if low > 0 else ", within the noise"
            span = f"{difference:+.4g} [{low:+.4g}, {high:+.4g}]"
            warnings.append(f"The stitched dictionary is WORSE than {parent.name}: MSE {span}{certain}.")
    best = min(result.points, key=lambda point: point.value("mse"))
    if warnings and best is not stitched and best not in parents:
        warnings.append(
            f"The best that was measured is “{best.name}”: MSE {best.value('mse'):.4g} at L0 {best.value('l0'):.1f}; "
            "see --select and --refit."
        )
    return (
        *stitched.evaluation.cautions,
        *warnings,
        *(_cosine_harms(parents[0], result.unrefitted["cosine"]) if result.rule == "cosine" else ()),
        *result.choice.cautions,
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
        "refit and a higher L0; --select effect chooses by what is measured.",
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


def _quality_table(points: Sequence[Point]) -> pd.DataFrame:
    """One row a dictionary; latents that only compete are not counted."""
    return pd.DataFrame(
        [
            {
                "dictionary": point.name,
                "latents": point.dictionary.n_emitting,
                **{METRICS[key].label: point.value(key) for key in point.evaluation.among(QUALITIES)},
            }
            for point in points
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


@plotting.applied
def quality_plot(points: Sequence[Point]) -> Plot:
    """Unexplained variance and, where there is a model, CE increase of each dictionary that was measured."""
    names, first = [point.name for point in points], points[0].evaluation
    keys = first.among(PANELS)
    figure, panels = plotting.axes(len(keys), width=5.2, height=3.6)
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
    return Plot(figure, f"Measured on {first.size}; bars: 95 % bootstrap interval over sequences.")
