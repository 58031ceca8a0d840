"""How far from the original does the model run, from a dictionary's site to the last block?

What is measured is defined in `downstream_measurement.py` and `principal_directions.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from analyses.common.inputs import (
    DictionaryLike,
    ModelLike,
    TextLike,
    check_same_place,
    context_of,
    in_model,
    open_dictionaries,
    open_model,
    open_text,
)
from analyses.model_effects.downstream_measurement import measure
from analyses.model_effects.downstream_report import downstream_report
from dictlab.errors import check_at_least
from dictlab.evaluation.evaluate import site_of
from dictlab.evaluation.recorded_selection import all_tokens_warning
from dictlab.interruption import partial_warnings
from dictlab.reports.report import Report


def downstream(
    dictionaries: Sequence[DictionaryLike],
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    contexts: int = 32,
    directions: bool = True,
    seed: int = 0,
    device: str = "cpu",
) -> Report:
    """How far does the model run from the original, block by block, with each dictionary's reconstruction spliced in?

    Args:
        dictionaries: One or more at the same site. Differences are those of the others from the first.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from; its held-out split is used.
        contexts: Held-out sequences to measure on.
        directions: Also ask which principal directions are not reconstructed, and what that costs the model.
        seed: Of the sample of text, the exchange of components and the bootstrap.
        device: Where to run: cpu, cuda, ...

    Example:
        dictlab report downstream local.safetensors e2e.safetensors --contexts 64
    """
    check_at_least(0, seed=seed)
    check_at_least(1, contexts=contexts)
    opened = open_dictionaries(dictionaries)
    check_same_place(opened, model)
    site = site_of(opened[0])
    model, text = open_model(model, opened, device), open_text(text).as_split("heldout")
    context = context_of(opened, model, text)
    sampled = text.sample(model.tokenizer, context, contexts, seed=seed)
    measurement = measure(in_model(opened, model), model, sampled, directions=directions, seed=seed)
    settings = {
        "text": text.name, "model": model.name, "site": site, "context": context,
        "contexts": measurement.n_sequences, "directions": directions, "seed": seed,
    }  # fmt: skip
    warnings = (*partial_warnings(measurement.n_sequences, len(sampled)), *all_tokens_warning(opened))
    return downstream_report(measurement, opened, settings, warnings)
