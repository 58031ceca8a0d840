"""Dictionaries of one site in a row, from the smallest on, and what all their latents do on one sample of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from analyses.common.inputs import DictionaryLike, check_same_place, one_or_several, open_dictionaries
from analyses.composition.latent_graph import components, graph
from analyses.composition.path_error import Bias, Walk, walk
from analyses.composition.path_steps import Kinship, Order, Route, cosines, effects, greedy, route, shuffled
from analyses.pool.dictionary_pool import joinable, part_of, pooled
from analyses.pool.pool_sample import Observations, observe
from analyses.pool.quadratic_error import form
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError


@dataclass(frozen=True, eq=False)
class Chain:
    """Dictionaries in a row.

    Attributes:
        dictionaries: From the smallest on.
        pool: All their latents, with their firing rates on the sample.
        observations: What these do on the sample.
        context: Tokens of each of its sequences.
        biases: Output biases of the dictionaries, in the units of the pool.
    """

    dictionaries: tuple[Dictionary, ...]
    pool: Dictionary
    observations: Observations
    context: int
    biases: Float[np.ndarray, "dictionaries d_in"]

    @property
    def first(self) -> list[int]:
        """Where the latents of each dictionary begin in the pool, and where the last one's end."""
        return np.cumsum([0, *(d.n_latents for d in self.dictionaries)]).tolist()  # type: ignore[no-any-return]

    def own(self, number: int) -> slice:
        """The latents of one dictionary in the pool."""
        return slice(*self.first[number : number + 2])

    def alive(self, number: int) -> Bool[Tensor, " n_latents"]:
        """Latents that fired on the sample, or by their file in training."""
        dictionary, fired = self.dictionaries[number], torch.from_numpy(self.observations.firing_rate > 0)
        known = dictionary.firing_rate
        return fired[self.own(number)] if known is None else fired[self.own(number)] | (known.cpu() > 0)

    def part(self, chosen: Bool[np.ndarray, " n_pool"], bias: NDArray[np.float64] | None, name: str) -> Dictionary:
        """Some latents of the pool as a dictionary, with an output bias or that of the first."""
        b_out = None if bias is None else torch.from_numpy(bias).to(self.pool.b_out)
        return part_of(self.pool, torch.from_numpy(chosen), b_out=b_out, name=name)


def open_chain(small: DictionaryLike, larger: Sequence[DictionaryLike]) -> list[Dictionary]:
    """The dictionaries of a chain, read from their files.

    Raises:
        DictlabError: There is but one, one is given twice, or they are not of one place.
    """
    given = [small, *one_or_several(larger)]
    if len(given) < 2:
        raise DictlabError("one dictionary was given; SMALL and at least one LARGE are needed.")
    paths = [one if isinstance(one, Dictionary) else str(one) for one in given]
    twice = next((one for i, one in enumerate(paths) if any(one is o or one == o for o in paths[:i])), None)
    if twice is not None:
        name = twice.name if isinstance(twice, Dictionary) else twice
        raise DictlabError(f"{name} was given twice: there is nothing that it could add to itself.")
    opened = open_dictionaries(given)
    check_same_place(opened)
    return opened


def observed(dictionaries: Sequence[Dictionary], batches: Iterable[Float[Tensor, "batch context d_in"]]) -> Chain:
    """A chain on a sample of activations, which is encoded once.

    Args:
        dictionaries: From the smallest on.
        batches: Activations, sequence by sequence; sequences of equal length.

    Raises:
        DictlabError: They cannot be joined, or one of them has no active latent on the sample.
    """
    held = list(batches)
    pool = pooled(dictionaries)
    seen = observe(pool, held)
    rates = seen.firing_rate
    biases = np.stack([d.b_out.detach().double().cpu().numpy() for d in joinable(dictionaries)])
    pool = replace(pool, firing_rate=torch.from_numpy(rates).float().to(pool.W_dec.device))
    made = Chain(tuple(dictionaries), pool, seen, held[0].shape[1], biases)
    for number, dictionary in enumerate(dictionaries):
        if not rates[made.own(number)].any():
            raise DictlabError(
                f"{dictionary.name}: no latent was active on {seen.n_tokens} tokens, so there is nothing to stitch. "
                "Is it dead, or of another model or site?"
            )
    return made


def kinships(chain: Chain, threshold: float) -> list[Kinship]:
    """How the latents of each dictionary belong together with those of the next one."""
    made = []
    for number, (small, large) in enumerate(zip(chain.dictionaries, chain.dictionaries[1:], strict=False)):
        found = graph(small.W_dec, large.W_dec, threshold, chain.alive(number), chain.alive(number + 1))
        made.append(Kinship(found, components(found), *chain.first[number : number + 2]))
    return made


def ordered(chain: Chain, kin: Sequence[Kinship], order: Order, seed: int) -> Route:
    """The route through a chain in an order."""
    if order in ("effect", "greedy"):
        quadratic = form(chain.observations, chain.pool.W_dec)
        scores = [(effects if order == "effect" else greedy)(pair, quadratic) for pair in kin]
    else:
        scores = [cosines(pair) if order == "cosine" else shuffled(pair, seed) for pair in kin]
    return route(kin, chain.pool.n_latents, scores, mixed=order == "greedy")


def followed(chain: Chain, way: Route, marks: NDArray[np.int64] | None = None) -> Walk:
    """What happens along a route."""
    return walk(chain.observations, chain.pool.W_dec, way, chain.biases, context=chain.context, marks=marks)


def point_with(found: Walk, latents: int) -> int:
    """The first point of a path that has so many latents or more.

    Raises:
        DictlabError: The path never has as many, or it starts with more.
    """
    counts = found.route.latents()
    if latents < counts[0]:
        raise DictlabError(f"--at {latents}: the path begins with the {counts[0]} latents of the smallest dictionary.")
    if latents > counts.max():
        raise DictlabError(f"--at {latents}: the path never has more than {counts.max()} latents.")
    return int(np.argmax(counts >= latents))


def point_until(found: Walk, until: str, bias: Bias = "best") -> int:
    """The first point of a path at which a quantity has reached a value, from the side that it starts on.

    Args:
        found: The path.
        until: `mse=VALUE` or `l0=VALUE`.
        bias: With which the error is measured.

    Raises:
        DictlabError: It is something else, or the value is never reached.
    """
    name, _, text = until.partition("=")
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if name not in ("mse", "l0") or not np.isfinite(value):
        raise DictlabError(f"--until {until}: expected mse=VALUE or l0=VALUE, such as mse=4.2.")
    curve = found.mse(bias) if name == "mse" else found.l0()
    reached = curve <= value if curve[0] >= value else curve >= value
    if not reached.any():
        raise DictlabError(
            f"--until {until}: never reached; along the path {name} is {curve.min():.4g} to {curve.max():.4g}."
        )
    return int(np.argmax(reached))
