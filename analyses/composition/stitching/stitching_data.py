"""What a stitching is made from and measured on: the parents' pool, activations to fit and to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from analyses.pool.dictionary_chain import DictionaryChain
from analyses.pool.refitted_subsets import RefittedSubsets
from dictlab.data.activations import Activations


class StitchingData(NamedTuple):
    """The parents and the activations of a stitching.

    Attributes:
        chain: SMALL and the larger dictionaries, with their codes of the training sample.
        subsets: Dictionaries of any subset of their latents.
        batches: The training sample, on which latents are chosen and decoders refitted.
        train: The training split; where rules are compared, on sequences of it that are drawn anew.
        heldout: What is measured on.
        contexts: Held-out sequences to measure on.
        seed: Of samples, random orders, chance levels and bootstraps.
    """

    chain: DictionaryChain
    subsets: RefittedSubsets
    batches: Sequence[Float[Tensor, "*tokens d_in"]]
    train: Activations
    heldout: Activations
    contexts: int
    seed: int
