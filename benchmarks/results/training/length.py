"""Does end-to-end training need longer than local training? One dictionary of each objective, at two lengths.

python -m benchmarks.results.training.length     (about 25 minutes on one core)
"""

from __future__ import annotations

import tempfile
from dataclasses import replace

from benchmarks._common import shipped_model
from dictlab import TrainConfig, train

MODEL, SITE = "gpt2-python-2m", "blocks.3.hook_resid_pre"
TOKENS = (1_000_000, 3_000_000)
BASE = TrainConfig(MODEL, SITE, activation="relu", width=(1024,), batch=1024, lr=4e-3, recipe="dictlab-0.1")
RUNS = (replace(BASE, l1=(10.0,)), replace(BASE, l1=(0.6,), objective=("e2e",)))


def main() -> None:
    model = shipped_model()
    print("| dictionary | tokens | L0 | CE increase (nats/token) | explained variance | minutes |")
    print("|---|---:|---:|---:|---:|---:|")
    for run in RUNS:
        for tokens in TOKENS:
            with tempfile.TemporaryDirectory() as folder:
                (made,) = train(replace(run, tokens=tokens), out=folder, model=model).dictionaries
            found, minutes = made.metadata.metrics, made.metadata.training["seconds"] / 60
            low, high = found["ce_increase_interval"]
            print(
                f"| {made.name} | {made.metadata.tokens:,} | {found['l0']:.1f} | {found['ce_increase']:.3f} "
                f"[{low:.3f}, {high:.3f}] | {found['explained_variance']:.3f} | {minutes:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
