"""How fast does a dictionary learn, and when? Recipes are named sets of the optimizer's settings.

The learning rate follows a schedule up to its peak and down again (`schedules`). With `clip` c and the gradient g
of all weights of a dictionary, |g| its norm, Adam is given

    g min(1, c / |g|)        c > 0, in the units of the loss
    g / |g|                  c = 0: every step counts alike, however large its gradient and whatever the loss's units

What a run gives wins over what its recipe says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from dictlab.errors import DictlabError, check_at_least
from dictlab.training.schedules import ScheduleName, share_of_peak

RecipeName = Literal["dictlab", "dictlab-0.1", "gao2024", "braun2024"]


@dataclass(frozen=True)
class LearningRate:
    """Peak learning rate: `factor scale (width / 16384)^by_width (steps / 1000)^by_steps`, but `most` at most.

    Attributes:
        scale: That of 16,384 latents in 1,000 steps.
        by_width: How it grows with the number of latents.
        by_steps: How it grows with the steps of the run.
        by_activation: The factor of activation functions that want another rate than the rest.
        most: Its largest value.
    """

    scale: float
    by_width: float = 0.0
    by_steps: float = 0.0
    by_activation: tuple[tuple[str, float], ...] = ()
    most: float = 1.0

    def __call__(self, width: int, steps: int, activation: str = "topk") -> float:
        """The rate for so many latents, steps of the run, and an activation function by its name in `--activation`."""
        factor = dict(self.by_activation).get(activation, 1.0)
        lr = factor * self.scale * math.pow(width / 16384, self.by_width) * math.pow(steps / 1000, self.by_steps)
        return min(self.most, lr)


@dataclass(frozen=True)
class Recipe:
    """Settings of the optimizer.

    Attributes:
        lr: Peak learning rate of a dictionary.
        schedule: Shape of the learning rate over the run.
        warmup: Share of the steps in which it rises from 0.
        decay: Share of the steps in which a linear schedule falls.
        final_lr: What it ends at, as a share of the peak.
        clip: Largest gradient norm; 0 for gradients of norm 1, None for gradients as they are.
        ema: Decay of an average of the weights; None for none.
        dead_after: Tokens without firing after which a latent counts as dead; None for a twentieth of the run, but ten
            batches at least and 10 million at most.
        finetune_lr: Peak of a last part under another objective, as a share of the first part's.
        start_lr: Peak of a run that goes on from a trained dictionary, as a share of a fresh one's.
        eps: Of Adam.
    """

    lr: LearningRate
    schedule: ScheduleName
    warmup: float
    decay: float
    final_lr: float
    clip: float | None
    ema: float | None = None
    dead_after: int | None = None
    finetune_lr: float = 0.3
    start_lr: float = 1.0
    eps: float = 6.25e-10  # Gao et al. 2024, their code

    def check(self) -> None:
        """Refuse what is out of range.

        Raises:
            DictlabError: A setting is; it is named.
        """
        if self.schedule not in get_args(ScheduleName):
            raise DictlabError(f"schedule is {self.schedule!r}; expected {' or '.join(get_args(ScheduleName))}.")
        check_at_least(0, clip=self.clip, finetune_lr=self.finetune_lr)
        shares = {"warmup": self.warmup, "decay": self.decay, "final_lr": self.final_lr}
        for name, share in shares.items():
            if not (0 <= share <= 1):
                raise DictlabError(f"{name} is {share}; expected a share between 0 and 1.")
        if self.warmup >= 1:
            raise DictlabError(f"warmup is {self.warmup}; expected a share below 1: some steps are taken at the peak.")
        if self.schedule == "linear" and self.warmup + self.decay > 1:
            raise DictlabError(
                f"warmup {self.warmup} and decay {self.decay} together are more than the run; expected 1 at most."
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise DictlabError(f"ema is {self.ema}; expected a decay between 0 and 1, such as 0.999.")

    def share_of_peak(self, step: int, steps: int) -> float:
        """The learning rate of a step, as a share of its peak; see `schedules.share_of_peak`."""
        return share_of_peak(self.schedule, step, steps, warmup=self.warmup, decay=self.decay, final_lr=self.final_lr)


GAO = LearningRate(2e-4, by_width=-0.5)  # Gao et al. 2024, appendix A.3, as it is commonly read
RECIPES: dict[str, Recipe] = {
    # What the search of docs/training.md found
    "dictlab": Recipe(
        LearningRate(1.2e-3, by_width=-0.5, by_steps=-0.5, by_activation=(("relu", 4.0),), most=1.6e-2),
        "linear",
        warmup=0.05,
        decay=0.2,
        final_lr=0.0,
        clip=0.0,
        finetune_lr=0.05,
        start_lr=0.03,
    ),
    # What runs were trained with before recipes had names, the shipped dictionaries (but for their rates) among them
    "dictlab-0.1": Recipe(GAO, "cosine", warmup=0.05, decay=0.2, final_lr=0.1, clip=10.0),
    # Their code: constant rate, no warm-up, no clipping, an average of the weights
    "gao2024": Recipe(GAO, "linear", warmup=0.0, decay=0.0, final_lr=1.0, clip=None, ema=0.999, dead_after=10_000_000),
    # Braun et al. 2024, appendix D, and their code
    "braun2024": Recipe(LearningRate(5e-4), "cosine", warmup=0.05, decay=0.2, final_lr=0.1, clip=10.0, eps=1e-8),
}
