"""Which dictionary gives more for its sparsity?

CE and KL increase, CE recovered, explained variance and MSE against L0 and against alive latents: each dictionary is
one point; each objective, activation function and width one curve (Braun et al. 2024, figures 1 and 4; Gao et al. 2024,
figure 2). Two curves are compared where they overlap:

    at matched CE increase    L0 (alive latents) of the one / that of the other
    at matched L0 (alive)     CE increase of the one / CE increase of the other

by interpolating linearly between neighbouring settings of a curve, in log L0, log alive latents and log CE increase, at
20 places of the overlap; the mean ratio is reported, with an interval from doing the same in every bootstrap resample.
No curve is extended beyond its points. Of plain activations the MSE stands in the place of the CE increase.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analyses.common.inputs import (
    DataLike,
    DictionaryLike,
    ModelLike,
    TextLike,
    check_same_place,
    open_activations,
    open_dictionaries,
)
from analyses.quality import pareto_plots, pareto_tables
from analyses.quality.measured_points import Curve, Point, curves
from dictlab.errors import check_at_least
from dictlab.evaluation.metrics import METRICS, Evaluation
from dictlab.evaluation.reconstruction import evaluate_activations
from dictlab.reports.report import Plot, Report, Table
from dictlab.statistics import RESAMPLES, interval_words

SAID = 3  # comparisons that fit a summary
NAMED = 8  # dictionaries that fit a sentence
INTERVAL = interval_words("sequences", plural=False)
LOW_HIGH = f"low and high: {INTERVAL}"


def pareto(
    dictionaries: Sequence[DictionaryLike],
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    data: DataLike | None = None,
    contexts: int = 64,
    seed: int = 0,
    device: str = "cpu",
    token_selection: str | None = None,
) -> Report:
    """What does each dictionary give for its sparsity: does the model still work, is the activation reconstructed?

    CE increase, KL, CE recovered, explained variance and MSE against L0 and against alive latents, with the Pareto
    front, the ratios between objectives, and what training cost.

    Args:
        dictionaries: One or more at the same site.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from. Its held-out split is used.
        data: Activations in place of model and text: an array, or a .npy or .safetensors file. No CE and KL.
        contexts: Held-out sequences to measure on.
        seed: Seed of everything that is drawn at random.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.

    Returns:
        A report with these tables; in brackets what is there only where there is such a thing.

        points: dictionary; curve; alive; L0; CE increase; CE increase low; CE increase high; explained variance; front
        matched: what; of; over; ratio; low; high; resamples; from; to
        similar_ce: of; over; L0; L0 low; L0 high; CE; CE low; CE high; alive; alive low; alive high
        similar_l0: of; over; L0; L0 low; L0 high; CE; CE low; CE high; alive; alive low; alive high
        front_l0: dictionary; L0; CE increase; KL; CE recovered (zero); CE recovered (mean); explained variance; MSE
        front_alive: dictionary; alive latents; CE increase; KL; CE recovered (zero); CE recovered (mean); explained
            variance; MSE
        cost: curve; dictionaries; recorded; tokens; seconds; least; most; relative to; × tokens; × seconds
        measures: dictionary; L0; CE increase; KL; CE recovered (zero); CE recovered (mean); explained variance; MSE
        metrics: dictionary; metric; value; low; high; unit

    Example:
        dictlab report pareto runs/*/*.safetensors --contexts 128
        dictlab report pareto runs/*/*.safetensors --data activations.npy
    """  # noqa: RUF002
    check_at_least(0, seed=seed)
    opened = open_dictionaries(dictionaries, token_selection=token_selection)
    check_same_place(opened, model)
    reading = open_activations(opened, model=model, text=text, data=data, device=device)
    source = reading.part("heldout")
    found = evaluate_activations(reading.dictionaries, source, contexts=contexts, seed=seed, partial=True)
    points = [Point(d, e) for d, e in zip(opened, found, strict=True)]
    lines = curves(points)
    tables = _tables(points, lines)
    return Report(
        title=f"What {_counted(len(opened), 'dictionary', 'dictionaries')} give{'s' * (len(opened) == 1)} for sparsity",
        summary=_summary(points, lines, tables),
        tables=tables,
        plots=_plots(lines, found[0]),
        settings=source.record() | {"seed": seed} | found[0].sample,
        inputs=tuple(opened),
        warnings=(
            *dict.fromkeys(caution for one in found for caution in one.cautions),
            *_warnings(points, lines),
            *reading.cautions,
        ),
    )


def _tables(points: Sequence[Point], lines: Sequence[Curve]) -> dict[str, Table]:
    on = _measured_on(points[0].evaluation)
    front = (
        f"Front against {{}}: the dictionaries that no other beats, and in which share of {RESAMPLES} resamples that "
        "stays so; – where another is better in one of the two and no worse in the other. On no front: left out."
    )
    pair = (
        "Similar {}: of every two objectives at one width, the two dictionaries that are nearest in it, if within a "
        f"factor of {pareto_tables.SIMILAR:.2f}. Ratios 'of' / 'over', {INTERVAL}, paired."
    )
    tables, head = pareto_tables, points[0].measures[0]
    return {
        "points": Table(tables.points_table(points), f"{on} {LOW_HIGH}. front: that of {head.label}, against what."),
        "matched": Table(
            tables.matched(lines),
            "Two curves where they overlap: the mean of 'of' / 'over' at 20 places 'from' – 'to' of what is matched. "
            f"Below 1 is in favour of 'of'; – where the overlap is too small. {LOW_HIGH}, paired; resamples: how many "
            f"of {RESAMPLES} had an overlap.",
        ),
        f"similar_{head.short.lower()}": Table(tables.pairs(lines, head.key), pair.format(head.label)),
        "similar_l0": Table(tables.pairs(lines, "l0"), pair.format("L0")),
        "front_l0": Table(tables.fronts(points, "l0"), front.format("L0")),
        "front_alive": Table(tables.fronts(points, "alive"), front.format("alive latents")),
        "cost": Table(
            tables.cost_table(lines),
            "What training cost, by the files' own account: tokens and seconds, median of a curve's dictionaries; "
            "least and most seconds. ×: relative to local training at that width. Seconds compare on one machine only.",
        ),
        "measures": Table(tables.measures_table(points), f"{on} Intervals are in the table of metrics."),
        "metrics": Table(
            pd.concat([p.evaluation.table() for p in points], ignore_index=True), f"Every metric. {on} {LOW_HIGH}."
        ),
    }


def _plots(lines: Sequence[Curve], evaluation: Evaluation) -> dict[str, Plot]:
    caption = (
        f"{_measured_on(evaluation)} One point a dictionary, bars: {INTERVAL} "
        "(of alive latents: up to how many more a larger sample might show). A line joins the settings of an "
        "objective, activation function and width, seeds averaged. Ringed: no other dictionary is better in both."
    )
    label = lines[0].measures[0].label
    return {
        "pareto": Plot(pareto_plots.headline(lines), f"{label}, further down is better. {caption}"),
        "against_l0": Plot(pareto_plots.others(lines, "l0"), f"Other measures against L0. {caption}"),
        "against_alive": Plot(pareto_plots.others(lines, "alive"), f"Other measures against alive latents. {caption}"),
    }


def _measured_on(evaluation: Evaluation) -> str:
    return f"n = {evaluation.size}."


def _summary(points: Sequence[Point], lines: Sequence[Curve], tables: dict[str, Table]) -> str:
    """The answer: ratios between objectives with their price in training, the fewest nats lost, and the front."""
    head = points[0].measures[0]
    best = min(points, key=lambda p: p.value(head.key))
    said = _compared(tables["matched"].frame, tables["cost"].frame, lines)
    form = ".3f" if head.key == "ce_increase" else ".4g"  # an error has the size of its activations
    said.append(
        f"Smallest {head.label}: {best.value(head.key):{form}}{_between(*best.interval(head.key), form)} "
        f"{METRICS[head.key].unit.replace('/', ' a ')} ({best.name}, L0 {best.value('l0'):.1f})."
    )
    on = pareto_tables.on_front(points, head, "l0")
    names = [p.name for p, kept in zip(points, on, strict=True) if kept]
    if len(points) > 1:
        shown = ", ".join(names[:NAMED]) + ", …" * (len(names) > NAMED)
        said.append(f"{len(names)} of {len(points)} are on the front of {head.label} against L0: {shown}.")
    return " ".join(said)


def _compared(ratios: pd.DataFrame, cost: pd.DataFrame, lines: Sequence[Curve]) -> list[str]:
    """A sentence for each curve compared with a local one, else with another, as far as there is room."""
    local = {curve.name for curve in lines if curve.local}
    label = lines[0].measures[0].label
    told = (f"{label} at matched L0", f"L0 at matched {label}")
    known = ratios[ratios["ratio"].notna() & ratios["what"].isin(told)]
    preferred = known[known["over"].isin(local)]
    chosen = known if preferred.empty else preferred
    if chosen.empty and len(lines) > 1:
        return ["No two curves overlap, so none are compared."]
    times = cost.set_index("curve")
    said = []
    for (of, over), part in list(chosen.groupby(["of", "over"], sort=False))[:SAID]:
        parts = [
            f"{row['ratio']:.2f}{_between(row['low'], row['high'])} times the {row['what']}"
            for row in part.to_dict("records")
        ]
        seconds, beside = times.loc[of, "× seconds"], times.loc[of, "relative to"]
        price = f"; its training took {seconds:.2g} times the seconds" if beside == over and seconds > 0 else ""
        said.append(f"Against {over}, {of} has {' and '.join(parts)}{price}.")
    return said


def _between(low: float, high: float, form: str = ".2f") -> str:
    return "" if pd.isna(low) else f" [{low:{form}}, {high:{form}}]"


def _counted(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _measuring_cautions(found: Sequence[Evaluation]) -> tuple[str, ...]:
    """What all evaluations say of the sample, once, and each of its dictionary."""
    return tuple(dict.fromkeys(caution for evaluation in found for caution in evaluation.cautions))


def _warnings(points: Sequence[Point], lines: Sequence[Curve]) -> tuple[str, ...]:
    """What the plots and comparisons cannot show."""
    said = []
    head = points[0].measures[0]
    bad = [p.name for p in points if p.value(head.key) <= 0 or p.value("l0") <= 0]
    if bad:
        none = "No increase of CE" if head.key == "ce_increase" else "No error"
        said.append(f"{none}, or no active latent: {', '.join(bad)}: no place on a logarithmic axis.")
    widths: dict[str, set[int]] = {}
    for line in lines:
        widths.setdefault(line.objective, set()).add(line.width)
    if len(widths) > 1 and sum(len(w) for w in widths.values()) == len(set().union(*widths.values())):
        said.append("No two objectives were trained at one width: there are no pairs of similar dictionaries.")
    return tuple(said)
