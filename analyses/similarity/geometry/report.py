"""Tables and plots of the max cosines of every ordered pair of dictionaries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analyses.common import plotting
from analyses.common.chance import Levels
from analyses.common.seed_floor import relation
from analyses.similarity.geometry.max_cosines import Crowding, PairCosines, Pairwise, RelationCosines
from dictlab.dictionary import Dictionary
from dictlab.reports.report import Plot


def pair_table(pairs: Sequence[PairCosines]) -> pd.DataFrame:
    """One row an ordered pair."""
    return pd.DataFrame([_row(pair) for pair in pairs])


def _row(pair: PairCosines) -> dict[str, object]:
    row: dict[str, object] = {"relation": pair.relation, "seeds": pair.seeds, "from": pair.of, "to": pair.to}
    row |= {"mean": pair.mean.value, "low": pair.mean.low, "high": pair.mean.high}
    row |= dict(zip(("lower quartile", "median", "upper quartile"), pair.quartiles, strict=True))
    row |= {f"chance ({kind})": level for kind, level in pair.chance.items()}
    row |= {"alive": pair.n_alive, "dead": pair.n_dead, "below seed floor": pair.below_floor.value}
    return row | {"below low": pair.below_floor.low, "below high": pair.below_floor.high}


def relation_table(relations: Sequence[RelationCosines]) -> pd.DataFrame:
    """One row a relation."""
    return pd.DataFrame(
        [
            {
                "relation": one.relation,
                "seeds": one.seeds,
                "mean": one.mean.value,
                "low": one.mean.low,
                "high": one.mean.high,
                "median": one.median,
                **{f"chance ({kind})": level for kind, level in one.chance.items()},
                "pairs": one.n_pairs,
                "below seed floor": one.below_floor,
            }
            for one in relations
        ]
    )


def crowding_table(differences: Sequence[Crowding]) -> pd.DataFrame:
    """One row for every two dictionaries."""
    rows = [(one.dictionary, one.minus, *one.difference) for one in differences]
    return pd.DataFrame(rows, columns=["dictionary", "minus", "difference", "low", "high"])


@plotting.applied
def distribution_plot(opened: Sequence[Dictionary], values: Pairwise, levels: Levels) -> Plot:
    """One panel a relation, one line an ordered pair: its colour is the first dictionary's, its dashes the other's."""
    panels: dict[str, list[tuple[int, int]]] = {}
    for i, a in enumerate(opened):
        for j, b in enumerate(opened):
            panels.setdefault(relation(a, b), []).append((i, j))
    figure, axes = plotting.axes(len(panels), width=4.6, height=4.0)
    seeds = [float(values[opened[i].name, opened[j].name].mean()) for i, j in panels.get("cross-seed", [])]
    floor = sum(seeds) / max(1, len(seeds))
    for ax, (name, pairs) in zip(axes, panels.items(), strict=True):
        named: set[str] = set()
        for i, j in pairs:
            one, other = opened[i].name, opened[j].name
            label = one if i == j else f"{one} in {other}" if len(pairs) <= 6 else f"{one} in others"
            ax.hist(
                values[one, other].numpy(),
                bins=plotting.bins(list(values.values())),
                density=True,
                histtype="step",
                lw=1.3,
                color=plotting.colour(i),
                ls=plotting.line(j),
                label=None if label in named else label,
            )
            named.add(label)
        level = float(np.mean([levels[opened[j].name]["shaped"] for _, j in pairs]))
        ax.axvline(level, color="#444444", ls=":", label=f"chance (shaped) {level:.2f}")
        if seeds and name not in ("within", "cross-seed"):
            ax.axvline(floor, color="#444444", ls="--", label=f"mean between seeds {floor:.2f}")
        ax.set(title=name.capitalize(), xlabel="max cosine", ylabel="density")
        ax.set_xlim(min(float(v.min()) for v in values.values()) - 0.02, 1.02)
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.2), fontsize=7)
    counts = ", ".join(f"{d.name}: {int(d.alive.sum())}" for d in opened)
    return Plot(
        figure,
        "Distribution over latents of the max cosine, by what differs; one line an ordered pair. "
        f"Alive latents: {counts}. Dotted: chance; dashed: mean of all pairs of seeds.",
    )


@plotting.applied
def heatmap(opened: Sequence[Dictionary], values: Pairwise) -> Plot:
    """Means as a matrix."""
    names = [d.name for d in opened]
    means = np.array([[float(values[a, b].mean()) for b in names] for a in names])
    size = max(4.0, 0.75 * len(names) + 2.5)
    figure, (ax,) = plotting.axes(width=size + 1, height=size)
    image = ax.imshow(means, vmin=0, vmax=1, cmap="cividis")
    for i in range(len(names)):
        for j in range(len(names)):
            colour = "white" if means[i, j] < 0.6 else "black"
            ax.text(j, i, f"{means[i, j]:.2f}", ha="center", va="center", fontsize=8, color=colour)
    short = plotting.short(names)
    ax.set_yticks(range(len(names)), short)
    ax.set_xticks(range(len(names)), short, rotation=30, ha="right")
    ax.set(xlabel="found in", ylabel="latents of", title="Mean max cosine")
    ax.grid(False)
    figure.colorbar(image, ax=ax, label="cosine", shrink=0.8)
    return Plot(
        figure,
        "Mean max cosine of the row's latents with the column's; on the diagonal, with others of the same dictionary.",
    )
