"""Where in the shipped model are errors pathological? One small local dictionary at each of several sites.

python -m benchmarks.results.pathology_sites     (some minutes on one core, most of them training)
"""

from __future__ import annotations

import tempfile
from dataclasses import replace

from analyses import pathology
from benchmarks._common import shipped_model
from dictlab import TrainConfig, train

MODEL, TOKENS, K = "gpt2-python-2m", 500_000, 16
SITES = (
    *(f"blocks.{block}.hook_resid_pre" for block in (1, 3, 5)),
    "transformer.h.3.attn.c_proj:in",
    "blocks.3.hook_attn_out",
    "blocks.3.hook_mlp_out",
)


def main() -> None:
    model = shipped_model()
    dictionaries = []
    for site in SITES:
        config = TrainConfig(
            MODEL, site, activation="topk", k=(K,), width=(512,), batch=1024, tokens=TOKENS, recipe="dictlab-0.1"
        )
        with tempfile.TemporaryDirectory() as folder:
            (made,) = train(config, out=folder, model=model).dictionaries
        dictionaries.append(replace(made, name=site))
    report = pathology(
        dictionaries, model=model, contexts=24, draws=1, positions_after=0, random_points=0, sweep_contexts=0
    )
    print("| site | explained variance | KL | over ε-random | over covariance mixture |\n|---|---:|---:|---:|---:|")
    for made, (_, row) in zip(dictionaries, report.tables["comparison"].frame.iterrows(), strict=True):
        cells = [f"{row[n]:.3f} [{row[f'{n} low']:.3f}, {row[f'{n} high']:.3f}]" for n in ("KL",)]
        cells += [
            f"{row[n]:.2f} [{row[f'{n} low']:.2f}, {row[f'{n} high']:.2f}]"
            for n in ("over ε-random", "over covariance mixture")
        ]
        print(f"| {made.name} | {made.metadata.metrics['explained_variance']:.3f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
