"""The tables of the probes: one row a set of features, one a task and set, one a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.features import single_latent_probes
from analyses.features.single_latent_probes import ALL, Probed
from dictlab.statistics import Formula, interval


def label(one: Probed, measured: Sequence[Probed]) -> str:
    """What a set of features is called: with its site where there are several."""
    several = len({other.site for other in measured}) > 1
    return f"{one.name} at {one.site}" if several and one.dictionary is None else one.name


def overview(measured: Sequence[Probed], min_f1: float) -> pd.DataFrame:
    """One row a set of features: means over the tasks."""
    rows = []
    for one in measured:
        d = one.dictionary
        row: dict[str, Any] = {
            "features": label(one, measured),
            "kind": "dictionary" if d else "all coordinates" if one.name == ALL else "single coordinates",
        }
        row |= _mean("probe loss", one, single_latent_probes.ce) | _mean(
            "of entropy", one, single_latent_probes.relative
        )
        row |= _mean("F1", one, single_latent_probes.f1)
        row["has"] = int((one.f1 >= min_f1).sum())
        row["width"] = d.n_latents if d else None
        row["objective"] = (d.metadata.objective or "unknown") if d else None
        row["activation"] = _activation(d) if d else None
        row["site"] = one.site
        rows.append(row)
    return pd.DataFrame(rows).astype({"width": "Int64"})


def tasks(measured: Sequence[Probed], names: Sequence[str], min_f1: float) -> pd.DataFrame:
    """One row a task and set of features."""
    frames = []
    for one in measured:
        totals = {key: values.sum(axis=0) for key, values in one.sums.sums.items()}
        frame = pd.DataFrame({"task": names, "features": label(one, measured)})
        frame["latent" if one.dictionary else "coordinate"] = one.columns
        frame["direction"] = [None if np.isnan(w) else "active" if w >= 0 else "silent" for w in one.weight]
        frame["share true"] = totals["true"] / totals["n"]
        for column, formula in (("CE", single_latent_probes.ce), ("F1", single_latent_probes.f1)):
            frame[column] = one.sums.value(formula)
            frame[f"{column} low"], frame[f"{column} high"] = one.sums.interval(formula)
        frame["of entropy"] = one.sums.value(single_latent_probes.relative)
        frame["precision"], frame["recall"] = (
            one.sums.value(single_latent_probes.precision),
            one.sums.value(single_latent_probes.recall),
        )
        frame["has"] = one.f1 >= min_f1
        frames.append(frame)
    merged = pd.concat(frames, ignore_index=True)
    merged = merged.astype({name: "Int64" for name in ("latent", "coordinate") if name in merged})
    if "coordinate" in merged:
        merged["coordinate"] = merged["coordinate"].where(merged["coordinate"] >= 0)
    front = ["task", "features", "latent", "direction", "F1", "F1 low", "F1 high", "precision", "recall"]
    rest = [name for name in merged.columns if name not in front]
    return merged[[*front, *rest]].sort_values("F1", ascending=False, ignore_index=True)


def who(measured: Sequence[Probed], names: Sequence[str], min_f1: float) -> pd.DataFrame:
    """One row a task: who has it, and who has it best."""
    own = [one for one in measured if one.dictionary is not None]
    scores = np.stack([one.f1 for one in own], axis=1)
    totals = own[0].sums.sums
    share = totals["true"].sum(axis=0) / totals["n"].sum()
    rows = []
    for i, name in enumerate(names):
        having = [one.name for one, score in zip(own, scores[i], strict=True) if score >= min_f1]
        best = int(scores[i].argmax())
        row = (
            name,
            share[i],
            len(having),
            own[best].name,
            int(own[best].columns[i]),
            scores[i, best],
            ", ".join(having),
        )
        rows.append(row)
    columns = ["task", "share true", "dictionaries that have it", "best", "latent", "F1", "which"]
    return pd.DataFrame(rows, columns=columns).sort_values(
        ["dictionaries that have it", "F1"], ascending=False, ignore_index=True
    )


def left_out(reasons: Mapping[str, str]) -> pd.DataFrame:
    """Tasks that were not probed, and why."""
    return pd.DataFrame(sorted(reasons.items()), columns=["task", "why"])


def _mean(name: str, one: Probed, formula: Formula) -> dict[str, float]:
    """The mean of a formula over the tasks, with its interval."""

    def mean(sums: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = formula(sums).mean(axis=-1)
        return found

    low, high = interval(one.sums.draws(mean)) if one.sums.n_sequences > 1 else (np.nan, np.nan)
    return {name: float(one.sums.value(mean)), f"{name} low": low, f"{name} high": high}


def _activation(dictionary: Any) -> str:
    record = dictionary.activation.record()
    return f"{record['kind']} {record['k']}" if "k" in record else str(record["kind"])
