"""What is one worth that is put together from shipped ones? Prints what docs/results/frankenstein.md quotes.

python -m benchmarks.results.frankenstein [--json] [--out FOLDER] [--only NAME]

Three pools: TopK16 of widths 256 to 4096 (seed 0), the same of widths 256 and 512 with both seeds (the rule at 0.4 and
at 0.7), and two ReLU dictionaries of one width and two seeds. Others stand beside,
to be compared with and not used.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pandas as pd

from analyses.composition.frankenstein.frankenstein import frankenstein
from benchmarks._common import print_frame, shipped
from dictlab.reports.report import Report

SAMPLE = {"tokens": 32_768, "contexts": 24}
TOPK = [f"local-topk16-{width}-s0" for width in (256, 512, 1024, 2048, 4096)]
SEEDS = [f"local-topk16-{width}-s{seed}" for width in (256, 512) for seed in (0, 1)]
RELU = ["local-relu5-1024-s0", "local-relu5-1024-s1"]
RELU_BESIDE = [f"local-relu{weight}-1024-s0" for weight in (2.5, 10, 20)]


def pools() -> dict[str, dict[str, object]]:
    """What is put together, and how."""
    return {
        "widths": {"dictionaries": shipped(*TOPK), "baselines": shipped(*RELU_BESIDE[:1])},
        "seeds": {
            "dictionaries": shipped(*SEEDS),
            "baselines": shipped(*[TOPK[2], *RELU_BESIDE[:1]]),
            "search_refit": True,
            "gradient_refits": True,
            "gradient_steps": 200,
            "compact": "codes",
        },
        "seeds, cosine 0.7": {
            "dictionaries": shipped(*SEEDS),
            "baselines": shipped(*[TOPK[2], *RELU_BESIDE[:1]]),
            "max_cosine": 0.7,
        },
        "relu": {"dictionaries": shipped(*RELU), "baselines": shipped(*RELU_BESIDE), "search_refit": True},
    }


def printed(report: Report) -> pd.DataFrame:
    """One row a dictionary: size, L0, errors, and the ratios to the trained frontier."""
    frames = {name: table.frame for name, table in report.tables.items()}
    rows = frames["quality"][["dictionary", "latents", "L0", "MSE", "explained variance", "CE increase", "KL"]]
    rows = rows.set_index("dictionary").round(3)
    for name in ("at_equal_l0", "at_equal_size"):
        for error in ("MSE", "CE increase"):
            part = frames[name][frames[name]["error"] == error].set_index("dictionary")
            rows[f"{error} {name.removeprefix('at_')}"] = [
                f"{part.loc[i, 'ratio']:.3f} [{part.loc[i, 'low']:.3f}, {part.loc[i, 'high']:.3f}]"
                + " (level)" * str(part.loc[i, "frontier there"]).startswith("level")
                if i in part.index and part.loc[i, "ratio"] > 0
                else "–"
                for i in rows.index
            ]
    return rows.reset_index()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only")
    given = parser.parse_args()
    ratios = {}
    for name, how in pools().items():
        if given.only not in (None, name):
            continue
        began = time.perf_counter()
        report = frankenstein(**how, **SAMPLE)  # type: ignore[arg-type]
        print(f"## {name}\n\n{report}\n")
        for frame in (printed(report), report.tables["rule"].frame, *_compact(report)):
            print_frame(frame.round(4))
        print(f"{time.perf_counter() - began:.0f} s\n", flush=True)
        best = report.tables["at_equal_l0"].frame
        best = best[(best["error"] == "MSE") & (best["frontier there"] == "trained")]
        ratios[name] = None if best.empty else float(best["ratio"].min())
        if given.out is not None:
            report.save(given.out / name.replace(", ", "_").replace(" ", "_"), force=True)
    if given.json:
        print(json.dumps({"mse_at_equal_l0": ratios}))


def _compact(report: Report) -> list[pd.DataFrame]:
    return [report.tables["compact"].frame] if "compact" in report.tables else []


if __name__ == "__main__":
    main()
