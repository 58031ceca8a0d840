"""The plots of a pathology report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analyses.common import plotting
from analyses.model_effects.dictionary_damage import DictionaryDamage
from analyses.model_effects.replacement_damage import NAMES
from analyses.model_effects.replacements import BASELINES, COVARIANCE, ISOTROPIC, RECONSTRUCTION, STEPS
from analyses.model_effects.step_curves import CLASSES, REFERENCES
from dictlab.reports.report import Plot

MAIN = (RECONSTRUCTION, ISOTROPIC, COVARIANCE, "norm only")  # the lines of a panel that must stay readable
CLIP = 1.0  # nats; where histograms end, as in the published figure
NATS = "KL (nats/token)"


def sample_of(one: DictionaryDamage) -> str:
    """What every caption says of the sample."""
    positions = one.arrays["kl"].shape[2]
    return f"{one.sequences} held-out sequences, {one.sequences * positions} tokens"


def _bars(frame: pd.DataFrame, name: str) -> np.ndarray:
    """Lengths of error bars below and above."""
    value = frame[name]
    lengths: np.ndarray = np.clip([value - frame[f"{name} low"], frame[f"{name} high"] - value], 0, None)
    return lengths


@plotting.applied
def bars(table: pd.DataFrame, found: Sequence[DictionaryDamage]) -> Plot:
    """Mean KL of each intervention, and CE increase beside it."""
    every = table[table["tokens"] == "all"]
    figure, panels = plotting.axes(2, width=6.6, height=1.2 + 0.32 * len(NAMES))
    rows = np.arange(len(NAMES))[::-1]
    for ax, key in zip(panels, ("KL", "CE increase"), strict=True):
        for number, one in enumerate(found):
            part = every[every["dictionary"] == one.name].set_index("intervention").loc[list(NAMES)]
            ax.errorbar(
                part[key],
                rows - 0.6 * ((number + 0.5) / len(found) - 0.5),
                xerr=_bars(part, key),
                color=plotting.colour(number),
                marker=plotting.marker(number),
                ms=5,
                ls="",
                label=one.name,
            )
        ax.set(yticks=rows, yticklabels=NAMES if ax is panels[0] else [])
        for row in rows[:-1]:
            ax.axhline(row - 0.5, color="#dddddd", lw=0.6)
    panels[0].set(xscale="log", xlabel=NATS, title="How far does each replacement move the output?")
    if (every["CE increase low"] > 0).all():
        panels[1].set(xscale="log", xlabel="CE increase (nats/token)")
    else:
        panels[1].set_xscale("symlog", linthresh=0.1)
        panels[1].set_xlabel("CE increase (nats/token, linear below 0.1)")
    panels[1].set(title="What does it cost in prediction?")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(found)))
    return Plot(
        figure,
        f"KL(original || altered), and the rise of the cross-entropy of the true next token. {sample_of(found[0])}; "
        "bars: 95 % bootstrap interval over sequences. From ε-random to parallel kept, all but θ-random at true norm "
        "lie at the reconstruction's distance from the activation.",
    )


@plotting.applied
def ratios(table: pd.DataFrame, found: Sequence[DictionaryDamage]) -> Plot:
    """The ratio to each baseline, and the absolute figures that it must be read with."""
    figure, panels = plotting.axes(3, width=5.0, height=4.4)
    rows = np.arange(len(BASELINES))[::-1]
    names = [f"over {name}" for name in BASELINES]
    for number, (_, row) in enumerate(table.iterrows()):
        look: dict[str, Any] = {"color": plotting.colour(number), "marker": plotting.marker(number), "ls": "", "ms": 6}
        values = np.array([[row[n], row[f"{n} low"], row[f"{n} high"]] for n in names], dtype=float).T
        error = np.clip([values[0] - values[1], values[2] - values[0]], 0, None)
        shift = 0.6 * ((number + 0.5) / len(table) - 0.5)
        panels[0].errorbar(values[0], rows - shift, xerr=error, label=row["dictionary"], **look)
        for ax, name in zip(panels[1:], ("KL", "error norm"), strict=True):
            bar = np.clip([[row[name] - row[f"{name} low"]], [row[f"{name} high"] - row[name]]], 0, None)
            ax.errorbar([row["L0"]], [row[name]], yerr=bar, **look)
    panels[0].axvline(1, color="black", lw=0.9)
    panels[0].set_xscale("log", base=2)
    panels[0].xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    panels[0].set(
        yticks=rows,
        yticklabels=BASELINES,
        xlabel="KL of reconstruction / of baseline",
        title="Worse than others of its size?",
    )
    panels[1].set(
        xscale="log",
        yscale="log" if (table["KL"] > 0).all() else "linear",
        xlabel="L0 (active latents/token)",
        ylabel=NATS,
        title="How much damage?",
    )
    panels[2].set(
        xscale="log",
        xlabel="L0 (active latents/token)",
        ylabel="|x̂ − x| (activation units)",
        title="How large an error?",
    )
    for ax in panels[1:]:
        _plain_ticks(ax)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(found)))
    return Plot(
        figure,
        "Left: 1 means as much damage as the baseline at the same distance, above 1 more. A small ratio can come from "
        "little damage or from a large error: read it with the other two panels. "
        f"{sample_of(found[0])}; bars: 95 % bootstrap interval over sequences, paired.",
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
def histograms(found: Sequence[DictionaryDamage]) -> Plot:
    """Whole distributions of KL, not their means alone."""
    shown = (RECONSTRUCTION, ISOTROPIC, COVARIANCE)
    bins = np.linspace(0, CLIP, 41)
    figure, panels = plotting.axes(len(found), width=4.2, height=3.2)
    for ax, one in zip(panels, found, strict=True):
        for number, name in enumerate(shown):
            values = one.arrays["kl_once"][:, NAMES.index(name)].ravel()
            ax.hist(
                np.clip(values, 0, CLIP),
                bins=list(bins),
                histtype="step",
                lw=1.4,
                ls=plotting.line(number),
                color=plotting.colour(number),
                label=f"{name}: mean {values.mean():.3f}, 99.9 % {np.quantile(values, 0.999):.2f}",
            )
        ax.set(
            yscale="log", xlabel=f"{NATS}, clipped at {CLIP:g}", ylabel="tokens", title=plotting.short([one.name])[0]
        )
        ax.legend(fontsize=7, loc="upper right")
    _same_height(panels)
    panels[0].set_ylim(top=panels[0].get_ylim()[1] * 12)
    _same_height(panels)
    return Plot(
        figure,
        "Is it a few tokens, or all of them? KL of each token, one draw of the random baselines. "
        f"{sample_of(found[0])}; the last bin holds all that is larger.",
    )


def _lines(ax: Axes, frame: pd.DataFrame, x: str, names: Sequence[str]) -> None:
    """One line an intervention, with its interval as a band."""
    for number, name in enumerate(names):
        part = frame[frame["intervention"] == name]
        ax.plot(
            part[x],
            part["KL"],
            color=plotting.colour(number),
            ls=plotting.line(number),
            marker=plotting.marker(number),
            ms=4,
            label=name,
        )
        ax.fill_between(part[x], part["KL low"], part["KL high"], color=plotting.colour(number), alpha=0.15, lw=0)


@plotting.applied
def by_position(table: pd.DataFrame, found: Sequence[DictionaryDamage]) -> Plot:
    """KL by position, all tokens replaced."""
    figure, panels = plotting.axes(len(found), width=4.2, height=3.2)
    table = table.assign(middle=np.sqrt((table["from"] + 1) * (table["to"] + 1)))
    for ax, one in zip(panels, found, strict=True):
        _lines(ax, table[table["dictionary"] == one.name], "middle", MAIN)
        ends = sorted(set(table["from"]))
        ax.set(xscale="log", yscale="log", xlabel="position (bins that double)", ylabel=NATS)
        ax.set_xticks([e + 1 for e in ends[::2]], [str(e) for e in ends[::2]])
        ax.set_xticks([], minor=True)
        ax.set_title(plotting.short([one.name])[0])
    _same_height(panels)
    panels[0].legend(fontsize=7)
    return Plot(
        figure,
        "Does the gap widen along the sequence? All tokens replaced at once; each point is a bin of positions. "
        f"{sample_of(found[0])}; bands: 95 % bootstrap interval over sequences.",
    )


@plotting.applied
def decay(table: pd.DataFrame, found: Sequence[DictionaryDamage], position: int) -> Plot:
    """KL after one token alone was replaced."""
    figure, panels = plotting.axes(len(found), width=4.2, height=3.2)
    for ax, one in zip(panels, found, strict=True):
        _lines(ax, table[table["dictionary"] == one.name], "positions after", MAIN)
        ax.set(yscale="log", xlabel=f"positions after position {position}", ylabel=NATS)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_title(plotting.short([one.name])[0])
    _same_height(panels)
    panels[0].legend(fontsize=7)
    return Plot(
        figure,
        f"Does the damage come from errors that add up? Only the token at position {position} is replaced. "
        f"{found[0].sequences} sequences; bands: 95 % bootstrap interval over sequences.",
    )


@plotting.applied
def strip(found: Sequence[DictionaryDamage]) -> Plot:
    """Each token's reconstruction among its random points."""
    figure, panels = plotting.axes(len(found), width=5.4, height=3.6)
    for ax, one in zip(panels, found, strict=True):
        z, order = one.z[:, 0], np.argsort(one.z[:, 0])
        clouds, points = one.arrays["cloud"][order, 0], one.arrays["point"][order]
        for at, cloud in enumerate(clouds):
            ax.plot(
                np.full(len(cloud), at),
                cloud,
                ls="",
                marker="_",
                ms=4,
                alpha=0.15,
                color=plotting.colour(1),
                rasterized=True,
            )
        ax.plot(range(len(points)), points, ls="", marker="o", ms=4, color=plotting.colour(0), label=RECONSTRUCTION)
        ax.plot([], [], ls="", marker="_", color=plotting.colour(1), label=f"{clouds.shape[1]} {ISOTROPIC} points")
        for at in range(0, len(points), max(1, len(points) // 8)):
            ax.annotate(
                f"{z[order][at]:+.1f}σ",
                (at, max(points[at], clouds[at].max())),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=7,
            )
        ax.set(yscale="log", xlabel="tokens, by how far out the reconstruction is", ylabel=NATS)
        ax.set_title(f"{plotting.short([one.name])[0]}: median {np.median(z):+.1f}σ")
    panels[0].legend(fontsize=7, loc="lower right")
    return Plot(
        figure,
        f"How far out is the reconstruction? {len(found[0].arrays['point'])} tokens, each replaced alone, by its "
        f"reconstruction and by random points at the same distance. σ: standard deviations of those points' KL.",
    )


@plotting.applied
def sensitivity(table: pd.DataFrame, found: Sequence[DictionaryDamage]) -> Plot:
    """KL along unit directions, a panel for each kind of direction."""
    classes = [name for name in CLASSES if (table["direction"] == name).any()]
    figure, panels = plotting.axes(len(classes), width=4.4, height=3.6)
    for ax, name in zip(panels, classes, strict=True):
        for number, one in enumerate(found):
            part = table[(table["dictionary"] == one.name) & (table["direction"] == name)]
            ax.plot(
                part["length / spread"],
                part["KL"],
                color=plotting.colour(number),
                marker=plotting.marker(number),
                ms=4,
                lw=1.2,
                label=one.name,
            )
            for site, reference in enumerate(REFERENCES if number == 0 else ()):
                line = table[(table["dictionary"] == one.name) & (table["direction"] == reference)]
                ax.plot(line["length / spread"], line["KL"], color="black", ls=(":", "--")[site], lw=1, label=reference)
        ax.set(xscale="log", yscale="log", xlabel="length / spread of activations", ylabel=NATS)
        ax.set_xticks([1 / 64, 1 / 16, 1 / 4, 1], ["1/64", "1/16", "1/4", "1"])
        ax.set_title(f"Along {'the error' if name == 'error' else f'latents: {name}'}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(5, len(found) + 2))
    n = len(found[0].arrays["sensitivity"])
    return Plot(
        figure,
        "Which directions does the model read? x plus a unit direction times a length, at all tokens; lengths as "
        f"shares of the root mean square distance of activations from their mean. Mean over {n} sequences. Black: "
        "directions of no dictionary.",
    )


@plotting.applied
def equal_damage(table: pd.DataFrame, reached: pd.DataFrame, found: Sequence[DictionaryDamage]) -> Plot:
    """KL along each baseline against the multiple of epsilon, and where it meets the reconstruction's."""
    figure, panels = plotting.axes(len(found), width=4.2, height=3.4)
    for ax, one in zip(panels, found, strict=True):
        for number, name in enumerate(STEPS):
            part = table[(table["dictionary"] == one.name) & (table["direction"] == name)]
            row = reached[(reached["dictionary"] == one.name) & (reached["direction"] == name)].iloc[0]
            length = row["outside"] or f"{row['effective length']:.2f}"
            look: dict[str, Any] = {
                "color": plotting.colour(number + 1),
                "ls": plotting.line(number),
                "marker": plotting.marker(number),
            }
            ax.plot(part["multiple of error norm"], part["KL"], ms=4, label=f"{name}: {length}", **look)
        ax.axhline(float(row["KL to reach"]), color=plotting.colour(0), lw=1.4)
        ax.set(xscale="log", yscale="log", xlabel="multiple of the error's norm", ylabel=NATS)
        ax.set_xticks([0.25, 0.5, 1, 2, 4, 8], ["1/4", "1/2", "1", "2", "4", "8"])
        ax.set_xticks([], minor=True)
        ax.set_title(plotting.short([one.name])[0])
        ax.legend(fontsize=7, title="does the same damage at", title_fontsize=7)
    n = len(found[0].arrays["reach"])
    return Plot(
        figure,
        "How far must one go at random to do the reconstruction's damage (horizontal line)? Above 1: the "
        f"reconstruction is the more damaging direction. Mean over {n} sequences.",
    )


@plotting.applied
def sites(table: pd.DataFrame) -> Plot:
    """The ratio at each of several sites."""
    figure, (ax,) = plotting.axes(width=7.0, height=4.0)
    names = list(dict.fromkeys(table["site"]))
    for number, baseline in enumerate((ISOTROPIC, COVARIANCE)):
        key = f"over {baseline}"
        ax.errorbar(
            [names.index(site) + 0.1 * number for site in table["site"]],
            table[key],
            yerr=_bars(table, key),
            ls="",
            color=plotting.colour(number),
            marker=plotting.marker(number),
            label=key,
        )
    ax.axhline(1, color="black", lw=0.9)
    ax.set_xticks(range(len(names)), [name.replace(".hook_", "\n") for name in names])
    ax.set(ylabel="KL of reconstruction / of baseline", title="Where is the error worse than others of its size?")
    ax.legend()
    return Plot(figure, "One point a dictionary and baseline; bars: 95 % bootstrap interval over sequences, paired.")
