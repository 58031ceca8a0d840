"""Which known features does a dictionary have a latent for: tables with their captions, plots, and the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses.features.probes import single_latent_probes as probing
from analyses.features.probes.plots import losses_plot, tasks_plot, widths_plot
from analyses.features.probes.probe_means import ProbeMeans, feature_set_name, probe_means
from analyses.features.probes.single_latent_probes import ALL, CHANNELS, Probed
from analyses.features.probes.token_labels import ProbeSample
from dictlab.dictionary import Dictionary
from dictlab.numerics.statistics import Estimate, estimate_columns, interval_words
from dictlab.reports.report import Plot, Report, Table

INTERVAL = interval_words("sequences")


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
