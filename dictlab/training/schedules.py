"""The learning rate over a run, as a share of its peak: warm-up, then a linear or a cosine decay.

At step s of S it is

    (s + 1) / w                                                   in the first w steps: warm-up
    linear     f + (1 - f) min(1, (S - s) / d)                    constant, then down to f over the last d steps
    cosine     f + (1 - f) (1 + cos(pi (s - w) / (S - w))) / 2

where w and d are given as shares of the steps (`warmup`, `decay`) and f is `final_lr`. The peak is the recipe's
(`recipes.LearningRate`), the optimizer's step that takes it is in `learner/optimizer_step.py`.
"""

from __future__ import annotations

import math
from typing import Literal

ScheduleName = Literal["linear", "cosine"]


def share_of_peak(
    schedule: ScheduleName, step: int, steps: int, *, warmup: float, decay: float, final_lr: float
) -> float:
    """The learning rate of a step, as a share of its peak.

    Args:
        schedule: Shape of the decay.
        step: From 0; the number of steps stands for after the last.
        steps: Of this part of the run.
        warmup: Share of the steps in which it rises from 0.
        decay: Share of the steps in which a linear schedule falls.
        final_lr: What it ends at, as a share of the peak.
    """
    warmup_steps = round(warmup * steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "cosine":
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        left = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    else:
        left = min(1.0, (steps - step) / max(1, round(decay * steps)))
    return final_lr + (1 - final_lr) * max(0.0, left)
