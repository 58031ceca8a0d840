"""Which library's matrix product is the faster one on this machine: they are up to 1.35 times apart, either way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from threadpoolctl import threadpool_limits
from torch import Tensor

MIN_MULTIPLICATIONS_TO_TIME = 1e11  # multiplications from which it pays to see which product is faster

T = TypeVar("T")
Product: TypeAlias = Callable[[Tensor, Tensor, Tensor], None]


def by_torch(rows: Float[Tensor, "n d"], columns: Float[Tensor, "m d"], out: Float[Tensor, "n m"]) -> None:
    """Products of rows with rows."""
    torch.mm(rows, columns.T, out=out)


def by_numpy(rows: Float[Tensor, "n d"], columns: Float[Tensor, "m d"], out: Float[Tensor, "n m"]) -> None:
    """The same by NumPy."""
    np.matmul(rows.numpy(), columns.numpy().T, out=out.numpy())


class Workers:
    """Threads that each have one core, a product of their own, and nothing to wait for.

    Several threads within one product would leave all but one of them idle while its outcome is looked at.
    """

    def __init__(self, product: Product, count: int) -> None:
        self.product, self.count = product, count

    def each(self, work: Callable[[Product], T]) -> list[T]:
        """What each of them makes of the same call."""
        if self.count == 1:
            return [work(self.product)]
        with ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return [done.result() for done in [pool.submit(work, self.product) for _ in range(self.count)]]


@contextmanager
def workers_for(device: torch.device, multiplications: float) -> Iterator[Workers]:
    """As many workers as torch may use threads, with the faster product; one where there is little to do, or a GPU."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or multiplications < MIN_MULTIPLICATIONS_TO_TIME:
        yield Workers(by_torch, 1)
        return
    with threadpool_limits(1, "blas"):
        yield Workers(by_numpy if numpy_is_faster() else by_torch, threads)
    torch.set_num_threads(threads)


@cache
def numpy_is_faster() -> bool:
    """Whether NumPy's product is faster here, on one core."""
    rows, out = torch.full((1024, 768), 0.5), torch.empty(1024, 1024)
    spent: dict[Product, list[float]] = {by_numpy: [], by_torch: []}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for product in (by_numpy, by_torch) * 4:
        began = time.perf_counter()
        product(rows, rows, out)
        spent[product].append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    return min(spent[by_numpy]) < min(spent[by_torch])
