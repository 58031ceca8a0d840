"""The tables of a pathology report: see `estimates` for what their numbers are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from analyses.model_effects.dictionary_damage import DictionaryDamage
from analyses.model_effects.replacement_damage import CLOUDS, NAMES
from analyses.model_effects.replacements import BASELINES, COVARIANCE, ISOTROPIC, RECONSTRUCTION, STEPS
from analyses.model_effects.step_curves import CLASSES, MULTIPLES, REFERENCES, SCALES, effective_length
from dictlab.evaluation.evaluate import site_of
from dictlab.statistics import (
    ENDS,
    Array,
    Estimate,
    bootstrap_weights,
    estimate_columns,
    interval,
    ratio,
    ratio_draws,
    spearman,
)

FAR = 3.0  # standard deviations beyond which a reconstruction is counted as far out


def comparison(found: Sequence[DictionaryDamage]) -> pd.DataFrame:
    """One row a dictionary: ratios, absolute damage, and how large the error is, side by side."""
    rows = []
    for one in found:
        estimates = {
            "KL": one.mean(one.kl(RECONSTRUCTION)),
            **{f"over {name}": one.over(name) for name in (ISOTROPIC, COVARIANCE)},
            "error norm": one.mean(one.arrays["epsilon"]),
            "CE increase": one.mean(one.ce(RECONSTRUCTION)),
            **{f"over {name}": one.over(name) for name in BASELINES if name not in (ISOTROPIC, COVARIANCE)},
        }
        rows.append(
            {
                "dictionary": one.name,
                "L0": float(one.arrays["l0"].mean()),
                **{name: estimate.value for name, estimate in estimates.items()},
                "activation norm": float(one.arrays["norm"].mean()),
                "reconstruction norm": float(one.arrays["norm_hat"].mean()),
                "cosine": float(one.arrays["cosine"].mean()),
                **_far_out(one),
                "site": site_of(one.dictionary),
                "objective": one.dictionary.metadata.objective or "unknown",
                **{f"{n} {end}": getattr(e, end) for n, e in estimates.items() for end in ("low", "high")},
            }
        )
    return pd.DataFrame(rows)


def _far_out(one: DictionaryDamage) -> dict[str, float]:
    if "cloud" not in one.arrays:
        return {}
    z = one.z[:, 0]
    return {"median z": float(np.nanmedian(z)), f"share beyond z = {FAR:g}": float((z > FAR).mean())}


def interventions(found: Sequence[DictionaryDamage]) -> pd.DataFrame:
    """One row for each dictionary, intervention, and with or without first positions."""
    rows = []
    for one in found:
        for first in (True, False):
            for name in NAMES:
                once = one.arrays["kl_once"][:, NAMES.index(name), 0 if first else 1 :]
                rows.append(
                    {
                        "dictionary": one.name,
                        "tokens": "all" if first else "without first positions",
                        "intervention": name,
                        **estimate_columns("KL", one.mean(one.kl(name, first))),
                        "KL median": float(np.median(once)),
                        "KL 99.9 %": float(np.quantile(once, 0.999)),
                        **estimate_columns("CE increase", one.mean(one.ce(name, first))),
                        **estimate_columns("KL ratio", one.over(name, first)),
                        **estimate_columns("CE ratio", one.over(name, first, "ce")),
                    }
                )
    return pd.DataFrame(rows)


def edges(positions: int) -> list[int]:
    """Where bins of positions begin: 0, 1, 2, 4, ... and the end."""
    starts = [0, *(2**i for i in range(20) if 2**i < positions)]
    return [*starts, positions]


def positions(found: Sequence[DictionaryDamage]) -> pd.DataFrame:
    """Mean KL by position, in bins that double."""
    rows = []
    for one in found:
        ends = edges(one.arrays["kl"].shape[2])
        for name in NAMES:
            for start, end in pairwise(ends):
                rows.append(
                    {
                        "dictionary": one.name,
                        "intervention": name,
                        "from": start,
                        "to": end - 1,
                        **estimate_columns("KL", one.mean(one.kl(name)[:, start:end])),
                    }
                )
    return pd.DataFrame(rows)


def alone(found: Sequence[DictionaryDamage]) -> pd.DataFrame:
    """KL where one token alone is replaced: there, and at each of the next positions."""
    rows = []
    for one in found:
        kl = one.arrays["alone"]
        for index, name in enumerate(NAMES):
            for after in range(kl.shape[2]):
                damage, reconstruction = kl[:, index, after], kl[:, NAMES.index(RECONSTRUCTION), after]
                rows.append(
                    {
                        "dictionary": one.name,
                        "intervention": name,
                        "positions after": after,
                        **estimate_columns("KL", one.mean(damage[:, None])),
                        **estimate_columns("KL ratio", ratio(reconstruction, damage, one.seed)),
                    }
                )
    return pd.DataFrame(rows)


def far_out(found: Sequence[DictionaryDamage], position: int, tokens: Array, words: Mapping[int, str]) -> pd.DataFrame:
    """One row a token that was replaced alone: where the reconstruction lies among random points."""
    rows = []
    for one in found:
        cloud, point = one.arrays["cloud"], one.arrays["point"]
        for sequence in range(len(point)):
            row: dict[str, Any] = {
                "dictionary": one.name,
                "sequence": sequence,
                "position": position,
                "token": words[int(tokens[sequence, position])],
                "KL": point[sequence],
            }
            for index, name in enumerate(CLOUDS):
                among = cloud[sequence, index]
                row |= {
                    f"{name} mean": among.mean(),
                    f"{name} standard deviation": among.std(),
                    f"{name} z": one.z[sequence, index],
                    f"{name} percentile": 100 * float((among < point[sequence]).mean()),
                }
            rows.append(row)
    return pd.DataFrame(rows)


def when(found: Sequence[DictionaryDamage], frequency: Array) -> pd.DataFrame:
    """Rank correlation of the gap, KL of the reconstruction less that of ε-random, with what is known of a token."""
    rows = []
    for one in found:
        gap, tokens = one.kl(RECONSTRUCTION) - one.kl(ISOTROPIC), one.arrays["tokens"][:, :-1]
        known = {
            "position": np.broadcast_to(np.arange(gap.shape[1]), gap.shape),
            "token frequency": frequency[tokens.astype(int)],
            "activation norm": one.arrays["norm"],
            "error norm": one.arrays["epsilon"],
            "cosine": one.arrays["cosine"],
            "L0": one.arrays["l0"],
            "CE without intervention": one.arrays["ce_clean"],
            "entropy without intervention": one.arrays["entropy"],
        }
        for what, values in known.items():
            for against, damage in (("gap", gap), ("KL", one.kl(RECONSTRUCTION))):
                rows.append(
                    {"dictionary": one.name, "of": against, "with": what}
                    | estimate_columns("Spearman", spearman(damage, values, one.seed))
                )
    return pd.DataFrame(rows)


def by_token(found: Sequence[DictionaryDamage], least: int, words: Mapping[int, str]) -> pd.DataFrame:
    """Mean damage at each token that occurs often enough, largest gap first."""
    rows = []
    for one in found:
        tokens = one.arrays["tokens"][:, :-1].astype(int)
        reconstruction, isotropic = one.kl(RECONSTRUCTION), one.kl(ISOTROPIC)
        ids, counts = np.unique(tokens, return_counts=True)
        for token in ids[counts >= least]:
            here = tokens == token
            gap = np.where(here, reconstruction - isotropic, np.nan)
            rows.append(
                {
                    "dictionary": one.name,
                    "token": words[int(token)],
                    "id": int(token),
                    "count": int(here.sum()),
                    **estimate_columns("gap", one.mean(gap)),
                    "KL": float(reconstruction[here].mean()),
                    f"KL {ISOTROPIC}": float(isotropic[here].mean()),
                }
            )
    names = ["dictionary", "token", "id", "count", "gap", "gap low", "gap high", "KL", f"KL {ISOTROPIC}"]
    frame = pd.DataFrame(rows, columns=names)
    return frame.sort_values(["dictionary", "gap"], ascending=[True, False], kind="stable", ignore_index=True)


def steps(found: Sequence[DictionaryDamage]) -> pd.DataFrame:
    """KL along the error, along decoder directions, and along directions of no dictionary."""
    rows = []
    for one in found:
        for key, names in (("sensitivity", CLASSES), ("references", REFERENCES)):
            for index, name in enumerate(names):
                for at, scale in enumerate(SCALES):
                    estimate = one.mean(one.arrays[key][:, index, at][:, None])
                    if np.isfinite(estimate.value):
                        rows.append(
                            {
                                "dictionary": one.name,
                                "direction": name,
                                "length": scale * one.spread,
                                "length / spread": scale,
                                **estimate_columns("KL", estimate),
                            }
                        )
    return pd.DataFrame(rows)


def curves(found: Sequence[DictionaryDamage]) -> pd.DataFrame:
    """KL along each baseline's direction at multiples of the error's norm."""
    rows = []
    for one in found:
        for index, name in enumerate(STEPS):
            for at, multiple in enumerate(MULTIPLES):
                estimate = one.mean(one.arrays["reach"][:, index, at][:, None])
                rows.append(
                    {"dictionary": one.name, "direction": name, "multiple of error norm": multiple}
                    | estimate_columns("KL", estimate)
                )
    return pd.DataFrame(rows)


def equal_damage(found: Sequence[DictionaryDamage]) -> pd.DataFrame:
    """The multiple of the error's norm at which each baseline does what the reconstruction does."""
    rows = []
    for one in found:
        curve = one.arrays["reach"]
        n = len(curve)
        target, weight = one.kl(RECONSTRUCTION)[:n].mean(axis=1), bootstrap_weights(n, one.seed)
        for index, name in enumerate(STEPS):
            value = float(effective_length(curve[:, index].mean(axis=0), target.mean()))
            resampled = effective_length(weight @ curve[:, index] / n, weight @ target / n)
            low, high = np.quantile(resampled, ENDS, method="inverted_cdf")  # some are infinite
            rows.append(
                {
                    "dictionary": one.name,
                    "direction": name,
                    "KL to reach": target.mean(),
                    "effective length": value,
                    "effective length low": low,
                    "effective length high": high,
                    "outside": _outside(value),
                }
            )
    return pd.DataFrame(rows)


def _outside(value: float) -> str:
    if value == 0:
        return f"below {MULTIPLES[0]:g}"
    return f"above {MULTIPLES[-1]:g}" if np.isinf(value) else ""


def family(found: Sequence[DictionaryDamage]) -> pd.DataFrame:
    """Each dictionary beside those that it was made from: differences of KL, quotients of ratios, both paired."""
    named = {one.name: one for one in found}
    rows = []
    for one in found:
        for parent in (named[name] for name in one.dictionary.metadata.sources if name in named):
            a, b = (m.kl(RECONSTRUCTION).sum(axis=1) for m in (one, parent))
            tokens = np.full(len(a), float(one.kl(RECONSTRUCTION).shape[1]))
            row: dict[str, Any] = {"dictionary": one.name, "made from": parent.name}
            row |= estimate_columns("KL difference", ratio(a - b, tokens, one.seed))
            for name in (ISOTROPIC, COVARIANCE):
                own, other = (m.kl(name).sum(axis=1) for m in (one, parent))
                both = ratio_draws(a, own, one.seed) / ratio_draws(b, other, one.seed)
                value = (a.sum() / own.sum()) / (b.sum() / other.sum())
                row |= estimate_columns(f"over {name}, quotient", Estimate(float(value), *interval(both)))
            rows.append(row)
    return pd.DataFrame(rows)
