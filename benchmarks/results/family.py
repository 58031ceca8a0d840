"""What the shipped family shows, beside what the papers report. Prints the tables that docs/results/README.md quotes.

python -m benchmarks.results.family
"""

from __future__ import annotations

import itertools

import pandas as pd

from analyses import pareto, stitching
from analyses.common.chance import alive_directions, max_cosine_levels
from analyses.common.neighbours import nearest
from benchmarks._common import CHECKPOINTS, print_frame, shipped_model
from dictlab import Dictionary, LanguageModel, load
from dictlab.numerics.statistics import mean_interval

MODEL = "gpt2-python-2m"
WIDTHS = (256, 512, 1024, 2048, 4096)
CONTEXTS = 128
THRESHOLD = 0.7


def topk(width: int, seed: int) -> Dictionary:
    return load(CHECKPOINTS / f"local-topk16-{width}-s{seed}.safetensors")


def widths() -> pd.DataFrame:
    """Explained variance by width, from the measurements in the files."""
    rows = []
    for width in WIDTHS:
        metrics = [topk(width, seed).metadata.metrics for seed in (0, 1)]
        row: dict[str, object] = {"width": width}
        for seed, found in enumerate(metrics):
            low, high = found["explained_variance_interval"]
            row[f"explained variance, seed {seed}"] = f"{found['explained_variance']:.4f} [{low:.4f}, {high:.4f}]"
        row["CE increase, seed 0"] = f"{metrics[0]['ce_increase']:.3f}"
        rows.append(row)
    return pd.DataFrame(rows)


def insertions(model: LanguageModel) -> pd.DataFrame:
    """Stitching at a doubling of width, and between seeds at equal width: novel shares, and errors after insertion."""
    doublings = [(topk(a, 0), topk(b, 0)) for a, b in itertools.pairwise(WIDTHS)]
    seeds = [(topk(width, 0), topk(width, 1)) for width in WIDTHS]
    return pd.DataFrame(
        [
            _insertion(kind, small, large, model)
            for kind, pairs in (("width x 2", doublings), ("other seed", seeds))
            for small, large in pairs
        ]
    )


def _insertion(kind: str, small: Dictionary, large: Dictionary, model: LanguageModel) -> dict[str, object]:
    report = stitching(
        small, large, model=model, tokens=131_072, contexts=CONTEXTS, threshold=THRESHOLD, select="effect"
    )
    latents = report.tables["latents"].frame
    alive = latents[latents["class"] != "dead"]
    quality = report.tables["quality"].frame.set_index("dictionary")
    error, l0 = quality["MSE"], quality["L0"]

    def shown(name: str) -> str:
        return f"{error[name]:.3f} (L0 {l0[name]:.1f})"

    cosine = nearest(alive_directions(large)[0], alive_directions(small)[0]).cosine[:, 0]
    low, high = mean_interval(cosine, 0)
    return {
        "pair": kind,
        "small": small.n_latents,
        "large": large.n_latents,
        "mean max cosine": f"{float(cosine.mean()):.3f} [{low:.3f}, {high:.3f}]",
        "chance": f"{max_cosine_levels(small.W_dec[small.alive], 0)['shaped']:.3f}",
        "novel by effect": f"{(alive['class'] == 'novel').mean():.1%}",
        "novel by cosine": f"{(alive['class by cosine'] == 'novel').mean():.1%}",
        "MSE small": shown(small.name),
        "MSE large": shown(large.name),
        "small, refitted": shown(f"{small.name}, refitted"),
        "inserted by effect": shown("inserted by effect"),
        "by effect, refitted": shown("stitched"),
        "inserted by cosine": shown("inserted by cosine"),
        "by cosine, refitted": shown("by cosine, refitted"),
    }


def objectives(model: LanguageModel) -> tuple[pd.DataFrame, pd.DataFrame]:
    """CE increase against L0 by objective, and the ratios at matched CE increase and matched L0."""
    paths = sorted(CHECKPOINTS.glob("*-relu*-s0.safetensors"))
    report = pareto(paths, model=model, contexts=CONTEXTS)
    points = report.tables["points"].frame.sort_values(["curve", "L0"])
    ratios = report.tables["matched"].frame
    return points, ratios[ratios["over"] == "local relu 1024"]


def show(title: str, frame: pd.DataFrame, said: str) -> None:
    print(f"## {title}\n")
    print_frame(frame)
    print(f"{said}\n")


def main() -> None:
    model = shipped_model()
    show("Larger dictionaries explain more", widths(), "Papers: error falls with width (Gao et al., Leask et al.).")
    show(
        "What a larger dictionary, and another seed, adds",
        insertions(model),
        "Papers (GPT-2, ReLU): about 35 % novel by cosine 0.7 at a doubling of width, about 6 % between seeds; "
        f"inserting all novel latents of 1,536 into 768 lowers MSE by about 10 %. Here: {CONTEXTS} held-out contexts.",
    )
    points, ratios = objectives(model)
    columns = ["dictionary", "L0", "CE increase", "CE increase low", "CE increase high", "explained variance", "alive"]
    show(
        "Objectives: what is measured",
        points[columns],
        f"{CONTEXTS} held-out contexts; 95 % bootstrap intervals over sequences.",
    )
    show(
        "Objectives: against local",
        ratios,
        "Paper (GPT-2 small, layer 6): end-to-end dictionaries need less than half of local's L0 at equal CE increase "
        "(27.5 and 36.8 against 69.4), and have less than 45 % of its CE increase at equal L0.",
    )


if __name__ == "__main__":
    main()
