"""How far from the original does the model run, from a dictionary's site to the last block?

What is measured is defined in `stream_comparison.py` and `principal_directions.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from analyses.common.inputs import open_inputs
from analyses.common.opening import DictionaryLike, ModelLike, TextLike
from analyses.model_effects.downstream.measurement import measure
from analyses.model_effects.downstream.report import downstream_report
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

    Returns:
        A report with these tables; in brackets what is there only where there is such a thing.

        overview: dictionary; explained variance, site; explained variance (layer norm), site; explained variance, end;
            explained variance (layer norm), end; norm ratio, site; KL; CE increase; explained variance, site low;
            explained variance, site high; explained variance (layer norm), site low; explained variance (layer norm),
            site high; explained variance, end low; explained variance, end high; explained variance (layer norm), end
            low; explained variance (layer norm), end high; norm ratio, site low; norm ratio, site high; KL low; KL
            high; CE increase low; CE increase high
        depth: dictionary; place; MSE; MSE low; MSE high; relative error; relative error low; relative error high;
            explained variance; explained variance low; explained variance high; explained variance (layer norm);
            explained variance (layer norm) low; explained variance (layer norm) high; cosine; cosine low; cosine high;
            norm ratio; norm ratio low; norm ratio high
        metrics: dictionary; place; metric; value; low; high; unit
        [differences]: dictionary; against; place; metric; difference; low; high; unit
        [groups]: dictionary; directions; share of variance; not reconstructed; not reconstructed low; not reconstructed
            high; share of error; share of error low; share of error high; KL, only this group wrong; KL, only this
            group wrong low; KL, only this group wrong high; KL, this group repaired; KL, this group repaired low; KL,
            this group repaired high; KL removed by the repair; KL removed by the repair low; KL removed by the repair
            high; KL, resampled; KL, resampled low; KL, resampled high
        [lost]: dictionary; direction; share of variance; not reconstructed; not reconstructed low; not reconstructed
            high; correlation; lost
        [directions]: dictionary; direction; share of variance; not reconstructed; not reconstructed low; not
            reconstructed high; correlation; lost

    Example:
        dictlab report downstream local.safetensors e2e.safetensors --contexts 64
    """
    check_at_least(0, seed=seed)
    check_at_least(1, contexts=contexts)
    inputs = open_inputs(
        dictionaries,
        analysis="downstream",
        model=model,
        text=text,
        device=device,
        same_place=True,
        token_selection=token_selection,
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
