"""Data-parallel training: each process has a share of every batch, and together they take one process's step.

`torchrun` starts N processes ("ranks"). Each has the whole dictionary, and the tokens of its own share of every batch:

    g = (1/N) sum_r g_r          the gradient of a mean over tokens, from those of equal shares

Whatever of a step is no mean over tokens asks for the whole batch by name: what AuxK divides by, BatchTopK's choice and
threshold, firings, the tokens that dead latents begin anew from. All else is the same arithmetic on the same numbers in
every rank, so weights, optimizer and counters are alike without being sent. The first rank alone reads the start,
writes and shows progress.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dictlab.dictionary.activation_functions import Activation, BatchTopK
from dictlab.dictionary.codes import Codes
from dictlab.dictionary.kernels import sparse
from dictlab.errors import DictlabError
from dictlab.training.distributed.distributed_top_k import WholeBatchTopK
from dictlab.training.distributed.ranks import Capture, Ranks

T = TypeVar("T")


class ProcessLost(DictlabError):
    """Another process of the run ended or cannot be reached."""


class ReportedByRankZero(DictlabError):
    """An error that rank zero has raised and reports."""


class DataParallelRanks(Ranks):
    """One of several processes of an initialised group that serves tensors of the CPU and of the device.

    Args:
        tokens: Those that share a batch; all by default.

    Attributes:
        part: Index of this process's part of each batch.
    """

    def __init__(self, tokens: dist.ProcessGroup | None = None) -> None:
        self._tokens = tokens
        self.count, self.part = dist.get_world_size(tokens), dist.get_rank(tokens)
        self.is_rank_zero = dist.get_rank() == 0

    def check_divisible(self, number: int, what: str) -> None:
        if number % self.count:
            raise DictlabError(
                f"a batch has {number} {what}, and {self.count} processes share it in equal parts: "
                f"expected a multiple of {self.count}; change `batch=...` or --nproc_per_node."
            )

    def local_share(self, entry: Any) -> Any:
        if isinstance(entry, Mapping):
            return {site: self.local_share(x) for site, x in entry.items()}
        return entry.chunk(self.count)[self.part]

    def share_capture(self, capture: Capture) -> Capture:
        processes, own = dist.get_world_size(), dist.get_rank()

        def shared(tokens: Tensor) -> dict[str, Tensor]:
            missing = -len(tokens) % processes  # the last contexts of a text: some are run twice
            even = torch.cat([tokens, tokens[:1].expand(missing, -1)])
            found = capture(even.chunk(processes)[own])
            return {site: gathered(x)[: len(tokens)] for site, x in found.items()}

        return shared

    def all_reduce_mean(self, own: Tensor) -> Tensor:
        return self._reduced(own, dist.ReduceOp.SUM) / self.count

    def average_metrics(self, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        stacked = torch.stack([value.float() for value in own.values()])
        means = reduced(stacked, dist.ReduceOp.SUM, None) / dist.get_world_size()
        return dict(zip(own, means.unbind(), strict=True))

    def average_gradients_(self, own: Sequence[Tensor | None], common: Sequence[bool]) -> None:
        add_up([g for g in own if g is not None], self._tokens)
        torch._foreach_div_([g for g in own if g is not None], self.count)

    def all_reduce_min(self, own: Tensor) -> Tensor:
        return reduced(own, dist.ReduceOp.MIN, None)

    def all_reduce_sum(self, own: Tensor) -> Tensor:
        return self._reduced(own, dist.ReduceOp.SUM)

    def gather_tokens(self, own: Tensor) -> Tensor:
        return gathered(own, self._tokens)

    def encode(
        self,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        activation: Activation,
        centre: Tensor | None = None,
        factor: float = 1.0,
        dtype: torch.dtype | None = None,
    ) -> Codes:
        return sparse.encode(x, W_enc, b_enc, self._rule(activation, b_enc), centre, factor, dtype=dtype)

    def broadcast_weights(self, own: Sequence[Tensor], common: Sequence[bool]) -> None:
        with connected():
            for tensor in own:
                dist.broadcast(tensor.detach(), src=0)

    def any_flags(self, *flags: bool) -> Sequence[bool]:
        raised = reduced(torch.tensor(flags, dtype=torch.uint8), dist.ReduceOp.MAX, None)
        return [bool(flag) for flag in raised]

    def on_rank_zero(self, work: Callable[[], T]) -> T | None:
        return work() if self.is_rank_zero else None

    def on_every_rank(self, work: Callable[[], T]) -> T:
        wrong = None
        try:
            value = work()
        except DictlabError as error:
            wrong = str(error)
        found: list[str | None] = [None] * dist.get_world_size()
        with connected():
            dist.all_gather_object(found, wrong)
        self._raise(next((message for message in found if message is not None), None))
        return value

    def broadcast_from_rank_zero(self, work: Callable[[], T]) -> T:
        outcome: list[Any] = [None, None]  # what it returned, and what was wrong
        if self.is_rank_zero:
            try:
                outcome[0] = work()
            except DictlabError as error:
                outcome[1] = str(error)
        with connected():
            dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        self._raise(outcome[1])
        value: T = outcome[0]
        return value

    def _raise(self, message: str | None) -> None:
        if message is not None:
            raise DictlabError(message) if self.is_rank_zero else ReportedByRankZero(message)

    def _rule(self, activation: Activation, b_enc: Tensor) -> Activation:
        """The same activation function, where its codes depend on the whole batch."""
        if not activation.batchwise:
            return activation
        if isinstance(activation, BatchTopK):
            return WholeBatchTopK(activation.k, len(b_enc), self.count, self.count, gathered)
        raise DictlabError(
            f"activation function {activation.kind}: its codes depend on the whole batch, and {self.count} processes "
            "share that; train it in one process."
        )

    def _reduced(self, own: Tensor, how: Any) -> Tensor:
        return own.detach() if self.count == 1 else reduced(own, how, self._tokens)


def reduced(own: Tensor, how: Any, group: dist.ProcessGroup | None) -> Tensor:
    """A sum, or another reduction, over the processes of a group; without a gradient."""
    total = own.detach().clone(memory_format=torch.contiguous_format)
    with connected():
        dist.all_reduce(total, op=how, group=group)
    return total


def add_up(own: Sequence[Tensor], group: dist.ProcessGroup | None) -> None:
    """The sums of several tensors over the processes of a group, in place."""
    with connected():
        for work in [dist.all_reduce(tensor, group=group, async_op=True) for tensor in own]:
            work.wait()


def gathered(own: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Tensors of one shape, of all processes of a group, one after the other."""
    own = own.contiguous()
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    with connected():
        dist.all_gather(parts, own, group=group)
    return torch.cat(parts)


@contextmanager
def connected() -> Iterator[None]:
    """Turn a failure to communicate into an error that says so."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(
            f"another process of this run is gone, or cannot be reached ({str(error).splitlines()[0]}). "
            "What it said is above; the last state is kept."
        ) from error
