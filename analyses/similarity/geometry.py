"""How do dictionaries lie to each other in the space they share?

For every ordered pair (A, B) the distribution, over alive latents i of A, of max_j cos(a_i, b_j); within one
dictionary, over its other latents j != i (Braun et al. 2024, section 4.2). Pairs are named by what differs:

    within            A = B: how much a dictionary's directions crowd (feature splitting)
    cross-seed        only the seed differs: the floor; no difference below it means anything
    cross-objective   trained for something else (local, e2e, e2e+downstream)
    cross-width, cross-activation, or several of these

Beside each stands the mean max cosine of random directions, uniform on the sphere and shaped like B's own. For every
two dictionaries, the regions that one fills and the other leaves empty (`regions`). A map shows the directions of all
dictionaries together, and what each latent responds to in a text or an array (`contexts`); cosines are to be trusted,
distances on the map are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from analyses.common.chance import chance_levels, comparison_notes
from analyses.common.inputs import DataLike, DictionaryLike, ModelLike, TextLike, check_same_place, open_dictionaries
from analyses.common.max_activating import find_contexts, with_activity, with_contexts
from analyses.common.seed_floor import without_floor
from analyses.similarity.geometry_report import (
    crowding_table,
    distribution_plot,
    heatmap,
    map_plot,
    map_points,
    pair_table,
    relation_table,
    resampled,
)
from analyses.similarity.pairwise import compare, membership, near
from dictlab.dictionary import Dictionary
from dictlab.errors import check_at_least
from dictlab.reports.report import Report, Table

NO_UMAP = (
    'there is no map of the directions: it needs the package umap-learn, which `pip install "dictlab[umap]"` adds.'
)


def max_cosines(a: Dictionary, b: Dictionary) -> Float[Tensor, " alive"]:
    """For each alive latent of a, its largest cosine with an alive latent of b (another one, if b is a)."""
    return near(a, b, 1).cosine[:, 0]


def geometry(
    dictionaries: Sequence[DictionaryLike],
    *,
    umap_points: int = 2000,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    data: DataLike | None = None,
    tokens: int = 65_536,
    permutations: int = 100,
    seed: int = 0,
    device: str = "cpu",
    token_selection: str | None = None,
) -> Report:
    """How do the decoder directions of dictionaries lie to each other, within and between them?

    Args:
        dictionaries: One or more at the same site.
        umap_points: Directions on a UMAP of all together; of more, a sample, with all that are in a region. 0 for none.
        model: The language model; by default the one that the dictionaries name. For contexts.
        text: Where tokens come from. Its training split is used, for contexts.
        data: Activations in place of model and text: an array, or a .npy or .safetensors file. Rows for contexts.
        tokens: Training tokens to sample. 0 to look for no contexts and open no model.
        permutations: Shuffles behind each p-value. More where many pairs of dictionaries ask for it.
        seed: Seed of everything that is drawn at random.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.

    Returns:
        A report with these tables; in brackets what is there only where there is such a thing.

        relations: relation; seeds; mean; low; high; median; chance (isotropic); chance (shaped); pairs; below seed
            floor
        pairs: relation; seeds; from; to; mean; low; high; lower quartile; median; upper quartile; chance (isotropic);
            chance (shaped); alive; dead; below seed floor; below low; below high
        [crowding]: dictionary; minus; difference; low; high
        [contrasts]: relation; dictionary; other; regions; share; regions of other; share of other
        [regions]: region; filled by; not by; latents; density ratio; p-value; most central; contexts
        [region_latents]: region; dictionary; latent; density ratio; context 1; context 2; context 3

    Example:
        dictlab report geometry a.safetensors b.safetensors c.safetensors --out out/geometry
        dictlab report geometry a.safetensors b.safetensors --data activations.npy
    """
    check_at_least(0, seed=seed, tokens=tokens, umap_points=umap_points)
    check_at_least(1, permutations=permutations)
    check_at_least(3, umap_points=umap_points or None)
    given = open_dictionaries(dictionaries, token_selection=token_selection)
    check_same_place(given, model)
    contexts, warnings = find_contexts(given, model, text, tokens, seed, device, data)
    opened = [dictionary.to("cpu") for dictionary in with_activity(given, contexts)]
    compared = compare(opened, permutations, seed)
    values, means = compared.values, resampled(compared.values, [d.name for d in opened], seed)
    levels = {d.name: chance_levels(d, seed) for d in opened}
    pairs = pair_table(opened, values, means, levels)
    relations = relation_table(pairs, means)
    tables = {
        "relations": Table(relations, _RELATIONS),
        "pairs": Table(pairs, _PAIRS),
    }
    if len(opened) > 1:
        tables["crowding"] = Table(crowding_table(opened, values, means), _CROWDING)
        tables |= compared.tables(contexts)
    plots = {"distributions": distribution_plot(opened, values, levels), "heatmap": heatmap(opened, values)}
    no_map = (NO_UMAP,) if umap_points and not find_spec("umap") else ()
    if umap_points and not no_map:
        placed = map_points(opened, umap_points, membership(compared.found), seed)
        plots["map"] = map_plot(opened, with_contexts(placed, contexts))
    settings: dict[str, Any] = {"umap_points": umap_points, "permutations": compared.permutations, "tokens": 0}
    settings |= {} if contexts is None else contexts.record
    return Report(
        title=f"Geometry of {len(opened)} dictionaries" if len(opened) > 1 else f"Geometry of {opened[0].name}",
        summary=_summary(relations, compared.contrasts),
        tables=tables,
        plots=plots,
        settings=settings | {"seed": seed},
        inputs=tuple(opened),
        warnings=(
            *warnings,
            *no_map,
            *comparison_notes(given, {} if contexts is None else contexts.dead()),
            *without_floor(list(relations["relation"])),
        ),
    )


_RELATIONS = (
    "Averages over the ordered pairs of each relation, those of one seed apart: they may have begun with the same "
    "directions, and are alike for that. 95 % bootstrap interval over latents (not over seeds). Below "
    "seed floor: how much lower than the mean max cosine of the same latents with another seed, where there is one."
)
_PAIRS = (
    "For every alive latent of one dictionary its largest cosine with another: mean, 95 % bootstrap interval over "
    "latents, quartiles, and the mean for random directions, uniform (isotropic) or shaped like the other's own. Below "
    "seed floor: how much lower than with the same dictionary in other seeds, with its interval."
)
_CROWDING = (
    "Difference of the mean max cosine within a dictionary, with its 95 % bootstrap interval over latents: above 0, "
    "the directions of the first crowd more."
)


def _label(row: pd.Series) -> str:
    plain = row["relation"] in ("within", "cross-seed") or row["seeds"] == "unknown"
    return (
        row["relation"]
        if plain
        else f"{row['relation']}, {row['seeds']} seed{'s' if row['seeds'] == 'different' else ''},"
    )


def _summary(relations: pd.DataFrame, contrasts: pd.DataFrame) -> str:
    apart = set(relations[relations["seeds"] == "different"]["relation"])  # the fairer comparison, where there is one
    parts = [
        f"{_label(row)} {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}] (chance {row['chance (shaped)']:.3f})"
        for _, row in relations.iterrows()
        if row["seeds"] != "same" or row["relation"] not in apart
    ]
    said = "Mean max cosine of decoder directions, averaged over pairs: " + "; ".join(parts) + "."
    if len(contrasts):
        count = contrasts["regions"] + contrasts["regions of other"]
        between = contrasts["relation"] == "cross-seed"
        said += f" Regions that one of two dictionaries fills and the other leaves empty: {int(count[~between].sum())}"
        said += f" in {int((~between).sum())} pairs" if between.any() else f" in {len(contrasts)} pairs"
        said += f", and {int(count[between].sum())} in {int(between.sum())} pairs of seeds." if between.any() else "."
    return said
