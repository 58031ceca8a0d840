"""What does training give on the shipped model, by objective, activation function and cost?

Trains everything that docs/results/training.md tells of, and prints its tables.

python -m benchmarks.results.training.quality [--tokens 600000] [--seeds 0 1] [--out FOLDER] [--figure FILE]
python -m benchmarks.results.training.quality NAME ...    only runs whose names begin so, on several processes
python -m benchmarks.results.training.quality --tables      what is there already, and nothing new

About an hour and a half on one core. Each run is a folder below FOLDER: after Ctrl-C, or a kill, the same command goes
on where it stopped. Settings are tuned first, on a third of the tokens and with a seed of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._common import CHECKPOINTS, shipped_model
from benchmarks.results.training import quality_measures as measures
from benchmarks.results.training import quality_tables as tables
from dictlab import Dictionary, LanguageModel, TrainConfig, load, runs, train
from dictlab.training import resume

MODEL, SITE = "gpt2-python-2m", "blocks.3.hook_resid_pre"
BASE = TrainConfig(MODEL, SITE, width=(1024,), batch=1024, save_minutes=1, recipe="dictlab-0.1")

Setting = dict[str, Any]
TUNING_SEED = 100
LRS: tuple[Setting, ...] = ({"lr": 2e-3}, {"lr": 4e-3}, {"lr": 8e-3})
HIGHER: Setting = {"lr": 1.6e-2}
SMALLER: Setting = {"lr": 4e-3, "batch": 256}  # more steps of fewer tokens
WEIGHTS: tuple[Setting, ...] = tuple({"lr": 4e-3, "downstream": weight} for weight in (0.5, 0.1, 0.02))
FINETUNE_LRS: tuple[Setting, ...] = tuple(
    {"finetune_lr": lr} for lr in (0.01, 0.03, 0.1, 0.3)
)  # shares of local's rate
TRIED = {  # what each is tuned over: at k = 16, ReLU at three coefficients, fine-tuning on a tenth of the tokens
    "local": (*LRS, HIGHER, {"lr": 3.2e-2}, SMALLER),
    "e2e": (*LRS, {"lr": 2e-3, "batch": 256}, SMALLER),
    "e2e+ds": (*WEIGHTS, {"lr": 8e-3, "downstream": 0.1}),
    "relu": (*LRS, HIGHER),
    "then-e2e": FINETUNE_LRS,
}
STARTED, STARTED_TOKENS = "local-topk16-1024-s0", 150_000  # a shipped dictionary, and for how long it is trained on
STARTED_LRS = {"e2e": (1e-4, 4e-4, 1.6e-3), "local": (1e-4, 4e-4)}
SHARES = {"e2e": (0.05, 0.1, 0.2), "e2e+ds": (0.1,)}  # of the tokens, for the last part
KS, OTHERS = (16, 32), (8, 32, 64)
L1 = (3.0, 5.0, 10.0, 20.0, 35.0)
DEAD_WIDTHS = (1024, 4096)


class Job(NamedTuple):
    """A run.

    Attributes:
        name: Its folder's.
        needs: What must have been tuned before.
        config: Its settings, once that is known.
    """

    name: str
    needs: tuple[str, ...]
    config: Callable[[], TrainConfig]


class Bench:
    """All runs of one length, in one folder.

    Args:
        out: The folder.
        tokens: Of each run.
        seeds: Initialisations; all see one order of the data.
        only: What the names of the runs to be trained begin with; "" for all, nothing for none.
    """

    def __init__(self, out: Path, tokens: int, seeds: tuple[int, ...], only: tuple[str, ...]) -> None:
        self.out, self.tokens, self.seeds, self.only = out, tokens, seeds, only
        self.tried: dict[str, list[tuple[Setting, list[Dictionary]]]] = {what: [] for what in TRIED}

    @cached_property
    def model(self) -> LanguageModel:
        """The shipped language model."""
        return shipped_model()

    def run(self, name: str, config: TrainConfig) -> list[Dictionary]:
        """The dictionaries of a run: trained, gone on with, or read; none where it is not to be trained."""
        folder = self.out / name
        begun = (folder / runs.CONFIG).exists()
        if not (begun and runs.open_run(folder).finished) and not name.startswith(self.only):
            return []
        made = resume(folder, model=self.model) if begun else train(config, out=folder, model=self.model, force=True)
        if made.interrupted:
            raise SystemExit(f"{folder}: interrupted; the same command goes on.")
        return list(made.dictionaries)

    def tune(self) -> None:
        """Try every setting of TRIED."""
        short = replace(BASE, tokens=self.tokens // 3, seed=(TUNING_SEED,))
        for what, settings in TRIED.items():
            for setting in settings if what != "then-e2e" or self.tuned("local") else ():
                name = f"tuning/{what}-" + "-".join(f"{key}{value:g}" for key, value in setting.items())
                made = self.run(name, self.trial(short, what, setting))
                if made:
                    self.tried[what].append((setting, made))

    def trial(self, short: TrainConfig, what: str, setting: Setting) -> TrainConfig:
        """The settings of a run that tries one."""
        if what == "relu":
            return replace(short, activation="relu", l1=(5.0, 10.0, 20.0), **setting)
        if what == "then-e2e":
            return self.finetuned(replace(short, k=(16,)), "e2e", 0.1, setting)
        return replace(short, k=(16,), objective=what, **setting)

    def tuned(self, *what: str) -> bool:
        """Whether everything was tried for these."""
        return all(len(self.tried[name]) == len(TRIED[name]) for name in what)

    def best(self, what: str) -> Setting:
        """The setting with the least CE increase."""
        scores = tables.judged(self.tried[what])
        return self.tried[what][scores.index(min(scores))][0]

    def finetuned(self, config: TrainConfig, goal: str, share: float, setting: Mapping[str, Any]) -> TrainConfig:
        """Local first, then another objective for the last share of the tokens."""
        own = {"finetune": goal, "finetune_tokens": round(share * config.tokens), **self.best("local"), **setting}
        return replace(config, **own, **self.weight(goal))

    def jobs(self) -> Iterator[Job]:
        """What is trained after tuning, what matters most first: several seeds of k = 16, one of the rest."""
        full = replace(BASE, tokens=self.tokens, seed=self.seeds, k=KS[:1])
        first = replace(full, seed=self.seeds[:1])
        yield Job("local-16", ("local",), lambda: replace(full, **self.best("local")))
        yield Job("local", ("local",), lambda: replace(first, k=OTHERS, **self.best("local")))
        for goal, shares in SHARES.items():
            for share in shares:
                yield self.finetuning(f"then-{goal}-{share:g}", full, goal, share)
        yield self.finetuning("then-e2e-0.1-32", replace(first, k=KS[1:]), "e2e", 0.1)
        yield self.whole("e2e-16", "e2e", full)
        yield from self.going_on()
        yield self.whole("e2e+ds-16", "e2e+ds", first)
        for k in (32, 8):
            yield self.whole(f"e2e-{k}", "e2e", replace(first, k=(k,)))
        relu = replace(BASE, tokens=self.tokens, seed=self.seeds[:1], activation="relu", l1=L1)
        yield Job("relu", ("relu",), lambda: replace(relu, **self.best("relu")))
        wide = replace(first, width=DEAD_WIDTHS, tokens=self.tokens // 3)
        yield Job("aux", ("local",), lambda: replace(wide, **self.best("local")))
        never = replace(wide, dead_after=self.tokens)  # nothing ever counts as dead
        yield Job("no-aux", ("local",), lambda: replace(never, **self.best("local")))

    def finetuning(self, name: str, config: TrainConfig, goal: str, share: float) -> Job:
        """Local, then another objective."""
        needs = ("then-e2e", goal) if goal == "e2e+ds" else ("then-e2e",)  # its learning rate serves both
        return Job(name, needs, lambda: self.finetuned(config, goal, share, self.best("then-e2e")))

    def whole(self, name: str, goal: str, config: TrainConfig) -> Job:
        """End-to-end from the start, at the learning rate and batch of e2e."""
        needs = ("e2e", goal)
        return Job(name, needs, lambda: replace(config, objective=goal, **self.weight(goal), **self.best("e2e")))

    def weight(self, goal: str) -> Setting:
        """The weight of the downstream error, where there is one."""
        return {"downstream": self.best(goal)["downstream"]} if goal == "e2e+ds" else {}

    def going_on(self) -> Iterator[Job]:
        """A shipped dictionary under another objective, and under its own."""
        file = str(CHECKPOINTS / f"{STARTED}.safetensors")
        config = TrainConfig(
            MODEL, SITE, start=(file,), tokens=STARTED_TOKENS, batch=BASE.batch, recipe="dictlab-0.1", save_minutes=1
        )
        for goal, lrs in STARTED_LRS.items():
            for lr in lrs:
                own = replace(config, objective=goal, lr=lr)
                yield Job(f"start-{goal}-lr{lr:g}", (), lambda own=own: own)  # type: ignore[misc]

    def results(self) -> dict[str, list[Dictionary]]:
        """Dictionaries by the name of their run."""
        known = [job for job in self.jobs() if self.tuned(*job.needs)]
        before = {"start-none": [load(CHECKPOINTS / f"{STARTED}.safetensors")]}
        return {job.name: made for job in known if (made := self.run(job.name, job.config()))} | before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--tokens", type=int, default=600_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("runs/training-quality"))
    parser.add_argument("--figure", type=Path, help="where to draw CE increase against cost")
    parser.add_argument("--tables", action="store_true", help="train nothing")
    asked = parser.parse_args()
    only = () if asked.tables else tuple(asked.names or [""])
    bench = Bench(asked.out, asked.tokens, tuple(asked.seeds), only)
    bench.tune()
    results = bench.results()
    if not asked.names:
        show(bench, results, asked.figure)


def show(bench: Bench, results: Mapping[str, list[Dictionary]], figure: Path | None) -> None:
    """Print every table, and draw the figure."""
    points = measures.points(results, bench.model, bench.out)
    costs = measures.costs(replace(BASE, **bench.best("local")), bench.model, KS[0])
    tables.show("Tuning", tables.tuning(bench.tried))
    tables.show("Cost", tables.costs_table(costs))
    tables.show("Objectives", tables.objectives(points, costs, KS))
    tables.show("Length", tables.lengths(bench.tried, points, KS[0]))
    tables.show("Going on", tables.going_on(points))
    tables.show("Curves", tables.compared(points))
    tables.show("TopK and ReLU + L1 among what was tried", tables.short_l1(bench.tried))
    tables.show("TopK and ReLU + L1", tables.against_l1(points))
    tables.show("Dead latents", tables.dead(points))
    if figure:
        tables.draw(points, costs, KS, bench.tokens, figure)


if __name__ == "__main__":
    main()
