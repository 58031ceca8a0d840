"""How does a dictionary's loss fall with its width, its active latents and the compute of its training?

Gao et al. 2024: fits of L(N), L(N, K) and L(C), each with and without an irreducible term, for the normalised MSE and
for the CE increase; what the fits predict of the largest runs; dead latents against width and tokens.

    normalised MSE = sum |x - x_hat|^2 / sum |x - mu|^2,   mu the mean activation of the sample it was measured on
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analyses.common.inputs import DataLike, open_activations
from analyses.common.opening import DictionaryLike, ModelLike, TextLike
from analyses.quality.scaling.fits import fit_laws
from analyses.quality.scaling.report import scaling_report
from analyses.quality.scaling.runs import LOSSES, ScalingRun, dead_over_time, opened_runs, scaling_runs
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.reconstruction import evaluate_activations
from dictlab.evaluation.recorded_selection import with_selection
from dictlab.reports.report import Report

LEAST = 3  # settings that the simplest law needs
ENOUGH = (
    f"Give dictionaries of one objective and activation function, and one k, at {LEAST} widths or more; ReLU with a "
    "penalty has no k."
)


def scaling(
    dictionaries: Sequence[DictionaryLike],
    *,
    remeasure: bool = False,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    data: DataLike | None = None,
    contexts: int = 64,
    seed: int = 0,
    device: str = "cpu",
    token_selection: str | None = None,
) -> Report:
    """How does the loss fall with width, active latents and compute?

    Args:
        dictionaries: Dictionaries, or folders of training runs, that differ in width, k or tokens.
        remeasure: Measure their losses anew; by default those in their files count, and no model is opened.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from. Its held-out split is used.
        data: Activations in place of model and text: an array, or a .npy or .safetensors file. No CE.
        contexts: Held-out sequences to measure on.
        seed: Seed of everything that is drawn at random.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.

    Returns:
        A report with these tables; in brackets what is there only where there is such a thing.

        fits: runs of; loss; law; runs; AIC; error; a; a low; a high; alpha; alpha low; alpha high; z; z low; z high;
            irreducible loss; irreducible loss low; irreducible loss high; b_k; b_k low; b_k high; b_n; b_n low; b_n
            high; g; g low; g high; h; h low; h high; ΔAIC
        predictions: runs of; loss; law; dictionary; measured; predicted; ratio
        runs: dictionary; family; width; k; L0; tokens; FLOPs; normalised MSE; CE increase; dead; seed; normalised MSE
            low; normalised MSE high; CE increase low; CE increase high
        [not_fitted]: runs of; loss; law; why

    Example:
        dictlab report scaling runs/grid
        dictlab report scaling checkpoints/local-topk16-*.safetensors --remeasure
    """
    check_at_least(0, seed=seed)
    opened, folders = opened_runs(dictionaries)
    opened = with_selection(opened, token_selection)
    if len(opened) < LEAST:
        raise DictlabError(f"too few runs for a fit: {len(opened)} given. {ENOUGH}")
    if data is not None and not remeasure:
        raise DictlabError("data is what losses are measured on anew; give `remeasure=True` with it, or leave it out.")
    measured, cautions = None, tuple[str, ...]()
    settings: dict[str, Any] = {"remeasure": remeasure, "seed": seed}
    if remeasure:
        reading = open_activations(opened, model=model, text=text, data=data, device=device)
        source = reading.part("heldout")
        measured = evaluate_activations(reading.dictionaries, source, contexts=contexts, seed=seed)
        cautions = (*dict.fromkeys(caution for one in measured for caution in one.cautions), *reading.cautions)
        settings |= source.record() | measured[0].sample
    runs, warnings = scaling_runs(opened, measured)
    _check_losses(runs, cautions)
    fits = fit_laws(runs, seed)
    if not fits.fitted:
        reasons = "; ".join(f"{one.law}: {one.why}" for one in fits.not_fitted[:3])
        raise DictlabError(f"too few runs for a fit: {len(runs)} given ({reasons}). {ENOUGH}")
    return scaling_report(runs, fits, dead_over_time(folders), settings, (*warnings, *cautions))


def _check_losses(runs: Sequence[ScalingRun], cautions: Sequence[str]) -> None:
    """A law is of ln L: some loss must be above 0.

    Raises:
        DictlabError: No run has one.
    """
    if not any(estimate.value > 0 for run in runs for estimate in run.losses.values()):
        because = f" {cautions[0]}" if cautions else ""
        raise DictlabError(
            f"no loss of these {len(runs)} runs is known and above 0, as a law of its logarithm needs: the {LOSSES[0]} "
            f"of {runs[0].name} is {runs[0].losses[LOSSES[0]].words('.3g')}.{because}"
        )
