"""From which share of active latents on are dense products faster than sparse ones?

The four products behind an encoder (decode, gradient at the entries, both weight gradients) by either way, on codes of
random entries. `DENSE` in dictlab/kernels/sparse.py is what this says.

python benchmarks/density.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import torch

from dictlab.codes import ByLatent, Codes, offsets_of
from dictlab.kernels import sparse

TOKENS, D_IN, ROUNDS = 2048, 512, 5
SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)


def seconds(width: int, share: float, dense: bool) -> float:
    """Median time of the four products."""
    sparse.DENSE = 0.0 if dense else 1.0
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(TOKENS, width, generator=generator) < share
    _, indices = active.nonzero(as_tuple=True)
    offsets, values = offsets_of(active.sum(dim=1)), torch.rand(len(indices), generator=generator)
    x, W = torch.randn(TOKENS, D_IN, generator=generator), torch.randn(width, D_IN, generator=generator)
    took = []
    for _ in range(ROUNDS):
        codes = Codes(values, indices, offsets, width, ByLatent())
        began = time.perf_counter()
        sparse.combined(codes, W)
        sparse.products_at(codes, x, W)
        sparse.transposed(codes, x)
        sparse.transposed(codes, x)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4096)
    width = parser.parse_args().width
    print(f"width {width}, {TOKENS} tokens of width {D_IN}, {torch.get_num_threads()} threads, medians of {ROUNDS}\n")
    print("| active | dense, s | sparse, s | dense / sparse |\n|---|---|---|---|")
    for share in SHARES:
        dense, by_entries = (seconds(width, share, way) for way in (True, False))
        print(f"| {share:.0%} | {dense:.3f} | {by_entries:.3f} | {dense / by_entries:.2f} |", flush=True)


if __name__ == "__main__":
    main()
