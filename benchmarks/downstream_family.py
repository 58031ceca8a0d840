"""How does the error of each objective travel through the model? Prints the tables of docs/results/objectives.md.

python benchmarks/downstream_family.py [FOLDER]     (two minutes on one core; FOLDER: where to leave the whole report)
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from analyses import downstream

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
NAMES = ("local-relu5-1024-s0", "e2e-relu0.2-1024-s0", "e2e+ds-relu2-1024-s0", "local-topk16-1024-s0")
METRICS = ("MSE", "explained variance", "cosine", "norm ratio")
GROUPED = ("not reconstructed", "KL, only this group wrong", "KL removed by the repair")


def printed(frame: pd.DataFrame, columns: tuple[str, ...], labels: tuple[str, ...]) -> None:
    """A table in Markdown, each number with its interval."""
    print("| " + " | ".join([*labels, *columns]) + " |\n|" + "---|" * (len(labels) + len(columns)))
    for _, row in frame.iterrows():
        cells = [f"{row[c]:.3g} [{row[f'{c} low']:.3g}, {row[f'{c} high']:.3g}]" for c in columns]
        print("| " + " | ".join([*(str(row[label]) for label in labels), *cells]) + " |")
    print()


def main() -> None:
    report = downstream([CHECKPOINTS / f"{name}.safetensors" for name in NAMES], contexts=32)
    print(report, "\n")
    printed(report.tables["overview"].frame, ("KL", "CE increase"), ("dictionary",))
    printed(report.tables["depth"].frame, METRICS, ("dictionary", "place"))
    printed(report.tables["groups"].frame, (*GROUPED, "KL, resampled"), ("dictionary", "directions"))
    if len(sys.argv) > 1:
        report.save(sys.argv[1], force=True)


if __name__ == "__main__":
    main()
