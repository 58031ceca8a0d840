"""How far from the original does the model run, from a dictionary's site to the last block?

What is measured is defined in `stream_comparison.py` and `principal_directions.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from analyses.common.inputs import DictionaryLike, ModelLike, TextLike, open_inputs
from analyses.model_effects.downstream_measurement import measure
from analyses.model_effects.downstream_report import downstream_report
from dictlab.errors import check_at_least
from dictlab.reports.report import Report


def downstream(
    dictionaries: Sequence[DictionaryLike],
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    contexts: int = 64,
    principal_directions: bool = True,
    seed: int = 0,
    device: str = "cpu",
    token_selection: str | None = None,
) -> Report:
    """How far does the model run from the original, block by block, with each dictionary's reconstruction spliced in?

    Args:
        dictionaries: One or more at the same site. Differences are those of the others from the first.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from. Its held-out split is used.
        contexts: Held-out sequences to measure on.
        principal_directions: Also ask which principal directions are not reconstructed, and what that costs the model.
        seed: Seed of everything that is drawn at random.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.

    Example:
        dictlab report downstream local.safetensors e2e.safetensors --contexts 64
    """
    check_at_least(0, seed=seed)
    check_at_least(1, contexts=contexts)
    inputs = open_inputs(
        dictionaries, model=model, text=text, device=device, same_place=True, token_selection=token_selection
    )
    sample = inputs.sample(contexts, seed=seed)
    measurement = measure(
        inputs.adapted,
        inputs.model,
        sample.tokens,
        selection=inputs.selection,
        directions=principal_directions,
        seed=seed,
    )
    settings = inputs.record() | {
        "site": inputs.sites[0], "contexts": measurement.n_sequences,
        "principal_directions": principal_directions, "seed": seed,
    }  # fmt: skip
    warnings = (*measurement.warnings, *sample.warnings, *inputs.warnings)
    return downstream_report(measurement, inputs.dictionaries, settings, warnings)
