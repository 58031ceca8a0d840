"""What `quality.py` beside this measures: dictionaries on held-out text, and the cost of a step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from analyses.quality.measured_points import Point
from dictlab import Dictionary, LanguageModel, Text, TrainConfig
from dictlab.data.activations import moments
from dictlab.evaluation.evaluate import evaluate
from dictlab.evaluation.metrics import Evaluation
from dictlab.numerics.flops import training_flops
from dictlab.training.learner.initialisation import geometric_median
from dictlab.training.learner.learner import Learner
from dictlab.training.objectives import Batch, Splice

CONTEXTS = 64
GOALS = ("local", "e2e", "e2e+ds")
ROUNDS = 24


class Cost(NamedTuple):
    """What a token costs under one objective.

    Attributes:
        flops: Operations of the dictionary and of what is spliced.
        all_flops: The same and the model's own forward, as far as it has to go.
        seconds: CPU seconds of a whole step on one thread, the model's own forward in it.
    """

    flops: float
    all_flops: float
    seconds: float


def points(results: Mapping[str, Sequence[Dictionary]], model: LanguageModel, out: Path) -> dict[str, list[Point]]:
    """Every dictionary with its measurements, by run; what was measured already is read from files."""
    missing = [name for name in results if not _file(out, name).exists()]
    asked = [d for name in missing for d in results[name]]
    if asked:
        found = iter(evaluate(asked, model, Text.builtin().as_split("heldout"), contexts=CONTEXTS))
        for name in missing:
            _write(_file(out, name), [next(found) for _ in results[name]])
    return {
        name: [Point(d, e) for d, e in zip(own, _read(out, name, own), strict=True)] for name, own in results.items()
    }


def _file(out: Path, name: str) -> Path:
    return out / name / f"measured-{CONTEXTS}.npz"


def _write(path: Path, evaluations: Sequence[Evaluation]) -> None:
    arrays = {f"{i}/{key}": values for i, e in enumerate(evaluations) for key, values in e.sums.items()}
    arrays |= {f"{i}/fired": e.fired.numpy() > 0 for i, e in enumerate(evaluations)}
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **arrays)


def _read(out: Path, name: str, dictionaries: Sequence[Dictionary]) -> list[Evaluation]:
    arrays = dict(np.load(_file(out, name)))
    found = []
    for i, dictionary in enumerate(dictionaries):
        own = {key.split("/")[1]: values for key, values in arrays.items() if key.startswith(f"{i}/")}
        fired = torch.from_numpy(own.pop("fired")).float()
        found.append(Evaluation(dictionary.name, own, fired, seed=0))
    return found


def costs(base: TrainConfig, model: LanguageModel, k: int) -> dict[str, Cost]:
    """What each objective costs a token, at one k."""
    before, behind = parameters(model, base)
    d_in = model.model.config.hidden_size
    seconds, found = step_seconds(base, model, lambda goal, sample: _learner(base, goal, k, sample)), {}
    for goal in GOALS:
        spliced = goal != "local"
        own = training_flops(base.width[0], d_in, 1, k, batch=base.batch, parameters_behind=behind if spliced else 0)
        forward = 2 * (before + (behind if spliced else 0))
        found[goal] = Cost(own, own + forward, seconds[goal] / base.batch)
    return found


def parameters(model: LanguageModel, base: TrainConfig) -> tuple[int, int]:
    """Parameters that take part in products, before the site and behind it; embeddings are looked up."""
    body = model.model.transformer
    block = int(str(base.site).split(".")[1])
    counts = [sum(p.numel() for p in part.parameters()) for part in body.h]
    return sum(counts[:block]), sum(counts[block:]) + model.model.lm_head.weight.numel()


def step_seconds(
    base: TrainConfig, model: LanguageModel, made: Callable[[str, torch.Tensor], Learner]
) -> dict[str, float]:
    """Median CPU seconds of a step of each objective, the model's own forward in it; they take turns.

    Args:
        base: Site and batch.
        model: The language model.
        made: From an objective and a sample of activations to a dictionary in training.
    """
    batches = (
        Text.builtin().as_split("train").batches(model.tokenizer, model.context, base.batch // model.context, seed=0)
    )
    site = str(base.site)
    sample = torch.cat([model.capture(next(batches), site)[site].flatten(0, 1) for _ in range(8)])
    splices = {goal: _splice(model, site, goal) for goal in GOALS}
    learners = {goal: made(goal, sample) for goal in GOALS}
    spent: dict[str, list[float]] = {goal: [] for goal in GOALS}
    for _ in range(ROUNDS):
        tokens = next(batches)
        for goal, splice in splices.items():
            began = time.process_time()
            clean = model.capture(tokens, splice.sites if splice else [site])
            learners[goal].step(Batch(clean[site], clean, tokens), splice, logged=False)
            spent[goal].append(time.process_time() - began)
    return {goal: statistics.median(values) for goal, values in spent.items()}


def _splice(model: LanguageModel, site: str, goal: str) -> Splice | None:
    if goal == "local":
        return None
    return Splice(model, site, model.block_input(site), model.later_sites(site) if goal == "e2e+ds" else [])


def _learner(base: TrainConfig, goal: str, k: int, sample: torch.Tensor) -> Learner:
    config = TrainConfig(
        base.model, base.site, width=base.width, k=(k,), objective=goal, batch=base.batch, tokens=base.batch * 10**5
    )
    return Learner(next(config.members()), config, moments([sample]), geometric_median(sample))
