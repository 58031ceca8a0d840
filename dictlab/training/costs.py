"""What did a dictionary cost, and how much of that is its objective's?

    relative   (all seconds) / (the seconds that as many tokens would have taken under the first objective)

The first objective's pace is that of the run's first part, or what a dictionary that was gone on from says of its own
training (on whatever machine that was). Operations are counted by `dictlab.numerics.flops`.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, NamedTuple

from dictlab.dictionary import Dictionary
from dictlab.numerics.flops import training_flops
from dictlab.training.config import TrainConfig
from dictlab.training.member import Member
from dictlab.training.objectives import Objective


class Cost(NamedTuple):
    """Seconds of a member: its own steps and its share of the stream.

    Attributes:
        first: Under its objective.
        finetune: Under the one that it was fine-tuned for.
    """

    first: float
    finetune: float


def goals_record(member: Member, config: TrainConfig) -> dict[str, Any]:
    """What the metadata says of the terms that were weighed."""
    record: dict[str, Any] = {"weights": asdict(config.weights(member.objective)), "later": list(config.later)}
    if member.finetune is not None:
        record["finetune"] = {
            "objective": member.finetune,
            "weights": asdict(config.weights(member.finetune)),
            "tokens": config.finetune_steps * config.batch,
            "lr_factor": config.finetune_lr,
            "penalty_factor": config.finetune_penalty,
        }
    if member.start is not None:
        about = member.start.metadata
        record["start"] = {
            "dictionary": member.start.name,
            "objective": about.objective,
            "tokens": about.tokens,
            "seconds": about.training.get("seconds"),
            "library": about.library,
        }
    return record


def counted(dictionary: Dictionary, config: TrainConfig, parameters_behind: int) -> Dictionary:
    """The dictionary with the operations of this run in its metadata, under `training.flops`.

    Args:
        dictionary: As trained and measured: active latents a token are its k, else its L0.
        config: Of the run.
        parameters_behind: Parameters of the model behind the site; 0 without a model.
    """
    about, training = dictionary.metadata, dictionary.metadata.training
    active = training["k"] if isinstance(training.get("k"), int) else about.metrics["l0"]
    tokens = about.tokens or 0
    first = min(tokens, (config.steps - config.finetune_steps) * config.batch)
    parts = [(first, training["weights"])]
    if "finetune" in training:
        parts.append((tokens - first, training["finetune"]["weights"]))
    flops = sum(
        training_flops(
            dictionary.n_latents,
            dictionary.d_in,
            some,
            active,
            batch=config.batch,
            parameters_behind=parameters_behind * Objective(**weights).needs_model,
        )
        for some, weights in parts
    )
    return replace(dictionary, metadata=replace(about, training=training | {"flops": flops}))


def cost_record(member: Member, config: TrainConfig, cost: Cost, steps: int) -> dict[str, Any]:
    """What the metadata says of seconds."""
    record: dict[str, Any] = {"seconds": sum(cost)}
    first = config.steps - config.finetune_steps
    if member.finetune is not None and steps > first:
        pace = cost.first / first
        record |= {"finetune_seconds": cost.finetune, "relative_cost": sum(cost) / (pace * steps)}
    if member.start is not None:
        about = member.start.metadata
        before, tokens = about.training.get("seconds"), about.tokens
        if before and tokens:
            pace = before / tokens
            record["relative_cost"] = (before + sum(cost)) / (pace * (tokens + steps * config.batch))
    return record
