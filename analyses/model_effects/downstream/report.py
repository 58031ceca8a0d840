"""How far does the model run from the original: tables with their captions, plots, and the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analyses.common import plotting
from analyses.model_effects.downstream.measurement import DownstreamMeasurement
from analyses.model_effects.downstream.principal_directions import LOST, doubling_groups
from analyses.model_effects.downstream.principal_errors import (
    DirectionErrors,
    GroupErrors,
    direction_errors,
    group_errors,
)
from analyses.model_effects.downstream.stream_comparison import METRICS, OUTPUT
from dictlab.dictionary import Dictionary
from dictlab.numerics.statistics import Estimate, estimate_columns, intervals
from dictlab.reports.report import Plot, Report, Table

SHOWN = {  # metrics that are plotted, and what their panels ask
    "MSE": "How large is the error?",
    "relative error": "Beside the stream's own size",
    "explained variance": "How much variance is explained?",
    "explained variance (layer norm)": "After layer norm of both",
    "cosine": "Does it point the same way?",
    "norm ratio": "Is it as long?",
}
GROUPS_CAPTION = (
    "Errors by group of principal directions (1 has the largest variance). Only this group wrong: the original but for "
    "the group's error. Repaired: the reconstruction without it. Resampled: the group's component of another token, "
    "which is what the group is worth to the model at all. KL in nats a token from the original output; 95 % bootstrap "
    "intervals over sequences."
)
GROUP_COLUMNS = {  # of the table of groups, and the fields they come from
    "not reconstructed": "not_reconstructed",
    "share of error": "error",
    "KL, only this group wrong": "kl_wrong",
    "KL, this group repaired": "kl_repaired",
    "KL removed by the repair": "kl_removed",
    "KL, resampled": "kl_resampled",
}
MOST = 10.0  # drawn; along a direction of hardly any variance the share has no bound
GREY = "#666666"


def downstream_report(
    measured: DownstreamMeasurement,
    dictionaries: Sequence[Dictionary],
    settings: dict[str, Any],
    warnings: tuple[str, ...],
) -> Report:
    """The report of a measurement: every table with its caption, the plots, the summary and warnings."""
    size = f"{measured.n_sequences} held-out sequences, {measured.n_tokens} tokens"
    tables = {
        "overview": Table(
            overview_table(measured),
            f"{size} (token selection {settings['token_selection']}), 95 % bootstrap intervals over sequences. "
            f"Site: {measured.places[0]}. End: {measured.places[-1]}. KL(original ‖ spliced) and CE increase in nats a "
            "token.",
        ),
        "depth": Table(
            depth_table(measured), "The stream of the spliced run beside that of the original, place by place."
        ),
        "metrics": Table(
            metrics_table(measured),
            "Every metric at every place, with its 95 % interval and unit; without a value where no token has one.",
        ),
    }
    plots = {"depth": Plot(depth_plot(measured), _depth_caption(measured, size))}
    if len(dictionaries) > 1:
        tables["differences"] = Table(
            differences_table(measured),
            f"Against {dictionaries[0].name}: paired, each resample draws the same sequences for both.",
        )
    if measured.worth is not None:
        tables |= _direction_tables(measured, dictionaries[0].d_in)
        plots["directions"] = Plot(direction_plot(measured, dictionaries[0].d_in), _direction_caption(size))
    name = dictionaries[0].name if len(dictionaries) == 1 else f"{len(dictionaries)} dictionaries"
    return Report(
        title=f"How far from the original does the model run behind {name}?",
        summary=_summary(measured),
        tables=tables,
        plots=plots,
        settings=settings,
        inputs=tuple(dictionaries),
        warnings=(*_cautions(measured), *warnings),
    )


def metric(measured: DownstreamMeasurement, name: str, place: str, label: str) -> Estimate:
    """A metric of METRICS of one dictionary at one place."""
    return measured.depth[name, place].estimate(METRICS[label].of)


def _cautions(measured: DownstreamMeasurement) -> list[str]:
    """What the numbers cannot say."""
    cautions = []
    if measured.n_sequences < 2:
        cautions.append("One sequence: no intervals. Measure on more with `contexts=...`, where there are more.")
    first = next(iter(measured.output))
    if measured.depth[first, measured.places[0]].sums["variance"].sum() == 0:
        cautions.append("Activations do not vary on this sample: there is no variance to explain at the site.")
    return cautions


def overview_table(measured: DownstreamMeasurement) -> pd.DataFrame:
    """One row a dictionary: explained variance at the site and at the end, norm ratio, and what the model loses."""
    first, last = measured.places[0], measured.places[-1]
    rows = []
    for name, output in measured.output.items():
        numbers = {
            f"{label}, {where}": metric(measured, name, place, label)
            for where, place in (("site", first), ("end", last))
            for label in ("explained variance", "explained variance (layer norm)")
        }
        numbers["norm ratio, site"] = metric(measured, name, first, "norm ratio")
        numbers |= {label: output.estimate(one.of) for label, one in OUTPUT.items()}
        # Intervals behind, where a terminal has no room for them.
        row = {"dictionary": name} | {label: number.value for label, number in numbers.items()}
        for label, number in numbers.items():
            row |= estimate_columns(label, number)
        rows.append(row)
    return pd.DataFrame(rows)


def depth_table(measured: DownstreamMeasurement) -> pd.DataFrame:
    """One row a dictionary and place, with the metrics that are plotted."""
    rows = []
    for name, place in measured.depth:
        row: dict[str, object] = {"dictionary": name, "place": place}
        for label in SHOWN:
            row |= estimate_columns(label, metric(measured, name, place, label))
        rows.append(row)
    return pd.DataFrame(rows)


def metrics_table(measured: DownstreamMeasurement) -> pd.DataFrame:
    """One row a dictionary, place and metric."""
    known = [(name, place, METRICS, sums) for (name, place), sums in measured.depth.items()]
    known += [(name, "output", OUTPUT, sums) for name, sums in measured.output.items()]
    rows = [
        (name, place, label, *sums.estimate(one.of), one.unit)
        for name, place, metrics, sums in known
        for label, one in metrics.items()
    ]
    return pd.DataFrame(rows, columns=["dictionary", "place", "metric", "value", "low", "high", "unit"])


def differences_table(measured: DownstreamMeasurement) -> pd.DataFrame:
    """Every other dictionary less the first, at every place; the intervals are paired."""
    first, *others = measured.output
    rows = []
    for name in others:
        pairs = [
            (place, label, METRICS[label], measured.depth[name, place], measured.depth[first, place])
            for place in measured.places
            for label in SHOWN
        ]
        pairs += [
            ("output", label, one, measured.output[name], measured.output[first]) for label, one in OUTPUT.items()
        ]
        for place, label, one, sums, reference in pairs:
            difference = float(sums.value(one.of) - reference.value(one.of))
            low = high = np.array(np.nan)
            if sums.n_sequences > 1:
                low, high = intervals(sums.draws(one.of) - reference.draws(one.of))
            rows.append((name, first, place, label, difference, float(low), float(high), one.unit))
    columns = ["dictionary", "against", "place", "metric", "difference", "low", "high", "unit"]
    return pd.DataFrame(rows, columns=columns)


def _direction_tables(measured: DownstreamMeasurement, d_in: int) -> dict[str, Table]:
    errors, groups = {name: direction_errors(sums) for name, sums in measured.along.items()}, doubling_groups(d_in)
    frame = direction_table(errors)
    lost = np.concatenate([one.lost for one in errors.values()])
    return {
        "groups": Table(group_table(_group_errors(measured, d_in), [group.name for group in groups]), GROUPS_CAPTION),
        "lost": Table(frame[lost], "Directions of which more is lost than kept."),
        "directions": Table(frame, "Every principal direction of the activation, largest variance first."),
    }


def _group_errors(measured: DownstreamMeasurement, d_in: int) -> dict[str, GroupErrors]:
    assert measured.worth is not None
    groups = doubling_groups(d_in)
    return {
        name: group_errors(groups, sums, measured.repairs[name], measured.worth)
        for name, sums in measured.along.items()
    }


def direction_table(errors: Mapping[str, DirectionErrors]) -> pd.DataFrame:
    """One row a dictionary and principal direction."""
    rows = [
        {"dictionary": name, "direction": i + 1, "share of variance": one.variance[i]}
        | estimate_columns("not reconstructed", one.not_reconstructed[i])
        | {"correlation": one.correlation[i], "lost": bool(one.lost[i])}
        for name, one in errors.items()
        for i in range(len(one.variance))
    ]
    return pd.DataFrame(rows)


def group_table(errors: Mapping[str, GroupErrors], names: Sequence[str]) -> pd.DataFrame:
    """One row a dictionary and group of directions: how much of it is wrong, and what that costs the model."""
    rows = []
    for name, one in errors.items():
        for i, directions in enumerate(names):
            row: dict[str, Any] = {"dictionary": name, "directions": directions, "share of variance": one.variance[i]}
            for column, field in GROUP_COLUMNS.items():
                row |= estimate_columns(column, getattr(one, field)[i])
            rows.append(row)
    return pd.DataFrame(rows)


def _summary(measured: DownstreamMeasurement) -> str:
    """Where the error goes on its way, for the first few dictionaries."""
    ends = measured.places[0], measured.places[-1]
    parts = []
    for name, sums in list(measured.output.items())[:4]:
        site, end = (Estimate(metric(measured, name, place, "explained variance").value).words(".2f") for place in ends)
        kl = Estimate(float(sums.value(OUTPUT["KL"].of))).words(".2f")
        parts.append(f"{name} {site} at the site and {end} at the end (KL {kl})")
    more = f"; and {len(measured.output) - 4} more" if len(measured.output) > 4 else ""
    return "Explained variance of the residual stream: " + "; ".join(parts) + more + "."


@plotting.applied
def depth_plot(measured: DownstreamMeasurement) -> Figure:
    """A panel a metric, a line a dictionary, along the places."""
    figure, axes = plotting.axes(len(SHOWN), width=4.4, height=3.4)
    middle = (place.split(".")[1] for place in measured.places[1:-1])
    labels = ["site", *middle, "end"][: len(measured.places)]
    for ax, (label, title) in zip(axes, SHOWN.items(), strict=True):
        drawn: list[float] = []
        for number, name in enumerate(measured.output):
            values = [metric(measured, name, place, label) for place in measured.places]
            at = np.arange(len(values)) + 0.06 * (number - (len(measured.output) - 1) / 2)
            plotting.estimates(ax, values, at, number, ms=4, lw=1.4, ls=plotting.line(number), label=name)
            drawn += [one.value for one in values]
        unit = METRICS[label].unit
        ax.set(xlabel="stream entering block", ylabel=f"{label} ({unit})" if unit else label, title=title)
        ax.set_xticks(range(len(labels)), labels)
        if label in ("MSE", "relative error") and max(drawn, default=0) > 0:
            ax.set_yscale("log")
    axes[3].legend(loc="upper left", bbox_to_anchor=(0, -0.22), fontsize=7)
    return figure


def _depth_caption(measured: DownstreamMeasurement, size: str) -> str:
    return (
        f"The residual stream of the spliced run beside the original's, from {measured.places[0]} (site) to what "
        f"leaves the last block (end); {size}. Bars: 95 % bootstrap intervals over sequences. Explained variance 0 is "
        "what the mean stream would give."
    )


@plotting.applied
def direction_plot(measured: DownstreamMeasurement, d_in: int) -> Figure:
    """What is not reconstructed along each direction, what each group costs alone, and what repairing it gives."""
    figure, (left, middle, right) = plotting.axes(3, width=4.8, height=4.4)
    names, groups = [group.name for group in doubling_groups(d_in)], _group_errors(measured, d_in)
    for number, (name, errors) in enumerate(groups.items()):
        look: dict[str, Any] = {"ls": plotting.line(number), "lw": 1.4, "label": name}
        shares = [one.value for one in direction_errors(measured.along[name]).not_reconstructed]
        left.plot(np.arange(1, d_in + 1), np.clip(shares, 1e-4, MOST), color=plotting.colour(number), **look)
        at = np.arange(len(names)) + 0.12 * (number - (len(groups) - 1) / 2)
        plotting.estimates(middle, errors.kl_wrong, at, number, ms=4, **look)
        plotting.estimates(right, errors.kl_removed, at, number, ms=4, **look)
    worth = [one.value for one in next(iter(groups.values())).kl_resampled]
    middle.plot(np.arange(len(names)), worth, color=GREY, ls=":", label="resampled (what it is worth)")
    left.axhline(1, color=GREY, lw=0.8)
    left.axhline(LOST, color=GREY, lw=0.8, ls=":", label=f"lost above {LOST:g}")
    left.set(xscale="log", yscale="log", title="What is not reconstructed?")
    left.set(
        xlabel="principal direction (1 has the largest variance)", ylabel="share of its variance not reconstructed"
    )
    middle.set(yscale="log", ylabel="KL (nats/token)", title="Only this group wrong")
    right.axhline(0, color="black", lw=0.8)
    right.set(ylabel="KL removed (nats/token)", title="Only this group repaired")
    for ax in (middle, right):
        ax.set_xlabel("group of principal directions")
        ax.set_xticks(range(len(names)), names, rotation=40, ha="right")
    left.legend(loc="upper left", bbox_to_anchor=(0, -0.2), fontsize=7)
    middle.legend(loc="upper left", bbox_to_anchor=(0, -0.26), fontsize=7)
    return figure


def _direction_caption(size: str) -> str:
    return (
        f"Errors by principal direction of the activation, {size}; bars: 95 % bootstrap intervals over sequences. "
        "Left: 1 (line) is what the mean alone gives; drawn up to 10. Dotted in the middle: the group's component "
        "taken from another token."
    )
