"""The state of a learner, from which training continues bit for bit.

Tensors are named `weight.W`, `average.W` and `optimizer.W.moment` for each weight W, `counter.C` for each counter C of
the variant, and `since_fired`. Most have a row for each latent (`run_state.has_rows`); of these a process has the
rows of its own latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dictlab.training.learner.learner import Learner
from dictlab.training.run_state import State


def learner_state(learner: Learner) -> State:
    """Weights, Adam's moments, learning rate schedule, counters and averages of a learner."""
    names = list(learner.weights)
    tensors = {f"weight.{name}": t for name, t in learner.weights.items()}
    tensors |= {f"counter.{name}": t for name, t in learner.counters.items()}
    tensors |= {f"average.{name}": t for name, t in zip(names, learner.average or [], strict=False)}
    tensors["since_fired"] = learner.since_fired
    optimizer = learner.optimizer.state_dict()
    for number, entries in optimizer["state"].items():
        tensors |= {f"optimizer.{names[number]}.{moment}": value for moment, value in entries.items()}
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer["param_groups"]]
    schedule = {k: v for k, v in learner.schedule.state_dict().items() if k != "lr_lambdas"}
    record = {"steps": learner.steps, "averaged": learner.averaged, "groups": groups, "schedule": schedule}
    return State(tensors, record)


@torch.no_grad()
def restore(learner: Learner, state: State) -> None:
    """Put a state back into a learner made of the same member, settings and statistics."""
    kept, record, names = state.tensors, state.record, list(learner.weights)
    if learner.config.finetune and record["steps"] > learner.config.steps - learner.config.finetune_steps:
        learner.begin(finetune=True)
    for name, weight in learner.weights.items():
        weight.copy_(kept[f"weight.{name}"])
    for name, counter in learner.counters.items():
        counter.copy_(kept[f"counter.{name}"])
    for name, average in zip(names, learner.average or [], strict=False):
        average.copy_(kept[f"average.{name}"])
    learner.since_fired.copy_(kept["since_fired"])
    moments: dict[int, dict[str, Tensor]] = {}
    for key in kept:
        if key.startswith("optimizer."):
            _, name, moment = key.split(".")
            moments.setdefault(names.index(name), {})[moment] = kept[key]
    own = learner.optimizer.state_dict()["param_groups"]
    groups = [a | b | {"betas": tuple(b["betas"])} for a, b in zip(own, record["groups"], strict=True)]
    learner.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    learner.schedule.load_state_dict(record["schedule"] | {"lr_lambdas": [None] * len(groups)})
    learner.steps, learner.averaged = record["steps"], record["averaged"]
