"""Does it matter that latents are chosen by a product in half precision? The same dictionaries, trained either way.

python -m benchmarks.results.training.precision     (some minutes on one core)
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import get_args

from analyses.common.neighbours import nearest
from benchmarks._common import shipped_model
from dictlab import Dictionary, TrainConfig, train
from dictlab.training.config import Precision

MODEL, SITE = "gpt2-python-2m", "blocks.3.hook_resid_pre"
BASE = TrainConfig(
    MODEL, SITE, width=(1024, 4096), k=(16,), seed=(0, 1), batch=1024, lr=4e-3, tokens=600_000, recipe="dictlab-0.1"
)


def main() -> None:
    model = shipped_model()
    made: dict[str, list[Dictionary]] = {}
    for precision in get_args(Precision):
        with tempfile.TemporaryDirectory() as folder:
            made[precision] = list(train(replace(BASE, precision=precision), out=folder, model=model).dictionaries)
    print("| dictionary | chosen in | CE increase (nats/token) | explained variance | nearest direction of the other |")
    print("|---|---|---|---|---|")
    for pair in zip(*made.values(), strict=True):
        for precision, own, other in zip(made, pair, reversed(pair), strict=True):
            print(f"| {own.name} | {precision} | {shown(own, 'ce_increase')} | {shown(own, 'explained_variance')} "
                  f"| {likeness(own, other):.3f} |")  # fmt: skip
    ones, others = made["float32"][::2], made["float32"][1::2]
    for one, other in zip(ones, others, strict=True):
        print(f"\n{one.name} and {other.name}, both float32: nearest direction {likeness(one, other):.3f}")


def shown(dictionary: Dictionary, name: str) -> str:
    found = dictionary.metadata.metrics
    low, high = found[f"{name}_interval"]
    return f"{found[name]:.3f} [{low:.3f}, {high:.3f}]"


def likeness(one: Dictionary, other: Dictionary) -> float:
    """Mean max cosine of decoder directions."""
    return float(nearest(one.directions, other.directions).cosine.mean())


if __name__ == "__main__":
    main()
