"""The plots of a pathology report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analyses.common import plotting
from analyses.model_effects.pathology.dictionary_damage import DictionaryDamage
from analyses.model_effects.pathology.estimates import (
    DamageRatios,
    InterventionDamage,
    PositionDamage,
    SingleTokenDamage,
)
from analyses.model_effects.pathology.replacements import BASELINES, COVARIANCE, ISOTROPIC, NAMES, RECONSTRUCTION
from dictlab.evaluation.sites import site_of
from dictlab.numerics.statistics import Estimate
from dictlab.reports.report import Plot

MAIN = (RECONSTRUCTION, ISOTROPIC, COVARIANCE, "norm only")  # the lines of a panel that must stay readable
CLIP = 1.0  # nats; where histograms end, as in the published figure
NATS = "KL (nats/token)"
BARS = "95 % bootstrap interval over sequences"


def sample_of(one: DictionaryDamage) -> str:
    """What every caption says of the sample."""
    return f"{one.sequences} held-out sequences, {one.n_tokens} tokens that count and have a next one"


def _beside(rows: np.ndarray, number: int, series: int) -> np.ndarray:
    """Places of one series of several, side by side within each row."""
    return np.asarray(rows - 0.6 * ((number + 0.5) / series - 0.5))


@plotting.applied
def interventions(estimates: Sequence[InterventionDamage], damages: Sequence[DictionaryDamage]) -> Plot:
    """Mean KL of each intervention, and CE increase beside it."""
    figure, (left, right) = plotting.axes(2, width=6.6, height=1.2 + 0.32 * len(NAMES))
    rows = np.arange(len(NAMES))[::-1]
    every = [one for one in estimates if one.first]
    for number, damage in enumerate(damages):
        own = [one for one in every if one.dictionary == damage.name]
        places = _beside(rows, number, len(damages))
        plotting.estimates(left, [one.kl for one in own], places, number, along="y", ms=5, label=damage.name)
        plotting.estimates(right, [one.ce for one in own], places, number, along="y", ms=5)
    for ax in (left, right):
        ax.set(yticks=rows, yticklabels=NAMES if ax is left else [])
        for row in rows[:-1]:
            ax.axhline(row - 0.5, color="#dddddd", lw=0.6)
    left.set(xscale="log", xlabel=NATS, title="How far does each replacement move the output?")
    if all(one.ce.low > 0 for one in every):
        right.set(xscale="log", xlabel="CE increase (nats/token)")
    else:
        right.set_xscale("symlog", linthresh=0.1)
        right.set_xlabel("CE increase (nats/token, linear below 0.1)")
    right.set(title="What does it cost in prediction?")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(damages)))
    return Plot(
        figure,
        f"KL(original || altered), and the rise of the cross-entropy of the true next token. {sample_of(damages[0])}; "
        f"bars: {BARS}. From ε-random to parallel kept, all but θ-random at true norm lie at the reconstruction's "
        "distance from the activation.",
    )


@plotting.applied
def ratios(estimates: Sequence[DamageRatios]) -> Plot:
    """The ratio to each baseline, and the absolute figures that it must be read with."""
    figure, (left, middle, right) = plotting.axes(3, width=5.0, height=4.4)
    rows = np.arange(len(BASELINES))[::-1]
    for number, one in enumerate(estimates):
        places, over = _beside(rows, number, len(estimates)), [one.over[name] for name in BASELINES]
        plotting.estimates(left, over, places, number, along="y", ms=6, label=one.damage.name)
        plotting.estimates(middle, [one.kl], [one.l0], number, ms=6)
        plotting.estimates(right, [one.error_norm], [one.l0], number, ms=6)
    left.axvline(1, color="black", lw=0.9)
    left.set_xscale("log", base=2)
    left.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    left.set(yticks=rows, yticklabels=BASELINES, xlabel="KL of reconstruction / of baseline")
    left.set_title("Worse than others of its size?")
    middle.set(yscale="log" if all(one.kl.value > 0 for one in estimates) else "linear", ylabel=NATS)
    middle.set_title("How much damage?")
    right.set(ylabel="|x̂ − x| (activation units)", title="How large an error?")
    for ax in (middle, right):
        ax.set(xscale="log", xlabel="L0 (active latents/token)")
        _plain_ticks(ax)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(estimates)))
    return Plot(
        figure,
        "Left: 1 means as much damage as the baseline at the same distance, above 1 more. A small ratio can come from "
        "little damage or from a large error: read it with the other two panels. "
        f"{sample_of(estimates[0].damage)}; bars: {BARS}, paired.",
    )


def _plain_ticks(ax: Axes) -> None:
    """Values that span a decade or two: a few plain numbers say more than powers of ten."""
    for limits, place in ((ax.get_xlim(), ax.set_xticks), (ax.get_ylim(), ax.set_yticks)):
        for factors in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), np.arange(1, 10, 0.25)):
            ticks = [float(f * 10.0**power) for power in range(-6, 7) for f in factors]
            shown = [tick for tick in ticks if limits[0] <= tick <= limits[1]]
            if len(shown) >= 3:
                break
        place(shown, [f"{tick:g}" for tick in shown])
        place([], minor=True)


def _same_height(panels: Sequence[Axes]) -> None:
    """One ordinate for all panels, so that they can be compared."""
    low, high = (pick(ax.get_ylim()[i] for ax in panels) for i, pick in ((0, min), (1, max)))
    for ax in panels:
        ax.set_ylim(low, high)


@plotting.applied
def histograms(damages: Sequence[DictionaryDamage]) -> Plot:
    """Whole distributions of KL, not their means alone."""
    bins = list(np.linspace(0, CLIP, 41))
    figure, panels = plotting.axes(len(damages), width=4.2, height=3.2)
    for ax, one in zip(panels, damages, strict=True):
        for number, name in enumerate((RECONSTRUCTION, ISOTROPIC, COVARIANCE)):
            values = one.arrays["kl_once"][:, NAMES.index(name)]
            values = values[np.isfinite(values)]
            label = f"{name}: mean {values.mean():.3f}, 99.9 % {np.quantile(values, 0.999):.2f}"
            look: Any = {"color": plotting.colour(number), "ls": plotting.line(number), "label": label}
            ax.hist(np.clip(values, 0, CLIP), bins=bins, histtype="step", lw=1.4, **look)
        ax.set(yscale="log", xlabel=f"{NATS}, clipped at {CLIP:g}", ylabel="tokens")
        ax.set_title(plotting.short([one.name])[0])
        ax.legend(fontsize=7, loc="upper right")
    _same_height(panels)
    panels[0].set_ylim(top=panels[0].get_ylim()[1] * 12)
    _same_height(panels)
    return Plot(
        figure,
        "Is it a few tokens, or all of them? KL of each token, one draw of the random baselines. "
        f"{sample_of(damages[0])}; the last bin holds all that is larger.",
    )


def _lines(ax: Axes, series: dict[str, list[tuple[float, Estimate]]]) -> None:
    """One line an intervention, through points (x, KL), with its interval as a band."""
    for number, (name, points) in enumerate(series.items()):
        x = [at for at, _ in points]
        kl, low, high = np.array([tuple(value) for _, value in points], dtype=float).reshape(-1, 3).T
        look: Any = {"ls": plotting.line(number), "marker": plotting.marker(number), "label": name}
        ax.plot(x, kl, color=plotting.colour(number), ms=4, **look)
        ax.fill_between(x, low, high, color=plotting.colour(number), alpha=0.15, lw=0)


def _panels_of_lines(
    damages: Sequence[DictionaryDamage], points: Callable[[str, str], list[tuple[float, Estimate]]]
) -> tuple[Any, list[Axes]]:
    """A panel a dictionary with the MAIN interventions; `points` of a dictionary and an intervention."""
    figure, panels = plotting.axes(len(damages), width=4.2, height=3.2)
    for ax, one in zip(panels, damages, strict=True):
        _lines(ax, {name: points(one.name, name) for name in MAIN})
        ax.set(yscale="log", ylabel=NATS, title=plotting.short([one.name])[0])
    _same_height(panels)
    panels[0].legend(fontsize=7)
    return figure, panels


@plotting.applied
def positions(estimates: Sequence[PositionDamage], damages: Sequence[DictionaryDamage]) -> Plot:
    """KL by position, all tokens replaced."""
    figure, panels = _panels_of_lines(
        damages,
        lambda dictionary, name: [
            (float(np.sqrt((one.start + 1) * one.stop)), one.kl)
            for one in estimates
            if (one.dictionary, one.intervention) == (dictionary, name)
        ],
    )
    ends = sorted({one.start for one in estimates})
    for ax in panels:
        ax.set(xscale="log", xlabel="position (bins that double)")
        ax.set_xticks([e + 1 for e in ends[::2]], [str(e) for e in ends[::2]])
        ax.set_xticks([], minor=True)
    return Plot(
        figure,
        "Does the gap widen along the sequence? All tokens replaced at once; each point is a bin of positions. "
        f"{sample_of(damages[0])}; bands: {BARS}.",
    )


@plotting.applied
def single_token(estimates: Sequence[SingleTokenDamage], damages: Sequence[DictionaryDamage], position: int) -> Plot:
    """KL after one token alone was replaced."""
    figure, panels = _panels_of_lines(
        damages,
        lambda dictionary, name: [
            (float(one.positions_after), one.kl)
            for one in estimates
            if (one.dictionary, one.intervention) == (dictionary, name)
        ],
    )
    for ax in panels:
        ax.set_xlabel(f"positions after position {position}")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return Plot(
        figure,
        f"Does the damage come from errors that add up? Only the token at position {position} is replaced. "
        f"{damages[0].sequences} sequences; bands: {BARS}.",
    )


@plotting.applied
def sites(estimates: Sequence[DamageRatios]) -> Plot:
    """The ratio at each of several sites."""
    figure, (ax,) = plotting.axes(width=7.0, height=4.0)
    at = [site_of(one.damage.dictionary) for one in estimates]
    names = list(dict.fromkeys(at))
    for number, baseline in enumerate((ISOTROPIC, COVARIANCE)):
        places = [names.index(site) + 0.1 * number for site in at]
        plotting.estimates(ax, [one.over[baseline] for one in estimates], places, number, label=f"over {baseline}")
    ax.axhline(1, color="black", lw=0.9)
    ax.set_xticks(range(len(names)), [name.replace(".hook_", "\n") for name in names])
    ax.set(ylabel="KL of reconstruction / of baseline", title="Where is the error worse than others of its size?")
    ax.legend()
    return Plot(figure, f"One point a dictionary and baseline; bars: {BARS}, paired.")
