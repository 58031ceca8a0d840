"""Which known features does a dictionary have a latent for?

Probe loss (Gao et al. 2024): for each binary task the latent whose one-dimensional logistic probe has the least
cross-entropy, averaged over tasks:

    mean over tasks of   min over i, w, b of   E[ -y log sigmoid(w z_i + b) - (1 - y) log(1 - sigmoid(w z_i + b)) ]

Latent and probe come from the training split, the cross-entropy from the held-out split. The built-in tasks are known
exactly of every character of a Python source; a table of the user's brings others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from analyses.common.inputs import (
    DictionaryLike,
    ModelLike,
    TextLike,
    context_of,
    in_model,
    open_dictionaries,
    open_model,
    open_text,
    sites_of,
)
from analyses.features import probes_plots as plots
from analyses.features import probes_tables as tables
from analyses.features.single_latent_probes import ALL, CHANNELS, Probed, captured, of_coordinates, of_dictionary
from analyses.features.token_labels import Labelled, python_tokens
from analyses.features.user_labels import Pool, table_tokens
from dictlab.data.text import Text
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.evaluate import site_of
from dictlab.evaluation.recorded_selection import all_tokens_warning
from dictlab.model.language_model import LanguageModel
from dictlab.reports.report import Plot, Report, Table
from dictlab.statistics import interval_words

INTERVAL = interval_words("sequences")


class Sample(NamedTuple):
    """What is fitted on and what is measured on, the tasks left out with the reason, and what the user should know."""

    train: Labelled
    held: Labelled
    left_out: dict[str, str]
    notes: list[str]


def probes(
    dictionaries: Sequence[DictionaryLike],
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    contexts: int = 128,
    table: str | None = None,
    column: str = "text",
    labels: tuple[str, ...] = ("label",),
    pool: Pool = "mean",
    rows: int = 4096,
    examples: int = 20,
    min_f1: float = 0.7,
    ridge: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
) -> Report:
    """Which known features does each dictionary have a latent for?

    For each task the best latent alone, chosen on the training split and measured on the held-out split; beside it the
    best channel and principal component of the activation, and a probe on all of it.

    Args:
        dictionaries: Any number, at one site or at several.
        model: The language model; by default the one that the dictionaries name.
        text: Python sources for the built-in tasks.
        contexts: Sequences of each split, for the built-in tasks.
        table: Tasks of your own in place of the built-in ones: a CSV, Parquet or JSON file, or a data set.
        column: The table's column of texts.
        labels: The table's columns of labels.
        pool: What stands for a text that has one label: the mean over its tokens, or its last token.
        rows: Rows of the table to use at most.
        examples: Examples of either kind that a task must have in each split.
        min_f1: F1 from which on a dictionary has a latent for a task.
        ridge: Inverse weight of the ridge on standardised coefficients, the C of scikit-learn.
        seed: Of the sample, the split of a table, and the bootstrap.
        device: Where to run: cpu, cuda, ...

    Example:
        dictlab report probes a.safetensors b.safetensors --contexts 256
        dictlab report probes a.safetensors --table reviews.csv --column review --labels positive
    """
    check_at_least(0, seed=seed, min_f1=min_f1)
    check_at_least(1, examples=examples, rows=rows)
    check_at_least(2, contexts=contexts)
    if not ridge > 0:
        raise DictlabError(f"ridge is {ridge}; expected a number above 0.")
    opened = open_dictionaries(dictionaries)
    model = open_model(model, opened, device)
    sites = sites_of(opened, model)
    if table is None:
        source = open_text(text)
        sample = _builtin(source, model, context_of(opened, model, source), contexts, examples, seed)
    else:
        sample = _own(*table_tokens(table, column, labels, model, pool=pool, limit=rows, seed=seed), table, examples)
    measured = _measured(opened, model, sites, sample, ridge, seed)
    done = [d for d in opened if any(d.name == one.name for one in measured if one.dictionary)]
    if len(done) < len(opened):
        sample.notes.append(f"PARTIAL: interrupted after {len(done)} of {len(opened)} dictionaries.")
    return _report(measured, sample, done, min_f1, {
        "text": table or open_text(text).name, "model": model.name, "context": sample.held.tokens.shape[1],
        "pool": pool if table else None, "examples": examples, "min_f1": min_f1, "ridge": ridge, "seed": seed,
        "training_sequences": len(sample.train.tokens), "heldout_sequences": len(sample.held.tokens),
    })  # fmt: skip


def _builtin(text: Text, model: LanguageModel, length: int, contexts: int, least: int, seed: int) -> Sample:
    """The built-in tasks on Python sources."""
    train, held = (
        python_tokens(text.as_split(split), model.tokenizer, length, contexts, seed=seed)
        for split in ("train", "heldout")
    )
    notes = [
        f"The {split} split holds {len(part.tokens)} contexts of Python, {contexts} were asked for."
        for split, part in (("training", train), ("held-out", held))
        if len(part.tokens) < contexts
    ]
    return _enough(train, held, least, notes, text.name)


def _own(train: Labelled, held: Labelled, notes: list[str], table: str, least: int) -> Sample:
    """The tasks of a table; each must be answerable, for the user asked for it by name.

    Raises:
        DictlabError: A task has one class only, in one of the splits.
    """
    for name, here, there in zip(train.tasks, train.labels.T, held.labels.T, strict=True):
        for split, flags in (("fit on", here), ("measure on", there)):
            if not flags.any() or flags.all():
                raise DictlabError(
                    f"table {table}: task {name!r} is {'true' if flags.any() else 'false'} in all {len(flags)} "
                    f"examples to {split}; a probe needs both classes. Give more rows, or leave the task out."
                )
    return _enough(train, held, least, notes, table)


def _enough(train: Labelled, held: Labelled, least: int, notes: list[str], name: str) -> Sample:
    """Without the tasks that are too seldom true or too seldom not.

    Raises:
        DictlabError: None is left.
    """
    counts = torch.stack([torch.minimum(p.labels.sum(0), (~p.labels).sum(0)) for p in (train, held)])
    kept = (counts >= least).all(dim=0)
    reasons = {
        task: f"{int(a)} and {int(b)} examples of the rarer kind to fit and to measure on"
        for task, a, b, ok in zip(train.tasks, *counts, kept, strict=True)
        if not ok
    }
    if not kept.any():
        raise DictlabError(
            f"{name}: no task has {least} examples of either kind in both splits. Give more text, or lower --examples."
        )
    return Sample(train.some(kept), held.some(kept), reasons, notes)


def _measured(
    dictionaries: Sequence[Dictionary],
    model: LanguageModel,
    sites: Sequence[str],
    sample: Sample,
    ridge: float,
    seed: int,
) -> list[Probed]:
    """Every dictionary in the order given, and behind them what each site offers without one.

    Interrupted by Ctrl-C, it returns the dictionaries that are complete, if there are any, and what is beside them.
    """
    of: dict[str, Probed] = {}
    beside: list[Probed] = []
    try:
        for site in sites:
            train, held = captured(model, site, sample.train), captured(model, site, sample.held)
            beside += of_coordinates(site, train, held, ridge=ridge, seed=seed)
            for dictionary in in_model([d for d in dictionaries if site_of(d) == site], model):
                of[dictionary.name] = of_dictionary(dictionary, site, train, held, ridge=ridge, seed=seed)
    except KeyboardInterrupt:
        if not of:
            raise
    return [*(of[dictionary.name] for dictionary in dictionaries if dictionary.name in of), *beside]


def _report(
    measured: Sequence[Probed], sample: Sample, opened: Sequence[Dictionary], min_f1: float, settings: dict[str, Any]
) -> Report:
    held = sample.held
    n = f"n = {len(held.labels)} held-out {'texts' if held.pooled else 'tokens'} of {len(held.tokens)} sequences"
    overview = tables.overview(measured, min_f1)
    made = {
        "overview": Table(
            overview,
            f"{len(held.tasks)} tasks, {n}; {INTERVAL}. probe loss: cross-entropy (nats) of the best feature of each "
            "task, mean over tasks; of the label's entropy: the share of it that is left, mean over tasks; has: tasks "
            f"with an F1 of {min_f1:g} or more.",
        ),
        "tasks": Table(
            tables.tasks(measured, held.tasks, min_f1),
            f"The best feature of each task; {n}; {INTERVAL}. direction: whether the task is true where the latent is "
            "active, or silent. F1, precision and recall at the threshold with the best F1 on the training split.",
        ),
        "who": Table(
            tables.who(measured, held.tasks, min_f1), f"Which dictionaries have a task: F1 {min_f1:g} or more."
        ),
    }
    if sample.left_out:
        frame = tables.left_out(sample.left_out)
        made["left_out"] = Table(frame, f"Tasks with fewer than {settings['examples']} examples of the rarer kind.")
    drawn = {
        "probe_loss": Plot(plots.losses(overview), f"{len(held.tasks)} tasks, {n}; bars: {INTERVAL}."),
        "tasks": Plot(plots.grid(measured, held.tasks), f"F1 of the best feature of each task on held-out text, {n}."),
    }
    if len({d.n_latents for d in opened}) > 1 and len(opened) > 2:
        drawn["width"] = Plot(plots.widths(overview), f"{len(held.tasks)} tasks, {n}; bars: {INTERVAL}.")
    warnings = list(sample.notes)
    if len(held.tokens) < 8:
        warnings.append(f"Intervals over {len(held.tokens)} sequences are rough.")
    return Report(
        title="Which known features does each dictionary have a latent for?",
        summary=_summary(measured, overview, len(held.tasks), min_f1),
        tables=made,
        plots=drawn,
        settings=settings | {"tasks": len(held.tasks)},
        inputs=tuple(opened),
        warnings=(*warnings, *all_tokens_warning(opened)),
    )


def _summary(measured: Sequence[Probed], overview: Any, tasks: int, min_f1: float) -> str:
    frame = overview.set_index("features")
    own = frame[frame["kind"] == "dictionary"]
    best = own["probe loss"].idxmin()
    row = frame.loc[best]
    said = [
        f"{best}: probe loss {row['probe loss']:.4f} [{row['probe loss low']:.4f}, {row['probe loss high']:.4f}] nats "
        f"over {tasks} tasks, {row['of entropy']:.2f} of the labels' entropy; it has {row['has']:.0f} tasks at an F1 "
        f"of {min_f1:g} or more."
    ]
    if len(own) > 1:
        worst = own["probe loss"].idxmax()
        said[0] = "Smallest: " + said[0]
        said.append(f"Largest: {own.loc[worst, 'probe loss']:.4f} ({worst}).")
    site = measured[0].site
    beside = {p.name: frame.loc[tables.label(p, measured)] for p in measured if p.dictionary is None and p.site == site}
    said.append(
        f"Single channels of the activation: {beside[CHANNELS]['probe loss']:.4f}; "
        f"a probe on all of it: {beside[ALL]['probe loss']:.4f}."
    )
    return " ".join(said)
