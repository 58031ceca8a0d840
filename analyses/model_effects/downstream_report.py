"""How far does the model run from the original: tables with their captions, plots, and the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses.common import plotting
from analyses.model_effects.downstream_measurement import METRICS, OUTPUT, DepthMetric, DownstreamMeasurement
from analyses.model_effects.principal_directions import (
    LOST,
    REPAIRED,
    RESAMPLED,
    WRONG,
    Group,
    correlation,
    doubling_groups,
    lost_mask,
    not_reconstructed,
)
from dictlab.dictionary import Dictionary
from dictlab.reports.report import Plot, Report, Table
from dictlab.statistics import Array, BySequence, Formula, intervals

SHOWN = ("MSE", "relative error", "explained variance", "explained variance (layer norm)", "cosine", "norm ratio")
GROUPS_CAPTION = (
    "Errors by group of principal directions (1 has the largest variance). Only this group wrong: the original but for "
    "the group's error. Repaired: the reconstruction without it. Resampled: the group's component of another token, "
    "which is what the group is worth to the model at all. KL in nats a token from the original output; 95 % bootstrap "
    "intervals over sequences."
)
MOST = 10.0  # drawn; along a direction of hardly any variance the share has no bound


def downstream_report(
    found: DownstreamMeasurement, opened: Sequence[Dictionary], settings: dict[str, Any], warnings: tuple[str, ...]
) -> Report:
    """The report of a measurement: every table with its caption, the plots, the summary and warnings."""
    tables = {
        "overview": Table(overview_table(found), _overview_caption(found)),
        "depth": Table(
            depth_table(found), "The stream of the spliced run beside that of the original, place by place."
        ),
        "metrics": Table(metrics_table(found), "Every metric at every place, with its 95 % interval and unit."),
    }
    plots = {"depth": depth_plot(found)}
    if len(opened) > 1:
        tables["differences"] = Table(
            differences_table(found),
            f"Against {opened[0].name}: paired, each resample draws the same sequences for both.",
        )
    if found.worth is not None:
        by_direction, groups = direction_table(found.along), doubling_groups(opened[0].d_in)
        by_group = group_table(groups, found.along, found.repairs, found.worth)
        lost = np.concatenate([lost_mask(sums) for sums in found.along.values()])
        tables["groups"] = Table(by_group, GROUPS_CAPTION)
        tables["lost"] = Table(by_direction[lost], "Directions of which more is lost than kept.")
        tables["directions"] = Table(
            by_direction, "Every principal direction of the activation, largest variance first."
        )
        plots["directions"] = direction_plot(by_direction, by_group, found.n_tokens, found.n_sequences)
    return Report(
        title=f"How far from the original does the model run behind {_named(opened)}?",
        summary=_summary(found),
        tables=tables,
        plots=plots,
        settings=settings,
        inputs=tuple(opened),
        warnings=warnings,
    )


def _named(opened: Sequence[Dictionary]) -> str:
    return opened[0].name if len(opened) == 1 else f"{len(opened)} dictionaries"


def overview_table(found: DownstreamMeasurement) -> pd.DataFrame:
    """One row a dictionary: explained variance at the site and at the end, norm ratio, and what the model loses."""
    first, last = found.places[0], found.places[-1]
    rows = []
    for name, output in found.output.items():
        row: dict[str, object] = {"dictionary": name}
        for where, place in {"site": first, "end": last}.items():
            for label in ("explained variance", "explained variance (layer norm)"):
                row |= _with_interval(f"{label}, {where}", found.depth[name, place], METRICS[label].of)
        row |= _with_interval("norm ratio, site", found.depth[name, first], METRICS["norm ratio"].of)
        for label, metric in OUTPUT.items():
            row |= _with_interval(label, output, metric.of)
        values = {label: value for label, value in row.items() if not label.endswith((" low", " high"))}
        rows.append(values | row)  # intervals behind, where a terminal has no room for them
    return pd.DataFrame(rows)


def _overview_caption(found: DownstreamMeasurement) -> str:
    """What the overview was measured on."""
    return (
        f"{found.n_sequences} held-out sequences ({found.n_tokens} tokens), 95 % bootstrap intervals over sequences. "
        f"Site: {found.places[0]}. End: {found.places[-1]}. KL(original ‖ spliced) and CE increase in nats a token."
    )


def depth_table(found: DownstreamMeasurement) -> pd.DataFrame:
    """One row a dictionary and place, with the metrics that are plotted."""
    rows = []
    for (name, place), sums in found.depth.items():
        row: dict[str, object] = {"dictionary": name, "place": place}
        for label in SHOWN:
            row |= _with_interval(label, sums, METRICS[label].of)
        rows.append(row)
    return pd.DataFrame(rows)


def metrics_table(found: DownstreamMeasurement) -> pd.DataFrame:
    """One row a dictionary, place and metric."""
    rows = []
    for (name, place), sums in found.depth.items():
        for label, metric in METRICS.items():
            rows.append({"dictionary": name, "place": place, "metric": label, **_row(sums, metric)})
    for name, sums in found.output.items():
        for label, metric in OUTPUT.items():
            rows.append({"dictionary": name, "place": "output", "metric": label, **_row(sums, metric)})
    return pd.DataFrame(rows)


def differences_table(found: DownstreamMeasurement) -> pd.DataFrame:
    """Every other dictionary less the first, at every place; the intervals are paired."""
    first, *others = found.output
    compared = [(place, label, METRICS[label]) for place in found.places for label in SHOWN]
    rows = []
    for name in others:
        pairs = [(place, label, m, found.depth[name, place], found.depth[first, place]) for place, label, m in compared]
        pairs += [("output", label, m, found.output[name], found.output[first]) for label, m in OUTPUT.items()]
        for place, label, metric, this, reference in pairs:
            low, high = paired(this, reference, metric.of)
            value = float(this.value(metric.of) - reference.value(metric.of))
            row = {"dictionary": name, "against": first, "place": place, "metric": label, "difference": value}
            rows.append(row | {"low": low, "high": high, "unit": metric.unit})
    return pd.DataFrame(rows)


def paired(one: BySequence, other: BySequence, of: Formula) -> tuple[float, float]:
    """95 % interval of the difference of a metric between two that were measured on the same sequences."""
    if one.n_sequences < 2:
        return float("nan"), float("nan")
    low, high = intervals(one.draws(of) - other.draws(of))
    return float(low), float(high)


def _summary(found: DownstreamMeasurement) -> str:
    """Where the error goes on its way, for the first few dictionaries."""
    first, last = found.places[0], found.places[-1]
    of = METRICS["explained variance"].of
    parts = [
        f"{name} {float(found.depth[name, first].value(of)):.2f} at the site and "
        f"{float(found.depth[name, last].value(of)):.2f} at the end (KL {float(sums.value(OUTPUT['KL'].of)):.2f})"
        for name, sums in list(found.output.items())[:4]
    ]
    more = f"; and {len(found.output) - 4} more" if len(found.output) > 4 else ""
    return "Explained variance of the residual stream: " + "; ".join(parts) + more + "."


@plotting.applied
def depth_plot(found: DownstreamMeasurement) -> Plot:
    """A panel a metric, a line a dictionary, along the places."""
    figure, axes = plotting.axes(len(SHOWN), width=4.4, height=3.4)
    labels = ["site", *(place.split(".")[1] for place in found.places[1:-1]), "end"][: len(found.places)]
    for ax, label in zip(axes, SHOWN, strict=True):
        for number, name in enumerate(found.output):
            values, low, high = _along_places(found, name, label)
            ax.errorbar(
                np.arange(len(values)) + 0.06 * (number - (len(found.output) - 1) / 2),
                values,
                yerr=np.clip([values - low, high - values], 0, None),
                color=plotting.colour(number),
                marker=plotting.marker(number),
                ls=plotting.line(number),
                ms=4,
                lw=1.4,
                label=name,
            )
        unit = METRICS[label].unit
        ax.set(xlabel="stream entering block", ylabel=f"{label} ({unit})" if unit else label, title=_question(label))
        ax.set_xticks(range(len(labels)), labels)
        drawn = np.concatenate([_along_places(found, name, label)[0] for name in found.output])
        if label in ("MSE", "relative error") and (drawn > 0).any():
            ax.set_yscale("log")
    axes[3].legend(loc="upper left", bbox_to_anchor=(0, -0.22), fontsize=7)
    return Plot(
        figure,
        f"The residual stream of the spliced run beside the original's, from {found.places[0]} (site) to what leaves "
        f"the last block (end); {found.n_sequences} held-out sequences, {found.n_tokens} tokens. Bars: 95 % bootstrap "
        "intervals over sequences. Explained variance 0 is what the mean stream would give.",
    )


def _question(label: str) -> str:
    return {
        "MSE": "How large is the error?",
        "relative error": "Beside the stream's own size",
        "explained variance": "How much variance is explained?",
        "explained variance (layer norm)": "After layer norm of both",
        "cosine": "Does it point the same way?",
        "norm ratio": "Is it as long?",
    }[label]


def _along_places(found: DownstreamMeasurement, name: str, label: str) -> tuple[Array, Array, Array]:
    of = METRICS[label].of
    sums = [found.depth[name, place] for place in found.places]
    low, high = zip(*(one.interval(of) for one in sums), strict=True)
    return np.array([float(one.value(of)) for one in sums]), np.array(low), np.array(high)


def _with_interval(label: str, sums: BySequence, of: Formula) -> dict[str, object]:
    low, high = sums.interval(of)
    return {label: float(sums.value(of)), f"{label} low": float(low), f"{label} high": float(high)}


def _row(sums: BySequence, metric: DepthMetric) -> dict[str, object]:
    low, high = sums.interval(metric.of)
    return {"value": float(sums.value(metric.of)), "low": float(low), "high": float(high), "unit": metric.unit}


def direction_table(along: Mapping[str, BySequence]) -> pd.DataFrame:
    """One row a dictionary and principal direction."""
    frames = []
    for name, found in along.items():
        variance = found.value(lambda s: s["variance"])
        low, high = found.interval(not_reconstructed)
        share = found.value(not_reconstructed)
        frames.append(
            pd.DataFrame(
                {
                    "dictionary": name,
                    "direction": np.arange(1, len(share) + 1),
                    "share of variance": variance / variance.sum(),
                    "not reconstructed": share,
                    "not reconstructed low": low,
                    "not reconstructed high": high,
                    "correlation": found.value(correlation),
                    "lost": lost_mask(found),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def group_table(
    groups: Sequence[Group], along: Mapping[str, BySequence], kl: Mapping[str, BySequence], worth: BySequence
) -> pd.DataFrame:
    """One row a dictionary and group of directions: how much of it is wrong, and what that costs the model.

    Args:
        groups: The groups.
        along: By dictionary, the sums of `sums_along`.
        kl: By dictionary, KL summed by sequence, `[sequences, groups]`, under WRONG and REPAIRED, and `[sequences, 1]`
            under "all wrong"; `tokens` likewise.
        worth: KL summed by sequence under RESAMPLED, and `tokens`.
    """
    frames = []
    member = np.zeros((groups[-1].stop, len(groups)))  # which direction is in which group
    for index, group in enumerate(groups):
        member[group.start : group.stop, index] = 1
    for name, found in along.items():
        variance = found.value(lambda s: s["variance"]) @ member
        columns: dict[str, object] = {
            "dictionary": name,
            "directions": [group.name for group in groups],
            "share of variance": variance / variance.sum(),
        }
        for label, (sums, formula) in {
            "not reconstructed": (found, lambda s: (s["error"] @ member) / (s["variance"] @ member)),
            "share of error": (found, lambda s: (s["error"] @ member) / _positive(s["error"].sum(-1, keepdims=True))),
            "KL, only this group wrong": (kl[name], _mean_of(WRONG)),
            "KL, this group repaired": (kl[name], _mean_of(REPAIRED)),
            "KL removed by the repair": (kl[name], lambda s: (s["all wrong"] - s[REPAIRED]) / s["tokens"]),
            "KL, resampled": (worth, _mean_of(RESAMPLED)),
        }.items():
            low, high = sums.interval(formula)
            columns |= {label: sums.value(formula), f"{label} low": low, f"{label} high": high}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


@plotting.applied
def direction_plot(directions: pd.DataFrame, groups: pd.DataFrame, tokens: int, sequences: int) -> Plot:
    """What is not reconstructed along each direction, what each group costs alone, and what repairing it gives."""
    figure, (left, middle, right) = plotting.axes(3, width=4.8, height=4.4)
    for number, (name, part) in enumerate(directions.groupby("dictionary", sort=False)):
        look = {"color": plotting.colour(number), "ls": plotting.line(number), "lw": 1.4, "label": name}
        left.plot(part["direction"], part["not reconstructed"].clip(1e-4, MOST), **look)
        own = groups[groups["dictionary"] == name]
        places = np.arange(len(own)) + 0.12 * (number - (directions["dictionary"].nunique() - 1) / 2)
        for ax, label in ((middle, "KL, only this group wrong"), (right, "KL removed by the repair")):
            bars = np.clip([own[label] - own[f"{label} low"], own[f"{label} high"] - own[label]], 0, None)
            ax.errorbar(places, own[label], yerr=bars, marker=plotting.marker(number), ms=4, **look)
    one = groups[groups["dictionary"] == groups["dictionary"].iloc[0]]
    middle.plot(
        np.arange(len(one)), one["KL, resampled"], color="#666666", ls=":", label="resampled (what it is worth)"
    )
    left.axhline(1, color="#666666", lw=0.8)
    left.axhline(LOST, color="#666666", lw=0.8, ls=":", label=f"lost above {LOST:g}")
    left.set(
        xscale="log",
        yscale="log",
        xlabel="principal direction (1 has the largest variance)",
        ylabel="share of its variance not reconstructed",
        title="What is not reconstructed?",
    )
    middle.set(
        yscale="log", xlabel="group of principal directions", ylabel="KL (nats/token)", title="Only this group wrong"
    )
    right.axhline(0, color="black", lw=0.8)
    right.set(
        xlabel="group of principal directions", ylabel="KL removed (nats/token)", title="Only this group repaired"
    )
    for ax in (middle, right):
        ax.set_xticks(range(len(one)), list(one["directions"]), rotation=40, ha="right")
    left.legend(loc="upper left", bbox_to_anchor=(0, -0.2), fontsize=7)
    middle.legend(loc="upper left", bbox_to_anchor=(0, -0.26), fontsize=7)
    return Plot(
        figure,
        f"Errors by principal direction of the activation, {sequences} sequences ({tokens} tokens); bars: 95 % "
        "bootstrap intervals over sequences. Left: 1 (line) is what the mean alone gives; drawn up to 10. "
        "Dotted in the middle: the group's component taken from another token.",
    )


def _mean_of(key: str) -> Formula:
    return lambda s: s[key] / s["tokens"]


def _positive(total: Array) -> Array:
    """Nothing at all is wrong with a perfect dictionary: its shares are 0."""
    return np.maximum(total, np.finfo(float).tiny)
