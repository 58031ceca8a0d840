"""Communication between the processes of a run, behind one interface; a single process communicates with nobody.

`Ranks` is a single process: every method returns its argument. `DataParallelRanks` overrides the methods about tokens,
`LatentShardedRanks` those about latents as well. The rest of training calls these methods and never asks which of the
three classes it has.
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
    """A single process with all tokens and all latents.

    Attributes:
        count: Parts that a batch is cut into.
        shards: Parts that the latents of each dictionary are cut into; there are `count * shards` processes.
        is_rank_zero: Whether this is the process that reads, writes and shows progress.
    """

    count: int = 1
    shards: int = 1
    is_rank_zero: bool = True

    def check_divisible(self, number: int, what: str) -> None:
        """Refuse a batch that cannot be cut in equal parts.

        Args:
            number: Size of the batch.
            what: Its unit, for the message: tokens, contexts or rows.

        Raises:
            DictlabError: The processes that share a batch do not divide it.
        """

    # Tokens

    def local_share(self, entry: Any) -> Any:
        """This process's rows of a batch (a tensor, or one for each site)."""
        return entry

    def share_capture(self, capture: Capture) -> Capture:
        """A capture with the same result, for which each process runs the model on its own contexts alone."""
        return capture

    def all_reduce_mean(self, own: Tensor) -> Tensor:
        """The mean over all tokens of a batch, from the mean over this process's tokens."""
        return own

    def average_metrics(self, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """`all_reduce_mean` of several scalars at once, bit for bit the same in every process."""
        return own

    def average_gradients_(self, own: Sequence[Tensor | None], common: Sequence[bool]) -> None:
        """Average gradients over the processes that share tokens, in place.

        Args:
            own: Gradients of this process's weights.
            common: For each, whether the weight is common to all latents: its gradient is summed over shards, too.
        """

    def all_reduce_min(self, own: Tensor) -> Tensor:
        """The elementwise minimum over all processes."""
        return own

    def all_reduce_sum(self, own: Tensor) -> Tensor:
        """The elementwise sum over the processes that share a batch's tokens."""
        return own

    def gather_tokens(self, own: Float[Tensor, "tokens d"]) -> Float[Tensor, "batch d"]:
        """The rows of the whole batch, in its order, from this process's rows."""
        return own

    # Latents

    def latent_slice(self, width: int) -> slice:
        """Which of `width` latents are this process's."""
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
        """Codes of this process's latents, selected among all latents and all tokens of the batch.

        Raises:
            DictlabError: The activation function cannot be computed over several processes.
        """
        return sparse.encode(x, W_enc, b_enc, activation, centre, factor, dtype=dtype)

    def decode(self, codes: Codes, W_dec: Float[Tensor, "own d_in"]) -> Float[Tensor, "tokens d_in"]:
        """The decoder's product with the codes of all latents, without a bias."""
        return self.sum_over_latents(sparse.decode(codes, W_dec))

    def reconstruct(
        self, codes: Codes, W_dec: Float[Tensor, "own d_in"], bias: Float[Tensor, " d_in"], undo: Undo
    ) -> Float[Tensor, "tokens d_in"]:
        """The reconstruction from the codes of all latents and the bias, in the activations' units."""
        return decoded(codes, W_dec, bias, undo)

    def sum_over_latents(self, own: Tensor) -> Tensor:
        """The sum over all latents, from that over this process's. The gradient passes to this process's part only."""
        return own

    def share_gradient(self, common: Tensor) -> Tensor:
        """The same value of a weight common to all latents, whose gradient is divided by the number of shards."""
        return common

    def gather_latents(self, own: Bool[Tensor, " own"]) -> Bool[Tensor, " n_latents"]:
        """The mask over all latents, in their order, from the mask over this process's."""
        return own

    def any_rank(self, own: bool) -> bool:
        """Whether `own` is true in any process. The host waits for the other hosts."""
        return own

    def gradient_norm(self, norms: Float[Tensor, " weights"], common: Sequence[bool]) -> Float[Tensor, ""]:
        """The norm of the whole gradient, from the norms of this process's parts.

        Args:
            norms: Norm of the gradient of each weight.
            common: For each, whether the weight is common to all latents, so that each process has its whole gradient.
        """
        norm: Tensor = norms.norm()
        return norm

    # Processes

    def broadcast_weights(self, own: Sequence[Tensor], common: Sequence[bool]) -> None:
        """Copy weights from the first process that holds these latents, in place."""

    def any_flags(self, *flags: bool) -> Sequence[bool]:
        """For each flag, whether any process has set it. The host waits for the other hosts, never for a device."""
        return flags

    def on_rank_zero(self, work: Callable[[], T]) -> T | None:
        """Run `work` in rank zero and return its result; None in the others, which do not wait."""
        return work()

    def on_every_rank(self, work: Callable[[], T]) -> T:
        """Run `work` in every process; a DictlabError raised in one is raised in all."""
        return work()

    def broadcast_from_rank_zero(self, work: Callable[[], T]) -> T:
        """Run `work` in rank zero; its result, or the DictlabError that it raises, comes to every process."""
        return work()


SINGLE_PROCESS = Ranks()


def check_width(width: int, shards: int) -> None:
    """Refuse a width that leaves a shard without latents.

    Raises:
        DictlabError: It does.
    """
    if -(-width // shards) * (shards - 1) >= width > 0 and shards > 1:
        raise DictlabError(
            f"width {width} in {shards} shards of {-(-width // shards)} latents leaves one without any: "
            "expected fewer `shards=...`, or another `width=...`."
        )
