"""What a stitching is worth, in a table, a sentence, warnings and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses.common import plotting
from dictlab.dictionary import Dictionary
from dictlab.evaluation.metrics import METRICS, Evaluation
from dictlab.reports.report import Plot
from dictlab.statistics import interval

REFITTED = {"decoder": "and the decoder refitted", "bias": "and the bias refitted", "none": "and nothing refitted"}
PANELS = {  # of the plot: axis and title of each metric
    "explained_variance": ("unexplained variance (share)", "How much is left unexplained?"),
    "ce_increase": ("CE increase (nats/token)", "How much does the model suffer?"),
}


def quality(found: Mapping[str, Evaluation], candidates: Mapping[str, Dictionary]) -> pd.DataFrame:
    """One row a dictionary; latents that only compete are not counted."""
    keys = ("l0", "mse", "explained_variance", "ce_increase", "kl")
    return pd.DataFrame(
        [
            {
                "dictionary": name,
                "latents": candidates[name].n_emitting,
                **{METRICS[key].label: e.value(key) for key in e.among(keys)},
            }
            for name, e in found.items()
        ]
    )


def against(found: Mapping[str, Evaluation], small: str) -> pd.DataFrame:
    """Paired differences from SMALL, with 95 % bootstrap intervals."""
    rows = []
    for name, evaluation in found.items():
        if name == small:
            continue
        for key in evaluation.among(("mse", "ce_increase", "kl", "l0")):
            low, high = interval(evaluation.draws(key) - found[small].draws(key))
            difference = evaluation.value(key) - found[small].value(key)
            rows.append((name, METRICS[key].label, difference, low, high, METRICS[key].unit))
    return pd.DataFrame(rows, columns=["dictionary", "metric", "difference", "low", "high", "unit"])


def differences_caption(small: str) -> str:
    """Of the table of differences."""
    return f"Each less {small}, with paired 95 % bootstrap intervals over sequences."


def quality_caption(evaluation: Evaluation) -> str:
    """Of the table of qualities."""
    model = ", CE and KL in nats a token" if evaluation.has_model else ""
    return (
        f"Measured on {evaluation.size}. MSE in activation²{model}. “Inserted” is without any refit. L0 differs "
        "between rows: this is no comparison at equal sparsity."
    )


def summary(found: Mapping[str, Evaluation], parents: Sequence[Dictionary], how: Mapping[str, Any]) -> str:
    """What was made, and how good it is beside its parents."""
    result, (low, high) = found["stitched"], found["stitched"].interval("mse")
    span = "" if np.isnan(low) else f" [{low:.4g}, {high:.4g}]"
    old = [(d.name, found[d.name]) for d in parents]
    before = ", ".join(f"{name} {e.value('mse'):.4g} (L0 {e.value('l0'):.1f})" for name, e in old)
    suffers = f", CE increase {result.value('ce_increase'):.3g}" if result.has_model else ""
    offered, small = sum(d.n_latents for d in parents[1:]), parents[0]
    how_much = f"{how['kept']} of {small.n_latents} latents of {small.name} and {how['inserted']} of {offered} others"
    chosen = {
        "path": f"At point {how.get('point')} of the path, with {how_much},",
        "optimal": f"With {how_much}, found by search,",
    }.get(how["select"], f"With {how['inserted']} of {offered} latents inserted by {how['select']}")
    return (
        f"{chosen} {REFITTED[how['refit']]}, the held-out MSE is "
        f"{result.value('mse'):.4g}{span} at L0 {result.value('l0'):.1f}"
        f"{suffers}; before: {before}."
    )


def warnings(found: Mapping[str, Evaluation], parents: Sequence[Dictionary], rule: str) -> tuple[str, ...]:
    """What is said when a parent is better, when the cosine rule harms, and which other choice is better than all."""
    result, said = found["stitched"], []
    for parent in (parents[0].name, parents[-1].name):
        difference = result.value("mse") - found[parent].value("mse")
        if difference > 0:
            low, high = interval(result.draws("mse") - found[parent].draws("mse"))
            certain = "" if low > 0 else ", within the noise"
            span = f"{difference:+.4g} [{low:+.4g}, {high:+.4g}]"
            said.append(f"The stitched dictionary is WORSE than {parent}: MSE {span}{certain}.")
    best = min(found, key=lambda name: found[name].value("mse"))
    if said and best not in ("stitched", *(parent.name for parent in parents)):
        error, l0 = found[best].value("mse"), found[best].value("l0")
        said.append(
            f"The best that was measured is “{best}”: MSE {error:.4g} at L0 {l0:.1f}; see --select and --refit."
        )
    return (*result.cautions, *said, *(_harm(found, parents[0].name) if rule == "cosine" else ()))


def _harm(found: Mapping[str, Evaluation], small: str) -> tuple[str, ...]:
    """What the cosine rule does before any refit, where that is harm."""
    inserted = found["inserted by cosine"]
    low, _ = interval(inserted.draws("mse") - found[small].draws("mse"))
    if inserted.value("mse") <= found[small].value("mse") or not low > 0:
        return ()
    return (
        f"The cosine rule inserts latents that {small} has no need of: unrefitted they raise the MSE from "
        f"{found[small].value('mse'):.4g} to {inserted.value('mse'):.4g}. What is gained after a refit is due to the "
        "refit and a higher L0; --select effect chooses by what is measured.",
    )


@plotting.applied
def quality_plot(found: Mapping[str, Evaluation]) -> Plot:
    """Unexplained variance and, where there is a model, CE increase of each dictionary that was measured."""
    names, first = list(found), next(iter(found.values()))
    keys = first.among(PANELS)
    figure, panels = plotting.axes(len(keys), width=5.2, height=3.6)
    for ax, key in zip(panels, keys, strict=True):
        label, title = PANELS[key]
        values = np.array([found[n].value(key) for n in names])
        spans = np.array([found[n].interval(key) for n in names]).T
        if key == "explained_variance":
            values, spans = 1 - values, 1 - spans[::-1]
        height = np.arange(len(names))[::-1]
        error = np.clip(np.abs(spans - values), 0, None)
        ax.barh(
            height,
            values,
            xerr=error,
            color=[plotting.colour(i) for i in range(len(names))],
            height=0.6,
            ecolor="black",
        )
        shown = plotting.short(names) if ax is panels[0] else []
        ax.set(yticks=height, yticklabels=shown, xlabel=label, title=title)
        for y, value, name in zip(height, values, names, strict=True):
            note = f" {value:.3g}" + (f"  (L0 {found[name].value('l0'):.0f})" if ax is panels[0] else "")
            ax.annotate(
                note,
                (value, y),
                va="center",
                ha="left",
                fontsize=8,
                xytext=(4, 7),
                textcoords="offset points",
            )
    return Plot(figure, f"Measured on {first.size}; bars: 95 % bootstrap interval over sequences.")
