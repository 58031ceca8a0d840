"""A short fine-tuning of a stitched dictionary on the activations at hand, by gradient.

    min  E |x - x_hat|^2 / Var(x)     over biases alone, or over everything that a dictionary has

a few hundred steps of Adam on a sample that is held in memory: what Frankenstein's recipe asks for after stitching. It
is no training run: nothing is drawn from a stream, no objective is chosen, no dead latent is revived, and nothing keeps
the codes sparse but the rule by which latents fire. What is returned is the state, the start among them, that explains
a part of the sample best that was not fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.pool.ridge_refit import VALIDATION
from dictlab.dictionary import Dictionary
from dictlab.dictionary.unit_directions import with_unit_directions
from dictlab.errors import check_at_least
from dictlab.numerics import seeds

Parameters = Literal["biases", "all"]
TRAINED = {"biases": ("b_enc", "b_out"), "all": ("W_enc", "b_enc", "W_dec", "b_out")}
STEPS = 300
TOKENS = 256  # a step
RATE = 3e-3  # what the first steps change a parameter by, as a share of its typical size
LOOKS = 6  # times that the rest of the sample is looked at


class Tuned(NamedTuple):
    """What fine-tuning found.

    Attributes:
        dictionary: The best state.
        step: The step it is from; 0 is the start.
        before: MSE of the start on the part that was not fitted.
        after: MSE of the best there.
    """

    dictionary: Dictionary
    step: int
    before: float
    after: float


def finetuned(
    dictionary: Dictionary,
    batches: Sequence[Float[Tensor, "*tokens d_in"]],
    parameters: Parameters,
    *,
    steps: int = STEPS,
    rate: float = RATE,
    seed: int = 0,
) -> Tuned:
    """Fine-tune a dictionary on a sample of activations.

    Args:
        dictionary: Where to start.
        batches: The sample; its last fifth is not fitted, and decides how long to go on.
        parameters: Biases of encoder and decoder, or all weights.
        steps: Of Adam, the rate falling to nothing.
        rate: Of the first steps, as a share of the typical size of each parameter.
        seed: Of the order of tokens.

    Raises:
        DictlabError: The number of steps is negative.
    """
    check_at_least(0, steps=steps)
    x = torch.cat([batch.reshape(-1, dictionary.d_in) for batch in batches])
    first = len(x) - len(x) // VALIDATION
    fit, rest = x[:first], x[first:]
    own = with_unit_directions(dictionary.folded())  # Adam's steps depend on how encoders and decoders share a scale
    weights = {name: getattr(own, name).detach().clone().requires_grad_() for name in TRAINED[parameters]}
    optimizer = torch.optim.Adam(_groups(own, weights, fit, rate))
    fall = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(1, steps))
    unit = float(fit.var(dim=0).mean()) or 1.0
    generator = seeds.generator(seed, "fine-tuning")
    before = best = _error(own, rest)
    found, at = own, 0
    for step in range(1, steps + 1):
        chosen = torch.randint(len(fit), (min(TOKENS, len(fit)),), generator=generator).to(fit.device)
        own = replace(own, **weights)
        loss = (fit[chosen] - own(fit[chosen])[1]).square().mean() / unit
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        fall.step()
        if step % max(1, steps // LOOKS) == 0:
            now = replace(own, **{name: weight.detach().clone() for name, weight in weights.items()})
            if (error := _error(now, rest)) < best:
                found, best, at = now, error, step
    return Tuned(found, at, before, best)


@torch.no_grad()
def _error(dictionary: Dictionary, x: Tensor) -> float:
    errors = (float((part - dictionary.reconstruct(part)).double().square().sum()) for part in x.split(4096))
    return sum(errors) / max(1, x.numel())


@torch.no_grad()
def _groups(dictionary: Dictionary, weights: dict[str, Tensor], x: Tensor, rate: float) -> list[dict[str, object]]:
    """Each parameter with its rate: a share of its typical entry, for biases of what they are added to.

    Latents that are not active here, such as dead ones and rivals that emit nothing, say nothing of what is typical.
    """
    codes = dictionary.encode(x[:4096])
    active = codes.indices[codes.values != 0].unique()
    entries = {"b_enc": codes.values, "b_out": x - x.mean(dim=0)}
    entries |= {"W_enc": dictionary.W_enc[:, active], "W_dec": dictionary.W_dec[active]}
    typical = {name: entries[name].square().mean().sqrt().nan_to_num() for name in weights}
    return [{"params": [weight], "lr": rate * float(typical[name])} for name, weight in weights.items()]
