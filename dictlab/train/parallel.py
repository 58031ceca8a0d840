"""Which part of each batch is this process's, and how do the parts make the step that one process would take?

`torchrun` starts N processes ("ranks"). Each has the whole dictionary, and the tokens of its own share of every batch:

    g = (1/N) sum_r g_r          the gradient of a mean over tokens, from those of equal shares

Whatever of a step is no mean over tokens asks for the whole batch by name: what AuxK divides by, BatchTopK's choice and
threshold, firings. All else is the same arithmetic on the same numbers in every rank, so weights, optimizer
and counters are alike without being sent. The first rank alone reads the start, writes and shows progress.

`Ranks` is one process: every method gives back what it is given. `Several` shadows them; nothing else knows which.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from dictlab.codes import Codes
from dictlab.errors import DictlabError
from dictlab.selection import largest_of_all
from dictlab.sparsity import Activation, BatchTopK, at_entries

T = TypeVar("T")
Capture = Callable[[Int[Tensor, "contexts context"]], Mapping[str, Float[Tensor, "contexts context d_in"]]]


class Ranks:
    """One process, which has every batch to itself.

    Attributes:
        count: Processes that share a batch.
        first: Whether this is the one that reads, writes and shows.
    """

    count: int = 1
    first: bool = True

    def check(self, number: int, what: str) -> None:
        """Refuse a batch that cannot be cut in equal parts.

        Raises:
            DictlabError: It cannot.
        """

    def check_alone(self, name: str, given: object) -> None:
        """Refuse a setting that only one process can have.

        Raises:
            DictlabError: It was given, and there are several.
        """

    def share(self, entry: Any) -> Any:
        """Of a batch (a tensor, or one a site), the rows that are this process's."""
        return entry

    def captured(self, capture: Capture) -> Capture:
        """The same activations, each process having run the model on its own contexts alone."""
        return capture

    def rule(self, activation: Activation) -> Activation:
        """The same activation function, where its codes depend on the whole batch.

        Raises:
            DictlabError: They do, in a way that is not known here.
        """
        return activation

    def average(self, own: Tensor) -> Tensor:
        """The mean over processes, of a mean over each one's tokens."""
        return own

    def averaged(self, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The same of several numbers at once."""
        return own

    def average_(self, own: Sequence[Tensor | None]) -> None:
        """The same of gradients, in place."""

    def least(self, own: Tensor) -> Tensor:
        """The smallest over processes, of each entry."""
        return own

    def most(self, own: Tensor) -> Tensor:
        """The largest over processes, of each entry."""
        return own

    def whole(self, own: Float[Tensor, "tokens d"]) -> Float[Tensor, "batch d"]:
        """The rows of all processes, in the order of the batch."""
        return own

    def alike(self, own: Sequence[Tensor]) -> None:
        """Make tensors what they are in the first process, in place."""

    def any(self, *flags: bool) -> Sequence[bool]:
        """For each flag, whether a process has raised it. The host waits for the other hosts, never for a device."""
        return flags

    def once(self, work: Callable[[], T]) -> T | None:
        """Do it in the first process; None in the others, which do not wait."""
        return work()

    def agreed(self, work: Callable[[], T]) -> T:
        """Do it in the first process, and have what it returns, or the DictlabError that it raises, in each."""
        return work()


ALONE = Ranks()


class Several(Ranks):
    """One of several processes of an initialised group that serves tensors of the CPU and of the device."""

    def __init__(self) -> None:
        self.count, self._rank = dist.get_world_size(), dist.get_rank()
        self.first = self._rank == 0

    def check(self, number: int, what: str) -> None:
        if number % self.count:
            raise DictlabError(
                f"a batch has {number} {what}, and {self.count} processes share it in equal parts: "
                f"expected a multiple of {self.count}; change --batch or --nproc_per_node."
            )

    def check_alone(self, name: str, given: object) -> None:
        if given:
            raise DictlabError(f"{name} {given}: for one process; {self.count} were started. Leave it out.")

    def share(self, entry: Any) -> Any:
        if isinstance(entry, Mapping):
            return {site: self.share(x) for site, x in entry.items()}
        return entry.chunk(self.count)[self._rank]

    def captured(self, capture: Capture) -> Capture:
        def shared(tokens: Tensor) -> dict[str, Tensor]:
            missing = -len(tokens) % self.count  # the last contexts of a text: some are run twice
            even = torch.cat([tokens, tokens[:1].expand(missing, -1)])
            return {site: self.whole(x)[: len(tokens)] for site, x in capture(self.share(even)).items()}

        return shared

    def rule(self, activation: Activation) -> Activation:
        if not activation.batchwise:
            return activation
        if isinstance(activation, BatchTopK):
            return WholeBatchTopK(activation.k, self)
        raise DictlabError(
            f"activation function {activation.kind}: its codes depend on the whole batch, and {self.count} processes "
            "share that; train it in one process."
        )

    def average(self, own: Tensor) -> Tensor:
        return self._reduced(own, dist.ReduceOp.SUM) / self.count

    def averaged(self, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        means = self.average(torch.stack([value.float() for value in own.values()]))
        return dict(zip(own, means.unbind(), strict=True))

    def average_(self, own: Sequence[Tensor | None]) -> None:
        gradients = [g for g in own if g is not None]
        with _connected():
            for work in [dist.all_reduce(g, async_op=True) for g in gradients]:
                work.wait()
        torch._foreach_div_(gradients, self.count)

    def least(self, own: Tensor) -> Tensor:
        return self._reduced(own, dist.ReduceOp.MIN)

    def most(self, own: Tensor) -> Tensor:
        return self._reduced(own, dist.ReduceOp.MAX)

    def whole(self, own: Tensor) -> Tensor:
        own = own.contiguous()
        parts = [torch.empty_like(own) for _ in range(self.count)]
        with _connected():
            dist.all_gather(parts, own)
        return torch.cat(parts)

    def alike(self, own: Sequence[Tensor]) -> None:
        with _connected():
            for tensor in own:
                dist.broadcast(tensor.detach(), src=0)

    def any(self, *flags: bool) -> Sequence[bool]:
        return [bool(flag) for flag in self.most(torch.tensor(flags, dtype=torch.uint8))]

    def once(self, work: Callable[[], T]) -> T | None:
        return work() if self.first else None

    def agreed(self, work: Callable[[], T]) -> T:
        outcome: list[Any] = [None, None]  # what it returned, and what was wrong
        if self.first:
            try:
                outcome[0] = work()
            except DictlabError as error:
                outcome[1] = str(error)
        with _connected():
            dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        if outcome[1] is not None:
            raise DictlabError(outcome[1])
        value: T = outcome[0]
        return value

    def _reduced(self, own: Tensor, how: Any) -> Tensor:
        total = own.detach().clone()
        with _connected():
            dist.all_reduce(total, op=how)
        return total


@dataclass(frozen=True)
class WholeBatchTopK(BatchTopK):
    """The k n largest pre-activations of the n tokens of all processes. Of equals at the bound, all.

    Attributes:
        ranks: The processes. They exchange k n values each; a larger one than the k n-th of all is active.
    """

    ranks: Several

    def __call__(self, z: Float[Tensor, "tokens n_latents"]) -> Codes:
        kept = min(self.k * len(z) * self.ranks.count, z.numel())  # one process may have them all
        own = largest_of_all(z, kept).sort().values
        values = z.flatten()[own]
        wanted = min(self.k * len(z), z.numel()) * self.ranks.count
        bound = self.ranks.whole(values).topk(wanted).values[-1]
        return at_entries(own[(values >= bound) & (values > 0)], z)


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """The processes that train together: those of the group that is there, or those that `torchrun` started.

    Args:
        device: cpu, or cuda: then each process has the GPU of its local number.

    Raises:
        DictlabError: There are fewer GPUs than processes on this machine, or one was named for all of them.
    """
    if dist.is_available() and dist.is_initialized():
        yield Several() if dist.get_world_size() > 1 else ALONE
        return
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    if device.startswith("cuda"):
        _take_gpu(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Several()
    finally:
        dist.destroy_process_group()


def _take_gpu(device: str) -> None:
    own, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device != "cuda":
        raise DictlabError(f"device {device!r}: of several processes each takes a GPU of its own; write cuda.")
    if own >= there:
        raise DictlabError(
            f"process {own} of this machine has no GPU: there are {there}. Start at most {there} (--nproc_per_node)."
        )
    torch.cuda.set_device(own)


@contextmanager
def _connected() -> Iterator[None]:
    """What a process that is gone means to the others."""
    try:
        yield
    except RuntimeError as error:
        raise DictlabError(
            f"another process of this run is gone, or cannot be reached ({str(error).splitlines()[0]}). "
            "What it said is above; the last state is kept."
        ) from error
