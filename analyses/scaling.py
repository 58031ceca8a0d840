"""How does a dictionary's loss fall with its width, its active latents and the compute of its training?

Gao et al. 2024: fits of L(N), L(N, K) and L(C), each with and without an irreducible term, for the normalised MSE and
for the CE increase; what the fits predict of the largest runs; dead latents against width and tokens.

    normalised MSE = sum |x - x_hat|^2 / sum |x - mu|^2,   mu the mean activation of the sample it was measured on
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analyses import scaling_plots as plots
from analyses import scaling_tables as tables
from analyses.inputs import DictionaryLike, ModelLike, TextLike, context_of, in_model, open_model, open_text
from analyses.scaling_runs import LOSSES, dead_over_time, opened_runs, runs_table
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluate import evaluate
from dictlab.report import Plot, Report, Table

LEAST = 3  # settings that the simplest law needs
ENOUGH = (
    f"Give dictionaries of one objective and activation function, and one k, at {LEAST} widths or more; ReLU with a "
    "penalty has no k."
)


def scaling(
    dictionaries: Sequence[DictionaryLike],
    *,
    measure: bool = False,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    contexts: int = 64,
    seed: int = 0,
    device: str = "cpu",
) -> Report:
    """How does the loss fall with width, active latents and compute?

    Args:
        dictionaries: Dictionaries, or folders of training runs, that differ in width, k or tokens.
        measure: Measure their losses anew; by default those in their files count.
        model: For `measure`: the language model; by default the one that the dictionaries name.
        text: For `measure`: where tokens come from; its held-out split is used.
        contexts: For `measure`: held-out sequences.
        seed: Of the bootstrap, and of the sample for `measure`.
        device: For `measure`: cpu, cuda, ...

    Example:
        dictlab report scaling runs/grid
        dictlab report scaling checkpoints/local-topk16-*.safetensors --measure
    """
    check_at_least(0, seed=seed)
    opened, folders = opened_runs(dictionaries)
    if len(opened) < LEAST:
        raise DictlabError(f"too few runs for a fit: {len(opened)} given. {ENOUGH}")
    measured, partial = None, []
    settings: dict[str, Any] = {"measure": measure, "seed": seed}
    if measure:
        lm, source = open_model(model, opened, device), open_text(text).as_split("heldout")
        context = context_of(opened, lm)
        placed = in_model(opened, lm)
        measured = evaluate(placed, lm, source, contexts=contexts, context=context, seed=seed, partial=True)
        if measured[0].n_sequences < measured[0].asked:
            partial = [f"PARTIAL: interrupted after {measured[0].n_sequences} of {measured[0].asked} sequences."]
        settings |= {"text": source.name, "model": lm.name, "context": context} | measured[0].sample
    runs, notes = runs_table(opened, measured)
    fits, predictions, why = tables.fitted(runs, seed)
    if fits.empty:
        reasons = "; ".join(f"{row['law']}: {row['why']}" for row in why.to_dict("records")[:3])
        raise DictlabError(f"too few runs for a fit: {len(runs)} given ({reasons}). {ENOUGH}")
    return _report(runs, fits, predictions, why, dead_over_time(folders), [*notes, *partial], settings, opened)


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
        "laws": Plot(plots.laws(runs, fits, LOSSES[0]), lines),
        "laws_ce": Plot(plots.laws(runs, fits, LOSSES[1]), lines),
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
        settings=settings | {"losses": list(LOSSES)},
        inputs=tuple(opened),
        warnings=tuple(notes),
    )
