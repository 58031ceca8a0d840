"""What similarities stand beside: the level of chance, and which latents take part at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from analyses.common.neighbours import nearest
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.numerics import seeds

# Whether random directions have the second moments of the candidates' own, or are uniform on the sphere. Trained
# directions crowd into the directions of large variance, so that the shaped level is the stricter one.
KINDS = {"isotropic": False, "shaped": True}
NULL_ROWS = 512  # random directions that a chance level is the mean of
NULL_BLOCK = 4096  # rows that are read at once for their second moments

Levels = Mapping[str, Mapping[str, float]]  # chance levels by dictionary, by the keys of KINDS


def max_cosine_levels(
    b: Float[Tensor, "m d"],
    seed: int,
    *,
    of_b: Int[Tensor, " some_b"] | None = None,
    signed: Bool[Tensor, " m"] | None = None,
    rows: int = NULL_ROWS,
) -> dict[str, float]:
    """Mean max cosine of random directions with (some of) the rows of b, by the keys of `KINDS`: what is worth nothing.

    Args:
        b: The candidates; may lie in a file.
        seed: Of the draw.
        of_b: The rows of b that take part; all by default.
        signed: Rows of b whose opposites are the same latent: their cosines are absolute.
        rows: Directions drawn.
    """
    levels = {}
    for kind, shaped in KINDS.items():
        draw = random_directions(b, rows, shaped=shaped, seed=seed, of_b=of_b)
        levels[kind] = float(nearest(draw, b, of_b=of_b, signed_b=signed).cosine.mean())
    return levels


def chance_levels(dictionary: Dictionary, seed: int) -> dict[str, float]:
    """`max_cosine_levels` of a dictionary's alive decoder directions."""
    alive = dictionary.alive.nonzero().squeeze(1)
    return max_cosine_levels(dictionary.W_dec, seed, of_b=alive, signed=dictionary.signed)


def random_directions(
    b: Float[Tensor, "m d"], rows: int, *, shaped: bool, seed: int, of_b: Int[Tensor, " some_b"] | None = None
) -> Float[Tensor, "rows d"]:
    """Normal directions, isotropic or with the second moments of (some of) b's unit rows, which are read in blocks."""
    draw = torch.randn(rows, b.shape[1], generator=seeds.generator(seed, "chance level")).to(b.device)
    if shaped:
        latents = torch.arange(len(b)) if of_b is None else of_b
        moments = torch.zeros(b.shape[1], b.shape[1], device=b.device)
        for some in latents.split(NULL_BLOCK):
            unit = normalize(b[some.to(b.device)].float(), dim=1)
            moments += unit.T @ unit / len(latents)
        values, vectors = torch.linalg.eigh(moments)
        draw = draw * values.clamp_min(0).sqrt() @ vectors.T
    return draw


def oriented(rows: Float[Tensor, "n d"], signed: Bool[Tensor, " n"]) -> Float[Tensor, "n d"]:
    """Rows of signed latents turned such that their largest component is positive: opposites become equal."""
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return torch.where(signed[:, None].to(rows.device) & (largest < 0), -rows, rows)


def sign_notes(dictionaries: Sequence[Dictionary]) -> tuple[str, ...]:
    """What a report must say where a latent and its opposite are one."""
    signed = [d.name for d in dictionaries if bool(d.signed.any())]
    if not signed:
        return ()
    return (
        f"{', '.join(signed)}: activations have either sign, so a direction and its opposite are one latent; "
        "cosines and correlations are absolute.",
    )


def comparison_notes(given: Sequence[Dictionary], dead: Mapping[str, int]) -> tuple[str, ...]:
    """What a report must say of how latents were compared: signed ones, and how dead ones were told.

    Args:
        given: The dictionaries, as in their files.
        dead: Latents that were never active on a sample, of each that was run on one.
    """
    notes = list(sign_notes(given))
    unrated = [d.name for d in given if d.firing_rate is None]
    measured, unknown = [name for name in unrated if dead.get(name)], [name for name in unrated if name not in dead]
    if measured:
        counts = ", ".join(f"{name} ({dead[name]})" for name in measured)
        notes.append(f"No firing rates in the file, so latents never active on the sample count as dead: {counts}.")
    if unknown:
        notes.append(f"{', '.join(unknown)}: no firing rates are known, so dead latents take part.")
    return tuple(notes)


def alive_latents(dictionary: Dictionary) -> Int[Tensor, " alive"]:
    """The latents that fire.

    Raises:
        DictlabError: There are fewer than two.
    """
    latents = dictionary.alive.nonzero().squeeze(1)
    if len(latents) < 2:
        n = dictionary.n_latents
        if len(latents) == 0:
            raise DictlabError(f"{dictionary.name}: all of its {n} latents are dead, so there is nothing to compare.")
        raise DictlabError(f"{dictionary.name}: 1 of its {n} latents is alive; a comparison needs two or more.")
    return latents


def alive_directions(dictionary: Dictionary) -> tuple[Float[Tensor, "alive d_in"], Int[Tensor, " alive"]]:
    """Unit decoder directions of the latents that fire, and which latents they are.

    Raises:
        DictlabError: There are fewer than two.
    """
    latents = alive_latents(dictionary)
    return dictionary.directions[latents], latents
