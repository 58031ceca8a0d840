"""Two dictionaries as whole spaces: their paired decoders, their codes, and each's codes told by the other's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor
from torch.nn.functional import normalize

from analyses.common import plotting
from analyses.common.chance import KINDS, alive_latents, random_directions
from analyses.common.seed_floor import NONE, SEEDS, Similarity
from analyses.similarity.matching.coactivation_report import RANDOM, drawn_rates, random_codes
from analyses.similarity.matching.code_cka import code_cka, code_cka_value, seldom
from analyses.similarity.matching.code_sample import Matrix, Sample, randomly_fired
from analyses.similarity.matching.cross_reconstruction import CrossFit, cross_fit
from analyses.similarity.matching.latent_pairs import Pair
from analyses.similarity.matching.representation import (
    ROWS,
    Measure,
    Rows,
    Tested,
    cka,
    procrustes,
    rsa,
    svcca,
    value_of,
    with_null,
)
from dictlab.dictionary import Dictionary
from dictlab.numerics import seeds
from dictlab.reports.report import Plot

DENSE = 0.1  # share of tokens above which a latent is dense
OF_DECODERS: dict[str, tuple[Measure, bool]] = {
    "CKA, paired decoders": (cka, False),
    "SVCCA, paired decoders": (svcca, False),
    "RSA, paired decoders": (rsa, False),
    "Procrustes residual, paired decoders": (procrustes, True),
}
OF_CODES: dict[str, Callable[[Matrix], Matrix]] = {
    "CKA, codes": lambda codes: codes,
    f"CKA, codes active at up to {DENSE:.0%}": lambda codes: seldom(codes, DENSE),
}
CROSS = "cross-reconstruction R²"
DRAWS = 16  # pairs of dictionaries that a plot shows


class ComparedSpaces(NamedTuple):
    """A pair of dictionaries as spaces: similarities, and the R2 of each latent (None without codes)."""

    similarities: list[Similarity]
    latents: pd.DataFrame | None


def compared_spaces(
    pair: Pair, sample: Sample | None, *, ridge: float, fewest: int, permutations: int, seed: int
) -> ComparedSpaces:
    """Everything that compares two dictionaries as wholes.

    Args:
        pair: Their comparison by direction.
        sample: Their codes; without them only paired decoders are compared.
        ridge: Of the prediction of one's codes from the other's.
        fewest: Tokens at which a latent must be active to be predicted.
        permutations: Shuffles of each null.
        seed: Of shuffles, intervals and random latents.
    """
    found = _of_decoders(pair, permutations, seed)
    if sample is None:
        return ComparedSpaces(found, None)
    found += _of_codes(pair, sample, permutations, seed)
    tables = []
    for of, to in ((pair.a, pair.b), (pair.b, pair.a)):
        codes = (sample.codes[of.name], sample.codes[to.name])
        how = {"ridge": ridge, "fewest": fewest, "seed": seed}
        fit = cross_fit(*codes, sample.sequence, permutations=permutations, **how)  # type: ignore[arg-type]
        if fit is None:
            continue
        chance = _chance_of_fit(of, to, sample, ridge, fewest, seed)
        found += _of_fit(of.name, to.name, fit, chance)
        tables.append(_latents(of.name, to.name, fit))
    return ComparedSpaces(found, pd.concat(tables, ignore_index=True) if tables else None)


@plotting.applied
def space_plot(similarities: Sequence[Similarity]) -> Plot:
    """Every whole-space similarity with its interval, chance and shuffled mean."""
    names = [*OF_DECODERS, *OF_CODES, f"{CROSS}, median", f"{CROSS}, total"]
    by_name = {name: {(s.of, s.to): s for s in similarities if s.measure == name} for name in names}
    shown = [name for name in names if by_name[name]]
    pairs = list(dict.fromkeys((s.of, s.to) for s in similarities))[:DRAWS]
    most = max(len(by_name[name]) for name in shown)
    figure, axes = plotting.axes(len(shown), width=3.9, height=1.1 + 0.3 * min(most, DRAWS))
    written: list[tuple[str, str]] = []
    for panel, (ax, name) in enumerate(zip(axes, shown, strict=True)):
        rows = [by_name[name][pair] for pair in pairs if pair in by_name[name]]
        y = np.arange(len(rows))[::-1]
        value, low, high = np.array([(s.value, s.low, s.high) for s in rows]).T
        ax.errorbar(value, y, xerr=plotting.error_lengths(value, low, high), fmt="none", color="#444")
        seeds = np.array([s.relation == SEEDS for s in rows])
        for number, (label, mask) in enumerate((("measured", ~seeds), ("measured, two seeds", seeds))):
            if mask.any():
                at = (value[mask], y[mask])
                ax.scatter(
                    *at, s=26, zorder=3, label=label, color=plotting.colour(number), marker=plotting.marker(number)
                )
        ax.scatter([s.shuffled for s in rows], y, color="#666666", marker="|", s=60, label="shuffled")
        rings: dict[str, Any] = {"facecolors": "none", "edgecolors": "#666666", "s": 22, "label": "chance (shaped)"}
        ax.scatter([s.shaped for s in rows], y, **rings)
        alone = panel % 3 == 0 or [(s.of, s.to) for s in rows] != written  # panels in a row share their pairs
        written = [(s.of, s.to) for s in rows]
        ax.set_yticks(y, ["\n".join(plotting.short(names)) for names in written] if alone else [], fontsize=7)
        ax.set(title=name, xlabel="share of Y left" if name.startswith("Procr") else "similarity (0 none, 1 equal)")
        ax.set_ylim(-0.6, len(rows) - 0.4)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower right", ncols=4, fontsize=8)
    return Plot(
        figure,
        "Whole-space similarities with 95 % intervals. Strokes: mean over shuffles of who belongs to whom; rings: "
        "random latents, matched in the same way. Of the Procrustes residual, less is more alike.",
    )


def _of_decoders(pair: Pair, permutations: int, seed: int) -> list[Similarity]:
    x, y = _paired_rows((pair.a, pair.a_latents), (pair.b, pair.b_latents), seed)
    drawn = {kind: _chance_rows(pair, kind, seed) for kind in KINDS}
    found = []
    for name, (measure, smaller) in OF_DECODERS.items():
        one = with_null(measure, x, y, permutations=permutations, seed=seed, smaller_is_alike=smaller)
        chance = {kind: value_of(measure, *rows, seed=seed) for kind, rows in drawn.items()}
        found.append(_similarity(name, pair, one, chance, "pairs"))
    return found


def _of_codes(pair: Pair, sample: Sample, permutations: int, seed: int) -> list[Similarity]:
    a, b = sample.codes[pair.a.name], sample.codes[pair.b.name]
    drawn = {kind: random_codes(pair, sample, kind, seed)[:2] for kind in KINDS}
    found = []
    for name, some in OF_CODES.items():
        if min(some(a).shape[1], some(b).shape[1]) == 0:
            continue
        one = code_cka(some(a), some(b), sample.sequence, permutations=permutations, seed=seed)
        chance = {
            kind: code_cka_value(some(x), some(y)) if some(x).shape[1] else NONE for kind, (x, y) in drawn.items()
        }
        found.append(_similarity(name, pair, one, chance, "tokens"))
    return found


def _similarity(name: str, pair: Pair, one: Tested, chance: dict[str, float], unit: str) -> Similarity:
    n = f"{one.n} {unit}"
    found = Similarity(name, pair.a.name, pair.b.name, one.value, one.low, one.high, n=n)
    return found._replace(isotropic=chance["isotropic"], shaped=chance["shaped"], shuffled=one.shuffled, p=one.p)


def _rows(weights: Tensor, latents: Tensor, seed: int) -> Rows:
    """Unit directions of some latents; of very many, the same sample of rows for both sides."""
    rows: Rows = normalize(weights[_sampled(latents, seed)].double(), dim=1).numpy()
    return rows


def _sampled(rows: Tensor, seed: int) -> Tensor:
    """At most `ROWS` of them, the same ones for equal lengths."""
    if len(rows) <= ROWS:
        return rows
    return rows[seeds.numpy_generator(seed, "rows of spaces").permutation(len(rows))[:ROWS]]


def _paired_rows(one: tuple[Dictionary, Tensor], other: tuple[Dictionary, Tensor], seed: int) -> tuple[Rows, Rows]:
    """Unit decoder directions of pairs of latents. A signed latent's is turned towards its partner's, and of two signed
    latents both are turned such that the largest component of the first is positive.
    """
    (a, latents), (b, partners) = one, other
    x, y = _rows(a.W_dec, latents, seed), _rows(b.W_dec, partners, seed)
    signed_x, signed_y = (_sampled(d.signed.cpu()[of], seed).numpy() for d, of in (one, other))
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)[:, 0]
    x = np.where((signed_x & signed_y & (largest < 0))[:, None], -x, x)
    opposed = (x * y).sum(axis=1) < 0
    x = np.where((signed_x & ~signed_y & opposed)[:, None], -x, x)
    return x, np.where((signed_y & opposed)[:, None], -y, y)


def _chance_rows(pair: Pair, kind: str, seed: int) -> tuple[Rows, Rows]:
    chance = pair.chance[kind]
    partners = pair.of_large[chance.matched.decoder.partners]
    x, y = _rows(chance.directions, chance.matched.decoder.rows, seed), _rows(pair.large.W_dec, partners, seed)
    signed = _sampled(pair.large.signed.cpu()[partners], seed).numpy()
    return x, np.where((signed & ((x * y).sum(axis=1) < 0))[:, None], -y, y)


def _chance_of_fit(
    of: Dictionary, to: Dictionary, sample: Sample, ridge: float, fewest: int, seed: int
) -> dict[str, CrossFit | None]:
    """How much the codes of `to` tell of random latents that fire as often as those of `of`."""
    found = {}
    for kind, shaped in KINDS.items():
        drawn = random_directions(to.W_dec, RANDOM, shaped=shaped, seed=seed, of_b=alive_latents(to))
        codes = randomly_fired(sample.x, drawn, drawn_rates(sample.rates()[of.name], RANDOM, seed))
        tokens = codes.shape[0]
        least, sequence = max(2, fewest * tokens // sample.n_tokens), sample.sequence[:tokens]
        told_by = sample.codes[to.name][:tokens]
        found[kind] = cross_fit(codes, told_by, sequence, ridge=ridge, fewest=least, permutations=0, seed=seed)
    return found


def _of_fit(of: str, to: str, fit: CrossFit, chance: dict[str, CrossFit | None]) -> list[Similarity]:
    n = f"{fit.sequences} sequences, {len(fit.latents)} latents"
    rows = []
    for k, (name, (value, low, high)) in enumerate((("median", fit.median), ("total", fit.total))):
        levels = {kind: getattr(one, name)[0] for kind, one in chance.items() if one is not None}
        one = Similarity(f"{CROSS}, {name}", of, to, value, low, high, n=n, directed=True)
        one = one._replace(isotropic=levels.get("isotropic", NONE), shaped=levels.get("shaped", NONE))
        rows.append(one._replace(shuffled=fit.shuffled[k], p=fit.p[k]))
    return rows


def _latents(of: str, to: str, fit: CrossFit) -> pd.DataFrame:
    order = np.argsort(fit.r2, kind="stable")
    columns = {"latent": fit.latents, "R²": fit.r2, "low": fit.low, "high": fit.high}
    return pd.DataFrame({"from": of, "to": to} | {name: values[order] for name, values in columns.items()})
