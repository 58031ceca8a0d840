"""What training runs say of themselves: width, active latents, tokens, compute, losses, dead latents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analyses.common.inputs import DictionaryLike, open_dictionaries
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.evaluation.metrics import Evaluation
from dictlab.flops import training_flops

LOSSES = ("normalised MSE", "CE increase")
METRICS = dict(zip(LOSSES, ("explained_variance", "ce_increase"), strict=True))  # what they follow from
LOG = "metrics.jsonl"


def opened_runs(given: Sequence[DictionaryLike]) -> tuple[list[Dictionary], list[Path]]:
    """Every dictionary given, those in the folders of runs among them; and these folders.

    Raises:
        DictlabError: A run's folder holds no dictionary.
    """
    files: list[DictionaryLike] = []
    folders: list[Path] = []
    for one in given:
        folder = Path(one) if isinstance(one, str | Path) else None
        if folder is None or not (folder / LOG).is_file():
            files.append(one)
            continue
        own = sorted(folder.glob("*.safetensors"))
        if not own:
            raise DictlabError(f"{folder}: this run holds no dictionaries; was it interrupted before its end?")
        folders.append(folder)
        files += own
    return open_dictionaries(files), folders


def runs_table(opened: Sequence[Dictionary], measured: Sequence[Evaluation] | None) -> tuple[pd.DataFrame, list[str]]:
    """One row a run; and what the user should know. Where no run was measured in a model there is no CE increase.

    Raises:
        DictlabError: The losses of a dictionary are not in its file, and were not measured.
    """
    rows, samples, costless = [], set(), []
    known = [d.metadata.metrics for d in opened] if measured is None else [one.record() for one in measured]
    losses = [loss for loss, key in METRICS.items() if loss == LOSSES[0] or any(key in one for one in known)]
    for dictionary, metrics in zip(opened, known, strict=True):
        about = dictionary.metadata
        missing = next((name for name in (*map(METRICS.get, losses), "l0") if name not in metrics), None)
        if missing is not None:
            raise DictlabError(f"{dictionary.name}: its file holds no {missing}. Give --remeasure to measure it now.")
        samples.add(metrics.get("evaluation_sample"))
        k = getattr(dictionary.activation, "k", None)
        flops = _flops(dictionary, float(metrics["l0"]))
        if flops is None:
            costless.append(dictionary.name)
        row: dict[str, Any] = {
            "dictionary": dictionary.name,
            "family": f"{about.objective or 'unknown'} {dictionary.activation.kind}",
            "width": dictionary.n_latents,
            "k": k,
            "L0": metrics["l0"],
            "tokens": about.tokens,
            "FLOPs": flops,
            **{loss: _loss(loss, metrics[METRICS[loss]]) for loss in losses},
            "dead": None if dictionary.firing_rate is None else float((dictionary.firing_rate == 0).float().mean()),
            "seed": about.seed,
        }
        for loss in losses:
            ends = metrics.get(f"{METRICS[loss]}_interval", (np.nan, np.nan))
            low, high = sorted(_loss(loss, float(end)) for end in ends)
            row |= {f"{loss} low": low, f"{loss} high": high}
        rows.append(row)
    frame = pd.DataFrame(rows)
    for name in ("k", "tokens", "seed"):
        frame[name] = frame[name].astype("Int64")
    frame["FLOPs"] = frame["FLOPs"].astype(float)
    frame["dead"] = frame["dead"].astype(float)
    notes = []
    if len(samples) > 1:
        notes.append(
            "The losses in the files were measured on different samples; give --remeasure to compare like with like."
        )
    if costless:
        notes.append(
            f"No FLOPs are known of {len(costless)} dictionaries ({costless[0]}, …): they are in no fit of L(C)."
        )
    return frame, notes


def losses_of(runs: pd.DataFrame) -> list[str]:
    """Those losses that a table of runs has."""
    return [loss for loss in LOSSES if loss in runs]


def _loss(loss: str, metric: float) -> float:
    return 1 - metric if loss == LOSSES[0] else metric


def _flops(dictionary: Dictionary, l0: float) -> float | None:
    """As the file says, or computed; None where the file does not say what that takes, or a model was in the loop."""
    about = dictionary.metadata
    if isinstance(recorded := about.training.get("flops"), int | float):
        return float(recorded)
    batch = about.training.get("batch")
    if about.tokens is None or not isinstance(batch, int) or about.objective != "local":
        return None
    active = getattr(dictionary.activation, "k", l0)
    return training_flops(dictionary.n_latents, dictionary.d_in, about.tokens, active, batch=batch)


def dead_over_time(folders: Sequence[Path]) -> pd.DataFrame:
    """The share of dead latents that the logs of runs tell, by member and tokens.

    Raises:
        DictlabError: A log is damaged.
    """
    rows = []
    for folder in folders:
        for number, line in enumerate((folder / LOG).read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = json.loads(line)
                rows.append((record["member"], record["tokens"], record.get("dead", np.nan)))
            except (ValueError, KeyError, TypeError) as error:
                raise DictlabError(f"{folder / LOG}: line {number} is damaged ({error}).") from error
    return pd.DataFrame(rows, columns=["member", "tokens", "dead"])
