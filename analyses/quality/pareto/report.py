"""Which dictionary gives more for its sparsity: captions, summary and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from analyses.quality.measured_points import Curve, Point, curves
from analyses.quality.pareto import plots, tables
from analyses.quality.pareto.comparisons import (
    SIMILAR,
    CurveRatio,
    TrainingCost,
    compared_quantities,
    curve_ratios,
    on_front,
    similar_pairs,
    training_costs,
)
from dictlab.evaluation.metrics import METRICS, Evaluation
from dictlab.numerics.statistics import RESAMPLES, Estimate, interval_words
from dictlab.reports.report import Plot, Report, Table

COMPARED = 3  # comparisons that fit a summary
NAMED = 8  # dictionaries that fit a sentence
INTERVAL = interval_words("sequences", plural=False)
LOW_HIGH = f"low and high: {INTERVAL}"


def pareto_report(points: Sequence[Point], settings: dict[str, Any], cautions: Sequence[str]) -> Report:
    """The report of dictionaries that were measured.

    Args:
        points: The dictionaries, with what was measured of each.
        settings: Of the analysis.
        cautions: What must be said of the data.
    """
    lines = curves(points)
    ratios, costs = curve_ratios(lines), training_costs(lines)
    counted = "1 dictionary gives" if len(points) == 1 else f"{len(points)} dictionaries give"
    return Report(
        title=f"What {counted} for sparsity",
        summary=_summary(points, lines, ratios, costs),
        tables=_tables(points, lines, ratios, costs),
        plots=_plots(lines, points[0].evaluation),
        settings=settings,
        inputs=tuple(point.dictionary for point in points),
        warnings=(
            *dict.fromkeys(caution for point in points for caution in point.evaluation.cautions),
            *_warnings(points, lines),
            *cautions,
        ),
    )


def _tables(
    points: Sequence[Point], lines: Sequence[Curve], ratios: Sequence[CurveRatio], costs: Sequence[TrainingCost]
) -> dict[str, Table]:
    on, head = _measured_on(points[0].evaluation), points[0].measures[0]
    front = (
        f"Front against {{}}: the dictionaries that no other beats, and in which share of {RESAMPLES} resamples that "
        "stays so; – where another is better in one of the two and no worse in the other. On no front: left out."
    )
    pair = (
        "Similar {}: of every two objectives at one width, the two dictionaries that are nearest in it, if within a "
        f"factor of {SIMILAR:.2f}. Ratios 'of' / 'over', {INTERVAL}, paired."
    )
    quantities = list(compared_quantities(head))
    alike = {key: tables.pairs_table(similar_pairs(lines, key), quantities) for key in (head.key, "l0")}
    return {
        "points": Table(tables.points_table(points), f"{on} {LOW_HIGH}. front: that of {head.label}, against what."),
        "matched": Table(
            tables.matched_table(ratios),
            "Two curves where they overlap: the mean of 'of' / 'over' at 20 places 'from' – 'to' of what is matched. "
            f"Below 1 is in favour of 'of'; – where the overlap is too small. {LOW_HIGH}, paired; resamples: how many "
            f"of {RESAMPLES} had an overlap.",
        ),
        f"similar_{head.short.lower()}": Table(alike[head.key], pair.format(head.label)),
        "similar_l0": Table(alike["l0"], pair.format("L0")),
        "front_l0": Table(tables.fronts_table(points, "l0"), front.format("L0")),
        "front_alive": Table(tables.fronts_table(points, "alive"), front.format("alive latents")),
        "cost": Table(
            tables.cost_table(costs),
            "What training cost, by the files' own account: tokens and seconds, median of a curve's dictionaries; "
            "least and most seconds. ×: relative to local training at that width. Seconds compare on one machine only.",
        ),
        "measures": Table(tables.measures_table(points), f"{on} Intervals are in the table of metrics."),
        "metrics": Table(tables.metrics_table(points), f"Every metric. {on} {LOW_HIGH}."),
    }


def _plots(lines: Sequence[Curve], evaluation: Evaluation) -> dict[str, Plot]:
    caption = (
        f"{_measured_on(evaluation)} One point a dictionary, bars: {INTERVAL} "
        "(of alive latents: up to how many more a larger sample might show). A line joins the settings of an "
        "objective, activation function and width, seeds averaged. Ringed: no other dictionary is better in both."
    )
    label = lines[0].measures[0].label
    return {
        "pareto": Plot(plots.headline(lines), f"{label}, further down is better. {caption}"),
        "against_l0": Plot(plots.others(lines, "l0"), f"Other measures against L0. {caption}"),
        "against_alive": Plot(plots.others(lines, "alive"), f"Other measures against alive latents. {caption}"),
    }


def _measured_on(evaluation: Evaluation) -> str:
    return f"n = {evaluation.size}."


def _summary(
    points: Sequence[Point], lines: Sequence[Curve], ratios: Sequence[CurveRatio], costs: Sequence[TrainingCost]
) -> str:
    """The answer: ratios between objectives with their price in training, the fewest nats lost, and the front."""
    head = points[0].measures[0]
    best = min(points, key=lambda p: p.value(head.key))
    style = ".3f" if head.key == "ce_increase" else ".4g"  # an error has the size of its activations
    compared = _compared(ratios, costs, lines)
    sentences = list(compared)
    smallest = Estimate(best.value(head.key), *best.interval(head.key)).words(style)
    sentences.append(
        f"Smallest {head.label}: {smallest} {METRICS[head.key].unit.replace('/', ' a ')} ({best.name}, L0 "
        f"{best.value('l0'):.1f})."
    )
    names = [p.name for p, kept in zip(points, on_front(points, head, "l0"), strict=True) if kept]
    if len(points) > 1:
        shown = ", ".join(names[:NAMED]) + ", …" * (len(names) > NAMED)
        sentences.append(f"{len(names)} of {len(points)} are on the front of {head.label} against L0: {shown}.")
    if not compared and len(lines) > 1:
        sentences.append("No two curves overlap, so none are compared.")
    return " ".join(sentences)


def _compared(ratios: Sequence[CurveRatio], costs: Sequence[TrainingCost], lines: Sequence[Curve]) -> list[str]:
    """A sentence for each curve compared with a local one, else with another, as far as there is room."""
    label = lines[0].measures[0].label
    wanted = (f"{label} at matched L0", f"L0 at matched {label}")
    known = [one for one in ratios if np.isfinite(one.ratio.value) and one.what in wanted]
    known = [one for one in known if one.over.local] or known
    cost_of = {cost.curve.name: cost for cost in costs}
    sentences = []
    pairs = [(names, list(group)) for names, group in groupby(known, lambda one: (one.of.name, one.over.name))]
    for (of, over), group in pairs[:COMPARED]:
        parts = [f"{Estimate(*one.ratio[:3]).words('.2f')} times the {one.what}" for one in group]
        cost = cost_of[of]
        beside = cost.relative_to is not None and cost.relative_to.name == over and cost.times_seconds > 0
        price = f"; its training took {cost.times_seconds:.2g} times the seconds" if beside else ""
        sentences.append(f"Against {over}, {of} has {' and '.join(parts)}{price}.")
    return sentences


def _warnings(points: Sequence[Point], lines: Sequence[Curve]) -> list[str]:
    """What the plots and comparisons cannot show."""
    warnings, head = [], points[0].measures[0]
    if bad := [p.name for p in points if p.value(head.key) <= 0 or p.value("l0") <= 0]:
        none = "No increase of CE" if head.key == "ce_increase" else "No error"
        warnings.append(f"{none}, or no active latent: {', '.join(bad)}: no place on a logarithmic axis.")
    widths: dict[str, set[int]] = {}
    for line in lines:
        widths.setdefault(line.objective, set()).add(line.width)
    if len(widths) > 1 and sum(map(len, widths.values())) == len(set().union(*widths.values())):
        warnings.append("No two objectives were trained at one width: there are no pairs of similar dictionaries.")
    return warnings
