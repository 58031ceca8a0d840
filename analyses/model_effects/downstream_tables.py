"""What `downstream` measured, as tables and a plot: metrics by place, differences between dictionaries, the summary."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from analyses.common import plotting
from dictlab.reports.report import Plot
from dictlab.statistics import Array, BySequence, Formula, intervals

if TYPE_CHECKING:
    from analyses.model_effects.downstream import Measured


class Metric(NamedTuple):
    """A number that follows from the sums of `downstream.compare`: its unit, and how."""

    unit: str
    of: Formula


METRICS = {
    "MSE": Metric("activation²", lambda s: s["squared_error"] / s["coordinates"]),
    "relative error": Metric("share", lambda s: s["squared_error"] / s["squared_norm"]),
    "explained variance": Metric("share", lambda s: 1 - s["squared_error"] / s["variance"]),
    "explained variance (layer norm)": Metric("share", lambda s: 1 - s["normed_error"] / s["normed_variance"]),
    "cosine": Metric("", lambda s: s["cosine"] / s["tokens"]),
    "norm ratio": Metric("", lambda s: s["norm_ratio"] / s["tokens"]),
    "norm ratio (first position)": Metric("", lambda s: s["first_norm_ratio"] / s["sequences"]),
    "norm ratio (other positions)": Metric(
        "", lambda s: (s["norm_ratio"] - s["first_norm_ratio"]) / (s["tokens"] - s["sequences"])
    ),
    "explained variance (per token)": Metric("share", lambda s: s["per_token"] / s["tokens"]),
    "explained variance (layer norm, per token)": Metric("share", lambda s: s["normed_per_token"] / s["tokens"]),
    "explained variance (as published)": Metric("share", lambda s: s["published"] / s["tokens"]),
    "explained variance (layer norm, as published)": Metric("share", lambda s: s["published_normed"] / s["tokens"]),
}
SHOWN = ("MSE", "relative error", "explained variance", "explained variance (layer norm)", "cosine", "norm ratio")
OUTPUT = {
    "KL": Metric("nats/token", lambda s: s["kl"] / s["tokens"]),
    "CE increase": Metric("nats/token", lambda s: (s["ce"] - s["ce_clean"]) / s["predicted"]),
}
GROUPS_CAPTION = (
    "Errors by group of principal directions (1 has the largest variance). Only this group wrong: the original but for "
    "the group's error. Repaired: the reconstruction without it. Resampled: the group's component of another token, "
    "which is what the group is worth to the model at all. KL in nats a token from the original output; 95 % bootstrap "
    "intervals over sequences."
)


def overview(found: Measured) -> pd.DataFrame:
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


def overview_caption(found: Measured) -> str:
    """What the overview was measured on."""
    return (
        f"{found.n_sequences} held-out sequences ({found.n_tokens} tokens), 95 % bootstrap intervals over sequences. "
        f"Site: {found.places[0]}. End: {found.places[-1]}. KL(original ‖ spliced) and CE increase in nats a token."
    )


def depth(found: Measured) -> pd.DataFrame:
    """One row a dictionary and place, with the metrics that are plotted."""
    rows = []
    for (name, place), sums in found.depth.items():
        row: dict[str, object] = {"dictionary": name, "place": place}
        for label in SHOWN:
            row |= _with_interval(label, sums, METRICS[label].of)
        rows.append(row)
    return pd.DataFrame(rows)


def metrics(found: Measured) -> pd.DataFrame:
    """One row a dictionary, place and metric."""
    rows = []
    for (name, place), sums in found.depth.items():
        for label, metric in METRICS.items():
            rows.append({"dictionary": name, "place": place, "metric": label, **_row(sums, metric)})
    for name, sums in found.output.items():
        for label, metric in OUTPUT.items():
            rows.append({"dictionary": name, "place": "output", "metric": label, **_row(sums, metric)})
    return pd.DataFrame(rows)


def differences(found: Measured) -> pd.DataFrame:
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


def summary(found: Measured) -> str:
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
def depth_plot(found: Measured) -> Plot:
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


def _along_places(found: Measured, name: str, label: str) -> tuple[Array, Array, Array]:
    of = METRICS[label].of
    sums = [found.depth[name, place] for place in found.places]
    low, high = zip(*(one.interval(of) for one in sums), strict=True)
    return np.array([float(one.value(of)) for one in sums]), np.array(low), np.array(high)


def _with_interval(label: str, sums: BySequence, of: Formula) -> dict[str, object]:
    low, high = sums.interval(of)
    return {label: float(sums.value(of)), f"{label} low": float(low), f"{label} high": float(high)}


def _row(sums: BySequence, metric: Metric) -> dict[str, object]:
    low, high = sums.interval(metric.of)
    return {"value": float(sums.value(metric.of)), "low": float(low), "high": float(high), "unit": metric.unit}
