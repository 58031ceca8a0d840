"""The path through the shipped family, 256 to 4,096 latents, beside what the paper reports; tables and figures.

python -m benchmarks.results.path [--out FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from analyses.composition.path.latent_graph import KINDS
from analyses.composition.path.path import path
from benchmarks._common import shipped, shipped_model
from benchmarks.results.family import show
from dictlab import LanguageModel

WIDTHS = (256, 512, 1024, 2048, 4096)
TOKENS, CONTEXTS = 32_768, 24
OTHERS = ((0.7, "greedy"), (0.5, "cosine"), (0.5, "greedy"))  # of 256 to 512, beside the sheet's own choice


def files(*widths: int) -> list[Path]:
    return shipped(*(f"local-topk16-{width}-s0" for width in widths))


def phases(frame: pd.DataFrame) -> pd.DataFrame:
    """What the page quotes of the table of phases."""
    shown = frame.copy()
    shown["stage"] = [f"{WIDTHS[stage]} → {WIDTHS[stage + 1]}" for stage in shown["stage"]]
    shown["change in MSE"] = [
        f"{row['change']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]" for row in shown.to_dict("records")
    ]
    for share in ("steps that raise it", "the same, random order"):
        shown[share] = [f"{value:.0%}" for value in shown[share]]
    columns = ["stage", "phase", "steps", "latents after", "MSE after", "change in MSE", "change a step", "L0 after"]
    return shown[[*columns, "steps that raise it", "the same, random order"]]


def waypoints(frame: pd.DataFrame) -> pd.DataFrame:
    """What the page quotes of the table of waypoints."""
    rows = []
    for row in frame.to_dict("records"):
        shown = {"after": row["is"] or row["phase"], "latents": row["latents"], "L0": f"{row['L0']:.1f}"}
        for name, digits in (("MSE", 2), ("explained variance", 3), ("CE increase", 3), ("KL", 3)):
            shown[name] = f"{row[name]:.{digits}f} [{row[f'{name} low']:.{digits}f}, {row[f'{name} high']:.{digits}f}]"
        rows.append(shown)
    return pd.DataFrame(rows)


def humps(model: LanguageModel) -> pd.DataFrame:
    """How far the error rises on the way from 256 to 512, by threshold and order."""
    rows = []
    for threshold, order in ((0.7, "cosine"), *OTHERS):
        small, large = files(256, 512)
        options = {"random_orders": 0, "waypoints": 0, "tokens": TOKENS, "contexts": 2}
        report = path(small, [large], model=model, threshold=threshold, order=order, **options)
        points, counts = report.tables["path"].frame, report.tables["components"].frame.set_index("kind")
        rows.append(
            {
                "threshold": threshold,
                "order": order,
                "novel": counts.loc["novel", "components"],
                "MSE at the start": points["MSE"].iloc[0],
                "highest": points["MSE"].max(),
                "at the end": points["MSE"].iloc[-1],
                "highest L0": points["L0"].max(),
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for the report with its figures")
    out = parser.parse_args().out
    model = shipped_model()
    first, *rest = files(*WIDTHS)
    report = path(first, rest, model=model, tokens=TOKENS, contexts=CONTEXTS)
    print(f"{report.summary}\n")
    show(
        "Phases",
        phases(report.tables["phases"].frame),
        "Paper (GPT-2, ReLU, 768 to 98,304): the error falls smoothly all the way, more steeply while swapping than "
        f"while inserting; L0 rises with insertions and falls with swaps. Here: {TOKENS} training tokens.",
    )
    show("In the model", waypoints(report.tables["waypoints"].frame), report.tables["waypoints"].caption)
    pairs = report.tables["components"].frame["pair"].unique()
    counts = report.tables["components"].frame.pivot(index="kind", columns="pair", values="components")
    counts = counts.loc[list(KINDS), pairs].reset_index()
    show("Components at a cosine of 0.7", counts, "Alive latents; dead ones take no part.")
    giant = report.tables["percolation"].frame.pivot(index="threshold", columns="pair", values="share of latents")
    show("Share of latents in the largest component", giant[pairs].reset_index(), "Above 0.1: one giant component.")
    show("Other ways from 256 to 512", humps(model), f"{TOKENS} training tokens.")
    if out is not None:
        report.save(out, force=True)


if __name__ == "__main__":
    main()
