"""Does a brief KL give a local ReLU dictionary what end-to-end training from the start gives, and at what cost?

Goes on from shipped local ReLU + L1 dictionaries for a twentieth of their tokens (or so many), under KL, under KL and
the downstream error, and under their own loss, and compares CE increase at matched L0 with the shipped families.

python -m benchmarks.results.training.relu_finetune [--tokens 225000] [--rates 2e-3] [--out FOLDER]
    (a quarter of an hour on one core; each run is a folder, and is done once)
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analyses.quality.curve_comparison import estimate, mean_ratio
from analyses.quality.measured_points import Point
from benchmarks._common import CHECKPOINTS, shipped_model
from benchmarks.results.training.quality_measures import step_seconds
from benchmarks.results.training.relu_rates import made
from dictlab import Dictionary, LanguageModel, Text, TrainConfig, load
from dictlab.data.activations import moments
from dictlab.evaluation.evaluate import evaluate
from dictlab.training.learner.initialisation import geometric_median
from dictlab.training.learner.learner import Learner
from dictlab.training.learner.warm_start import load_for_model

MODEL, SITE = "gpt2-python-2m", "blocks.3.hook_resid_pre"
CONTEXTS = 64
STARTS = ("local-relu2.5-1024-s0", "local-relu5-1024-s0", "local-relu10-1024-s0")
GOALS: dict[str, dict[str, Any]] = {
    "local": {"l1": (5.0, 10.0)},
    "e2e": {"objective": ("e2e",), "l1": (0.1, 0.3)},
    "e2e+ds": {"objective": ("e2e+ds",), "downstream": 0.5, "l1": (0.6, 2.0)},
}
Line = tuple[np.ndarray, np.ndarray]


def measured(dictionaries: Iterable[Dictionary], model: LanguageModel) -> list[Point]:
    own = list(dictionaries)
    found = evaluate(own, model, Text.builtin().as_split("heldout"), contexts=CONTEXTS)
    return [Point(d, e) for d, e in zip(own, found, strict=True)]


def line(points: Sequence[Point]) -> Line:
    """L0 and CE increase of each point, in the sample and in each resample."""
    l0, increase = (np.stack([p.series(key) for p in points], axis=-1) for key in ("l0", "ce_increase"))
    return l0, increase


def ratio(reference: Line, other: Line) -> str:
    """CE increase over another's at matched L0, and where."""
    series, low, high = mean_ratio(*reference, *other)
    found = estimate(series)
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}] | {low[0]:.0f} to {high[0]:.0f}"


def told(lines: dict[str, Line], own: Line) -> str:
    return f"{ratio(lines['local'], own)} | {ratio(lines['e2e'], own)}"


def costs(model: LanguageModel) -> None:
    """CPU seconds of a step of the second start under each objective, on one thread, beside the local one's."""
    base = TrainConfig(
        MODEL,
        SITE,
        start=(str(CHECKPOINTS / f"{STARTS[1]}.safetensors"),),
        batch=1024,
        tokens=1 << 30,
        recipe="dictlab-0.1",
    )

    def learner(goal: str, sample: torch.Tensor) -> Learner:
        config = replace(base, **GOALS[goal] | {"l1": GOALS[goal]["l1"][:1]})
        member = next(iter(config.members(load_for_model(config.start, model, SITE))))
        return Learner(member, config, moments([sample]), geometric_median(sample))

    torch.set_num_threads(1)
    seconds = step_seconds(base, model, learner)
    print("\n| objective | CPU µs/token | over local's |\n|---|---|---|")
    for goal, own in seconds.items():
        print(f"| {goal} | {1e6 * own / base.batch:.0f} | {own / seconds['local']:.2f} |")


def shipped(goal: str) -> list[Dictionary]:
    return [load(path) for path in sorted(CHECKPOINTS.glob(f"{goal}-relu*-1024-s0.safetensors"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/relu-finetune"))
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--rates", type=float, nargs="+", default=[4e-4, 2e-3])
    asked, model = parser.parse_args(), shipped_model()
    files = tuple(str(CHECKPOINTS / f"{name}.safetensors") for name in STARTS)
    lines = {goal: line(measured(shipped(goal), model)) for goal in GOALS}
    rows = [f"| {goal} | from the start | | {told(lines, own)} |" for goal, own in lines.items()]
    print("| from | then | lr | l1 | L0 | CE increase (nats/token) | explained variance |")
    print("|---|---|---|---|---|---|---|")
    for goal, settings in GOALS.items():
        for rate in asked.rates:
            config = TrainConfig(
                MODEL, SITE, start=files, tokens=asked.tokens, batch=1024, lr=rate, recipe="dictlab-0.1", **settings
            )
            points = measured(made(asked.out / f"{goal}-lr{rate:g}", config, model), model)
            for p in points:
                m = p.dictionary.metadata
                print(
                    f"| {m.training['start']['dictionary']} | {goal} | {rate:g} | {m.training['l1']:g} "
                    f"| {p.value('l0'):.1f} | {p.value('ce_increase'):.3f} | {p.value('explained_variance'):.3f} |"
                )
            for l1 in settings["l1"]:
                own = [p for p in points if p.dictionary.metadata.training["l1"] == l1]
                rows.append(f"| local, then {goal} | {rate:g} | {l1:g} | {told(lines, line(own))} |")
    print("\n| objective | lr | l1 | CE increase over local's, at matched L0 | L0 | over e2e's from the start | L0 |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    costs(model)


if __name__ == "__main__":
    main()
