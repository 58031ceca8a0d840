"""Which known features does a dictionary have a latent for?

Probe loss (Gao et al. 2024): for each binary task the latent whose one-dimensional logistic probe has the least
cross-entropy, averaged over tasks:

    mean over tasks of   min over i, w, b of   E[ -y log sigmoid(w z_i + b) - (1 - y) log(1 - sigmoid(w z_i + b)) ]

Latent and probe come from the training split, the cross-entropy from the held-out split. The built-in tasks are known
exactly of every character of a Python source; a table of the user's brings others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from analyses.common.inputs import ModelInputs, open_inputs
from analyses.common.opening import DictionaryLike, ModelLike, TextLike, in_model
from analyses.common.patching import selected_mask
from analyses.features.probes.report import probes_report
from analyses.features.probes.single_latent_probes import Probed, captured, of_coordinates, of_dictionary
from analyses.features.probes.token_labels import LabelledTokens, ProbeSample, python_tokens
from analyses.features.probes.user_labels import Pooling, table_tokens
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.sites import site_of
from dictlab.reports.report import Report
from dictlab.runtime.interruption import Completion


def probes(
    dictionaries: Sequence[DictionaryLike],
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    contexts: int = 64,
    table: str | None = None,
    column: str = "text",
    labels: tuple[str, ...] = ("label",),
    pooling: Pooling = "mean",
    max_rows: int = 4096,
    min_examples: int = 20,
    min_f1: float = 0.7,
    inverse_ridge: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
    token_selection: str | None = None,
) -> Report:
    """Which known features does each dictionary have a latent for?

    For each task the best latent alone, chosen on the training split and measured on the held-out split; beside it the
    best channel and principal component of the activation, and a probe on all of it.

    Args:
        dictionaries: One or more, at one site or at several.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from. Python sources, for the built-in tasks.
        contexts: Held-out sequences to measure on. As many of the training split to fit on; for the built-in tasks.
        table: Tasks of your own in place of the built-in ones: a CSV, Parquet or JSON file, or a data set.
        column: The table's column of texts.
        labels: The table's columns of labels.
        pooling: What stands for a text that has one label: the mean over its tokens, or its last token.
        max_rows: Rows of the table to use at most.
        min_examples: Examples of either kind that a task must have in each split.
        min_f1: F1 from which on a dictionary has a latent for a task.
        inverse_ridge: Inverse weight of the ridge on standardised coefficients, the C of scikit-learn.
        seed: Seed of everything that is drawn at random.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.

    Returns:
        A report with these tables; in brackets what is there only where there is such a thing.

        overview: features; kind; probe loss; probe loss low; probe loss high; of entropy; of entropy low; of entropy
            high; F1; F1 low; F1 high; has; width; objective; activation; site
        tasks: task; features; latent; direction; F1; F1 low; F1 high; precision; recall; share true; CE; CE low; CE
            high; of entropy; has; coordinate
        who: task; share true; dictionaries that have it; best; latent; F1; which
        [left_out]: task; why

    Example:
        dictlab report probes a.safetensors b.safetensors --contexts 256
        dictlab report probes a.safetensors --table reviews.csv --column review --labels positive
    """
    check_at_least(0, seed=seed, min_f1=min_f1)
    check_at_least(1, min_examples=min_examples, max_rows=max_rows)
    check_at_least(2, contexts=contexts)
    if not inverse_ridge > 0:
        raise DictlabError(f"inverse_ridge is {inverse_ridge}; expected a number above 0.")
    inputs = open_inputs(
        dictionaries, analysis="probes", model=model, text=text, device=device, token_selection=token_selection
    )
    if table is None:
        train, held, notes = _python(inputs, contexts, seed)
    else:
        train, held, notes = table_tokens(table, column, labels, inputs.model, pool=pooling, limit=max_rows, seed=seed)
    name = table or inputs.text.name
    of_both = len(train.tokens) + len(held.tokens)
    train, held = _counting(train, inputs), _counting(held, inputs)
    if lost := of_both - len(train.tokens) - len(held.tokens):
        notes.append(f"{lost} texts have no token that counts, and were left out.")
    if table is not None:
        _check_two_classes(train, held, table)
    sample = _enough(train, held, min_examples, notes, name)
    measured, completion = _probed(inputs, sample, inverse_ridge, seed)
    complete = {one.name for one in measured if one.dictionary}
    settings = inputs.record() | {
        "text": name, "context": sample.held.tokens.shape[1], "pooling": pooling if table else None,
        "min_examples": min_examples, "min_f1": min_f1, "inverse_ridge": inverse_ridge, "seed": seed,
        "training_sequences": len(sample.train.tokens), "heldout_sequences": len(sample.held.tokens),
    }  # fmt: skip
    warnings = (*completion.warnings, *inputs.warnings)
    return probes_report(
        measured, sample, [d for d in inputs.dictionaries if d.name in complete], min_f1, settings, warnings
    )


def _python(inputs: ModelInputs, contexts: int, seed: int) -> tuple[LabelledTokens, LabelledTokens, list[str]]:
    """The built-in tasks on Python sources, to fit on and to measure on; and what the user should know."""
    text, tokenizer = inputs.text, inputs.model.tokenizer
    train = python_tokens(text.as_split("train"), tokenizer, inputs.context, contexts, seed=seed)
    held = python_tokens(text.as_split("heldout"), tokenizer, inputs.context, contexts, seed=seed)
    notes = [
        f"The {split} split holds {len(part.tokens)} contexts of Python, {contexts} were asked for."
        for split, part in (("training", train), ("held-out", held))
        if len(part.tokens) < contexts
    ]
    return train, held, notes


def _counting(labelled: LabelledTokens, inputs: ModelInputs) -> LabelledTokens:
    """The labelled tokens that count, at all sites alike. What fills a text up has no part in a median norm."""
    counted = torch.zeros_like(labelled.known)
    width = labelled.tokens.shape[1]
    lengths = torch.full((len(counted),), width) if labelled.lengths is None else labelled.lengths
    for length in lengths.unique().tolist():
        rows = lengths == length
        counted[rows, :length] = selected_mask(
            inputs.model, labelled.tokens[rows, :length], inputs.sites, inputs.selection
        )
    return labelled.counting(counted)


def _check_two_classes(train: LabelledTokens, held: LabelledTokens, table: str) -> None:
    """The tasks of a table must be answerable, for the user asked for them by name.

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


def _enough(train: LabelledTokens, held: LabelledTokens, least: int, notes: list[str], name: str) -> ProbeSample:
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
            f"{name}: no task has {least} examples of either kind in both splits. Give more text, or lower "
            "`min_examples=...`."
        )
    return ProbeSample(train.some(kept), held.some(kept), reasons, notes)


def _probed(inputs: ModelInputs, sample: ProbeSample, ridge: float, seed: int) -> tuple[list[Probed], Completion]:
    """Every dictionary in the order given, and behind them what each site offers without one.

    Interrupted by Ctrl-C, it returns the dictionaries that are complete, if there are any, and what is beside them.
    """
    of: dict[str, Probed] = {}
    beside: list[Probed] = []
    with Completion(len(inputs.dictionaries), "dictionaries", least=1) as completion:
        for site in inputs.sites:
            train, held = (captured(inputs.model, site, part) for part in (sample.train, sample.held))
            beside += of_coordinates(site, train, held, ridge=ridge, seed=seed)
            for dictionary in in_model([d for d in inputs.dictionaries if site_of(d) == site], inputs.model):
                of[dictionary.name] = of_dictionary(dictionary, site, train, held, ridge=ridge, seed=seed)
                completion.add()
    return [*(of[dictionary.name] for dictionary in inputs.dictionaries if dictionary.name in of), *beside], completion
