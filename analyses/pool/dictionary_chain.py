"""Dictionaries of one site in a row, and what all their latents do on one sample of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from analyses.common.compatibility import check_same_place
from analyses.common.opening import DictionaryLike, one_or_several, open_dictionaries
from analyses.pool.dictionary_pool import part_of, pool_of_folded, with_common_normalisation
from analyses.pool.pool_sample import PoolSample, encode_sample
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.runtime.progress import track


@dataclass(frozen=True, eq=False)
class DictionaryChain:
    """Dictionaries in a row, encoded once on a sample of tokens.

    Attributes:
        dictionaries: As they were given; on a path from the smallest on.
        pool: All their latents, with their firing rates on the sample.
        sample: What these do on the sample.
        context: Tokens of each of its sequences.
        biases: Output biases of the dictionaries, in the units of the pool.
    """

    dictionaries: tuple[Dictionary, ...]
    pool: Dictionary
    sample: PoolSample
    context: int
    biases: Float[np.ndarray, "dictionaries d_in"]

    @property
    def first_latents(self) -> list[int]:
        """Where the latents of each dictionary begin in the pool, and where the last one's end."""
        return np.cumsum([0, *(d.n_latents for d in self.dictionaries)]).tolist()  # type: ignore[no-any-return]

    def latents_of(self, number: int) -> slice:
        """The latents of one dictionary in the pool."""
        return slice(*self.first_latents[number : number + 2])

    def mask_of(self, number: int) -> Bool[np.ndarray, " n_pool"]:
        """Which latents of the pool are those of one dictionary."""
        mask = np.zeros(self.pool.n_latents, dtype=bool)
        mask[self.latents_of(number)] = True
        return mask

    @property
    def n_active(self) -> list[int]:
        """Latents of each dictionary that are active on the sample."""
        active = self.sample.firing_rate > 0
        return [int(active[self.latents_of(number)].sum()) for number in range(len(self.dictionaries))]

    def alive(self, number: int) -> Bool[Tensor, " n_latents"]:
        """Latents of one dictionary that fired on the sample, or by its file in training."""
        fired = torch.from_numpy(self.sample.firing_rate > 0)[self.latents_of(number)]
        known = self.dictionaries[number].firing_rate
        return fired if known is None else fired | (known.cpu() > 0)

    def subset(self, chosen: Bool[np.ndarray, " n_pool"], bias: NDArray[np.float64] | None, name: str) -> Dictionary:
        """Some latents of the pool as a dictionary, with an output bias or that of the first dictionary."""
        b_out = None if bias is None else torch.from_numpy(bias).to(self.pool.b_out)
        return part_of(self.pool, torch.from_numpy(chosen), b_out=b_out, name=name)


def open_chain(small: DictionaryLike, larger: Sequence[DictionaryLike], *, analysis: str) -> list[Dictionary]:
    """The dictionaries of a chain, read from their files.

    Args:
        small: The first.
        larger: The others.
        analysis: What it is for, for messages.

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
    opened = open_dictionaries(given, analysis=analysis)
    check_same_place(opened)
    return opened


def encode_chain(
    dictionaries: Sequence[Dictionary], batches: Iterable[Float[Tensor, "batch context d_in"]]
) -> DictionaryChain:
    """A chain on a sample of activations, which is encoded once.

    Args:
        dictionaries: At one site.
        batches: Activations, sequence by sequence; sequences of equal length.

    Raises:
        DictlabError: They cannot be joined, or the activations do not vary.
    """
    folded = with_common_normalisation(dictionaries)
    pool, held = pool_of_folded(folded), list(batches)
    sample = encode_sample(pool, track(held, f"codes of {pool.n_latents:,} latents", unit="batches"))
    if not sample.varies:
        raise DictlabError(
            f"the {sample.n_tokens} tokens of the sample have one and the same activation: nothing to explain. "
            "Give other data, or more tokens."
        )
    rates = torch.from_numpy(sample.firing_rate).float().to(pool.W_dec.device)
    biases = np.stack([d.b_out.detach().double().cpu().numpy() for d in folded])
    return DictionaryChain(tuple(dictionaries), replace(pool, firing_rate=rates), sample, held[0].shape[1], biases)


def check_active(chain: DictionaryChain) -> None:
    """Refuse a chain of which one dictionary does nothing.

    Raises:
        DictlabError: One has no active latent on the sample.
    """
    for number, dictionary in enumerate(chain.dictionaries):
        if not chain.sample.firing_rate[chain.latents_of(number)].any():
            raise DictlabError(
                f"{dictionary.name}: no latent was active on {chain.sample.n_tokens} tokens, so there is nothing to "
                "stitch. Is it dead, or of another model or site?"
            )
