"""Are activations too small, and what if the number of active latents is changed after training?

Gao et al. 2024. Refinement (activation shrinkage): with the support and the decoder as they are, the activations are
solved for under positivity; if they come out larger, training shrank them. Progressive recovery: after training the
activation function is replaced by TopK(k') or by one threshold, and L0 moved along; k' = k is where it was trained.

    normalised MSE = sum |x - x_hat|^2 / sum |x - mu|^2,   mu the mean activation of the held-out sample
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.common.compatibility import check_same_place
from analyses.common.inputs import DataLike, ModelInputs, open_activations, open_inputs
from analyses.common.opening import DictionaryLike, ModelLike, TextLike, open_dictionaries
from analyses.common.patching import CleanRun, check_some_count, clean_runs
from analyses.quality.shrinkage.measurement import measure_rules, rules_of
from analyses.quality.shrinkage.report import shrinkage_report
from dictlab.data.activations import moments, unit_of
from dictlab.dictionary import Dictionary
from dictlab.errors import check_at_least
from dictlab.evaluation.evaluate import BATCH_TOKENS
from dictlab.evaluation.sites import site_of
from dictlab.reports.report import Report
from dictlab.runtime.interruption import Completion
from dictlab.token_selection import TokenSelection

LEVELS = tuple(2**i for i in range(9))  # values of k'


class ShrinkageData(NamedTuple):
    """What dictionaries are measured on.

    Attributes:
        given: The dictionaries.
        dictionaries: As they read these activations.
        keys: Which activations each of them reads: its site, or of an array the empty word.
        threshold_data: Activations that thresholds are chosen on, by key.
        batches: What is measured on, a few sequences at a time, by key; clean runs where there is a model.
        means: The mean of these, by key.
        sequences: How many there are.
        selection: Tokens that count.
        record: What settings say of it.
        units: What sequences, and tokens, are called.
        thresholds_from: What thresholds are chosen on, in words.
        warnings: What a report must say of it.
    """

    given: Sequence[Dictionary]
    dictionaries: Sequence[Dictionary]
    keys: Sequence[str]
    threshold_data: Mapping[str, Float[Tensor, "tokens d_in"]]
    batches: Iterable[Mapping[str, CleanRun | Tensor]]
    means: Mapping[str, Float[Tensor, " d_in"]]
    sequences: int
    selection: TokenSelection
    record: dict[str, Any]
    units: tuple[str, str]
    thresholds_from: str
    warnings: tuple[str, ...]


def shrinkage(
    dictionaries: Sequence[DictionaryLike],
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    data: DataLike | None = None,
    contexts: int = 64,
    l0_levels: tuple[int, ...] = LEVELS,
    seed: int = 0,
    device: str = "cpu",
    token_selection: str | None = None,
) -> Report:
    """Are activations too small, and what do other numbers of active latents give after training?

    Args:
        dictionaries: One or more, at one site or at several.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from. Its held-out split to measure on, its training split for thresholds.
        data: Activations in place of model and text: an array, or a .npy or .safetensors file. No CE.
        contexts: Held-out sequences to measure on.
        l0_levels: Active latents a token to try after training, by the largest k and by a threshold.
        seed: Seed of everything that is drawn at random.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.

    Returns:
        A report with these tables; in brackets what is there only where there is such a thing.

        overview: dictionary; L0; size; size low; size high; grown; silenced; normalised MSE; normalised MSE refined;
            normalised MSE change; normalised MSE change low; normalised MSE change high; [CE increase]; [CE increase
            refined]; [CE increase change]; [CE increase change low]; [CE increase change high]
        recovery: dictionary; rule; setting; L0; normalised MSE; normalised MSE low; normalised MSE high; [CE increase];
            [CE increase low]; [CE increase high]; trained

    Example:
        dictlab report shrinkage relu.safetensors topk.safetensors --contexts 64 --l0-levels 4 --l0-levels 16
        dictlab report shrinkage relu.safetensors topk.safetensors --data activations.npy
    """
    check_at_least(0, seed=seed)
    check_at_least(1, l0_levels=min(l0_levels, default=None))
    check_at_least(2, contexts=contexts)
    if data is None:
        inputs = open_inputs(
            dictionaries,
            analysis="shrinkage",
            model=model,
            text=text,
            device=device,
            resumable=True,
            token_selection=token_selection,
        )
        measured_on = _from_model(inputs, contexts, seed)
    else:
        given = open_dictionaries(dictionaries, analysis="shrinkage", token_selection=token_selection)
        measured_on = _from_array(given, model, data, contexts, seed, device)
    wanted = sorted(set(l0_levels))
    rules = [
        rules_of(dictionary, measured_on.threshold_data[key], wanted)
        for dictionary, key in zip(measured_on.dictionaries, measured_on.keys, strict=True)
    ]
    completion = Completion(measured_on.sequences)
    measured = measure_rules(
        rules,
        measured_on.keys,
        measured_on.batches,
        measured_on.means,
        completion,
        selection=measured_on.selection,
        seed=seed,
    )
    tokens, (unit, counted) = int(measured[0].sums["tokens"].sum()), measured_on.units
    settings = measured_on.record | {"contexts": completion.done, "tokens": tokens}
    return shrinkage_report(
        measured,
        measured_on.given,
        f"{completion.done} {unit} ({tokens} {counted}, token selection {measured_on.selection})",
        measured_on.thresholds_from,
        settings | {"l0_levels": list(l0_levels), "seed": seed},
        (*completion.warnings, *measured_on.warnings),
    )


def _from_model(inputs: ModelInputs, contexts: int, seed: int) -> ShrinkageData:
    """Activations, and clean runs, of the model on held-out text; thresholds are chosen on training text."""
    model, sites, selection = inputs.model, inputs.sites, inputs.selection
    sample = inputs.sample(contexts, seed=seed)
    elsewhere = inputs.sample(max(1, BATCH_TOKENS // inputs.context), "train", seed=seed).tokens
    batches = sample.tokens.split(max(1, BATCH_TOKENS // inputs.context))

    def counted(site: str, tokens: Int[Tensor, "batch context"]) -> Float[Tensor, "counted d_in"]:
        x = model.capture(tokens, site)[site]
        return x[selection.mask([x], tokens, model.tokenizer)].float()

    def mean(site: str) -> Float[Tensor, " d_in"]:
        try:
            return moments(counted(site, tokens) for tokens in batches).mean
        except ValueError:
            check_some_count(0, selection)
            raise

    return ShrinkageData(
        inputs.dictionaries,
        inputs.adapted,
        [site_of(dictionary) for dictionary in inputs.adapted],
        {site: counted(site, elsewhere) for site in sites},
        (clean_runs(model, tokens, sites, selection) for tokens in batches),
        {site: mean(site) for site in sites},
        len(sample.tokens),
        selection,
        inputs.record(),
        ("held-out sequences", "tokens"),
        "training text",
        (*sample.warnings, *inputs.warnings),
    )


def _from_array(
    given: Sequence[Dictionary], model: ModelLike | None, data: DataLike, contexts: int, seed: int, device: str
) -> ShrinkageData:
    """Rows of an array, its held-out part where a dictionary was trained on it."""
    check_same_place(given)
    reading = open_activations(given, model=model, data=data, device=device)
    train, held = reading.part("train"), reading.part("heldout")
    rows = contexts * held.context
    return ShrinkageData(
        given,
        reading.dictionaries,
        [""] * len(given),
        {"": torch.cat([x.flatten(0, 1) for x in train.sample(BATCH_TOKENS, seed=seed)])},
        ({"": x} for x in held.sample(rows, seed=seed)),
        {"": moments(held.sample(rows, seed=seed)).mean},
        sum(len(x) for x in held.sample(rows, seed=seed)),
        held.selection,
        held.record(),
        (unit_of(held), held.counted),
        "training rows" if train.split == "train" else "rows of the same array",
        reading.cautions,
    )
