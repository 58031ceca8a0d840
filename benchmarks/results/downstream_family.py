"""How does the error of each objective travel through the model? Prints the tables of docs/results/objectives.md.

python -m benchmarks.results.downstream_family [FOLDER]

(two minutes on one core; FOLDER: where to leave the whole report)
"""

from __future__ import annotations

import sys

from analyses import downstream
from benchmarks._common import print_estimates, shipped

NAMES = ("local-relu5-1024-s0", "e2e-relu0.2-1024-s0", "e2e+ds-relu2-1024-s0", "local-topk16-1024-s0")
METRICS = ("MSE", "explained variance", "cosine", "norm ratio")
GROUPED = ("not reconstructed", "KL, only this group wrong", "KL removed by the repair")


def main() -> None:
    report = downstream(shipped(*NAMES), contexts=32)
    print(report, "\n")
    print_estimates(report.tables["overview"].frame, ("dictionary",), ("KL", "CE increase"), ".3g")
    print_estimates(report.tables["depth"].frame, ("dictionary", "place"), METRICS, ".3g")
    print_estimates(report.tables["groups"].frame, ("dictionary", "directions"), (*GROUPED, "KL, resampled"), ".3g")
    if len(sys.argv) > 1:
        report.save(sys.argv[1], force=True)


if __name__ == "__main__":
    main()
