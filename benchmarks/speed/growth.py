"""How does the cost of a TopK step grow with width, k, batch and the width of the activations?

From one setting (width 8,192, k 32, 2,048 vectors of width 512) one quantity is changed at a time. Beside the step
stands the encoder's product alone, by torch. Draws docs/images/speed-growth.png.

python -m benchmarks.speed.growth
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import torch
from matplotlib.figure import Figure

from analyses.common import plotting
from dictlab.data.activations import moments
from dictlab.training import TrainConfig
from dictlab.training.learner.initialisation import geometric_median
from dictlab.training.learner.learner import Learner
from dictlab.training.objectives import Batch

OUT = Path(__file__).parents[2] / "docs" / "images" / "speed-growth.png"
ROUNDS = 5


class Setting(NamedTuple):
    """One point."""

    width: int = 8192
    k: int = 32
    batch: int = 2048
    d_in: int = 512


SWEEPS = {
    "width": (2048, 4096, 8192, 16384, 32768),
    "k": (8, 16, 32, 64, 128),
    "batch": (512, 1024, 2048, 4096),
    "d_in": (128, 256, 512, 1024),
}
AXES = {"width": "Latents", "k": "Active latents, k", "batch": "Vectors a batch", "d_in": "Width of the activations"}


def measure(s: Setting) -> tuple[float, float]:
    """Median seconds of a step, and of the product alone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(s.batch, s.d_in, generator=generator)
    config = TrainConfig("none", "none", width=(s.width,), k=(s.k,), batch=s.batch, tokens=s.batch * 10**5)
    learner = Learner(next(config.members()), config, moments([x]), geometric_median(x, rounds=5))
    W = torch.randn(s.d_in, s.width, generator=generator)
    steps, products = [], []
    for number in range(ROUNDS + 2):  # two to warm up
        began = time.perf_counter()
        x @ W
        between = time.perf_counter()
        learner.step(Batch(x), None, logged=False)
        if number >= 2:
            products.append(between - began)
            steps.append(time.perf_counter() - between)
    return statistics.median(steps), statistics.median(products)


@plotting.applied
def draw(points: dict[str, list[tuple[int, float, float]]], path: Path) -> None:
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    axes = list(figure.subplots(1, len(points), sharey=True))
    for axis, (name, rows) in zip(axes, points.items(), strict=True):
        at = [row[0] for row in rows]
        for index, label in enumerate(("training step", "encoder's product alone")):
            took = [1e3 * row[1 + index] for row in rows]
            axis.plot(at, took, color=plotting.colour(index), marker=plotting.marker(index), label=label)
        axis.set(xscale="log", yscale="log", xlabel=AXES[name], ylim=(1, 2000))
        axis.set_xticks(at, [f"{value:,}" for value in at], minor=False, fontsize=8)
        axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes[0].set_ylabel("Milliseconds")
    axes[0].legend()
    figure.suptitle("A TopK step grows as the encoder's product does")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    print(f"from {Setting()}, {torch.get_num_threads()} threads, medians of {ROUNDS}\n")
    print("| changed | to | step, ms | product alone, ms | step / product |\n|---|---|---|---|---|")
    points: dict[str, list[tuple[int, float, float]]] = {}
    for name, values in SWEEPS.items():
        for value in values:
            step, product = measure(Setting(**{name: value}))
            points.setdefault(name, []).append((value, step, product))
            print(f"| {name} | {value:,} | {1e3 * step:.1f} | {1e3 * product:.1f} | {step / product:.2f} |", flush=True)
    draw(points, out)


if __name__ == "__main__":
    main()
