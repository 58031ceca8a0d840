"""At which learning rate does ReLU + L1 learn best, by objective? What the shipped ReLU dictionaries' rates are from.

python -m benchmarks.results.training.relu_rates [--out FOLDER]

(about an hour on one core; each run is a folder, and is done once)

Rates are compared at matched L0, where the curves of CE increase over L0 overlap, since a coefficient means another L0
at each rate.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from analyses.quality.curve_comparison import mean_ratio
from benchmarks._common import shipped_model
from dictlab import Dictionary, LanguageModel, TrainConfig, load, runs, train

MODEL, SITE = "gpt2-python-2m", "blocks.3.hook_resid_pre"
BASE = TrainConfig(MODEL, SITE, activation="relu", width=(1024,), batch=1024, seed=(100,), recipe="dictlab-0.1")


class Tried(NamedTuple):
    """An objective, for how long it is trained, and the rates that are tried. The first is that of the checkpoints."""

    settings: dict[str, Any]
    rates: tuple[float, ...]


TRIED = {
    "local": Tried({"l1": (5.0, 10.0, 20.0), "tokens": 3_000_000}, (1.6e-2, 8e-3, 4e-3)),
    "e2e": Tried({"objective": ("e2e",), "l1": (0.3, 1.0), "tokens": 600_000}, (8e-3, 1.6e-2, 4e-3, 2e-3)),
    "e2e+ds": Tried({"objective": ("e2e+ds",), "downstream": 0.5, "l1": (3.0, 8.0), "tokens": 600_000}, (1.6e-2, 8e-3)),
}


def made(folder: Path, config: TrainConfig, model: LanguageModel) -> list[Dictionary]:
    """The dictionaries of a run, trained unless they are there; in the order of their L0."""
    if not ((folder / runs.CONFIG).exists() and runs.open_run(folder).finished):
        train(config, out=folder, model=model, force=True)
    found = [load(path) for path in folder.glob("*.safetensors")]
    return sorted(found, key=lambda d: float(d.metadata.metrics["l0"]))


def line(dictionaries: list[Dictionary]) -> tuple[np.ndarray, np.ndarray]:
    metrics = [d.metadata.metrics for d in dictionaries]
    l0, increase = (np.array([m[key] for m in metrics]) for key in ("l0", "ce_increase"))
    return l0, increase


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/relu-rates"))
    out, model = parser.parse_args().out, shipped_model()
    print(
        "| objective | tokens | lr | l1 | L0 | CE increase (nats/token) | explained variance | dead | at matched L0 |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (settings, rates) in TRIED.items():
        first = None
        for rate in rates:
            found = made(out / f"{name}-lr{rate:g}", replace(BASE, lr=rate, **settings), model)
            first = first or found
            ratio, low, high = mean_ratio(*line(first), *line(found))
            told = f"{float(ratio):.2f} (L0 {float(low):.0f} to {float(high):.0f})" if low < high else "apart"
            for d, compared in zip(reversed(found), [told] + [""] * len(found), strict=False):
                m = d.metadata.metrics
                low_, high_ = m["ce_increase_interval"]
                print(
                    f"| {name} | {d.metadata.tokens:,} | {rate:g} | {d.metadata.training['l1']:g} | {m['l0']:.1f} "
                    f"| {m['ce_increase']:.3f} [{low_:.3f}, {high_:.3f}] | {m['explained_variance']:.3f} | {m['dead']} "
                    f"| {compared} |"
                )


if __name__ == "__main__":
    main()
