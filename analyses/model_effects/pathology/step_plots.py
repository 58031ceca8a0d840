"""Plots of damage along a line: steps of growing length, what is far out, steps of equal damage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from analyses.common import plotting
from analyses.model_effects.pathology.dictionary_damage import DictionaryDamage
from analyses.model_effects.pathology.estimates import (
    EqualDamage,
    StepDamage,
)
from analyses.model_effects.pathology.plots import NATS
from analyses.model_effects.pathology.replacements import ISOTROPIC, RECONSTRUCTION, STEPS
from analyses.model_effects.pathology.step_curves import CLASSES, REFERENCES
from dictlab.numerics.statistics import Estimate
from dictlab.reports.report import Plot


@plotting.applied
def far_out(damages: Sequence[DictionaryDamage]) -> Plot:
    """Each token's reconstruction among its random points."""
    figure, panels = plotting.axes(len(damages), width=5.4, height=3.6)
    for ax, one in zip(panels, damages, strict=True):
        order = np.argsort(one.z[:, 0])
        order = order[np.isfinite(one.z[order, 0])]
        z, clouds, points = one.z[order, 0], one.arrays["cloud"][order, 0], one.arrays["point"][order]
        for at, cloud in enumerate(clouds):
            look: Any = {"ls": "", "marker": "_", "ms": 4, "alpha": 0.15, "color": plotting.colour(1)}
            ax.plot(np.full(len(cloud), at), cloud, rasterized=True, **look)
        ax.plot(range(len(points)), points, ls="", marker="o", ms=4, color=plotting.colour(0), label=RECONSTRUCTION)
        ax.plot([], [], ls="", marker="_", color=plotting.colour(1), label=f"{clouds.shape[1]} {ISOTROPIC} points")
        for at in range(0, len(points), max(1, len(points) // 8)):
            place = (at, max(points[at], clouds[at].max()))
            above: Any = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "fontsize": 7}
            ax.annotate(f"{z[at]:+.1f}σ", place, **above)
        ax.set(yscale="log", xlabel="tokens, by how far out the reconstruction is", ylabel=NATS)
        median = f"median {np.median(z):+.1f}σ" if len(z) else "no token"
        ax.set_title(f"{plotting.short([one.name])[0]}: {median}")
    panels[0].legend(fontsize=7, loc="lower right")
    return Plot(
        figure,
        f"How far out is the reconstruction? {len(damages[0].arrays['point'])} tokens, each replaced alone, by its "
        "reconstruction and by random points at the same distance. σ: standard deviations of those points' KL.",
    )


@plotting.applied
def sensitivity(estimates: Sequence[StepDamage], damages: Sequence[DictionaryDamage]) -> Plot:
    """KL along unit directions, a panel for each kind of direction."""
    classes = [name for name in CLASSES if any(one.direction == name for one in estimates)]
    figure, panels = plotting.axes(len(classes), width=4.4, height=3.6)
    for ax, name in zip(panels, classes, strict=True):
        for number, damage in enumerate(damages):
            look: Any = {"color": plotting.colour(number), "marker": plotting.marker(number), "label": damage.name}
            ax.plot(*_curve(estimates, damage.name, name), ms=4, lw=1.2, **look)
        for reference, dashes in zip(REFERENCES, (":", "--"), strict=True):
            curve = _curve(estimates, damages[0].name, reference)
            ax.plot(*curve, color="black", ls=dashes, lw=1, label=reference)
        ax.set(xscale="log", yscale="log", xlabel="length / spread of activations", ylabel=NATS)
        ax.set_xticks([1 / 64, 1 / 16, 1 / 4, 1], ["1/64", "1/16", "1/4", "1"])
        ax.set_title(f"Along {'the error' if name == 'error' else f'latents: {name}'}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(5, len(damages) + 2))
    n = len(damages[0].arrays["sensitivity"])
    return Plot(
        figure,
        "Which directions does the model read? x plus a unit direction times a length, at all tokens; lengths as "
        f"shares of the root mean square distance of activations from their mean. Mean over {n} sequences. Black: "
        "directions of no dictionary.",
    )


def _curve(estimates: Sequence[StepDamage], dictionary: str, direction: str) -> tuple[list[float], list[float]]:
    """Lengths and KL along a direction of a dictionary."""
    own = [one for one in estimates if (one.dictionary, one.direction) == (dictionary, direction)]
    return [one.length for one in own], [one.kl.value for one in own]


@plotting.applied
def equal_damage(
    curves: Sequence[StepDamage], reached: Sequence[EqualDamage], damages: Sequence[DictionaryDamage]
) -> Plot:
    """KL along each baseline against the multiple of epsilon, and where it meets the reconstruction's."""
    figure, panels = plotting.axes(len(damages), width=4.2, height=3.4)
    for ax, damage in zip(panels, damages, strict=True):
        for number, name in enumerate(STEPS):
            met = [one for one in reached if (one.dictionary, one.direction) == (damage.name, name)]
            length = next((one.outside or Estimate(one.length.value).words(".2f") for one in met), "not known")
            look: Any = {"ls": plotting.line(number), "marker": plotting.marker(number), "label": f"{name}: {length}"}
            ax.plot(*_curve(curves, damage.name, name), ms=4, color=plotting.colour(number + 1), **look)
            for one in met[:1]:
                ax.axhline(one.target, color=plotting.colour(0), lw=1.4)
        ax.set(xscale="log", yscale="log", xlabel="multiple of the error's norm", ylabel=NATS)
        ax.set_xticks([0.25, 0.5, 1, 2, 4, 8], ["1/4", "1/2", "1", "2", "4", "8"])
        ax.set_xticks([], minor=True)
        ax.set_title(plotting.short([damage.name])[0])
        ax.legend(fontsize=7, title="does the same damage at", title_fontsize=7)
    n = len(damages[0].arrays["reach"])
    return Plot(
        figure,
        "How far must one go at random to do the reconstruction's damage (horizontal line)? Above 1: the "
        f"reconstruction is the more damaging direction. Mean over {n} sequences.",
    )
