"""What does a family of eight dictionaries cost, beside their own steps and one forward of the model?

    family    the stream of activations and a step of each member, batch after batch
    alone     each member's steps by themselves, on activations that are there; and whole forwards of the model

Blocks of both take turns in one run.

python -m benchmarks.speed.family_cost
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from itertools import islice

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import torch

from benchmarks._common import shipped_model
from dictlab import Text
from dictlab.data import activations
from dictlab.training import TrainConfig
from dictlab.training.learner.initialisation import geometric_median
from dictlab.training.learner.learner import Learner
from dictlab.training.objectives import Batch

MODEL, SITE = "gpt2-python-2m", "blocks.3.hook_resid_pre"
BATCH, CONTEXT = 2048, 128
WIDTHS, SEEDS = (512, 1024, 2048, 4096), (0, 1)


def runs(steps: int) -> dict[str, Callable[[], None]]:
    """What takes turns, each `steps` batches long."""
    model, text = shipped_model(), Text.open("builtin")
    config = TrainConfig(MODEL, SITE, width=WIDTHS, seed=SEEDS, batch=BATCH, tokens=BATCH * 10**5)
    stream = activations.shuffled_activations(model, text, SITE, context=CONTEXT, batch=BATCH, buffer=1 << 14, seed=0)
    pool = list(islice(stream, steps))
    sample = torch.cat(pool[:4])
    centre, moments = geometric_median(sample), activations.moments([sample])
    learners = [Learner(member, config, moments, centre) for member in config.members()]
    tokens = next(text.batches(model.tokenizer, CONTEXT, BATCH // CONTEXT, seed=0))

    def family() -> None:
        for x in islice(stream, steps):
            for learner in learners:
                learner.step(Batch(x), None, logged=False)

    def alone() -> None:
        for learner in learners:
            for x in pool:
                learner.step(Batch(x), None, logged=False)

    @torch.no_grad()
    def forwards() -> None:
        for _ in range(steps):
            model.logits(tokens)

    return {"family": family, "alone": alone, "forwards": forwards}


def measure(steps: int, rounds: int) -> dict[str, float]:
    """Median seconds of a step of each."""
    seconds: dict[str, list[float]] = {}
    made = runs(steps)
    for number in range(rounds + 1):  # one to warm up
        for name, run in made.items():
            began = time.perf_counter()
            run()
            if number:
                seconds.setdefault(name, []).append((time.perf_counter() - began) / steps)
    return {name: statistics.median(own) for name, own in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="in a block")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    given = parser.parse_args()
    took = measure(given.steps, given.rounds)
    ratio = took["family"] / (took["alone"] + took["forwards"])
    if given.json:
        print(json.dumps({"ratio_to_parts": ratio, "seconds": took}))
        return
    size = len(WIDTHS) * len(SEEDS)
    print(f"{size} dictionaries of {MODEL} at {SITE}, {BATCH} tokens a step, {torch.get_num_threads()} threads")
    print(f"a step of the family, stream included: {took['family']:.4f} s")
    print(f"the members' steps alone: {took['alone']:.4f} s; a forward of the model: {took['forwards']:.4f} s")
    print(f"family / parts: {ratio:.2f}")


if __name__ == "__main__":
    main()
