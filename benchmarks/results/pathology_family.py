"""How pathological are the errors of the shipped dictionaries? Prints the tables that docs/results/pathology.md quotes.

python -m benchmarks.results.pathology_family [FOLDER]

(some minutes on one core; FOLDER: where to leave the whole report)
"""

from __future__ import annotations

import sys
import time

import pandas as pd

from analyses import pathology, stitching
from analyses.model_effects.pathology.replacements import BASELINES
from benchmarks._common import estimate, print_frame, shipped
from dictlab import load

NAMES = (
    "local-topk16-512-s0",
    "local-topk16-1024-s0",
    "local-relu10-1024-s0",
    "local-relu5-1024-s0",
    "local-relu2.5-1024-s0",
    "e2e-relu0.2-1024-s0",
    "e2e+ds-relu2-1024-s0",
)


def main() -> None:
    began = time.perf_counter()
    opened = [load(path) for path in shipped(*NAMES)]
    stitched = stitching(opened[0], opened[1], tokens=65_536, contexts=16, select="effect").dictionaries["stitched"]
    report = pathology([*opened, stitched], contexts=32, draws=1, sweep_contexts=4)
    print(report, "\n")
    frames = {name: table.frame for name, table in report.tables.items()}
    table = frames["comparison"]
    keys = ["KL", "over ε-random", "over covariance mixture", "CE increase"]
    shown = pd.DataFrame(
        [
            {"dictionary": row["dictionary"], "L0": f"{row['L0']:.1f}"}
            | {"error norm": f"{row['error norm']:.1f}", "cosine": f"{row['cosine']:.3f}"}
            | {key: estimate(row, key, ".3f" if key in ("KL", "CE increase") else ".2f") for key in keys}
            for _, row in table.iterrows()
        ]
    )
    print_frame(shown)
    others = [f"over {name}" for name in BASELINES if f"over {name}" not in keys]
    print_frame(
        pd.DataFrame(
            [
                {"dictionary": row["dictionary"]}
                | {key: estimate(row, key, ".2f") for key in others}
                | {"median z": f"{row['median z']:+.2f}", "beyond z = 3": f"{row['share beyond z = 3']:.0%}"}
                for _, row in table.iterrows()
            ]
        )
    )
    lengths = frames["equal_damage"]
    lengths = lengths.assign(length=[estimate(row, "effective length", ".2f") for _, row in lengths.iterrows()])
    print_frame(lengths.pivot(index="dictionary", columns="direction", values="length").reset_index())
    print_frame(frames["parents"].round(3))
    correlations = frames["when"][frames["when"]["of"] == "gap"]
    correlations = correlations.assign(rho=[estimate(row, "Spearman", ".2f") for _, row in correlations.iterrows()])
    print_frame(correlations.pivot(index="with", columns="dictionary", values="rho").reset_index())
    every = frames["interventions"]
    some = every[every["dictionary"].isin(["local-relu5-1024-s0", "e2e-relu0.2-1024-s0"]) & (every["tokens"] == "all")]
    print_frame(some[["dictionary", "intervention", "KL", "KL median", "KL 99.9 %", "CE increase"]].round(4))
    alone = frames["single_token"]
    alone = alone[(alone["intervention"] == "ε-random") & alone["positions after"].isin([0, 1, 4, 16])]
    alone = alone.assign(ratio=[estimate(row, "KL ratio", ".2f") for _, row in alone.iterrows()])
    print_frame(alone.pivot(index="dictionary", columns="positions after", values="ratio").reset_index())
    print(f"{time.perf_counter() - began:.0f} s")
    if len(sys.argv) > 1:
        report.save(sys.argv[1], force=True)


if __name__ == "__main__":
    main()
