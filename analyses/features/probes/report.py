"""Which known features does a dictionary have a latent for: tables with their captions, plots, and the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analyses.common import plotting
from analyses.features.probes import single_latent_probes as probing
from analyses.features.probes.single_latent_probes import ALL, CHANNELS, Probed
from analyses.features.probes.token_labels import ProbeSample
from dictlab.dictionary import Dictionary
from dictlab.numerics.statistics import Estimate, Formula, estimate_columns, interval, interval_words
from dictlab.reports.report import Plot, Report, Table

INTERVAL = interval_words("sequences")
LOSS, LEFT = "probe loss (nats, mean over tasks)", "share of the labels' entropy left"
DODGE = 1.03  # widths beside each other in a plot
KINDS = {"dictionary": 0, "single coordinates": 1, "all coordinates": 2}


class ProbeMeans(NamedTuple):
    """Means over the tasks of one set of features.

    Attributes:
        probed: Its probes.
        name: What it is called, with its site where there are several.
        loss: Cross-entropy of the best feature of each task, nats.
        of_entropy: Share of the labels' entropy that is left.
        f1: F1.
        has: Tasks with an F1 that is large enough.
    """

    probed: Probed
    name: str
    loss: Estimate
    of_entropy: Estimate
    f1: Estimate
    has: int

    @property
    def kind(self) -> str:
        """A key of KINDS."""
        if self.probed.dictionary is not None:
            return "dictionary"
        return "all coordinates" if self.probed.name == ALL else "single coordinates"

    @property
    def family(self) -> tuple[str, str]:
        """Objective and activation function of a dictionary."""
        dictionary = self.probed.dictionary
        return ("", "") if dictionary is None else (dictionary.metadata.objective or "unknown", _activation(dictionary))

    @property
    def width(self) -> int | None:
        """Latents of a dictionary."""
        return None if self.probed.dictionary is None else self.probed.dictionary.n_latents


def probe_means(measured: Sequence[Probed], min_f1: float) -> list[ProbeMeans]:
    """The means of every set of features."""
    return [
        ProbeMeans(
            one,
            feature_set_name(one, measured),
            _mean_over_tasks(one, probing.ce),
            _mean_over_tasks(one, probing.relative),
            _mean_over_tasks(one, probing.f1),
            int((one.f1 >= min_f1).sum()),
        )
        for one in measured
    ]


def probes_report(
    measured: Sequence[Probed],
    sample: ProbeSample,
    dictionaries: Sequence[Dictionary],
    min_f1: float,
    settings: dict[str, Any],
    warnings: Sequence[str],
) -> Report:
    """The report of the probes: every table with its caption, the plots, the summary and warnings."""
    held, means = sample.held, probe_means(measured, min_f1)
    n = f"n = {len(held.labels)} held-out {'texts' if held.pooled else 'tokens'} of {len(held.tokens)} sequences"
    tables = {
        "overview": Table(
            overview_table(means),
            f"{len(held.tasks)} tasks, {n}; {INTERVAL}. probe loss: cross-entropy (nats) of the best feature of each "
            "task, mean over tasks; of the label's entropy: the share of it that is left, mean over tasks; has: tasks "
            f"with an F1 of {min_f1:g} or more.",
        ),
        "tasks": Table(
            tasks_table(measured, held.tasks, min_f1),
            f"The best feature of each task; {n}; {INTERVAL}. direction: whether the task is true where the latent is "
            "active, or silent. F1, precision and recall at the threshold with the best F1 on the training split.",
            named_in={"latent": "features"},
        ),
        "who": Table(
            who_table(measured, held.tasks, min_f1),
            f"Which dictionaries have a task: F1 {min_f1:g} or more.",
            named_in={"latent": "best"},
        ),
    }
    if sample.left_out:
        frame = left_out_table(sample.left_out)
        tables["left_out"] = Table(
            frame, f"Tasks with fewer than {settings['min_examples']} examples of the rarer kind."
        )
    plots = {
        "probe_loss": Plot(losses_plot(means), f"{len(held.tasks)} tasks, {n}; bars: {INTERVAL}."),
        "tasks": Plot(tasks_plot(measured, held.tasks), f"F1 of the best feature of each task on held-out text, {n}."),
    }
    if len({d.n_latents for d in dictionaries}) > 1 and len(dictionaries) > 2:
        plots["width"] = Plot(widths_plot(means), f"{len(held.tasks)} tasks, {n}; bars: {INTERVAL}.")
    notes = list(sample.notes)
    if len(held.tokens) < 8:
        notes.append(f"Intervals over {len(held.tokens)} sequences are rough.")
    return Report(
        title="Which known features does each dictionary have a latent for?",
        summary=_summary(means, len(held.tasks), min_f1),
        tables=tables,
        plots=plots,
        settings=settings | {"tasks": len(held.tasks)},
        inputs=tuple(dictionaries),
        warnings=(*notes, *warnings),
    )


def _summary(means: Sequence[ProbeMeans], n_tasks: int, min_f1: float) -> str:
    """Smallest and largest probe loss of a dictionary, beside channels and dense probe of the first one's site."""
    of_dictionaries = sorted((one for one in means if one.kind == "dictionary"), key=lambda one: one.loss.value)
    best, worst = of_dictionaries[0], of_dictionaries[-1]
    sentences = [
        f"{best.name}: probe loss {best.loss.words('.4f')} nats over {n_tasks} tasks, "
        f"{Estimate(best.of_entropy.value).words('.2f')} of the labels' entropy; it has {best.has} tasks at an F1 of "
        f"{min_f1:g} or more."
    ]
    if len(of_dictionaries) > 1:
        sentences = [f"Smallest: {sentences[0]}", f"Largest: {worst.loss.value:.4f} ({worst.name})."]
    beside = {
        one.probed.name: one.loss.value
        for one in means
        if one.kind != "dictionary" and one.probed.site == means[0].probed.site
    }
    sentences.append(
        f"Single channels of the activation: {beside[CHANNELS]:.4f}; a probe on all of it: {beside[ALL]:.4f}."
    )
    return " ".join(sentences)


def feature_set_name(one: Probed, measured: Sequence[Probed]) -> str:
    """What a set of features is called: with its site where there are several."""
    several = len({other.site for other in measured}) > 1
    return f"{one.name} at {one.site}" if several and one.dictionary is None else one.name


def overview_table(means: Sequence[ProbeMeans]) -> pd.DataFrame:
    """One row a set of features: means over the tasks."""
    rows = []
    for one in means:
        row: dict[str, Any] = {"features": one.name, "kind": one.kind}
        for name, estimate in (("probe loss", one.loss), ("of entropy", one.of_entropy), ("F1", one.f1)):
            row |= estimate_columns(name, estimate)
        row |= {"has": one.has, "width": one.width}
        row |= {name: word or None for name, word in zip(("objective", "activation"), one.family, strict=True)}
        rows.append(row | {"site": one.probed.site})
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return pd.DataFrame(columns | {"width": pd.array(columns["width"], dtype="Int64")})


def tasks_table(measured: Sequence[Probed], names: Sequence[str], min_f1: float) -> pd.DataFrame:
    """One row a task and set of features, the largest F1 first."""
    rows = [row for one in measured for row in _task_rows(one, feature_set_name(one, measured), names, min_f1)]
    rows.sort(key=lambda row: -row["F1"])
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    whole = {name: pd.array(columns[name], dtype="Int64") for name in ("latent", "coordinate")}
    return pd.DataFrame(columns | whole)


def _task_rows(one: Probed, features: str, names: Sequence[str], min_f1: float) -> list[dict[str, Any]]:
    """The best feature of each task among one set of features."""
    n, true = (one.sums.sums[key].sum(axis=0) for key in ("n", "true"))
    ce, (ce_low, ce_high) = one.sums.value(probing.ce), one.sums.interval(probing.ce)
    f1_low, f1_high = one.sums.interval(probing.f1)
    precision, recall, of_entropy = (one.sums.value(f) for f in (probing.precision, probing.recall, probing.relative))
    rows = []
    for i, name in enumerate(names):
        feature = None if one.columns[i] < 0 else int(one.columns[i])
        row = {
            "task": name,
            "features": features,
            "latent": feature if one.dictionary else None,
            "direction": None if np.isnan(one.weight[i]) else "active" if one.weight[i] >= 0 else "silent",
        }
        row |= estimate_columns("F1", Estimate(one.f1[i], f1_low[i], f1_high[i]))
        row |= {"precision": precision[i], "recall": recall[i], "share true": true[i] / n}
        row |= estimate_columns("CE", Estimate(ce[i], ce_low[i], ce_high[i]))
        row |= {"of entropy": of_entropy[i], "has": one.f1[i] >= min_f1}
        rows.append(row | {"coordinate": None if one.dictionary else feature})
    return rows


def who_table(measured: Sequence[Probed], names: Sequence[str], min_f1: float) -> pd.DataFrame:
    """One row a task: who has it, and who has it best; what most dictionaries have first."""
    of_dictionaries = [one for one in measured if one.dictionary is not None]
    scores = np.stack([one.f1 for one in of_dictionaries], axis=1)
    totals = of_dictionaries[0].sums.sums
    share = totals["true"].sum(axis=0) / totals["n"].sum()
    rows = []
    for i, name in enumerate(names):
        having = [one.name for one, score in zip(of_dictionaries, scores[i], strict=True) if score >= min_f1]
        j = int(scores[i].argmax())
        best, latent = of_dictionaries[j].name, int(of_dictionaries[j].columns[i])
        rows.append((name, share[i], len(having), best, latent, scores[i, j], ", ".join(having)))
    rows.sort(key=lambda row: (-row[2], -row[5]))
    columns = ["task", "share true", "dictionaries that have it", "best", "latent", "F1", "which"]
    return pd.DataFrame(rows, columns=columns)


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


def _panels(means: Sequence[ProbeMeans]) -> list[tuple[str, list[Estimate]]]:
    """What the two panels of a plot show: axis, and the values of each set of features."""
    return [(LOSS, [one.loss for one in means]), (LEFT, [one.of_entropy for one in means])]


@plotting.applied
def losses_plot(means: Sequence[ProbeMeans]) -> Figure:
    """One line a set of features, the best on top."""
    figure, panels = plotting.axes(2, width=5.2, height=max(2.2, 0.24 * len(means) + 1.1))
    for ax, (axis, values) in zip(panels, _panels(means), strict=True):
        order = sorted(range(len(means)), key=lambda i: -values[i].value)
        for kind, number in KINDS.items():
            rows = [row for row, i in enumerate(order) if means[i].kind == kind]
            plotting.estimates(ax, [values[order[row]] for row in rows], rows, number, along="y", ms=5, label=kind)
        ax.set_xlabel(axis)
        plotting.named_rows(ax, range(len(means)), [means[i].name for i in order])
        ax.tick_params(axis="y", labelsize=8)
    panels[0].set_title("How well does the best single feature answer a task?")
    panels[1].set_title("… each task counted alike")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@plotting.applied
def widths_plot(means: Sequence[ProbeMeans]) -> Figure:
    """Losses against width, a series for each objective and activation function."""
    figure, panels = plotting.axes(2, width=4.8, height=3.8)
    families = sorted({one.family for one in means if one.width}, key=_natural)
    titles = ("Do wider dictionaries answer more?", "… each task counted alike")
    widths = sorted({one.width for one in means if one.width})
    for ax, (axis, values), title in zip(panels, _panels(means), titles, strict=True):
        for number, family in enumerate(families):
            beside = DODGE ** (number - (len(families) - 1) / 2)  # so that equal widths do not hide each other
            own = [(one.width * beside, value) for one, value in zip(means, values, strict=True)
                   if one.width and one.family == family]  # fmt: skip
            points = [value for _, value in own], [width for width, _ in own]
            plotting.estimates(ax, *points, number, ms=5, label=" ".join(family))
        others = [(one, value) for one, value in zip(means, values, strict=True) if one.width is None]
        for number, (one, value) in enumerate(others):
            ax.axhline(value.value, color="0.4", ls=plotting.line(number + 1), lw=1, label=one.name)
        ax.set(xlabel="width (latents)", ylabel=axis, title=title, xscale="log")
        ax.set_xticks(widths, labels=[str(width) for width in widths])
        ax.minorticks_off()
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
