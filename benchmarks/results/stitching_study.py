"""How far can stitching go? Pairs of the shipped family, stitched within a budget and trained on, at equal L0.

python -m benchmarks.results.stitching_study [--out FOLDER] [--pairs NAME ...] [--finetune TOKENS]

Each pair is written to FOLDER as soon as it is measured, and is not measured again: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from analyses.composition.stitching.stitching import stitching
from benchmarks._common import print_frame, shipped, shipped_model
from dictlab import LanguageModel
from dictlab.runtime.atomic_files import replace_text

TOKENS, CONTEXTS = 32_768, 24
FINETUNE = 1_048_576
TABLES = ("quality", "equal_l0", "continued")
PAIRS = {  # SMALL, then what is added: across sizes, across seeds, across objectives
    "256+512": ("local-topk16-256-s0", "local-topk16-512-s0"),
    "512+1024": ("local-topk16-512-s0", "local-topk16-1024-s0"),
    "1024+2048": ("local-topk16-1024-s0", "local-topk16-2048-s0"),
    "512+512": ("local-topk16-512-s0", "local-topk16-512-s1"),
    "1024+1024": ("local-topk16-1024-s0", "local-topk16-1024-s1"),
    "local+e2e": ("local-relu5-1024-s0", "e2e-relu0.2-1024-s0"),
}


def measured(pair: str, finetune: int, model: LanguageModel, folder: Path) -> dict[str, list[dict[str, object]]]:
    """The tables of one pair, from its file where there is one of these settings."""
    settings = {"tokens": TOKENS, "contexts": CONTEXTS, "finetune": finetune}
    path = folder / f"{pair}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if known.get("settings") != settings:
        small, *larger = shipped(*PAIRS[pair])
        report = stitching(small, larger, model=model, cards=0, **settings)  # type: ignore[arg-type]
        tables = {
            name: report.tables[name].frame for name in ("quality", "equal_l0", "continued") if name in report.tables
        }
        known = {"settings": settings, "summary": report.summary}
        known |= {name: json.loads(frame.to_json(orient="records")) for name, frame in tables.items()}
        replace_text(path, json.dumps(known, indent=1))
    print(f"\n{pair}: {known['summary']}")
    return known  # type: ignore[no-any-return]


def at_equal_l0(results: dict[str, dict[str, list[dict[str, object]]]]) -> pd.DataFrame:
    """The result of each pair beside the best parent at its L0."""
    rows = []
    for pair, tables in results.items():
        for row in tables["equal_l0"]:
            if row["dictionary"] == "stitched":
                span = f"{row['difference (%)']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]"
                rows.append({"pair": pair, "metric": row["metric"], "L0": f"{row['L0']:.1f}", "less parent (%)": span})
    frame = pd.DataFrame(rows)
    return frame.pivot(index=["pair", "L0"], columns="metric", values="less parent (%)").reset_index()


def after_training(results: dict[str, dict[str, list[dict[str, object]]]]) -> pd.DataFrame:
    """Every start of each pair after the same further training."""
    return pd.DataFrame(
        [{"pair": pair} | row for pair, tables in results.items() for row in tables.get("continued", [])]
    )


def main() -> None:
    """Measure what is not measured yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/stitching-study"))
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--finetune", type=int, default=FINETUNE, help="tokens; 0 for none")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    model = shipped_model()
    results = {pair: measured(pair, given.finetune, model, given.out) for pair in given.pairs}
    print("\nWithout training, beside the best parent at equal L0, refitted\n")
    print_frame(at_equal_l0(results))
    if given.finetune:
        print(f"\nAfter {given.finetune:,} more tokens\n")
        print_frame(after_training(results))


if __name__ == "__main__":
    main()
