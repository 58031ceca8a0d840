"""Which known features does a dictionary have a latent for: tables with their captions, plots, and the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analyses.common import plotting
from analyses.features import single_latent_probes
from analyses.features.single_latent_probes import ALL, CHANNELS, Probed
from analyses.features.token_labels import ProbeSample
from dictlab.dictionary import Dictionary
from dictlab.evaluation.recorded_selection import all_tokens_warning
from dictlab.reports.report import Plot, Report, Table
from dictlab.statistics import Estimate, Formula, estimate_columns, interval, interval_words

INTERVAL = interval_words("sequences")
MEASURES = {"probe loss": "probe loss (nats, mean over tasks)", "of entropy": "share of the labels' entropy left"}
MEANS = {
    "probe loss": single_latent_probes.ce,
    "of entropy": single_latent_probes.relative,
    "F1": single_latent_probes.f1,
}
DODGE = 1.03  # widths beside each other in a plot
KINDS = {"dictionary": 0, "single coordinates": 1, "all coordinates": 2}


def probes_report(
    measured: Sequence[Probed],
    sample: ProbeSample,
    opened: Sequence[Dictionary],
    min_f1: float,
    settings: dict[str, Any],
) -> Report:
    """The report of the probes: every table with its caption, the plots, the summary and warnings."""
    held = sample.held
    n = f"n = {len(held.labels)} held-out {'texts' if held.pooled else 'tokens'} of {len(held.tokens)} sequences"
    overview = overview_table(measured, min_f1)
    made = {
        "overview": Table(
            overview,
            f"{len(held.tasks)} tasks, {n}; {INTERVAL}. probe loss: cross-entropy (nats) of the best feature of each "
            "task, mean over tasks; of the label's entropy: the share of it that is left, mean over tasks; has: tasks "
            f"with an F1 of {min_f1:g} or more.",
        ),
        "tasks": Table(
            tasks_table(measured, held.tasks, min_f1),
            f"The best feature of each task; {n}; {INTERVAL}. direction: whether the task is true where the latent is "
            "active, or silent. F1, precision and recall at the threshold with the best F1 on the training split.",
        ),
        "who": Table(
            who_table(measured, held.tasks, min_f1), f"Which dictionaries have a task: F1 {min_f1:g} or more."
        ),
    }
    if sample.left_out:
        frame = left_out_table(sample.left_out)
        made["left_out"] = Table(frame, f"Tasks with fewer than {settings['min_examples']} examples of the rarer kind.")
    drawn = {
        "probe_loss": Plot(losses_plot(overview), f"{len(held.tasks)} tasks, {n}; bars: {INTERVAL}."),
        "tasks": Plot(tasks_plot(measured, held.tasks), f"F1 of the best feature of each task on held-out text, {n}."),
    }
    if len({d.n_latents for d in opened}) > 1 and len(opened) > 2:
        drawn["width"] = Plot(widths_plot(overview), f"{len(held.tasks)} tasks, {n}; bars: {INTERVAL}.")
    warnings = list(sample.notes)
    if len(held.tokens) < 8:
        warnings.append(f"Intervals over {len(held.tokens)} sequences are rough.")
    return Report(
        title="Which known features does each dictionary have a latent for?",
        summary=_summary(measured, len(held.tasks), min_f1),
        tables=made,
        plots=drawn,
        settings=settings | {"tasks": len(held.tasks)},
        inputs=tuple(opened),
        warnings=(*warnings, *all_tokens_warning(opened)),
    )


def _summary(measured: Sequence[Probed], n_tasks: int, min_f1: float) -> str:
    """Smallest and largest probe loss of a dictionary, beside channels and dense probe of the first one's site."""
    losses = {one.name: _mean_over_tasks(one, single_latent_probes.ce) for one in measured if one.dictionary}
    best = min(losses, key=lambda name: losses[name].value)
    worst = max(losses, key=lambda name: losses[name].value)
    (probed,) = [one for one in measured if one.dictionary and one.name == best]
    loss, of_entropy = losses[best], _mean_over_tasks(probed, single_latent_probes.relative)
    sentences = [
        f"{best}: probe loss {loss.value:.4f} [{loss.low:.4f}, {loss.high:.4f}] nats "
        f"over {n_tasks} tasks, {of_entropy.value:.2f} of the labels' entropy; it has {(probed.f1 >= min_f1).sum()} "
        f"tasks at an F1 of {min_f1:g} or more."
    ]
    if len(losses) > 1:
        sentences = [f"Smallest: {sentences[0]}", f"Largest: {losses[worst].value:.4f} ({worst})."]
    beside = {
        one.name: _mean_over_tasks(one, single_latent_probes.ce).value
        for one in measured
        if one.dictionary is None and one.site == measured[0].site
    }
    sentences.append(
        f"Single channels of the activation: {beside[CHANNELS]:.4f}; a probe on all of it: {beside[ALL]:.4f}."
    )
    return " ".join(sentences)


def feature_set_name(one: Probed, measured: Sequence[Probed]) -> str:
    """What a set of features is called: with its site where there are several."""
    several = len({other.site for other in measured}) > 1
    return f"{one.name} at {one.site}" if several and one.dictionary is None else one.name


def overview_table(measured: Sequence[Probed], min_f1: float) -> pd.DataFrame:
    """One row a set of features: means over the tasks."""
    rows = []
    for one in measured:
        d = one.dictionary
        row: dict[str, Any] = {
            "features": feature_set_name(one, measured),
            "kind": "dictionary" if d else "all coordinates" if one.name == ALL else "single coordinates",
        }
        for name, formula in MEANS.items():
            row |= estimate_columns(name, _mean_over_tasks(one, formula))
        row["has"] = int((one.f1 >= min_f1).sum())
        row["width"] = d.n_latents if d else None
        row["objective"] = (d.metadata.objective or "unknown") if d else None
        row["activation"] = _activation(d) if d else None
        row["site"] = one.site
        rows.append(row)
    return pd.DataFrame(rows).astype({"width": "Int64"})


def tasks_table(measured: Sequence[Probed], names: Sequence[str], min_f1: float) -> pd.DataFrame:
    """One row a task and set of features."""
    frames = []
    for one in measured:
        totals = {key: values.sum(axis=0) for key, values in one.sums.sums.items()}
        frame = pd.DataFrame({"task": names, "features": feature_set_name(one, measured)})
        frame["latent" if one.dictionary else "coordinate"] = one.columns
        frame["direction"] = [None if np.isnan(w) else "active" if w >= 0 else "silent" for w in one.weight]
        frame["share true"] = totals["true"] / totals["n"]
        for column, formula in (("CE", single_latent_probes.ce), ("F1", single_latent_probes.f1)):
            frame[column] = one.sums.value(formula)
            frame[f"{column} low"], frame[f"{column} high"] = one.sums.interval(formula)
        frame["of entropy"] = one.sums.value(single_latent_probes.relative)
        frame["precision"], frame["recall"] = (
            one.sums.value(single_latent_probes.precision),
            one.sums.value(single_latent_probes.recall),
        )
        frame["has"] = one.f1 >= min_f1
        frames.append(frame)
    merged = pd.concat(frames, ignore_index=True)
    merged = merged.astype({name: "Int64" for name in ("latent", "coordinate") if name in merged})
    if "coordinate" in merged:
        merged["coordinate"] = merged["coordinate"].where(merged["coordinate"] >= 0)
    front = ["task", "features", "latent", "direction", "F1", "F1 low", "F1 high", "precision", "recall"]
    rest = [name for name in merged.columns if name not in front]
    return merged[[*front, *rest]].sort_values("F1", ascending=False, ignore_index=True)


def who_table(measured: Sequence[Probed], names: Sequence[str], min_f1: float) -> pd.DataFrame:
    """One row a task: who has it, and who has it best."""
    own = [one for one in measured if one.dictionary is not None]
    scores = np.stack([one.f1 for one in own], axis=1)
    totals = own[0].sums.sums
    share = totals["true"].sum(axis=0) / totals["n"].sum()
    rows = []
    for i, name in enumerate(names):
        having = [one.name for one, score in zip(own, scores[i], strict=True) if score >= min_f1]
        best = int(scores[i].argmax())
        row = (
            name,
            share[i],
            len(having),
            own[best].name,
            int(own[best].columns[i]),
            scores[i, best],
            ", ".join(having),
        )
        rows.append(row)
    columns = ["task", "share true", "dictionaries that have it", "best", "latent", "F1", "which"]
    return pd.DataFrame(rows, columns=columns).sort_values(
        ["dictionaries that have it", "F1"], ascending=False, ignore_index=True
    )


def left_out_table(reasons: Mapping[str, str]) -> pd.DataFrame:
    """Tasks that were not probed, and why."""
    return pd.DataFrame(sorted(reasons.items()), columns=["task", "why"])


def _mean_over_tasks(one: Probed, formula: Formula) -> Estimate:
    """The mean of a formula over the tasks, with its interval over sequences."""

    def mean(sums: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.asarray(formula(sums).mean(axis=-1))

    low, high = interval(one.sums.draws(mean)) if one.sums.n_sequences > 1 else (np.nan, np.nan)
    return Estimate(float(one.sums.value(mean)), low, high)


def _activation(dictionary: Any) -> str:
    record = dictionary.activation.record()
    return f"{record['kind']} {record['k']}" if "k" in record else str(record["kind"])


@plotting.applied
def losses_plot(overview: pd.DataFrame) -> Figure:
    """One line a set of features, the best on top."""
    figure, panels = plotting.axes(2, width=5.2, height=max(2.2, 0.24 * len(overview) + 1.1))
    for ax, (measure, words) in zip(panels, MEASURES.items(), strict=True):
        frame = overview.sort_values(measure, ascending=False, ignore_index=True)
        for kind, number in KINDS.items():
            some = frame[frame["kind"] == kind]
            ax.errorbar(
                some[measure], some.index, xerr=plotting.bar_lengths(some, measure), ls="none", ms=5, elinewidth=1,
                color=plotting.colour(number), marker=plotting.marker(number), label=kind,
            )  # fmt: skip
        ax.set(xlabel=words, yticks=frame.index, yticklabels=plotting.short(list(frame["features"])))
        ax.tick_params(axis="y", labelsize=8)
    panels[0].set_title("How well does the best single feature answer a task?")
    panels[1].set_title("… each task counted alike")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@plotting.applied
def widths_plot(overview: pd.DataFrame) -> Figure:
    """Losses against width, a series for each objective and activation function."""
    figure, panels = plotting.axes(2, width=4.8, height=3.8)
    own = overview[overview["kind"] == "dictionary"]
    series = sorted(own.groupby(["objective", "activation"], sort=False), key=lambda one: _natural(one[0]))
    titles = ("Do wider dictionaries answer more?", "… each task counted alike")
    for ax, (measure, words), title in zip(panels, MEASURES.items(), titles, strict=True):
        for number, (name, some) in enumerate(series):
            some = some.sort_values("width")
            beside = DODGE ** (number - (len(series) - 1) / 2)  # so that equal widths do not hide each other
            ax.errorbar(
                some["width"].astype(float) * beside, some[measure], yerr=plotting.bar_lengths(some, measure),
                ls="none", ms=5, elinewidth=1, color=plotting.colour(number), marker=plotting.marker(number),
                label=" ".join(map(str, name)),
            )  # fmt: skip
        for number, (_, row) in enumerate(overview[overview["kind"] != "dictionary"].iterrows()):
            ax.axhline(row[measure], color="0.4", ls=plotting.line(number + 1), lw=1, label=row["features"])
        ax.set(xlabel="width (latents)", ylabel=words, title=title, xscale="log")
        _plain_ticks(ax, own)
    panels[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _natural(name: Sequence[str]) -> list[tuple[int, str]]:
    """Sorts numbers as numbers: k = 8 before k = 16."""
    return [(int(word), "") if word.isdigit() else (0, word) for part in name for word in str(part).split()]


@plotting.applied
def tasks_plot(measured: Sequence[Probed], names: Sequence[str]) -> Figure:
    """F1 by task and set of features, tasks sorted by the best dictionary's."""
    scores = np.stack([one.f1 for one in measured], axis=1)
    own = np.array([one.dictionary is not None for one in measured])
    order = np.argsort(-scores[:, own].max(axis=1), kind="stable")
    labels = plotting.short([feature_set_name(one, measured) for one in measured])
    width, height = 3.4 + 0.3 * len(measured), 1.9 + 0.145 * len(names)
    figure, (ax,) = plotting.axes(1, width=width, height=height)
    image = ax.imshow(scores[order], aspect="auto", cmap="cividis", vmin=0, vmax=1)
    ax.set(xticks=range(len(measured)), yticks=range(len(names)), title="Who has a latent for what?")
    ax.set_xticklabels(labels, rotation=90, fontsize=8)
    ax.set_yticklabels([names[i] for i in order], fontsize=7)
    ax.grid(False)
    if not own.all():
        ax.axvline(own.sum() - 0.5, color="white", lw=2)
    figure.colorbar(image, ax=ax, label="F1 on held-out text", shrink=0.6, pad=0.02)
    return figure


def _plain_ticks(ax: Axes, own: pd.DataFrame) -> None:
    widths = sorted(set(own["width"].astype(int)))
    ax.set_xticks(widths, labels=[str(width) for width in widths])
    ax.minorticks_off()
