"""Variants: activation functions while they are learnt, as values with a few methods.

A variant has no state. The weights it trains beside the four that every dictionary has, and its counters, are tensors
that the learner holds, averages and saves with its own.

    entries  = choose(weights)(z)           which latents may be active; the encoder's sparse product ends here
    codes    = emit(entries, weights)       their activations, by plain autograd on the entries
    loss     = objective + sum of terms
    file     = finished(dictionary, ...)    the activation function for use

The gradient with respect to z is taken at the entries alone. A rule whose gradient reaches a latent that is not active
(JumpReLU's threshold) chooses that latent too, and emits 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import Activation
from dictlab.dictionary.codes import Codes, DenseCodes
from dictlab.dictionary.kernels.error import squared_error
from dictlab.dictionary.normalisation import unscaled
from dictlab.training.distributed.ranks import Ranks
from dictlab.training.variants.async_scalar import AsyncScalar

Weights = Mapping[str, Tensor]


class Term(NamedTuple):
    """A term of a loss: its value, as it is logged, and its weight."""

    value: Float[Tensor, ""]
    weight: float


class ForwardPass(NamedTuple):
    """One forward of a dictionary in training.

    Attributes:
        dictionary: The current weights, with gradients.
        weights: The same and the variant's own, by name.
        x: The activations, in the model's units.
        x_hat: Their reconstructions; `[0, d_in]` once the loss is taken, since their memory is needed for gradients.
        entries: Latents that were chosen, with their pre-activations.
        codes: Their activations.
        dead: Latents that have not fired for `dead_tokens` tokens, and can fire at all.
        n_dead: How many, in this process.
        variance: Of a coordinate of the activations, on average, in the model's units.
        unit: Length of one of the dictionary's units, in the model's units.
        progress: Share of the run's steps already taken.
        dtype: Of products that choose latents; None for the activations' own.
        ranks: The processes that share the batch and the latents: all tensors are of this process's tokens, and codes,
            dead and weights (but for the bias) of this process's latents.
        width: Latents of all processes.
    """

    dictionary: Dictionary
    weights: Weights
    x: Float[Tensor, "tokens d_in"]
    x_hat: Float[Tensor, "tokens d_in"]
    entries: Codes | DenseCodes
    codes: Codes | DenseCodes
    dead: Bool[Tensor, " n_latents"]
    n_dead: AsyncScalar
    variance: float
    unit: float
    progress: float
    dtype: torch.dtype | None
    ranks: Ranks
    width: int

    def dead_latents(self) -> Int[Tensor, " dead"]:
        """Indices of the dead latents in rising order, without waiting for the device."""
        count = int(self.n_dead)
        order = self.dead.sort(descending=True, stable=True).indices if count else self.dead.new_empty(0).long()
        return order[:count]

    def error(self, codes: Codes | DenseCodes, dictionary: Dictionary | None = None) -> Float[Tensor, ""]:
        """Squared error at the site of the reconstruction by other codes (or another decoder), in the model's units.

        Mean over tokens and coordinates.
        """
        decoder = dictionary or self.dictionary
        undo = unscaled(decoder.normalisation, self.x)[2]
        return squared_error(self.ranks.reconstruct(codes.to_sparse(), decoder.W_dec, decoder.b_out, undo), self.x)


class Variant(Protocol):
    """An activation function in training.

    Attributes:
        label: In the names of files: the function with its sparsity.
        normalised: Whether the error at the site is divided by the variance of the activations, so that coefficients
            mean the same in every model. The L1 family keeps the model's units, as its papers write it.
        revived: Whether dead latents have a term of their own (AuxK); where not, they can be resampled.
        shared: Whether its latents can be those of several processes.
        plain: Whether entries are codes (`emit` changes nothing), and only sums over them are asked for: then they may
            come as a full matrix.
    """

    @property
    def label(self) -> str: ...

    @property
    def normalised(self) -> bool: ...

    @property
    def revived(self) -> bool: ...

    @property
    def shared(self) -> bool: ...

    @property
    def plain(self) -> bool: ...

    def tensors(self, width: int, d_in: int) -> dict[str, Tensor]:
        """What it trains beside encoder, b_enc, decoder and bias, as it starts; a row for each latent."""
        ...

    def adopted(self, dictionary: Dictionary) -> dict[str, Tensor]:
        """The same out of a dictionary's activation function, to go on from it; and weights that change with them."""
        ...

    def counters(self) -> dict[str, Tensor]:
        """What it keeps count of while it trains, as it starts."""
        ...

    def choose(self, weights: Weights) -> Activation:
        """The rule that picks entries out of the pre-activations, and leaves each as it is or cut off at 0."""
        ...

    def emit(self, entries: Codes, weights: Weights) -> Codes:
        """Codes of the entries; differentiable in them and in the weights."""
        ...

    def terms(self, forward: ForwardPass) -> dict[str, Term]:
        """Terms of the loss that come on top of the objective's."""
        ...

    def observe(self, forward: ForwardPass, counters: dict[str, Tensor]) -> None:
        """Keep count, after a step."""
        ...

    def finished(self, dictionary: Dictionary, weights: Weights, counters: Mapping[str, Tensor]) -> Dictionary:
        """The dictionary for use: the same encode and decode, with an activation function that files can hold."""
        ...

    def record(self) -> dict[str, Any]:
        """What the metadata says of it."""
        ...

    def check(self, width: int) -> None:
        """Refuse a width that it cannot be trained at.

        Raises:
            DictlabError: Such as k above the width.
        """
        ...


@dataclass(frozen=True)
class BaseVariant:
    """What most variants have in common: nothing of their own to train or to count, and entries that are codes."""

    @property
    def normalised(self) -> bool:
        return False

    @property
    def revived(self) -> bool:
        return False

    @property
    def shared(self) -> bool:
        return True

    @property
    def plain(self) -> bool:
        return False

    def tensors(self, width: int, d_in: int) -> dict[str, Tensor]:
        return {}

    def adopted(self, dictionary: Dictionary) -> dict[str, Tensor]:
        return {}

    def counters(self) -> dict[str, Tensor]:
        return {}

    def emit(self, entries: Codes, weights: Weights) -> Codes:
        return entries

    def observe(self, forward: ForwardPass, counters: dict[str, Tensor]) -> None:
        pass

    def check(self, width: int) -> None:
        pass
