"""From which share of active latents on are dense products faster than sparse ones?

    a step       a whole ReLU + L1 training step with its codes as a full matrix, and as entries; biases are set so that
                 such a share is active. `SHARE` in dictlab/dictionary/kernels/dense.py is what this says.
    products     the four products behind an encoder (decode, gradient at the entries, both weight gradients) by either
                 way, on entries at random. `DENSE` in dictlab/dictionary/kernels/sparse.py is what this says.

python -m benchmarks.speed.density
python -m benchmarks.speed.density --of products
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import torch

from benchmarks.speed.peers import D_IN, synthetic
from benchmarks.speed.topk_step import learner
from dictlab.dictionary.codes import CachedColumns, Codes, offsets_of
from dictlab.dictionary.kernels import sparse
from dictlab.training.objectives import Batch

TOKENS, ROUNDS = 4096, 4
SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
Way = Callable[[bool], None]  # by dense products or not


def step(width: int, share: float) -> Way:
    """A training step; the learning rate is so small that the share stays."""
    x = synthetic(1)[0]
    trained = learner(width, "relu", x)
    with torch.no_grad():
        z = trained.dictionary.pre_activations(x[:512])
        trained.b_enc.sub_(z.flatten().kthvalue(round((1 - share) * z.numel())).values)
    trained.optimizer.param_groups[0]["lr"] = 0.0
    trained.schedule.base_lrs = [0.0]

    def run(by_dense: bool) -> None:
        dense.SHARE = 0.0 if by_dense else 1.0
        trained.step(Batch(x), None, logged=False)

    return run


def products(width: int, share: float) -> Way:
    """The four products."""
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(TOKENS, width, generator=generator) < share
    _, indices = active.nonzero(as_tuple=True)
    offsets, values = offsets_of(active.sum(dim=1)), torch.rand(len(indices), generator=generator)
    x, W = torch.randn(TOKENS, D_IN, generator=generator), torch.randn(width, D_IN, generator=generator)

    def run(by_dense: bool) -> None:
        sparse.DENSE = 0.0 if by_dense else 1.0
        codes = Codes(values, indices, offsets, width, CachedColumns())
        sparse.combined(codes, W)
        sparse.products_at(codes, x, W)
        sparse.transposed(codes, x)
        sparse.transposed(codes, x)

    return run


def seconds(run: Way) -> tuple[float, float]:
    """Median times by dense products and by entries, taking turns."""
    took: dict[bool, list[float]] = {True: [], False: []}
    for number in range(ROUNDS + 1):  # one to warm up
        for dense, own in took.items():
            began = time.perf_counter()
            run(dense)
            if number:
                own.append(time.perf_counter() - began)
    return statistics.median(took[True]), statistics.median(took[False])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", choices=("step", "products"), default="step")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    given = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"{given.of}, width {given.width}, {TOKENS} tokens of width {D_IN}, {threads} threads, medians of {ROUNDS}\n")
    print("| active | dense, s | sparse, s | dense / sparse |\n|---|---|---|---|")
    for share in given.shares:
        dense, by_entries = seconds((step if given.of == "step" else products)(given.width, share))
        print(f"| {share:.0%} | {dense:.3f} | {by_entries:.3f} | {dense / by_entries:.2f} |", flush=True)


if __name__ == "__main__":
    main()
