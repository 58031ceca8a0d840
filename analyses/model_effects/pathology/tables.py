"""The tables of a pathology report; what their numbers are is said in `pathology_estimates`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses.model_effects.pathology.dictionary_damage import DictionaryDamage
from analyses.model_effects.pathology.estimates import (
    FAR,
    DamageRatios,
    EqualDamage,
    InterventionDamage,
    PositionDamage,
    SingleTokenDamage,
    StepDamage,
)
from analyses.model_effects.pathology.replacement_damage import CLOUDS
from analyses.model_effects.pathology.replacements import COVARIANCE, ISOTROPIC, RECONSTRUCTION
from dictlab.evaluation.sites import site_of
from dictlab.numerics.statistics import Array, Estimate, estimate_columns, interval, ratio, ratio_draws, spearman


def comparison(estimates: Sequence[DamageRatios]) -> pd.DataFrame:
    """One row a dictionary: ratios, absolute damage, and how large the error is, side by side."""
    rows = []
    for one in estimates:
        damage, first = one.damage, (ISOTROPIC, COVARIANCE)
        numbers = {"KL": one.kl} | {f"over {name}": one.over[name] for name in first}
        numbers |= {"error norm": one.error_norm, "CE increase": one.ce}
        numbers |= {f"over {name}": number for name, number in one.over.items() if name not in first}
        row: dict[str, Any] = {"dictionary": damage.name, "L0": one.l0}
        row |= {name: number.value for name, number in numbers.items()}
        row |= {"activation norm": damage.average("norm"), "reconstruction norm": damage.average("norm_hat")}
        row["cosine"] = damage.average("cosine")
        if "cloud" in damage.arrays:
            row |= {"median z": one.median_z, f"share beyond z = {FAR:g}": one.share_far}
        row |= {"site": site_of(damage.dictionary), "objective": damage.dictionary.metadata.objective or "unknown"}
        for name, number in numbers.items():
            row |= {f"{name} low": number.low, f"{name} high": number.high}
        rows.append(row)
    return pd.DataFrame(rows)


def interventions(estimates: Sequence[InterventionDamage]) -> pd.DataFrame:
    """One row for each dictionary, intervention, and with or without first positions."""
    rows = [
        {
            "dictionary": one.dictionary,
            "tokens": "all" if one.first else "without first positions",
            "intervention": one.intervention,
            **estimate_columns("KL", one.kl),
            "KL median": one.kl_median,
            "KL 99.9 %": one.kl_extreme,
            **estimate_columns("CE increase", one.ce),
            **estimate_columns("KL ratio", one.kl_ratio),
            **estimate_columns("CE ratio", one.ce_ratio),
        }
        for one in estimates
    ]
    return pd.DataFrame(rows)


def positions(estimates: Sequence[PositionDamage]) -> pd.DataFrame:
    """Mean KL by position, in bins that double."""
    rows = [(one.dictionary, one.intervention, one.start, one.stop - 1, *one.kl) for one in estimates]
    return pd.DataFrame(rows, columns=["dictionary", "intervention", "from", "to", "KL", "KL low", "KL high"])


def single_token(estimates: Sequence[SingleTokenDamage]) -> pd.DataFrame:
    """KL where one token alone is replaced: there, and at each of the next positions."""
    rows = [(one.dictionary, one.intervention, one.positions_after, *one.kl, *one.ratio) for one in estimates]
    measures = [*estimate_columns("KL", Estimate(0)), *estimate_columns("KL ratio", Estimate(0))]
    return pd.DataFrame(rows, columns=["dictionary", "intervention", "positions after", *measures])


def lengths(estimates: Sequence[StepDamage]) -> pd.DataFrame:
    """KL along each baseline's direction at multiples of the error's norm."""
    rows = [(one.dictionary, one.direction, one.length, *one.kl) for one in estimates]
    names = ["dictionary", "direction", "multiple of error norm", "KL", "KL low", "KL high"]
    return pd.DataFrame(rows, columns=names)


def sensitivity(estimates: Sequence[StepDamage], damages: Sequence[DictionaryDamage]) -> pd.DataFrame:
    """KL along the error, along decoder directions, and along directions of no dictionary."""
    spread = {one.name: one.spread for one in damages}
    rows = [
        (one.dictionary, one.direction, one.length * spread[one.dictionary], one.length, *one.kl) for one in estimates
    ]
    names = ["dictionary", "direction", "length", "length / spread", "KL", "KL low", "KL high"]
    return pd.DataFrame(rows, columns=names)


def equal_damage(estimates: Sequence[EqualDamage]) -> pd.DataFrame:
    """The multiple of the error's norm at which each baseline does what the reconstruction does."""
    rows = [(one.dictionary, one.direction, one.target, *one.length, one.outside) for one in estimates]
    lengths = list(estimate_columns("effective length", Estimate(0)))
    return pd.DataFrame(rows, columns=["dictionary", "direction", "KL to reach", *lengths, "outside"])


def far_out(damages: Sequence[DictionaryDamage], position: int, words: Mapping[int, str]) -> pd.DataFrame:
    """One row a token that was replaced alone: where the reconstruction lies among random points."""
    rows = []
    for one in damages:
        cloud, point, tokens = one.arrays["cloud"], one.arrays["point"], one.arrays["tokens"]
        for sequence in np.flatnonzero(np.isfinite(point)):
            row: dict[str, Any] = {"dictionary": one.name, "sequence": sequence, "position": position}
            row |= {"token": words[int(tokens[sequence, position])], "KL": point[sequence]}
            for index, name in enumerate(CLOUDS):
                among = cloud[sequence, index]
                row |= {f"{name} mean": among.mean(), f"{name} standard deviation": among.std()}
                row |= {f"{name} z": one.z[sequence, index]}
                row[f"{name} percentile"] = 100 * float((among < point[sequence]).mean())
            rows.append(row)
    return pd.DataFrame(rows)


def when(damages: Sequence[DictionaryDamage], frequency: Array) -> pd.DataFrame:
    """Rank correlation of the gap, KL of the reconstruction less that of ε-random, with what is known of a token."""
    rows = []
    for one in damages:
        gap, tokens = one.kl(RECONSTRUCTION) - one.kl(ISOTROPIC), one.arrays["tokens"][:, :-1]
        known = {
            "position": np.broadcast_to(np.arange(gap.shape[1]), gap.shape).astype(float),
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


def by_token(damages: Sequence[DictionaryDamage], least: int, words: Mapping[int, str]) -> pd.DataFrame:
    """Mean damage at each token that counts often enough, largest gap first."""
    rows: list[tuple[Any, ...]] = []
    for one in damages:
        reconstruction, isotropic = one.kl(RECONSTRUCTION), one.kl(ISOTROPIC)
        tokens = np.where(np.isfinite(reconstruction), one.arrays["tokens"][:, :-1], -1).astype(int)
        ids, counts = np.unique(tokens[tokens >= 0], return_counts=True)
        own = []
        for token in ids[counts >= least]:
            at = tokens == token
            gap = one.mean(np.where(at, reconstruction - isotropic, np.nan))
            means = float(reconstruction[at].mean()), float(isotropic[at].mean())
            own.append((one.name, words[int(token)], int(token), int(at.sum()), *gap, *means))
        rows += sorted(own, key=lambda row: -row[4])
    names = ["dictionary", "token", "id", "count", "gap", "gap low", "gap high", "KL", f"KL {ISOTROPIC}"]
    return pd.DataFrame(sorted(rows, key=lambda row: row[0]), columns=names)


def family(damages: Sequence[DictionaryDamage]) -> pd.DataFrame:
    """Each dictionary beside those that it was made from: differences of KL, quotients of ratios, both paired."""
    named = {one.name: one for one in damages}
    rows = []
    for one in damages:
        for parent in (named[name] for name in one.dictionary.metadata.sources if name in named):
            a, b = (np.nansum(m.kl(RECONSTRUCTION), axis=1) for m in (one, parent))
            tokens = np.isfinite(one.kl(RECONSTRUCTION)).sum(axis=1).astype(float)
            row: dict[str, Any] = {"dictionary": one.name, "made from": parent.name}
            row |= estimate_columns("KL difference", ratio(a - b, tokens, one.seed))
            for name in (ISOTROPIC, COVARIANCE):
                own, other = (np.nansum(m.kl(name), axis=1) for m in (one, parent))
                with np.errstate(divide="ignore", invalid="ignore"):
                    both = ratio_draws(a, own, one.seed) / ratio_draws(b, other, one.seed)
                    value = (a.sum() / own.sum()) / (b.sum() / other.sum())
                row |= estimate_columns(f"over {name}, quotient", Estimate(float(value), *interval(both)))
            rows.append(row)
    return pd.DataFrame(rows)
