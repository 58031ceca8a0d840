"""What the report of Frankenstein's dictionary says: tables with their captions, plots, summary, warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from analyses.common import plotting
from analyses.composition.frankenstein.append_rule import Appended
from analyses.composition.trained_frontier import FrontierRatio
from analyses.pool.threshold_calibration import Agreement
from analyses.quality.measured_points import Point
from dictlab.dictionary import Dictionary
from dictlab.evaluation.metrics import METRICS
from dictlab.reports.report import Plot, Table

SHOWN = ("l0", "mse", "explained_variance", "ce_increase", "kl")
INTERVALS = ("mse", "ce_increase")
COSTS = {"l0": "L0", "latents": "latents"}
CE_TITLE = "CE increase when spliced in"
WIDE = 5  # largest over smallest from which an axis is logarithmic


class Hybrid(NamedTuple):
    """A dictionary that was put together.

    Attributes:
        choice: By which rule, or under which budget, its latents were chosen.
        refit: How it was refitted afterwards.
        point: The dictionary, and what was measured of it.
    """

    choice: str
    refit: str
    point: Point


class CompactHybrid(NamedTuple):
    """A hybrid with thresholds of its own, the one with rivals that it stands for, and how far they agree."""

    after: Hybrid
    before: Hybrid
    agreement: Agreement


@dataclass(frozen=True, eq=False)
class FrankensteinResult:
    """Everything that was measured.

    Attributes:
        hybrids: The dictionaries that were put together.
        trained: Those that they are compared with, donors first.
        ratios: To the trained frontier, by cost.
        result: The rule's dictionary that is written.
        at_donor_l0: The one chosen by measured error at the best donor's L0, refitted alike; None without one.
        best_donor: The donor with the smallest error.
        rule: What the rule kept.
        donors: The dictionaries that latents were taken from.
        compact: Where thresholds were asked for in place of rivals.
    """

    hybrids: Sequence[Hybrid]
    trained: Sequence[Point]
    ratios: Mapping[str, Sequence[FrontierRatio]]
    result: Hybrid
    at_donor_l0: Hybrid | None
    best_donor: Point
    rule: Appended
    donors: Sequence[Dictionary]
    compact: Sequence[CompactHybrid]

    def ratio(self, hybrid: Hybrid, cost: str, metric: str = "mse") -> FrontierRatio:
        """One of the ratios."""
        return next(one for one in self.ratios[cost] if one.made is hybrid.point and one.metric == metric)


def frankenstein_tables(result: FrankensteinResult) -> dict[str, Table]:
    """All tables."""
    evaluation = result.result.point.evaluation
    on, model = f"n = {evaluation.size}", ", CE and KL in nats a token" if evaluation.has_model else ""
    ratio = (
        "Error over that of the trained frontier at the same {}: below 1 the made dictionary is better than the "
        f"trained ones. 95 % paired bootstrap intervals over sequences; {on}. frontier there: a trained dictionary of "
        "that {} (within 2 %), between two, level beyond the largest (none was trained there), or none."
    )
    points = [*result.trained, *(hybrid.point for hybrid in result.hybrids)]
    tables = {
        "quality": Table(_quality_table(result), f"{on}; MSE in activation²{model}; 95 % intervals."),
        "at_equal_l0": Table(_ratio_table(result, "l0"), ratio.format("L0", "L0")),
        "at_equal_size": Table(_ratio_table(result, "latents"), ratio.format("number of latents", "size")),
        "rule": Table(
            _rule_table(result.rule, result.donors),
            "What the cosine rule took from each dictionary, in the order it went through them.",
        ),
        "metrics": Table(
            pd.concat([point.evaluation.table() for point in points], ignore_index=True),
            f"Every metric, 95 % interval; {on}.",
        ),
    }
    if result.compact:
        caption = (
            "What thresholds in place of rivals change, held out. decisions: share of all (token, latent) at "
            "which both fire or neither does; firings: of those where either does, both do; lost and new: shares of "
            "firings; silent: latents that no longer fire."
        )
        tables["compact"] = Table(_compact_table(result.compact), caption)
    return tables


def _quality_table(result: FrankensteinResult) -> pd.DataFrame:
    """One row a dictionary; latents that only compete are not counted, but the encoders in its file are."""
    rows = []
    for kind, points in (("trained", result.trained), ("made", [hybrid.point for hybrid in result.hybrids])):
        for point in points:
            row: dict[str, Any] = {"dictionary": point.name, "is": kind, "latents": point.dictionary.n_emitting}
            row["encoders"] = point.dictionary.n_latents
            for key in point.evaluation.among(SHOWN):
                row[METRICS[key].label] = point.value(key)
                if key in INTERVALS:
                    row[f"{METRICS[key].label} low"], row[f"{METRICS[key].label} high"] = point.interval(key)
            rows.append(row)
    return pd.DataFrame(rows)


def _ratio_table(result: FrankensteinResult, cost: str) -> pd.DataFrame:
    """One row a made dictionary and error: ratio to the trained frontier at equal cost, with its interval."""
    rows = [
        (
            one.made.name,
            one.cost,
            METRICS[one.metric].label,
            one.value,
            one.frontier,
            one.ratio.value,
            one.ratio.low,
            one.ratio.high,
            _place_words(one, cost),
        )
        for one in result.ratios[cost]
    ]
    names = ["dictionary", COSTS[cost], "error", "value", "frontier", "ratio", "low", "high", "frontier there"]
    return pd.DataFrame(rows, columns=names)


def _place_words(one: FrontierRatio, cost: str) -> str:
    """What the frontier is at the cost of a dictionary."""
    if one.place.kind == "none":
        return f"none: the smallest {COSTS[cost]} is {one.place.end:.4g}"
    if one.place.kind == "level":
        return f"level beyond {COSTS[cost]} {one.place.end:.4g}"
    return one.place.kind


def _rule_table(rule: Appended, donors: Sequence[Dictionary]) -> pd.DataFrame:
    """One row a donor: how many latents it has, how many were too near, and how many were taken."""
    starts = np.cumsum([0, *(d.n_latents for d in donors)])
    rows = []
    for donor, near, twice in zip(rule.order, rule.near, rule.twice, strict=True):
        taken = int(rule.chosen[starts[donor] : starts[donor + 1]].sum())
        width = donors[donor].n_emitting
        rows.append((donors[donor].name, width, width - near - twice - taken, near, twice, taken, taken / width))
    return pd.DataFrame(
        rows, columns=["dictionary", "latents", "silent here", "too near", "duplicates", "taken", "share taken"]
    )


def _compact_table(compact: Sequence[CompactHybrid]) -> pd.DataFrame:
    """One row a compact dictionary, beside the one with rivals that it stands for."""
    rows = []
    for one in compact:
        before, after = one.before.point, one.after.point
        row: dict[str, Any] = {"dictionary": after.name} | one.agreement._asdict()
        row |= {"encoders before": before.dictionary.n_latents, "encoders": after.dictionary.n_latents}
        for key in after.evaluation.among(("l0", "mse", "ce_increase")):
            row[f"{METRICS[key].label} before"] = before.value(key)
            row[METRICS[key].label] = after.value(key)
        rows.append(row)
    return pd.DataFrame(rows)


def frankenstein_summary(result: FrankensteinResult) -> str:
    """The rule's dictionary against trained ones at its size and at its L0, and the best choice at a trained L0."""
    point = result.result.point
    sentences = [
        f"The cosine rule makes a dictionary of {point.dictionary.n_emitting} latents with L0 "
        f"{point.value('l0'):.1f} and MSE {point.value('mse'):.4g} ({result.result.refit})."
    ]
    for cost, words in (("latents", "as many latents"), ("l0", "the same L0")):
        sentences.append(f"Beside trained ones of {words}: {_ratio_words(result, result.result, cost)}.")
    if result.at_donor_l0 is not None:
        sentences.append(
            f"Chosen by measured error at the L0 of {result.best_donor.name}, the best of those it is made of: "
            f"{_ratio_words(result, result.at_donor_l0, 'l0')}."
        )
    return " ".join(sentences)


def frankenstein_warnings(result: FrankensteinResult) -> tuple[str, ...]:
    """What the reader must not overlook."""
    warnings, made, best = [], result.result.point, result.best_donor
    ratio = result.ratio(result.result, "l0")
    if ratio.place.kind == "level":
        warnings.append(
            f"No trained dictionary has the L0 of {made.name} ({ratio.cost:.1f}): it is held against one of a "
            "smaller L0, which flatters it. Give others with `baselines=...`."
        )
    if made.value("mse") > best.value("mse"):
        warnings.append(
            f"{made.name} is WORSE than {best.name}, one of the dictionaries it is made of: MSE "
            f"{made.value('mse'):.4g} and {best.value('mse'):.4g}."
        )
    return (*warnings, *made.evaluation.cautions)


def _ratio_words(result: FrankensteinResult, hybrid: Hybrid, cost: str) -> str:
    found = result.ratio(hybrid, cost)
    where, ratio = _place_words(found, cost), found.ratio
    if not np.isfinite(ratio.value):
        return f"nothing to compare with ({where})"
    span = "" if np.isnan(ratio.low) else f" [{ratio.low:.3f}, {ratio.high:.3f}]"
    return f"{ratio.value:.3f}{span} times their MSE (frontier: {where})"


def frankenstein_plots(result: FrankensteinResult) -> dict[str, Plot]:
    """All plots of the report."""
    caption = (
        f"n = {result.result.point.evaluation.size}; bars: 95 % bootstrap interval over sequences. Black: trained "
        "dictionaries, the line joins those that no other beats. Colours: choices of latents; shapes: refits."
    )
    return {cost: Plot(_plotted(result, cost), caption) for cost in COSTS}


@plotting.applied
def _plotted(result: FrankensteinResult, cost: str) -> Any:
    trained, hybrids = result.trained, result.hybrids
    keys = result.result.point.evaluation.among(("mse", "ce_increase"))
    figure, panels = plotting.axes(len(keys), width=5.6, height=4.4)
    choices = list(dict.fromkeys(hybrid.choice for hybrid in hybrids))
    refits = list(dict.fromkeys(hybrid.refit for hybrid in hybrids))
    for ax, key in zip(panels, keys, strict=True):
        x, y = (np.array([_at(p, k) for p in trained]) for k in (cost, key))
        order = np.lexsort((y, x))
        on = y[order] == np.minimum.accumulate(y[order])
        ax.plot(x[order][on], y[order][on], color="black", lw=1)
        ax.errorbar(x, y, yerr=_bars(trained, key), fmt=".", color="black", ms=7, lw=1)
        for choice, refit, point in hybrids:
            number = choices.index(choice)
            ax.errorbar(
                _at(point, cost),
                point.value(key),
                yerr=_bars([point], key),
                color=plotting.colour(number),
                marker=plotting.marker(refits.index(refit)),
                ms=6,
                lw=1,
            )
        for name, values, k in (("x", x, cost), ("y", y, key)):
            every = [*values, *(_at(hybrid.point, k) for hybrid in hybrids)]
            if min(every) > 0 and max(every) > WIDE * min(every):
                _logarithmic(ax, name)
        metric = METRICS[key]
        ax.set(
            xlabel={"l0": "L0 (active latents/token)", "latents": "latents"}[cost],
            ylabel=f"{metric.label} ({metric.unit})",
        )
    equal = "L0" if cost == "l0" else "size"
    for ax, title in zip(panels, (f"Put together or trained, at equal {equal}", CE_TITLE), strict=False):
        ax.set_title(title)
    for number, choice in enumerate(choices):
        panels[-1].plot([], [], color=plotting.colour(number), lw=3, label=choice)
    for number, refit in enumerate(refits):
        panels[-1].plot([], [], color="#666666", ls="", marker=plotting.marker(number), label=refit)
    panels[-1].plot([], [], color="black", ls="", marker=".", label="trained")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def _logarithmic(ax: Axes, name: str) -> None:
    """Logarithms, with plain numbers at 1, 2 and 5."""
    (ax.set_xscale if name == "x" else ax.set_yscale)("log")
    axis = ax.xaxis if name == "x" else ax.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _at(point: Point, key: str) -> float:
    return float(point.dictionary.n_emitting) if key == "latents" else point.value(key)


def _bars(points: Sequence[Point], key: str) -> np.ndarray | None:
    spans = np.array([np.subtract(point.interval(key), point.value(key)) for point in points]).T
    return None if np.isnan(spans).any() else np.clip(np.abs(spans), 0, None)
