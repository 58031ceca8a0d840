"""How good are the features of the shipped family? Prints the tables of docs/results/quality.md.

python -m benchmarks.results.quality_family [probes] [shrinkage] [ablation] [scaling] [--out FOLDER]

All four by default; some twenty minutes on one core. FOLDER: where to leave the whole reports.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from analyses import ablation, probes, scaling, shrinkage, stitching
from benchmarks._common import CHECKPOINTS, print_estimates, shipped
from dictlab import load
from dictlab.reports.report import Report

BY_K = [f"local-topk{k}-{width}-s0" for width in (256, 512, 1024, 2048) for k in (4, 8, 16, 32, 64)]
TOPK = [f"local-topk16-{width}-s0" for width in (256, 512, 1024, 2048, 4096)]
RELU = [f"local-relu{penalty}-1024-s0" for penalty in (2.5, 5, 10)]
BY_PENALTY = [
    f"{name}-1024-s0"
    for name in (
        *(f"local-relu{p}" for p in (2.5, 5, 10, 20)),
        *(f"e2e-relu{p}" for p in (0.08, 0.2, 0.5, 1.25)),
        *(f"e2e+ds-relu{p}" for p in (0.6, 2, 5, 12)),
    )
]
OTHERS = ["e2e-relu0.2-1024-s0", "e2e+ds-relu2-1024-s0"]


def of_probes() -> Report:
    """All of them, and a stitch of two."""
    made = stitching(
        *shipped("local-topk16-512-s0", "local-topk16-1024-s0"), tokens=131_072, select="effect"
    ).dictionaries
    return probes([*map(load, sorted(CHECKPOINTS.glob("*.safetensors"))), *made.values()], contexts=128)


def of_shrinkage() -> Report:
    return shrinkage(shipped("local-topk16-256-s0", "local-topk16-1024-s0", *RELU, *OTHERS), contexts=8)


def of_ablation() -> Report:
    return ablation(files([*BY_K, TOPK[-1], *BY_PENALTY]), contexts=128)


def of_scaling() -> Report:
    """TopK alone has k. With k = 64 of 128 dimensions the joint law does not hold: its error is four times as large."""
    return scaling([path for k in (4, 8, 16, 32) for path in sorted(CHECKPOINTS.glob(f"local-topk{k}-*.safetensors"))])


SHOWN: dict[str, tuple[Callable[[], Report], str, tuple[str, ...], tuple[str, ...]]] = {
    "probes": (of_probes, "overview", ("features", "has"), ("probe loss", "of entropy", "F1")),
    "shrinkage": (
        of_shrinkage,
        "overview",
        ("dictionary", "L0", "normalised MSE", "normalised MSE refined", "CE increase", "CE increase refined"),
        ("size", "CE increase change"),
    ),
    "ablation": (
        of_ablation,
        "overview",
        ("features", "effect"),
        ("sparsity", "rare", "random", "over random", "own position"),
    ),
    "scaling": (
        of_scaling,
        "fits",
        ("runs of", "loss", "law", "runs", "ΔAIC", "error"),
        ("alpha", "irreducible loss", "b_k", "b_n", "g"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="|".join(SHOWN))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    for name in asked.parts or SHOWN:
        make, table, plain, estimated = SHOWN[name]
        report = make()
        print(report, "\n")
        print_estimates(report.tables[table].frame, plain, estimated)
        if asked.out:
            report.save(asked.out / name, force=True)


if __name__ == "__main__":
    main()
