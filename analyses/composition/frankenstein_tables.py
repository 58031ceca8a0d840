"""What the report of Frankenstein's dictionary says: tables, plots, summary, warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from analyses.common import plotting
from analyses.composition.append_rule import Appended
from analyses.composition.frankenstein_frontier import COSTS
from analyses.pool.threshold_calibration import Agreement
from analyses.quality.measured_points import Point
from dictlab.dictionary import Dictionary
from dictlab.evaluation.metrics import METRICS
from dictlab.reports.report import Plot, Table

SHOWN = ("l0", "mse", "explained_variance", "ce_increase", "kl")
INTERVALS = ("mse", "ce_increase")
WIDE = 5  # largest over smallest from which an axis is logarithmic


@dataclass(frozen=True, eq=False)
class Found:
    """Everything that was measured.

    Attributes:
        made: The dictionaries that were put together.
        trained: Those that they are compared with.
        comparisons: Ratios to the trained frontier, by cost.
        result: The name of the rule's dictionary that is written.
        best: The name of the donor with the smallest error.
    """

    made: Sequence[Point]
    trained: Sequence[Point]
    comparisons: Mapping[str, pd.DataFrame]
    result: str
    best: str

    def ratio(self, name: str, cost: str, error: str = "MSE") -> dict[str, Any]:
        """The row of a comparison."""
        frame = self.comparisons[cost]
        row: dict[str, Any] = frame[(frame["dictionary"] == name) & (frame["error"] == error)].iloc[0].to_dict()
        return row


def all_tables(found: Found, rule: pd.DataFrame, agreements: Mapping[str, Agreement]) -> dict[str, Table]:
    """All tables of the report."""
    evaluation = found.made[0].evaluation
    on, model = f"n = {evaluation.size}", ", CE and KL in nats a token" if evaluation.has_model else ""
    ratio = (
        "Error over that of the trained frontier at the same {}: below 1 the made dictionary is better than the "
        f"trained ones. 95 % paired bootstrap intervals over sequences; {on}. frontier there: a trained dictionary of "
        "that {} (within 2 %), between two, level beyond the largest (none was trained there), or none."
    )
    made = {
        "quality": Table(quality_table(found), f"{on}; MSE in activation²{model}; 95 % intervals."),
        "at_equal_l0": Table(found.comparisons["l0"], ratio.format("L0", "L0")),
        "at_equal_size": Table(found.comparisons["latents"], ratio.format("number of latents", "size")),
        "rule": Table(rule, "What the cosine rule took from each dictionary, in the order it went through them."),
        "metrics": Table(
            pd.concat([p.evaluation.table() for p in (*found.trained, *found.made)], ignore_index=True),
            f"Every metric, 95 % interval; {on}.",
        ),
    }
    if agreements:
        caption = (
            "What thresholds in place of rivals change, held out. decisions: share of all (token, latent) at "
            "which both fire or neither does; firings: of those where either does, both do; lost and new: shares of "
            "firings; silent: latents that no longer fire."
        )
        made["compact"] = Table(compact_table(agreements, found.made), caption)
    return made


def quality_table(found: Found) -> pd.DataFrame:
    """One row a dictionary; latents that only compete are not counted, but the encoders in its file are."""
    rows = []
    for kind, points in (("trained", found.trained), ("made", found.made)):
        for point in points:
            row: dict[str, Any] = {"dictionary": point.name, "is": kind, "latents": point.dictionary.n_emitting}
            row["encoders"] = point.dictionary.n_latents
            for key in point.evaluation.among(SHOWN):
                row[METRICS[key].label] = point.value(key)
                if key in INTERVALS:
                    row[f"{METRICS[key].label} low"], row[f"{METRICS[key].label} high"] = point.interval(key)
            rows.append(row)
    return pd.DataFrame(rows)


def rule_table(rule: Appended, donors: Sequence[Dictionary]) -> pd.DataFrame:
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


def compact_table(agreements: Mapping[str, Agreement], points: Sequence[Point]) -> pd.DataFrame:
    """One row a compact dictionary, beside the one with rivals that it stands for."""
    by_name = {point.name: point for point in points}
    rows = []
    for name, agreement in agreements.items():
        before, after = by_name[name.split(", compact")[0]], by_name[name]
        row: dict[str, Any] = {"dictionary": name} | agreement._asdict()
        row |= {"encoders before": before.dictionary.n_latents, "encoders": after.dictionary.n_latents}
        for key in after.evaluation.among(("l0", "mse", "ce_increase")):
            row[f"{METRICS[key].label} before"] = before.value(key)
            row[METRICS[key].label] = after.value(key)
        rows.append(row)
    return pd.DataFrame(rows)


def summary(found: Found) -> str:
    """The rule's dictionary against trained ones at its size and at its L0, and the best choice at a trained L0."""
    result = next(point for point in found.made if point.name == found.result)
    said = [
        f"The cosine rule makes a dictionary of {result.dictionary.n_emitting} latents with L0 "
        f"{result.value('l0'):.1f} and MSE {result.value('mse'):.4g} ({found.result.removeprefix('cosine, ')})."
    ]
    for cost, words in (("latents", "as many latents"), ("l0", "the same L0")):
        said.append(f"Beside trained ones of {words}: {_ratio(found.ratio(found.result, cost))}.")
    other = found.result.replace("cosine", "best donor's L0", 1)
    if any(point.name == other for point in found.made):
        said.append(
            f"Chosen by measured error at the L0 of {found.best}, the best of those it is made of: "
            f"{_ratio(found.ratio(other, 'l0'))}."
        )
    return " ".join(said)


def warnings(found: Found) -> tuple[str, ...]:
    """What the reader must not overlook."""
    said = []
    row = found.ratio(found.result, "l0")
    if row["frontier there"].startswith("level"):
        said.append(
            f"No trained dictionary has the L0 of {found.result} ({row['L0']:.1f}): it is held against one of a "
            "smaller L0, which flatters it. Give others with --beside."
        )
    donors = {point.name: point for point in found.trained}
    result = next(point for point in found.made if point.name == found.result)
    if result.value("mse") > donors[found.best].value("mse"):
        said.append(
            f"{found.result} is WORSE than {found.best}, one of the dictionaries it is made of: MSE "
            f"{result.value('mse'):.4g} and {donors[found.best].value('mse'):.4g}."
        )
    return (*said, *result.evaluation.cautions)


def _ratio(row: Mapping[str, Any]) -> str:
    if not np.isfinite(row["ratio"]):
        return f"nothing to compare with ({row['frontier there']})"
    span = "" if pd.isna(row["low"]) else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['ratio']:.3f}{span} times their MSE (frontier: {row['frontier there']})"


def plots(found: Found) -> dict[str, Plot]:
    """All plots of the report."""
    caption = (
        f"n = {found.made[0].evaluation.size}; bars: 95 % bootstrap interval over sequences. Black: trained "
        "dictionaries, the line joins those that no other beats. Colours: choices of latents; shapes: refits."
    )
    return {cost: Plot(_plotted(found, cost), caption) for cost in COSTS}


@plotting.applied
def _plotted(found: Found, cost: str) -> Any:
    keys = found.made[0].evaluation.among(("mse", "ce_increase"))
    figure, panels = plotting.axes(len(keys), width=5.6, height=4.4)
    kinds = list(dict.fromkeys(_parts(point.name)[0] for point in found.made))
    refits = list(dict.fromkeys(_parts(point.name)[1] for point in found.made))
    for ax, key in zip(panels, keys, strict=True):
        x, y = (np.array([_at(p, k) for p in found.trained]) for k in (cost, key))
        order = np.lexsort((y, x))
        on = y[order] == np.minimum.accumulate(y[order])
        ax.plot(x[order][on], y[order][on], color="black", lw=1)
        ax.errorbar(x, y, yerr=_bars(found.trained, key), fmt=".", color="black", ms=7, lw=1)
        for point in found.made:
            kind, refit = _parts(point.name)
            number = kinds.index(kind)
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
            every = [*values, *(_at(point, k) for point in found.made)]
            if min(every) > 0 and max(every) > WIDE * min(every):
                _logarithmic(ax, name)
        metric = METRICS[key]
        ax.set(
            xlabel={"l0": "L0 (active latents/token)", "latents": "latents"}[cost],
            ylabel=f"{metric.label} ({metric.unit})",
        )
    titles = (
        f"Put together or trained, at equal {'L0' if cost == 'l0' else 'size'}",
        "How much does the model suffer?",
    )
    for ax, title in zip(panels, titles, strict=False):
        ax.set_title(title)
    for number, kind in enumerate(kinds):
        panels[-1].plot([], [], color=plotting.colour(number), lw=3, label=kind)
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


def _parts(name: str) -> tuple[str, str]:
    kind, _, refit = name.partition(", ")
    return kind, refit
