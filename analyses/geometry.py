"""How do dictionaries lie to each other in the space they share?

For every ordered pair (A, B) the distribution, over alive latents i of A, of max_j cos(a_i, b_j); within one
dictionary, over its other latents j != i (Braun et al. 2024, section 4.2). Pairs are named by what differs:

    within            A = B: how much a dictionary's directions crowd (feature splitting)
    cross-seed        only the seed differs: the floor; no difference below it means anything
    cross-objective   trained for something else (local, e2e, e2e+downstream)
    cross-width, cross-activation, or several of these

Beside each stands the mean max cosine of random directions, uniform on the sphere and shaped like B's own. A map
(UMAP) shows the directions of all dictionaries together; cosines are to be trusted, distances on the map are not.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses import style
from analyses.inputs import DictionaryLike, check_same_place, open_dictionaries
from analyses.matching import alive_directions, chance, mean_interval, nearest
from dictlab.dictionary import Dictionary
from dictlab.errors import check_at_least
from dictlab.report import Plot, Report, Table

MAP_POINTS = 2000  # directions on the map; more are sampled down to this
NEIGHBOURS = 15  # of UMAP

Pairwise = Mapping[tuple[str, str], Tensor]  # (of, in) -> max cosines


def max_cosines(a: Dictionary, b: Dictionary) -> Float[Tensor, " alive"]:
    """For each alive latent of a, its largest cosine with an alive latent of b (another one, if b is a)."""
    return nearest(alive_directions(a)[0], alive_directions(b)[0], itself=a is not b).cosine[:, 0]


def relation(a: Dictionary, b: Dictionary) -> str:
    """What differs between two dictionaries, by their metadata."""
    if a is b:
        return "within"
    differs = [
        name
        for name, one, other in (
            ("objective", a.metadata.objective, b.metadata.objective),
            ("activation", a.activation.kind, b.activation.kind),
            ("width", a.n_latents, b.n_latents),
            ("tokens", a.metadata.tokens, b.metadata.tokens),
        )
        if one != other
    ]
    # A sparsity setting means something else under another objective or activation function.
    if not {"objective", "activation"} & set(differs) and _sparsity(a) != _sparsity(b):
        differs.append("sparsity")
    if not differs:
        return "cross-seed" if a.metadata.seed != b.metadata.seed else "same settings"
    return "cross-" + "-".join(differs)


def embed(directions: Float[Tensor, "n d"], seed: int) -> Float[np.ndarray, "n 2"]:
    """A two-dimensional map of directions, by UMAP with cosine distance."""
    import umap  # compiles itself on import: seconds that nobody else should pay

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_jobs value")  # a seed means one job: that is what we want
        mapper = umap.UMAP(n_neighbors=min(NEIGHBOURS, len(directions) - 1), metric="cosine", random_state=seed)
        placed: np.ndarray = mapper.fit_transform(directions.numpy())
    return placed


def geometry(dictionaries: Sequence[DictionaryLike], *, umap: bool = True, seed: int = 0) -> Report:
    """How do the decoder directions of dictionaries lie to each other, within and between them?

    Args:
        dictionaries: One or more at the same site.
        umap: Draw a map of all directions together.
        seed: Of chance levels, intervals and the map.

    Example:
        dictlab report geometry a.safetensors b.safetensors c.safetensors --out out/geometry
    """
    check_at_least(0, seed=seed)
    opened = [dictionary.to("cpu") for dictionary in open_dictionaries(dictionaries)]
    check_same_place(opened)
    values = {(a.name, b.name): max_cosines(a, b) for a in opened for b in opened}
    levels = {
        b.name: [chance(alive_directions(b)[0], shaped=shaped, seed=seed) for shaped in (False, True)] for b in opened
    }
    pairs = pd.DataFrame([_row(a, b, values[a.name, b.name], levels[b.name], seed) for a in opened for b in opened])
    plots = {"distributions": _distributions(opened, values, levels), "heatmap": _heatmap(opened, values)}
    tables = {
        "relations": Table(_relations(pairs), "Averages over the pairs of each relation."),
        "pairs": Table(pairs, _CAPTION),
    }
    if umap:
        points = _map(opened, seed)
        tables["map"] = Table(points, "Where each direction lies on the map. Distances on it are not to be trusted.")
        plots["map"] = _map_plot(opened, points)
    return Report(
        title=f"Geometry of {len(opened)} dictionaries" if len(opened) > 1 else f"Geometry of {opened[0].name}",
        summary=_summary(_relations(pairs)),
        tables=tables,
        plots=plots,
        settings={"umap": umap, "seed": seed},
        inputs=tuple(opened),
    )


_CAPTION = (
    "For every alive latent of one dictionary its largest cosine with another: mean, 95 % bootstrap interval over "
    "latents, quartiles, and the mean for random directions, uniform (isotropic) or shaped like the other's own."
)


def _sparsity(dictionary: Dictionary) -> object:
    return getattr(dictionary.activation, "k", dictionary.metadata.training.get("l1"))


def _row(a: Dictionary, b: Dictionary, values: Tensor, levels: list[float], seed: int) -> dict[str, object]:
    low, high = mean_interval(values, seed)
    lower, median, upper = torch.quantile(values, torch.tensor([0.25, 0.5, 0.75])).tolist()
    return {
        "relation": relation(a, b),
        "from": a.name,
        "to": b.name,
        "mean": float(values.mean()),
        "low": low,
        "high": high,
        "lower quartile": lower,
        "median": median,
        "upper quartile": upper,
        "chance (isotropic)": levels[0],
        "chance (shaped)": levels[1],
        "alive": len(values),
        "dead": a.n_emitting - len(values),
    }


def _relations(pairs: pd.DataFrame) -> pd.DataFrame:
    """Means over the ordered pairs of each relation."""
    columns = ["mean", "median", "chance (isotropic)", "chance (shaped)"]
    groups = pairs.groupby("relation", sort=False)
    return groups[columns].mean().assign(pairs=groups.size()).reset_index()


def _summary(relations: pd.DataFrame) -> str:
    parts = [
        f"{row['relation']} {row['mean']:.3f} (chance {row['chance (shaped)']:.3f})" for _, row in relations.iterrows()
    ]
    return "Mean max cosine of decoder directions, averaged over pairs: " + "; ".join(parts) + "."


@style.applied
def _distributions(opened: Sequence[Dictionary], values: Pairwise, levels: Mapping[str, list[float]]) -> Plot:
    """One panel a relation, one line an ordered pair."""
    panels: dict[str, list[tuple[Dictionary, Dictionary]]] = {}
    for a in opened:
        for b in opened:
            panels.setdefault(relation(a, b), []).append((a, b))
    figure, axes = style.axes(len(panels), width=4.6, height=4.0)
    for ax, (name, pairs) in zip(axes, panels.items(), strict=True):
        for number, (a, b) in enumerate(pairs):
            label = a.name if a is b else f"{a.name} in {b.name}"
            ax.hist(
                values[a.name, b.name].numpy(),
                bins=style.bins(list(values.values())),
                density=True,
                histtype="step",
                lw=1.5,
                color=style.colour(number),
                ls=style.line(number),
                label=label if len(pairs) <= 6 else None,
            )
        level = float(np.mean([levels[b.name][1] for _, b in pairs]))
        ax.axvline(level, color="#666666", ls=":", label=f"chance (shaped) {level:.2f}")
        ax.set(title=name, xlabel="max cosine", ylabel="density")
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.2), fontsize=7)
    counts = ", ".join(f"{d.name}: {int(d.alive.sum())}" for d in opened)
    return Plot(
        figure,
        f"Distribution over latents of the max cosine, by what differs. Alive latents: {counts}. Dotted: chance.",
    )


@style.applied
def _heatmap(opened: Sequence[Dictionary], values: Pairwise) -> Plot:
    names = [d.name for d in opened]
    means = np.array([[float(values[a, b].mean()) for b in names] for a in names])
    size = max(4.0, 0.75 * len(names) + 2.5)
    figure, (ax,) = style.axes(width=size + 1, height=size)
    image = ax.imshow(means, vmin=0, vmax=1, cmap="cividis")
    for i in range(len(names)):
        for j in range(len(names)):
            ax.text(
                j,
                i,
                f"{means[i, j]:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if means[i, j] < 0.6 else "black",
            )
    short = style.short(names)
    ax.set(
        xticks=range(len(names)),
        yticks=range(len(names)),
        yticklabels=short,
        ylabel="latents of",
        title="Mean max cosine",
    )
    ax.set_xticks(range(len(names)), short, rotation=30, ha="right")
    ax.set_xlabel("found in")
    ax.grid(False)
    figure.colorbar(image, ax=ax, label="cosine", shrink=0.8)
    return Plot(
        figure,
        "Mean max cosine of the row's latents with the column's; on the diagonal, with others of the same dictionary.",
    )


def _map(opened: Sequence[Dictionary], seed: int) -> pd.DataFrame:
    """Positions of (a sample of) all alive directions."""
    found = [alive_directions(d) for d in opened]
    names = np.repeat([d.name for d in opened], [len(latents) for _, latents in found])
    directions, latents = torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found]).numpy()
    chosen = np.sort(np.random.default_rng(seed).permutation(len(latents))[:MAP_POINTS])
    placed = embed(directions[torch.from_numpy(chosen)], seed)
    return pd.DataFrame({"dictionary": names[chosen], "latent": latents[chosen], "x": placed[:, 0], "y": placed[:, 1]})


@style.applied
def _map_plot(opened: Sequence[Dictionary], points: pd.DataFrame) -> Plot:
    figure, (ax,) = style.axes(width=7.5, height=6.0)
    for number, dictionary in enumerate(opened):
        part = points[points["dictionary"] == dictionary.name]
        ax.scatter(
            part["x"],
            part["y"],
            s=7,
            alpha=0.55,
            lw=0,
            color=style.colour(number),
            marker=style.marker(number),
            label=dictionary.name,
        )
    ax.set(
        xlabel="UMAP 1",
        ylabel="UMAP 2",
        title="Decoder directions of all dictionaries on one map",
        xticks=[],
        yticks=[],
    )
    ax.legend(markerscale=2.5, loc="center left", bbox_to_anchor=(1, 0.5))
    total = sum(int(d.alive.sum()) for d in opened)
    return Plot(
        figure,
        f"UMAP (cosine, {NEIGHBOURS} neighbours) of {len(points)} of {total} alive directions. Axes have no unit.",
    )
