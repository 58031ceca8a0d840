"""How does a dictionary's loss fall with its width, its active latents and the compute of its training?

Gao et al. 2024: fits of L(N), L(N, K) and L(C), each with and without an irreducible term, for the normalised MSE and
for the CE increase; what the fits predict of the largest runs; dead latents against width and tokens.

    normalised MSE = sum |x - x_hat|^2 / sum |x - mu|^2,   mu the mean activation of the sample it was measured on
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analyses.common.inputs import DataLike, DictionaryLike, ModelLike, TextLike, open_activations
from analyses.quality import scaling_plots as plots
from analyses.quality import scaling_tables as tables
from analyses.quality.scaling_runs import LOSSES, dead_over_time, losses_of, opened_runs, runs_table
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.reconstruction import evaluate_activations
from dictlab.evaluation.recorded_selection import with_selection
from dictlab.reports.report import Plot, Report, Table

LEAST = 3  # settings that the simplest law needs
ENOUGH = (
    f"Give dictionaries of one objective and activation function, and one k, at {LEAST} widths or more; ReLU with a "
    "penalty has no k."
)
LAWS = dict(zip(LOSSES, ("laws", "laws_ce"), strict=True))  # names of plots


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
        raise DictlabError("data is what losses are measured on anew; give --remeasure with it, or leave it out.")
    measured, cautions = None, tuple[str, ...]()
    settings: dict[str, Any] = {"remeasure": remeasure, "seed": seed}
    if remeasure:
        reading = open_activations(opened, model=model, text=text, data=data, device=device)
        source, cautions = reading.part("heldout"), reading.cautions
        measured = evaluate_activations(reading.dictionaries, source, contexts=contexts, seed=seed)
        settings |= source.record() | measured[0].sample
    runs, notes = runs_table(opened, measured)
    fits, predictions, why = tables.fitted(runs, seed)
    if fits.empty:
        reasons = "; ".join(f"{row['law']}: {row['why']}" for row in why.to_dict("records")[:3])
        raise DictlabError(f"too few runs for a fit: {len(runs)} given ({reasons}). {ENOUGH}")
    return _report(runs, fits, predictions, why, dead_over_time(folders), [*notes, *cautions], settings, opened)


def _drawable(runs: pd.DataFrame, loss: str) -> bool:
    """Whether some of a loss has a place on a logarithmic axis."""
    return loss in runs and bool((runs[loss] > 0).any())


def _report(
    runs: pd.DataFrame,
    fits: pd.DataFrame,
    predictions: pd.DataFrame,
    why: pd.DataFrame,
    dead: pd.DataFrame,
    notes: list[str],
    settings: dict[str, Any],
    opened: Sequence[Any],
) -> Report:
    on = "The normaliser of the normalised MSE is the error of predicting the mean activation of the sample."
    made = {
        "fits": Table(
            fits,
            f"{on} 95 % bootstrap intervals over runs. AIC: corrected for few runs, of one family and loss the smaller "
            "the better, and unknown where they are too few for the correction; ΔAIC: above the best law of the same "
            "variables; error: root mean square of ln L.",
        ),
        "predictions": Table(
            predictions,
            "The runs with the largest width (or compute), kept out of the fit; ratio: predicted / measured.",
        ),
        "runs": Table(
            runs,
            f"{on} FLOPs: of the dictionary's own training, computed from width, d_in, tokens and active latents "
            "(`dictlab.flops`). dead: share of latents that were never active.",
        ),
    }
    if not why.empty:
        made["not_fitted"] = Table(why, "Laws that these runs cannot tell, and why.")
    lines = "Points: runs. Lines: fits to runs of one k, beyond them as well; dashed with an irreducible term."
    drawn = {
        **{name: Plot(plots.laws(runs, fits, loss), lines) for loss, name in LAWS.items() if _drawable(runs, loss)},
        "dead": Plot(
            plots.dead(runs, dead), "Share of latents that were never active; over training where there are logs."
        ),
    }
    few = len(runs)
    if few < 12:
        notes.append(f"{few} runs: intervals over so few runs are rough, and an irreducible term can seldom be told.")
    return Report(
        title="How does the loss fall with width, active latents and compute?",
        summary=tables.summary(fits, predictions),
        tables=made,
        plots=drawn,
        settings=settings | {"losses": losses_of(runs)},
        inputs=tuple(opened),
        warnings=tuple(notes),
    )
