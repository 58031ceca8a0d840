"""Two dictionaries latent by latent: nearest both ways, each other's nearest, one to one by decoder and by encoder.

Beside it, what the same search finds where the smaller dictionary has random directions: uniform on the sphere, or
with the second moments of the larger one's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from analyses.common.chance import KINDS, alive_latents, random_directions
from analyses.common.neighbours import Neighbours, neighbours
from analyses.common.search_cost import search_cost
from analyses.similarity.matching.assignment import CANDIDATES, Assignment, along_edges, assignment, pair_cosines
from dictlab.dictionary import Dictionary
from dictlab.runtime.cost_estimate import CostEstimate

SEARCHES = 9  # of a pair: nearest, decoder and encoder, and the same for random directions of two kinds


class Matched(NamedTuple):
    """Alive latents paired one to one, by decoder and by encoder, and the other cosine of the decoder's pairs.

    Attributes:
        decoder: The assignment by decoder directions.
        encoder: The assignment by encoder columns.
        encoder_cosine: Of encoder columns, for the pairs of `decoder`.
        agree: Whether the encoders' assignment holds the same pair.
    """

    decoder: Assignment
    encoder: Assignment
    encoder_cosine: Float[Tensor, " pairs"]
    agree: Bool[Tensor, " pairs"]


class Chance(NamedTuple):
    """As many random directions as the smaller dictionary has alive latents, matched with the larger one.

    Attributes:
        directions: The random directions, for decoder and encoder alike.
        matched: Their pairs, numbered among the alive latents of the larger dictionary.
        mutual: Share of them that are in a pair of each other's nearest.
    """

    directions: Float[Tensor, "pairs d"]
    matched: Matched
    mutual: float


class Pair(NamedTuple):
    """Two dictionaries compared; `small` is the one with fewer alive latents.

    Attributes:
        a: The one.
        b: The other.
        latents: Alive latents of a; `forward`, `mutual` and pairs are numbered among those.
        others: Alive latents of b.
        forward: Nearest latents of b, for each of a.
        backward: Nearest latents of a, for each of b.
        mutual: Whether a latent of a is the nearest of its nearest.
        matched: One-to-one pairs.
        chance: What random directions reach, by the keys of `KINDS`.
    """

    a: Dictionary
    b: Dictionary
    latents: Int[Tensor, " n"]
    others: Int[Tensor, " m"]
    forward: Neighbours
    backward: Neighbours
    mutual: Bool[Tensor, " n"]
    matched: Matched
    chance: Mapping[str, Chance]

    @property
    def small(self) -> Dictionary:
        """The dictionary with fewer alive latents, all of which are in a pair."""
        return self.a if len(self.latents) <= len(self.others) else self.b

    @property
    def large(self) -> Dictionary:
        """The other one."""
        return self.b if self.small is self.a else self.a

    @property
    def of_large(self) -> Int[Tensor, " alive"]:
        """Alive latents of the larger one."""
        return self.others if self.large is self.b else self.latents

    @property
    def signed(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Latents of a, and of b, whose activation has either sign: cosines and correlations are absolute."""
        return self.a.signed.cpu().numpy(), self.b.signed.cpu().numpy()

    @property
    def a_latents(self) -> Int[Tensor, " pairs"]:
        """The latent of a in each one-to-one pair."""
        return self.latents[self.matched.decoder.rows]

    @property
    def b_latents(self) -> Int[Tensor, " pairs"]:
        """The latent of b in each one-to-one pair."""
        return self.others[self.matched.decoder.partners]


def matching_cost(dictionaries: Sequence[Dictionary]) -> CostEstimate:
    """What `paired` is going to cost for every two of some dictionaries; nothing is measured where they are small."""
    return search_cost(
        "matching",
        [(a.W_dec, b.W_dec) for a, b in combinations(dictionaries, 2)],
        lambda a, b: along_edges(*neighbours(a, b, top=CANDIDATES)),
        times=SEARCHES,
        note="directions alone; while latents are assigned one to one, nothing is printed",
    )


def paired(a: Dictionary, b: Dictionary, *, top: int, seed: int) -> Pair:
    """Compare two dictionaries by their directions.

    Args:
        a: The one; its tensors may lie in a file.
        b: The other.
        top: Neighbours of each latent.
        seed: Of the random directions.
    """
    latents, others = alive_latents(a), alive_latents(b)
    which: dict[str, Any] = {"of_a": latents, "of_b": others, "signed_a": a.signed, "signed_b": b.signed}
    forward, backward = neighbours(a.W_dec, b.W_dec, top=top, **which)
    decoder = assignment(a.W_dec, b.W_dec, **which)
    encoders = a.encoder_rows, b.encoder_rows
    encoder = assignment(*encoders, **which)
    cosine = pair_cosines(*encoders, latents[decoder.rows], others[decoder.partners], a.signed, b.signed)
    found = Pair(
        a, b, latents, others, forward, backward, _mutual(forward, backward), _matched(decoder, encoder, cosine), {}
    )
    return found._replace(chance={kind: _chance(found, shaped, seed) for kind, shaped in KINDS.items()})


def _mutual(forward: Neighbours, backward: Neighbours) -> Tensor:
    return backward.rows[forward.rows[:, 0], 0] == torch.arange(len(forward.rows))


def _matched(decoder: Assignment, encoder: Assignment, cosine: Tensor) -> Matched:
    """Whose pairs are the same; both assignments hold all rows of the smaller matrix, in one order or another."""
    held = set(zip(encoder.rows.tolist(), encoder.partners.tolist(), strict=True))
    agree = [pair in held for pair in zip(decoder.rows.tolist(), decoder.partners.tolist(), strict=True)]
    return Matched(decoder, encoder, cosine, torch.tensor(agree))


def _chance(pair: Pair, shaped: bool, seed: int) -> Chance:
    of, n = pair.of_large, len(pair.matched.decoder.rows)
    W_dec, W_enc, signed = pair.large.W_dec, pair.large.encoder_rows, pair.large.signed
    drawn = random_directions(W_dec, n, shaped=shaped, seed=seed, of_b=of)
    encoders = random_directions(W_enc, n, shaped=shaped, seed=seed, of_b=of)
    decoder = assignment(drawn, W_dec, of_b=of, signed_b=signed)
    encoder = assignment(encoders, W_enc, of_b=of, signed_b=signed)
    cosine = pair_cosines(encoders, W_enc, decoder.rows, of[decoder.partners], signed_b=signed)
    mutual = _mutual(*neighbours(drawn, W_dec, top=1, of_b=of, signed_b=signed))
    return Chance(drawn, _matched(decoder, encoder, cosine), float(mutual.float().mean()))
