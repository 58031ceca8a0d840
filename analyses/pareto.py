"""Which dictionary gives more for its sparsity?

CE increase and explained variance against L0: each dictionary is one point; each objective, activation function and
width one curve (Braun et al. 2024, figure 1; Gao et al. 2024, figure 2). Two curves are compared where they overlap:

    at matched CE increase    L0 of the one / L0 of the other
    at matched L0             CE increase of the one / CE increase of the other

by interpolating linearly between neighbouring points of a curve, in log L0 and log CE increase, at 20 places of the
overlap; the mean ratio is reported. No curve is extended beyond its points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses import style
from analyses.inputs import (
    DictionaryLike,
    ModelLike,
    TextLike,
    check_same_place,
    context_of,
    in_model,
    open_dictionaries,
    open_model,
    open_text,
)
from dictlab.dictionary import Dictionary
from dictlab.errors import check_at_least
from dictlab.evaluate import METRICS, Evaluation, evaluate
from dictlab.report import Plot, Report, Table

PLACES = 20
LEAST_OVERLAP = 1.1  # largest over smallest abscissa that two curves share; less is a point, not an overlap
Points = NDArray[np.float64]


def mean_ratio(x: Points, y: Points, other_x: Points, other_y: Points) -> tuple[float, float, float]:
    """Mean over the overlap in x of (y of the other curve) / (y of this one), and where the overlap lies.

    Curves are piecewise linear in log x and log y. NaN where they hardly overlap.

    Args:
        x: Abscissae of this curve, positive.
        y: Its ordinates, positive.
        other_x: Abscissae of the other curve.
        other_y: Its ordinates.
    """
    low, high = max(x.min(), other_x.min()), min(x.max(), other_x.max())
    if not high >= LEAST_OVERLAP * low:
        return float("nan"), float("nan"), float("nan")
    places = np.linspace(np.log(low), np.log(high), PLACES)
    this, other = (np.interp(places, *_sorted(np.log(a), np.log(b))) for a, b in ((x, y), (other_x, other_y)))
    return float(np.exp(other - this).mean()), float(low), float(high)


def pareto(
    dictionaries: Sequence[DictionaryLike],
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    contexts: int = 64,
    seed: int = 0,
    device: str = "cpu",
) -> Report:
    """What does each dictionary give for its sparsity: CE increase and explained variance against L0?

    Args:
        dictionaries: Any number at the same site.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from; its held-out split is used.
        contexts: Held-out sequences to measure on.
        seed: Of the sample of text and the bootstrap.
        device: Where to run: cpu, cuda, ...

    Example:
        dictlab report pareto runs/*/*.safetensors --contexts 128
    """
    check_at_least(0, seed=seed)
    opened = open_dictionaries(dictionaries)
    check_same_place(opened)
    model, text = open_model(model, opened, device), open_text(text).as_split("heldout")
    context = context_of(opened, model)
    on_device = in_model(opened, model)
    found = evaluate(on_device, model, text, contexts=contexts, context=context, seed=seed)
    points = pd.DataFrame([_point(d, e) for d, e in zip(opened, found, strict=True)])
    ratios = matched(points)
    return Report(
        title=f"What {len(opened)} dictionaries give for their sparsity",
        summary=_summary(points, ratios),
        tables={
            "points": Table(
                points, f"Measured on {found[0].n_sequences} held-out sequences ({found[0].n_tokens} tokens)."
            ),
            "matched": Table(
                ratios, "Ratios between curves where they overlap, interpolated in log L0 and log CE increase."
            ),
            "metrics": Table(
                pd.concat([e.table() for e in found], ignore_index=True), "Every metric with its 95 % interval."
            ),
        },
        plots={"pareto": _plot(points, found[0])},
        settings={"text": text.name, "model": model.name, "context": context, "seed": seed} | found[0].sample,
        inputs=tuple(opened),
        warnings=_left_out(points),
    )


def matched(points: pd.DataFrame) -> pd.DataFrame:
    """For every two curves: the ratio of L0 at matched CE increase, and of CE increase at matched L0."""
    rows = []
    curves = {
        name: (part["L0"].to_numpy(), part["CE increase"].to_numpy())
        for name, part in points.groupby("curve", sort=False)
    }
    positive = {name: xy for name, xy in curves.items() if len(xy[0]) > 1 and all((v > 0).all() for v in xy)}
    for name, (l0, ce) in positive.items():
        for other, (other_l0, other_ce) in positive.items():
            if name == other:
                continue
            for what, (ratio, low, high) in (
                ("L0 at matched CE increase", mean_ratio(ce, l0, other_ce, other_l0)),
                ("CE increase at matched L0", mean_ratio(l0, ce, other_l0, other_ce)),
            ):
                rows.append({"what": what, "of": other, "over": name, "ratio": ratio, "from": low, "to": high})
    return pd.DataFrame(rows, columns=["what", "of", "over", "ratio", "from", "to"])


def _left_out(points: pd.DataFrame) -> tuple[str, ...]:
    """What the logarithmic plot and the comparisons cannot show."""
    bad = points[(points["CE increase"] <= 0) | (points["L0"] <= 0)]["dictionary"]
    if bad.empty:
        return ()
    return (f"No increase of CE, or no active latent: {', '.join(bad)} and their curves are in no comparison.",)


def _point(dictionary: Dictionary, evaluation: Evaluation) -> dict[str, object]:
    row: dict[str, object] = {
        "dictionary": dictionary.name,
        "curve": f"{dictionary.metadata.objective or 'unknown'} {dictionary.activation.kind} {dictionary.n_latents}",
        "latents": dictionary.n_emitting,
        "alive": evaluation.alive,
    }
    keys = ("l0", "explained_variance", "ce_increase")
    row |= {METRICS[key].label: evaluation.value(key) for key in keys}
    for key in keys:
        low, high = evaluation.interval(key)
        row |= {f"{METRICS[key].label} low": low, f"{METRICS[key].label} high": high}
    return row | {
        "training tokens": dictionary.metadata.tokens,
        "training seconds": dictionary.metadata.training.get("seconds"),
    }


def _sorted(x: Points, y: Points) -> tuple[Points, Points]:
    order = np.argsort(x)
    return x[order], y[order]


def _summary(points: pd.DataFrame, ratios: pd.DataFrame) -> str:
    best = points.loc[points["CE increase"].idxmin()]
    said = f"Smallest CE increase: {best['CE increase']:.3g} nats a token ({best['dictionary']}, L0 {best['L0']:.1f})."
    local = ratios[ratios["over"].str.startswith("local") & ratios["ratio"].notna()]
    for row in local.itertuples():
        said += f" {row.what}: {row.of} / {row.over} = {row.ratio:.2f}."
    return said


@style.applied
def _plot(points: pd.DataFrame, evaluation: Evaluation) -> Plot:
    figure, (left, right) = style.axes(2, width=5.2, height=4.0)
    for number, (curve, part) in enumerate(points.groupby("curve", sort=False)):
        part = part.sort_values("L0")
        for ax, label in ((left, "CE increase"), (right, "explained variance")):
            error = np.clip([part[label] - part[f"{label} low"], part[f"{label} high"] - part[label]], 0, None)
            ax.errorbar(
                part["L0"],
                part[label],
                yerr=error,
                color=style.colour(number),
                marker=style.marker(number),
                ls="-",
                ms=5,
                lw=1.4,
                label=curve,
            )
    left.set(
        xscale="log",
        yscale="log",
        xlabel="L0 (active latents/token)",
        ylabel="CE increase (nats/token)",
        title="Does the model still work?",
    )
    right.set(
        xscale="log",
        xlabel="L0 (active latents/token)",
        ylabel="explained variance (share)",
        title="Is the activation reconstructed?",
    )
    left.legend()
    return Plot(
        figure,
        f"One point a dictionary; {evaluation.n_sequences} held-out sequences, {evaluation.n_tokens} tokens. "
        "Bars: 95 % bootstrap interval over sequences.",
    )
