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

from jaxtyping import Float
from torch import Tensor

from analyses.common.chance import chance_levels, comparison_notes
from analyses.common.compatibility import check_same_place
from analyses.common.inputs import DataLike
from analyses.common.max_activating import find_contexts, with_activity
from analyses.common.opening import DictionaryLike, ModelLike, TextLike, open_dictionaries
from analyses.common.seed_floor import SEEDS, without_floor
from analyses.similarity.geometry.direction_umap import map_plot, map_points
from analyses.similarity.geometry.max_cosines import (
    RelationCosines,
    crowding,
    pair_cosines,
    relation_cosines,
    resampled,
)
from analyses.similarity.geometry.pairwise import Contrast, compare, membership, near
from analyses.similarity.geometry.report import crowding_table, distribution_plot, heatmap, pair_table, relation_table
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
    given = open_dictionaries(dictionaries, analysis="geometry", token_selection=token_selection)
    check_same_place(given, model)
    contexts, warnings = find_contexts(given, model, text, tokens, seed, device, data)
    opened = [dictionary.to("cpu") for dictionary in with_activity(given, contexts)]
    compared = compare(opened, permutations, seed)
    values, means = compared.values, resampled(compared.values, [d.name for d in opened], seed)
    levels = {d.name: chance_levels(d, seed) for d in opened}
    pairs = pair_cosines(opened, values, means, levels)
    relations = relation_cosines(pairs, means)
    tables = {
        "relations": Table(relation_table(relations), _RELATIONS),
        "pairs": Table(pair_table(pairs), _PAIRS),
    }
    if len(opened) > 1:
        tables["crowding"] = Table(crowding_table(crowding(opened, values, means)), _CROWDING)
        tables |= compared.tables(contexts)
    plots = {"distributions": distribution_plot(opened, values, levels), "heatmap": heatmap(opened, values)}
    no_map = (NO_UMAP,) if umap_points and not find_spec("umap") else ()
    if umap_points and not no_map:
        placed = map_points(opened, umap_points, membership(compared.regions), seed)
        plots["map"] = map_plot(opened, placed, contexts)
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
            *without_floor([one.relation for one in relations]),
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


def _label(one: RelationCosines) -> str:
    if one.relation in ("within", SEEDS) or one.seeds == "unknown":
        return one.relation
    return f"{one.relation}, {one.seeds} seed{'s' if one.seeds == 'different' else ''},"


def _summary(relations: Sequence[RelationCosines], contrasts: Sequence[Contrast]) -> str:
    apart = {one.relation for one in relations if one.seeds == "different"}  # the fairer comparison, where there is one
    parts = [
        f"{_label(one)} {one.mean.value:.3f} [{one.mean.low:.3f}, {one.mean.high:.3f}] "
        f"(chance {one.chance['shaped']:.3f})"
        for one in relations
        if one.seeds != "same" or one.relation not in apart
    ]
    sentence = "Mean max cosine of decoder directions, averaged over pairs: " + "; ".join(parts) + "."
    if not contrasts:
        return sentence
    of_seeds = [one.n_regions for one in contrasts if one.relation == SEEDS]
    of_others = [one.n_regions for one in contrasts if one.relation != SEEDS]
    sentence += (
        f" Regions that one of two dictionaries fills and the other leaves empty: {sum(of_others)} in "
        f"{len(of_others)} pairs"
    )
    return sentence + (f", and {sum(of_seeds)} in {len(of_seeds)} pairs of seeds." if of_seeds else ".")
