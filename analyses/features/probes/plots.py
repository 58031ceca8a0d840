"""Plots of single-latent probes: what a latent loses, widths, tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from analyses.common import plotting
from analyses.features.probes.probe_means import KINDS, LEFT, LOSS, ProbeMeans, feature_set_name
from analyses.features.probes.single_latent_probes import Probed
from dictlab.numerics.statistics import Estimate

DODGE = 1.03  # widths beside each other in a plot


def _panels(means: Sequence[ProbeMeans]) -> list[tuple[str, list[Estimate]]]:
    """What the two panels of a plot show: axis, and the values of each set of features."""
    return [(LOSS, [one.loss for one in means]), (LEFT, [one.of_entropy for one in means])]


@plotting.applied
def losses_plot(means: Sequence[ProbeMeans]) -> Figure:
    """One line a set of features, the best on top."""
    figure, panels = plotting.axes(2, width=5.2, height=max(2.2, 0.24 * len(means) + 1.1))
    for ax, (axis, values) in zip(panels, _panels(means), strict=True):
        order = sorted(range(len(means)), key=lambda i: -values[i].value)
        for kind, number in KINDS.items():
            rows = [row for row, i in enumerate(order) if means[i].kind == kind]
            plotting.estimates(ax, [values[order[row]] for row in rows], rows, number, along="y", ms=5, label=kind)
        ax.set_xlabel(axis)
        plotting.named_rows(ax, range(len(means)), [means[i].name for i in order])
        ax.tick_params(axis="y", labelsize=8)
    panels[0].set_title("How well does the best single feature answer a task?")
    panels[1].set_title("… each task counted alike")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@plotting.applied
def widths_plot(means: Sequence[ProbeMeans]) -> Figure:
    """Losses against width, a series for each objective and activation function."""
    figure, panels = plotting.axes(2, width=4.8, height=3.8)
    families = sorted({one.family for one in means if one.width}, key=_natural)
    titles = ("Do wider dictionaries answer more?", "… each task counted alike")
    widths = sorted({one.width for one in means if one.width})
    for ax, (axis, values), title in zip(panels, _panels(means), titles, strict=True):
        for number, family in enumerate(families):
            beside = DODGE ** (number - (len(families) - 1) / 2)  # so that equal widths do not hide each other
            own = [(one.width * beside, value) for one, value in zip(means, values, strict=True)
                   if one.width and one.family == family]  # fmt: skip
            points = [value for _, value in own], [width for width, _ in own]
            plotting.estimates(ax, *points, number, ms=5, label=" ".join(family))
        others = [(one, value) for one, value in zip(means, values, strict=True) if one.width is None]
        for number, (one, value) in enumerate(others):
            ax.axhline(value.value, color="0.4", ls=plotting.line(number + 1), lw=1, label=one.name)
        ax.set(xlabel="width (latents)", ylabel=axis, title=title, xscale="log")
        ax.set_xticks(widths, labels=[str(width) for width in widths])
        ax.minorticks_off()
    panels[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _natural(name: Sequence[str]) -> list[tuple[int, str]]:
    """Sorts numbers as numbers: k = 8 before k = 16."""
    return [(int(word), "") if word.isdigit() else (0, word) for part in name for word in str(part).split()]


@plotting.applied
def tasks_plot(measured: Sequence[Probed], names: Sequence[str]) -> Figure:
    """F1 by task and set of features, tasks sorted by the best dictionary's."""
    scores = np.stack([one.f1 for one in measured], axis=1)
    own = np.array([one.dictionary is not None for one in measured])
    order = np.argsort(-scores[:, own].max(axis=1), kind="stable")
    labels = plotting.short([feature_set_name(one, measured) for one in measured])
    width, height = 3.4 + 0.3 * len(measured), 1.9 + 0.145 * len(names)
    figure, (ax,) = plotting.axes(1, width=width, height=height)
    image = ax.imshow(scores[order], aspect="auto", cmap="cividis", vmin=0, vmax=1)
    ax.set(xticks=range(len(measured)), yticks=range(len(names)), title="Who has a latent for what?")
    ax.set_xticklabels(labels, rotation=90, fontsize=8)
    ax.set_yticklabels([names[i] for i in order], fontsize=7)
    ax.grid(False)
    if not own.all():
        ax.axvline(own.sum() - 0.5, color="white", lw=2)
    figure.colorbar(image, ax=ax, label="F1 on held-out text", shrink=0.6, pad=0.02)
    return figure
