"""How good are dictionaries of four libraries after the same vectors in the same order?

python -m benchmarks.results.training.quality_at_equal_tokens --peers PYTHON
    [--model gpt2-python-2m --site blocks.3.hook_resid_pre --token-selection all]  or  [--arrays TRAIN.npy HELD.npy]
    [--vectors 409600 --passes 5 --batch 2048] [--width 1024 --k 16] [--activation topk ...] [--seeds 0 1 2]
    [--libraries dictlab saelens ...] [--settings '{}' '{"recipe": "gao2024"}'] [--rates 2e-3 4e-3]
    [--out FOLDER] [--tables]

PYTHON is an interpreter that has dictionary_learning, SAELens and sparsify. Each library trains at its own defaults,
and at five learning rates with the first seed; the best of these is then trained with the other seeds. Settings are
chosen on one half of the held-out vectors, and all figures are of the other half, means over seeds with the smallest
and the largest. Where no k is given (relu, jumprelu) each library has three sparsity coefficients of its own, since
theirs differ in unit, and rows are to be compared at equal L0. `--settings` are settings of `dictlab train`, as JSON:
each set of them competes as a library of its own, so that a recipe is searched for by the same command.

*Seconds* are of the process's CPU time in training, on one thread. *To the best peer's*: those after which dictlab has
the explained variance that the best peer has at the end, of the same kind (defaults, or best rate); it is measured
twenty times a run.

Each run is a file below FOLDER: after Ctrl-C the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks._common import CHECKPOINTS, head, row
from dictlab import LanguageModel, Text
from dictlab.data.activations import sample_site
from dictlab.token_selection import TokenSelection

LIBRARIES = {
    "dictlab": ("topk", "batchtopk", "relu", "jumprelu", "matryoshka-batchtopk"),
    "dictionary_learning": ("topk", "batchtopk", "relu", "jumprelu", "matryoshka-batchtopk"),
    "saelens": ("topk", "batchtopk", "relu", "jumprelu", "matryoshka-batchtopk"),
    "sparsify": ("topk",),
}
RATES = dict.fromkeys(LIBRARIES, (0.001, 0.002, 0.004, 0.008, 0.016)) | {
    "sparsify": (5e-3, 1e-2, 2e-2, 4e-2, 8e-2)  # signum's; its default is 2e-2 at width 1,024
}
COEFFICIENTS = {  # of relu and jumprelu, in each library's units
    "relu": {"dictlab": (5, 10, 20), "dictionary_learning": (1, 2, 4), "saelens": (1, 2, 4)},
    "jumprelu": {"dictlab": (0.001, 0.003, 0.01), "dictionary_learning": (8, 16, 32), "saelens": (0.3, 1, 3)},
}
POINTS = 20  # measurements of a run
HELD_OUT = 2 * 16384  # half to choose settings on


class Contestant(NamedTuple):
    """What competes: a library, with settings of dictlab's as JSON, and a coefficient where it has no k."""

    library: str
    settings: str
    coefficient: float | None

    @property
    def name(self) -> str:
        """For the table."""
        given = [f"{name} {value}" for name, value in json.loads(self.settings).items()]
        coefficient = [] if self.coefficient is None else [f"{self.coefficient:g}"]
        return ", ".join([self.library, *given, *coefficient])


class Bench:
    """All runs on one set of vectors.

    Args:
        asked: The command's options.
    """

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.out: Path = asked.out
        self.arrays = [Path(path).resolve() for path in asked.arrays] if asked.arrays else self._captured()
        self.steps: int = asked.vectors // asked.batch * asked.passes

    def table(self, activation: str) -> None:
        """Train what is missing, and print the table of an activation function."""
        kinds: dict[str, dict[Contestant, list[dict[str, Any]]]] = {"defaults": {}, "best rate": {}}
        for contestant in self.contestants(activation):
            runs = self.runs(activation, contestant, None)
            if runs:
                kinds["defaults"][contestant] = runs
            best = self.at_best(activation, contestant)
            if best:
                kinds["best rate"][contestant] = best
        print(f"\n## {activation}, {self.steps:,} steps of {self.asked.batch:,}, width {self.asked.width:,}\n")
        columns = ["library", "settings", "lr", "explained variance", "L0", "dead", "seconds", "to the best peer's"]
        print(head(columns, numbers=6))
        for kind, by_contestant in kinds.items():
            goal = best_of_peers(by_contestant)
            for contestant, runs in by_contestant.items():
                print(row(cells(contestant, kind, runs, goal)), flush=True)

    def contestants(self, activation: str) -> Iterator[Contestant]:
        """Those that have the activation function."""
        for library in self.asked.libraries:
            if activation not in LIBRARIES[library]:
                continue
            for settings in self.asked.settings if library == "dictlab" else ("{}",):
                for coefficient in COEFFICIENTS.get(activation, {}).get(library, (None,)):
                    yield Contestant(library, settings, coefficient)

    def runs(self, activation: str, contestant: Contestant, lr: float | None) -> list[dict[str, Any]]:
        """One run a seed, as far as they are there or to be trained."""
        found = (self.run(activation, contestant, lr, seed) for seed in self.asked.seeds)
        return [run for run in found if run is not None]

    def at_best(self, activation: str, contestant: Contestant) -> list[dict[str, Any]]:
        """Runs at the rate that is best for the first seed, on the vectors that are for choosing."""
        rates = RATES[contestant.library] if self.asked.rates is None else self.asked.rates
        tried = {rate: self.run(activation, contestant, rate, self.asked.seeds[0]) for rate in rates}
        scores = {rate: run["result"]["choosing"] for rate, run in tried.items() if run is not None}
        return self.runs(activation, contestant, max(scores, key=lambda rate: scores[rate])) if scores else []

    def run(self, activation: str, contestant: Contestant, lr: float | None, seed: int) -> dict[str, Any] | None:
        """A run's job and result: read, or trained in a process of its own; None where it is not to be trained."""
        asked = self.asked
        job = contestant._asdict() | {
            "activation": activation,
            "lr": lr,
            "seed": seed,
            "width": asked.width,
            "k": asked.k,
            "batch": asked.batch,
            "steps": self.steps,
            "points": POINTS,
            "vectors": str(self.arrays[0]),
            "held_out": str(self.arrays[1]),
        }
        words = [contestant.name, activation, f"w{asked.width}", f"k{asked.k}", f"b{asked.batch}", f"n{self.steps}"]
        path = self.out / f"{'-'.join(words).replace(' ', '')}-lr{lr or 'default'}-s{seed}.json"
        if not path.exists() and not asked.tables:
            python = sys.executable if contestant.library == "dictlab" else asked.peers
            if python is None:
                return None
            self._train(python, job, path)
        known: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
        if known is not None and known["job"] != job:
            raise SystemExit(f"{path}: of other settings; choose another --out.")
        return known

    def _train(self, python: str, job: dict[str, Any], path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "job.json"
            written.write_text(json.dumps(job))
            partial = path.with_suffix(".partial")
            subprocess.run(
                [python, "-m", "benchmarks.results.training.equal_tokens_training", str(written), str(partial)],
                check=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
            )
            partial.rename(path)

    def _captured(self) -> list[Path]:
        """Activations of training and held-out text, captured once."""
        asked = self.asked
        paths = [self.out / f"{split}.npy" for split in ("train", "heldout")]
        if not all(path.exists() for path in paths):
            model = LanguageModel.load(asked.model, beside=CHECKPOINTS)
            selection = TokenSelection.parse(asked.token_selection)
            for path, split, tokens in zip(paths, ("train", "heldout"), (asked.vectors, HELD_OUT), strict=True):
                text, context = Text.open(asked.text, split), model.context_length(None)
                sample = sample_site(  # more than is kept: some may not be selected
                    model, text, asked.site, context=context, tokens=tokens + tokens // 8, selection=selection
                )
                x = torch.cat([part.flatten(0, 1) for part in sample])[:tokens]
                if len(x) < tokens:
                    raise SystemExit(f"{asked.text}: {len(x):,} vectors of {split} text; {tokens:,} were asked for.")
                np.save(path, x.float().numpy())
        return [path.resolve() for path in paths]


def best_of_peers(by_contestant: dict[Contestant, list[dict[str, Any]]]) -> float | None:
    """The largest mean explained variance of another library at the same k."""
    means = [
        statistics.mean(values(runs, "explained_variance"))
        for contestant, runs in by_contestant.items()
        if contestant.library != "dictlab" and contestant.coefficient is None
    ]
    return max(means, default=None)


def cells(contestant: Contestant, kind: str, runs: Sequence[dict[str, Any]], goal: float | None) -> list[object]:
    """A row of the table."""
    explained, seconds = values(runs, "explained_variance"), values(runs, "seconds")
    lr = runs[0]["job"]["lr"]
    return [
        contestant.name,
        kind,
        "its own" if lr is None else f"{lr:g}",
        f"{statistics.mean(explained):.4f} [{min(explained):.4f}, {max(explained):.4f}]",
        f"{statistics.mean(values(runs, 'l0')):.1f}",
        ", ".join(f"{run['result']['dead']}" for run in runs),
        f"{statistics.mean(seconds):.0f}",
        reached(runs, goal) if contestant.library == "dictlab" and goal is not None else "",
    ]


def reached(runs: Sequence[dict[str, Any]], goal: float) -> str:
    """Mean seconds until an explained variance was first measured at or above the goal."""
    firsts = [
        next((point["seconds"] for point in run["result"]["curve"] if point["explained_variance"] >= goal), None)
        for run in runs
    ]
    there = [first for first in firsts if first is not None]
    return f"{statistics.mean(there):.0f}" if len(there) == len(firsts) else f"{len(there)} of {len(firsts)} runs"


def values(runs: Sequence[dict[str, Any]], name: str) -> list[float]:
    """A figure of each run."""
    return [run["result"][name] for run in runs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", metavar="PYTHON")
    parser.add_argument("--model", default="gpt2-python-2m")
    parser.add_argument("--site", default="blocks.3.hook_resid_pre")
    parser.add_argument("--text", default="builtin")
    parser.add_argument("--token-selection", default="all")
    parser.add_argument("--arrays", nargs=2, metavar=("TRAIN", "HELD"))
    parser.add_argument("--vectors", type=int, default=409_600)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--activation", nargs="+", default=["topk"], choices=LIBRARIES["dictlab"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--libraries", nargs="+", default=list(LIBRARIES), choices=LIBRARIES)
    parser.add_argument("--settings", nargs="+", default=["{}"], metavar="JSON")
    parser.add_argument("--rates", type=float, nargs="*", help="learning rates to try; without any, defaults alone")
    parser.add_argument("--out", type=Path, default=Path("runs/quality-at-equal-tokens"))
    parser.add_argument("--tables", action="store_true", help="train nothing")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(asked)
    for activation in asked.activation:
        bench.table(activation)


if __name__ == "__main__":
    main()
