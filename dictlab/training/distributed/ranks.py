"""What does one of several processes ask of the others? One process has all tokens and all latents, and asks nobody.

`Ranks` is that process: every method gives back what it is given. `parallel.Several` shadows those that are about
tokens, `sharding.Sharded` those that are about latents as well. Learner, variants, source and session call them, and
never ask which of the three they have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictlab.dictionary.activation_functions import Activation
from dictlab.dictionary.codes import Codes
from dictlab.dictionary.dictionary import decoded
from dictlab.dictionary.kernels import sparse
from dictlab.dictionary.normalisation import Undo
from dictlab.errors import DictlabError

T = TypeVar("T")
Capture = Callable[[Int[Tensor, "contexts context"]], Mapping[str, Float[Tensor, "contexts context d_in"]]]


class Ranks:
    """One process, which has every batch and every latent to itself.

    Attributes:
        count: Parts that a batch is cut into.
        shards: Parts that the latents of each dictionary are cut into; there are `count * shards` processes.
        first: Whether this is the one that reads, writes and shows.
    """

    count: int = 1
    shards: int = 1
    first: bool = True

    def check(self, number: int, what: str) -> None:
        """Refuse a batch that cannot be cut in equal parts.

        Raises:
            DictlabError: It cannot.
        """

    # Tokens

    def share(self, entry: Any) -> Any:
        """Of a batch (a tensor, or one a site), the rows that are this process's."""
        return entry

    def captured(self, capture: Capture) -> Capture:
        """The same activations, each process having run the model on its own contexts alone."""
        return capture

    def average(self, own: Tensor) -> Tensor:
        """The mean over the parts of a batch, of a mean over the tokens of each."""
        return own

    def averaged(self, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The same of several numbers at once, with the same bits in each process."""
        return own

    def average_(self, own: Sequence[Tensor | None], common: Sequence[bool]) -> None:
        """The same of gradients, in place; those of weights that are `common` to all latents are summed over these."""

    def least(self, own: Tensor) -> Tensor:
        """The smallest over processes, of each entry."""
        return own

    def most(self, own: Tensor) -> Tensor:
        """The largest over the parts of a batch, of each entry."""
        return own

    def whole(self, own: Float[Tensor, "tokens d"]) -> Float[Tensor, "batch d"]:
        """The rows of all parts, in the order of the batch."""
        return own

    # Latents

    def latents(self, width: int) -> slice:
        """Of so many latents, those that are this process's."""
        return slice(0, width)

    def encode(
        self,
        x: Float[Tensor, "tokens d_in"],
        W_enc: Float[Tensor, "d_in own"],
        b_enc: Float[Tensor, " own"],
        activation: Activation,
        centre: Float[Tensor, " d_in"] | None = None,
        factor: float = 1.0,
        dtype: torch.dtype | None = None,
    ) -> Codes:
        """Codes of this process's latents, chosen among the latents of all for all tokens of the batch.

        Raises:
            DictlabError: The activation function chooses in a way that is not known here.
        """
        return sparse.encode(x, W_enc, b_enc, activation, centre, factor, dtype=dtype)

    def decode(self, codes: Codes, W_dec: Float[Tensor, "own d_in"]) -> Float[Tensor, "tokens d_in"]:
        """What the codes of all latents decode to, without a bias."""
        return self.summed(sparse.decode(codes, W_dec))

    def reconstruct(
        self, codes: Codes, W_dec: Float[Tensor, "own d_in"], bias: Float[Tensor, " d_in"], undo: Undo
    ) -> Float[Tensor, "tokens d_in"]:
        """What the codes of all latents and the bias decode to, in the activations' units."""
        return decoded(codes, W_dec, bias, undo)

    def summed(self, own: Tensor) -> Tensor:
        """The sum over all latents, of sums over each process's. Its gradient goes on to this process's alone."""
        return own

    def portion(self, common: Tensor) -> Tensor:
        """A weight that is common to all latents, where each process would count the whole of its gradient."""
        return common

    def joined(self, own: Bool[Tensor, " own"]) -> Bool[Tensor, " n_latents"]:
        """A mask of all latents, in their order."""
        return own

    def some(self, own: bool) -> bool:
        """Whether it holds for latents of any process. The host waits."""
        return own

    def length(self, norms: Float[Tensor, " weights"], common: Sequence[bool]) -> Float[Tensor, ""]:
        """The norm of a gradient, by those of its parts; of weights that are `common`, each process has the whole."""
        norm: Tensor = norms.norm()
        return norm

    # Processes

    def alike(self, own: Sequence[Tensor], common: Sequence[bool]) -> None:
        """Make weights what they are in the first process that has these latents, in place."""

    def any(self, *flags: bool) -> Sequence[bool]:
        """For each flag, whether a process has raised it. The host waits for the other hosts, never for a device."""
        return flags

    def once(self, work: Callable[[], T]) -> T | None:
        """Do it in the first process; None in the others, which do not wait."""
        return work()

    def each(self, work: Callable[[], T]) -> T:
        """Do it in each process; if a DictlabError is raised in one, raise it in all."""
        return work()

    def agreed(self, work: Callable[[], T]) -> T:
        """Do it in the first process, and have what it returns, or the DictlabError that it raises, in each."""
        return work()


ALONE = Ranks()


def check_width(width: int, shards: int) -> None:
    """Refuse a width of which a shard would have nothing.

    Raises:
        DictlabError: One would.
    """
    if -(-width // shards) * (shards - 1) >= width > 0 and shards > 1:
        raise DictlabError(
            f"width {width} in {shards} shards of {-(-width // shards)} latents leaves one without any: "
            "expected fewer --shards, or another --width."
        )
