"""How well do strings of tokens explain the shipped family? Prints the tables of docs/results/quality.md, Explanations.

python -m benchmarks.results.explanations_family [sparsity] [width] [reconstruction] [--latents N]
    [--tokens N] [--out FOLDER]

sparsity: width 1,024, TopK and ReLU, local and end-to-end. width: TopK of other widths. reconstruction: all latents of
a few replaced by what is said of them. All three by default; some 12 minutes on one core. FOLDER: where to leave the
whole reports.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from analyses import explanations
from analyses.common.opening import open_dictionary
from analyses.features.explanations.simulation import MEASURES
from benchmarks._common import CHECKPOINTS, head, interval, print_estimates, row, shipped

OF_1024 = ["e2e-relu0.5-1024-s0", "e2e-relu0.08-1024-s0", "e2e+ds-relu2-1024-s0"]
OF_1024 += [f"local-relu{penalty}-1024-s0" for penalty in (2.5, 5, 10)] + [
    f"local-topk{k}-1024-s0" for k in (4, 8, 16, 32, 64)
]
TOPK = [f"local-topk{k}-{width}-s0" for width in (256, 2048) for k in (4, 16, 64)]
TOPK += ["local-topk16-512-s0", "local-topk16-4096-s0"]
WHOLE = ["local-relu10-1024-s0", "local-topk16-256-s0", "local-topk16-1024-s0"]
NAMES = {"sparsity": OF_1024, "width": TOPK, "reconstruction": WHOLE}
MATCHED = (  # about equal L0, the first against the second, which comes before it in the call
    ("local-topk16-1024-s0", "local-relu10-1024-s0"),
    ("local-topk32-1024-s0", "local-relu5-1024-s0"),
    ("local-topk64-1024-s0", "local-relu2.5-1024-s0"),
    ("local-topk64-1024-s0", "local-relu5-1024-s0"),  # at a larger L0, if anything to the disadvantage of TopK
    ("local-topk16-1024-s0", "e2e-relu0.5-1024-s0"),
    ("local-topk32-1024-s0", "e2e+ds-relu2-1024-s0"),
    ("local-relu5-1024-s0", "e2e-relu0.08-1024-s0"),
)
PLAIN = ("dictionary", "L0", "latents", "chance", "patterns a latent", "tokens a pattern", "at start", "unreached")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="|".join(NAMES))
    parser.add_argument("--latents", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    for part in asked.parts or NAMES:
        names = [name for name in NAMES[part] if (CHECKPOINTS / f"{name}.safetensors").exists()]
        latents = 0 if part == "reconstruction" else asked.latents
        report = explanations(shipped(*names), latents=latents, tokens=asked.tokens)
        print(report, "\n", flush=True)
        overview, rebuilt = report.tables["overview"].frame, report.tables["reconstruction"].frame
        overview.insert(1, "L0", [l0(name) for name in names])
        print_estimates(overview, PLAIN, ("precision", "recall", "F1"))
        if part == "reconstruction":
            estimated = ("reconstruction", "simulated", "zeroed", "bigram", "recovered", "less bigram")
            print_estimates(rebuilt, ("dictionary", "latents", "share"), estimated)
        shown = report.tables["differences"].frame
        if part != "reconstruction":  # losses compare where equal shares of activity are explained
            shown = shown[shown["measure"].isin(MEASURES)]
        differences(shown, names)
        if asked.out:
            report.save(asked.out / part, force=True)


def l0(name: str) -> float:
    """As the file says."""
    return float(open_dictionary(CHECKPOINTS / f"{name}.safetensors").metadata.metrics["l0"])


def differences(frame: pd.DataFrame, names: list[str]) -> None:
    """The matched pairs, as difference and ratio."""
    pairs = [pair for pair in MATCHED if set(pair) <= set(names)]
    if not pairs:
        return
    print(head(("dictionary", "against", "measure", "difference", "ratio")))
    for dictionary, against in pairs:
        matched = frame[(frame["dictionary"] == dictionary) & (frame["against"] == against)]
        for _, line in matched.iterrows():
            difference = interval(line["difference"], line["low"], line["high"])
            ratio = interval(line["ratio"], line["ratio low"], line["ratio high"])
            print(row((dictionary, against, line["measure"], difference, ratio)))
    print()


if __name__ == "__main__":
    main()
