"""Max cosines of every ordered pair of dictionaries: means, intervals, chance, and what two seeds differ by.

The floor of a dictionary A is the mean max cosine with the dictionaries that differ from it in seed alone. How far
A in B lies below A's floor is compared latent by latent, and means are resampled over latents: each resample draws
A's latents once for all pairs that begin with A.

And the directions of several dictionaries on one map: UMAP with cosine distance (Braun et al. 2024, appendix on UMAP;
they take Euclidean distance, which gives unit vectors the same neighbours). A map shows what to look at; nothing is
computed from it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from analyses.common import plotting
from analyses.common.chance import Levels, alive_directions, oriented
from analyses.common.seed_floor import other_seeds, relation, seeds_of
from dictlab import seeds
from dictlab.dictionary import Dictionary
from dictlab.reports.report import Plot, Scatter
from dictlab.statistics import RESAMPLES, interval

CELLS = 1 << 22  # counts of a resample that are held at once
MAP_NEIGHBOURS = 15  # of UMAP
KEPT = 20  # latents of each region that are on the map whatever the sample
NAMED = 12  # regions whose number stands on the map; more are unreadable

Pairwise = Mapping[tuple[str, str], Tensor]  # (of, in) -> max cosines
Latent = tuple[str, int]  # dictionary, number
Means = Mapping[tuple[str, str], NDArray[np.float64]]  # (of, in) -> mean of each resample


def resampled(values: Pairwise, names: Sequence[str], seed: int) -> Means:
    """Means over latents drawn with replacement; pairs that begin with one dictionary share its draws."""
    found: dict[tuple[str, str], NDArray[np.float64]] = {}
    for number, name in enumerate(names):
        columns = np.stack([values[name, other].double().numpy() for other in names], axis=1)
        means = _resampled(columns, seeds.numpy_generator(seed, f"latents of dictionary {number}"))
        found |= {(name, other): means[:, i] for i, other in enumerate(names)}
    return found


def pair_table(
    opened: Sequence[Dictionary],
    values: Pairwise,
    means: Means,
    levels: Levels,
) -> pd.DataFrame:
    """One row an ordered pair."""
    floors = {a.name: other_seeds(a, opened) for a in opened}
    return pd.DataFrame(
        [_row(a, b, values, means, levels, floors[a.name], relation(a, b)) for a in opened for b in opened]
    )


def relation_table(pairs: pd.DataFrame, means: Means) -> pd.DataFrame:
    """Means over the ordered pairs of each relation, those of one seed apart, with intervals over latents."""
    rows = []
    for (name, same_seed), part in pairs.groupby(["relation", "seeds"], sort=False):
        draws = np.mean([means[of, into] for of, into in zip(part["from"], part["to"], strict=True)], axis=0)
        low, high = interval(draws)
        averaged = {c: part[c].mean() for c in ("median", "chance (isotropic)", "chance (shaped)")}
        rows.append(
            {"relation": name, "seeds": same_seed, "mean": part["mean"].mean(), "low": low, "high": high} | averaged
        )
        rows[-1] |= {"pairs": len(part), "below seed floor": part["below seed floor"].mean()}
    return pd.DataFrame(rows)


def crowding_table(opened: Sequence[Dictionary], values: Pairwise, means: Means) -> pd.DataFrame:
    """Differences of the mean max cosine within dictionaries, for every two of them."""
    rows = []
    for i, a in enumerate(opened):
        for b in opened[i + 1 :]:
            difference = float(values[a.name, a.name].mean() - values[b.name, b.name].mean())
            low, high = interval(means[a.name, a.name] - means[b.name, b.name])
            rows.append({"dictionary": a.name, "minus": b.name, "difference": difference, "low": low, "high": high})
    return pd.DataFrame(rows, columns=["dictionary", "minus", "difference", "low", "high"])


def _resampled(columns: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    n = len(columns)
    means = np.empty((RESAMPLES, columns.shape[1]))
    step = max(1, CELLS // n)
    for start in range(0, RESAMPLES, step):
        drawn = min(step, RESAMPLES - start)
        means[start : start + drawn] = generator.multinomial(n, np.full(n, 1 / n), size=drawn) @ columns / n
    return means


def _row(
    a: Dictionary,
    b: Dictionary,
    values: Pairwise,
    means: Means,
    levels: Levels,
    floor: Sequence[str],
    relation: str,
) -> dict[str, object]:
    own = values[a.name, b.name]
    low, high = interval(means[a.name, b.name])
    lower, median, upper = torch.quantile(own, torch.tensor([0.25, 0.5, 0.75])).tolist()
    row: dict[str, object] = {"relation": relation, "seeds": seeds_of(a, b), "from": a.name, "to": b.name}
    row["mean"] = float(own.mean())
    row |= {"low": low, "high": high, "lower quartile": lower, "median": median, "upper quartile": upper}
    row |= {"chance (isotropic)": levels[b.name]["isotropic"], "chance (shaped)": levels[b.name]["shaped"]}
    row |= {"alive": len(own), "dead": a.n_emitting - len(own)}
    return row | _below_floor(a.name, b.name, values, means, floor if relation not in ("within", "cross-seed") else ())


def _below_floor(a: str, b: str, values: Pairwise, means: Means, floor: Sequence[str]) -> dict[str, float]:
    """How far A in B lies below A in its other seeds; NaN where there are none."""
    keys = ("below seed floor", "below low", "below high")
    if not floor:
        return dict.fromkeys(keys, float("nan"))
    level = float(np.mean([float(values[a, seed].mean()) for seed in floor]))
    draws = np.mean([means[a, seed] for seed in floor], axis=0) - means[a, b]
    return dict(zip(keys, (level - float(values[a, b].mean()), *interval(draws)), strict=True))


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


def embed(directions: Float[Tensor, "n d"], seed: int) -> Float[np.ndarray, "n 2"]:
    """A two-dimensional map of directions, by UMAP with cosine distance."""
    import umap  # compiles itself on import: seconds that nobody else should pay

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_jobs value")  # a seed means one job: that is what we want
        mapper = umap.UMAP(n_neighbors=min(MAP_NEIGHBOURS, len(directions) - 1), metric="cosine", random_state=seed)
        placed: np.ndarray = mapper.fit_transform(directions.numpy())
    return placed


def map_points(opened: Sequence[Dictionary], points: int, regions: Mapping[Latent, str], seed: int) -> pd.DataFrame:
    """Positions of a sample of alive directions, with the most central latents of each region among them.

    Args:
        opened: The dictionaries.
        points: How many at most.
        regions: The regions, by number, that a latent is in; a region's most central latents come first.
        seed: Of the sample and the map.
    """
    found = [
        (oriented(directions, d.signed[latents]), latents)
        for d in opened
        for directions, latents in [alive_directions(d)]
    ]
    frame = pd.DataFrame(
        {
            "dictionary": np.repeat([d.name for d in opened], [len(latents) for _, latents in found]),
            "latent": torch.cat([latents for _, latents in found]).numpy(),
        }
    )
    frame["region"] = [regions.get(key) for key in zip(frame["dictionary"], frame["latent"], strict=True)]
    sure = _first_of_each(regions)
    first = np.array([key in sure for key in zip(frame["dictionary"], frame["latent"], strict=True)])
    chosen = np.sort(np.argsort(seeds.numpy_generator(seed, "points of a map").random(len(frame)) - first)[:points])
    frame = frame.iloc[chosen].reset_index(drop=True)
    placed = embed(torch.cat([directions for directions, _ in found])[torch.from_numpy(chosen)], seed)
    frame.insert(2, "x", placed[:, 0])
    frame.insert(3, "y", placed[:, 1])
    return frame


def _first_of_each(regions: Mapping[Latent, str]) -> set[Latent]:
    seen: dict[str, int] = {}
    kept = set()
    for latent, names in regions.items():
        for name in names.split(", "):
            seen[name] = seen.get(name, 0) + 1
            if seen[name] <= KEPT:
                kept.add(latent)
    return kept


@plotting.applied
def map_plot(opened: Sequence[Dictionary], points: pd.DataFrame) -> Scatter:
    """The map, with a ring around each latent that is in a region."""
    figure, (ax,) = plotting.axes(width=7.5, height=6.0)
    for number, dictionary in enumerate(opened):
        part = points[points["dictionary"] == dictionary.name]
        ax.scatter(
            part["x"],
            part["y"],
            s=9,
            alpha=0.6,
            lw=0,
            color=plotting.colour(number),
            marker=plotting.marker(number),
            label=dictionary.name,
        )
    marked = points[points["region"].notna()]
    if len(marked):
        ax.scatter(marked["x"], marked["y"], s=22, facecolors="none", edgecolors="black", lw=0.5, label="in a region")
    for name in sorted({name for names in marked["region"] for name in names.split(", ")}, key=int)[:NAMED]:
        part = marked[[name in names.split(", ") for names in marked["region"]]]
        around = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "black", "lw": 0.6, "alpha": 0.85}
        away = np.hypot(part["x"] - part["x"].median(), part["y"] - part["y"].median())
        x, y = part.loc[away.idxmin(), ["x", "y"]]  # a latent of its own, however the map tears it apart
        ax.text(x, y, name, fontsize=8, ha="center", va="center", bbox=around)
    ax.set(
        xlabel="UMAP 1 (no unit)",
        ylabel="UMAP 2 (no unit)",
        title="Decoder directions of all dictionaries on one map",
        xticks=[],
        yticks=[],
    )
    ax.legend(markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    total = sum(int(d.alive.sum()) for d in opened)
    return Scatter(
        figure,
        f"UMAP (cosine, {MAP_NEIGHBOURS} neighbours) of {len(points)} of {total} alive directions. Rings: latents in "
        f"regions that one of two dictionaries fills, found among the cosines, not on the map; numbers: the {NAMED} "
        "largest of them. Distances and sizes on the map are not to be trusted.",
        frame=points,
        x="x",
        y="y",
        group="dictionary",
        labels=tuple(column for column in points.columns if column not in ("x", "y", "dictionary")),
        marks="region",
        colours={d.name: plotting.colour(i) for i, d in enumerate(opened)},
    )
