"""The state of a learner, from which training continues bit for bit.

Tensors are named `weight.W`, `average.W` and `optimizer.W.moment` for each weight W, `counter.C` for each counter C of
the variant, `since_fired`, `firings.present`, `firings.before` and `firings.tokens`. Most have a row for each latent
(`run_state.has_rows`); of these a process has the rows of its own latents. Everything else (Adam's settings, learning
rates, how often averages were taken) follows from the settings and the number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dictlab.training.learner.learner import Learner

MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # what Adam keeps of a weight


def learner_tensors(learner: Learner) -> dict[str, Tensor]:
    """Weights, Adam's moments, counters and averages of a learner."""
    tensors = {f"weight.{name}": t for name, t in learner.weights.items()}
    tensors |= {f"counter.{name}": t for name, t in learner.counters.items()}
    tensors |= {f"average.{n}": t for n, t in zip(learner.weights, learner.average or [], strict=False)}
    counts = learner.firing_counts
    tensors |= {
        "firings.present": counts.present,
        "firings.before": counts.before,
        "firings.tokens": counts.window_tokens,
    }
    tensors["since_fired"] = learner.since_fired
    for name in optimized(learner):
        moments = learner.optimizer.state[learner.weights[name]]
        tensors |= {f"optimizer.{name}.{moment}": moments[moment] for moment in MOMENTS}
    return tensors


def optimized(learner: Learner) -> list[str]:
    """The weights that Adam has taken a step of, since the present part of the run began."""
    return [name for name, weight in learner.weights.items() if weight in learner.optimizer.state]


def expected_tensors(learner: Learner, with_moments: Sequence[str]) -> dict[str, Tensor]:
    """Tensors of the names, shapes and dtypes that a state of this learner has.

    Args:
        learner: Fresh, of the same member and settings.
        with_moments: The weights that Adam had taken a step of.
    """
    tensors = {name: t for name, t in learner_tensors(learner).items() if not name.startswith("optimizer.")}
    for name in with_moments:
        weight = learner.weights[name]
        like = {"exp_avg": weight, "exp_avg_sq": weight, "step": torch.zeros((), dtype=torch.float32)}
        tensors |= {f"optimizer.{name}.{moment}": like[moment] for moment in MOMENTS}
    return tensors


@torch.no_grad()
def restore(learner: Learner, tensors: dict[str, Tensor], steps: int) -> None:
    """Put a state back into a fresh learner of the same member, settings and statistics.

    Args:
        learner: The learner.
        tensors: Those of `learner_tensors`, checked.
        steps: How many it had taken.
    """
    learner.continue_from(steps)
    for name, weight in learner.weights.items():
        weight.copy_(tensors[f"weight.{name}"])
        moments = {m: tensors[key] for m in MOMENTS if (key := f"optimizer.{name}.{m}") in tensors}
        if moments:
            on_device = {m: t.to(weight.device) for m, t in moments.items()}
            learner.optimizer.state[weight] = on_device
    for name, counter in learner.counters.items():
        counter.copy_(tensors[f"counter.{name}"])
    for name, average in zip(learner.weights, learner.average or [], strict=False):
        average.copy_(tensors[f"average.{name}"])
    learner.since_fired.copy_(tensors["since_fired"])
    learner.firing_counts.present.copy_(tensors["firings.present"])
    learner.firing_counts.before.copy_(tensors["firings.before"])
    learner.firing_counts.window_tokens.copy_(tensors["firings.tokens"])
