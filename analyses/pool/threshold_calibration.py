"""Latents that compete, made to stand alone: a threshold for each in place of its rivals.

A latent of a TopK dictionary fires where it beats its rivals, so a part of such a dictionary carries all of the donor's
encoder. A JumpReLU needs none of that: latent j fires where its pre-activation z_j is above theta_j. The thresholds are
calibrated on a sample of tokens: of all values, theta_j is the one with which

    decisions    fewest of its firing decisions change      min #{fires, z <= theta} + #{does not, z > theta}
    codes        its codes change least                     the same, each token counted with z^2
    rate         it fires as often as it did                #{z > theta} = #{fires}

halfway between the two pre-activations that it separates. (The rule that was trained with BatchTopK has one threshold
for all latents, the mean over batches of the smallest code that was kept, Bussmann et al. 2024; here each has its own,
and the sample is one batch.) ReLU, JumpReLU and Gated latents are JumpReLU latents already, and stay what they were:

    f = [z + b_gate > 0] max(z e^r + b_mag, 0)    is    z' = z e^r + b_mag    above    b_mag - b_gate e^r
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.pool.dictionary_pool import activation_parts
from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import Activation, Gated, JumpReLU, ReLU
from dictlab.dictionary.codes import Codes
from dictlab.dictionary.union import emitting
from dictlab.errors import DictlabError

Calibration = Literal["decisions", "codes", "rate"]
BLOCK = 1 << 25  # pre-activations that are sorted at once: 128 MiB, and as much again a few times


class Agreement(NamedTuple):
    """How far two dictionaries of the same latents fire at the same places, over all latents of a sample of tokens.

    Attributes:
        decisions: Share of the decisions, whether a latent fires at a token, that are alike; most are that it does not.
        firings: Share of the places where either fires at which both do (Jaccard).
        lost: Share of the first one's firings that the second has not.
        new: Share of the second one's firings that the first has not.
        silent: Latents that fire in the first alone.
    """

    decisions: float
    firings: float
    lost: float
    new: float
    silent: int


@torch.no_grad()
def standing_alone(
    dictionary: Dictionary,
    batches: Sequence[Float[Tensor, "*tokens d_in"]],
    *,
    by: Calibration = "codes",
    name: str | None = None,
) -> Dictionary:
    """The latents of a dictionary that can be active, each with a threshold of its own in place of its rivals.

    The result is a JumpReLU dictionary, which other libraries' formats can hold. Its codes differ from those of the
    original wherever a decision does; see `agreement`. A decoder that was fitted to the original's is not the best one
    for these: fit it again (`ridge_refit.refit_decoder`).

    Args:
        dictionary: Of any activation function but AbsTopK, a union of such as well.
        batches: Activations to calibrate on.
        by: What the thresholds are to reproduce.
        name: Of the result; the dictionary's own by default.

    Raises:
        DictlabError: Some of its codes are negative, or the calibration is unknown.
    """
    if by not in get_args(Calibration):
        raise DictlabError(f"calibration is {by!r}; expected one of {', '.join(get_args(Calibration))}.")
    own = dictionary.folded()
    kept = emitting(own.activation, own.n_latents).nonzero().squeeze(1).to(own.W_dec.device)
    scales, shifts, thresholds, calibrated = as_jumprelu(own)
    if calibrated.any():
        thresholds = torch.where(calibrated, _calibrated(own, calibrated.nonzero().squeeze(1), batches, by), thresholds)
    return replace(
        own,
        W_enc=(own.W_enc * scales)[:, kept],
        b_enc=(own.b_enc * scales + shifts)[kept],
        W_dec=own.W_dec[kept],
        activation=JumpReLU(thresholds[kept]),
        firing_rate=None,
        name=dictionary.name if name is None else name,
    )


@torch.no_grad()
def agreement(one: Dictionary, other: Dictionary, batches: Sequence[Float[Tensor, "*tokens d_in"]]) -> Agreement:
    """Where two dictionaries fire, latent by latent.

    Args:
        one: A dictionary; of one with rivals, those that can be active count.
        other: As many latents that can be active, in the same order.
        batches: Activations.

    Raises:
        DictlabError: They have different numbers of latents.
    """
    n = one.n_emitting
    if other.n_emitting != n:
        raise DictlabError(f"{one.name} has {n} latents that can be active, {other.name} {other.n_emitting}.")
    both = either = first = second = tokens = 0
    fired = [torch.zeros(n, dtype=torch.bool) for _ in range(2)]
    for batch in batches:
        x = batch.reshape(-1, one.d_in)
        a, b = (_entries(d, d.encode(x)) for d in (one, other))
        for seen, entries in zip(fired, (a, b), strict=True):
            seen[entries % n] = True
        times = torch.cat([a, b]).unique(return_counts=True)[1]
        both, either = both + int((times == 2).sum()), either + len(times)
        first, second, tokens = first + len(a), second + len(b), tokens + len(x)
    return Agreement(
        decisions=1 - (either - both) / max(1, tokens * n),
        firings=both / either if either else 1.0,
        lost=1 - both / first if first else 0.0,
        new=1 - both / second if second else 0.0,
        silent=int((fired[0] & ~fired[1]).sum()),
    )


def _entries(dictionary: Dictionary, codes: Codes) -> Tensor:
    """Where codes are not zero, as token times latents plus latent, counting latents that can be active."""
    emits = emitting(dictionary.activation, dictionary.n_latents).to(codes.indices.device)
    place = emits.long().cumsum(0) - 1
    on = codes.values != 0
    return (codes.rows[on] * int(emits.sum()) + place[codes.indices[on]]).cpu()


def as_jumprelu(dictionary: Dictionary) -> tuple[Tensor, Tensor, Tensor, Bool[Tensor, " n_latents"]]:
    """Scale, shift and threshold with which z' = scale z + shift is a JumpReLU latent; and which have no threshold.

    Latents that are ranked have none (0 stands in its place).

    Raises:
        DictlabError: Some of its codes are negative.
    """
    found = [
        _as_jump(activation, width, dictionary)
        for width, activation in activation_parts(dictionary.activation, len(dictionary.W_dec))
    ]
    scales, shifts, thresholds, calibrated = (torch.cat(parts) for parts in zip(*found, strict=True))
    return scales, shifts, thresholds, calibrated


def _as_jump(activation: Activation, width: int, dictionary: Dictionary) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    one, nothing = dictionary.b_enc.new_ones(width), dictionary.b_enc.new_zeros(width)
    if isinstance(activation, ReLU):
        return one, nothing, nothing, nothing.bool()
    if isinstance(activation, JumpReLU):
        return one, nothing, activation.threshold.to(one), nothing.bool()
    if isinstance(activation, Gated):
        b_gate, r_mag, b_mag = (t.to(one) for t in (activation.b_gate, activation.r_mag, activation.b_mag))
        return r_mag.exp(), b_mag, b_mag - b_gate * r_mag.exp(), nothing.bool()
    if activation.kind == "abstopk":
        raise DictlabError(
            f"{dictionary.name}: codes of abstopk can be negative, and no threshold gives that. Keep it as a union."
        )
    return one, nothing, nothing, one.bool()


def _calibrated(
    dictionary: Dictionary, latents: Tensor, batches: Sequence[Tensor], by: Calibration
) -> Float[Tensor, " n_latents"]:
    """Thresholds of some latents, blocks of them at a time; those that never fired get one that nothing has passed."""
    x = [batch.reshape(-1, dictionary.d_in) for batch in batches]
    tokens = sum(len(batch) for batch in x)
    codes = [dictionary.encode(batch) for batch in x]
    thresholds = torch.zeros(dictionary.n_latents, dtype=torch.float32, device=dictionary.b_enc.device)
    for some in latents.split(max(1, BLOCK // max(1, tokens))):
        z = torch.cat([dictionary.pre_activations(batch, some) for batch in x])
        fired = torch.cat([_fired(own, some) for own in codes])
        thresholds[some] = _separating(z, fired, by).to(thresholds)
    return thresholds


def _fired(codes: Codes, some: Tensor) -> Bool[Tensor, "tokens some"]:
    """Where some latents fire."""
    place = torch.full((codes.n_latents,), -1, device=some.device)
    place[some] = torch.arange(len(some), device=some.device)
    at = place[codes.indices]
    on = (at >= 0) & (codes.values != 0)
    fired = torch.zeros(codes.n_tokens, len(some), dtype=torch.bool, device=some.device)
    fired[codes.rows[on], at[on]] = True
    return fired


def _separating(
    z: Float[Tensor, "tokens some"], fired: Bool[Tensor, "tokens some"], by: Calibration
) -> Float[Tensor, " some"]:
    """The value of each column that separates where it fired from where it did not, as well as may be."""
    z, order = z.clamp(min=0).sort(dim=0, descending=True)
    fired = fired.gather(0, order)
    if by == "rate":
        above = fired.sum(dim=0)
    else:
        weight = torch.ones_like(z) if by == "decisions" else z.square()
        gain = torch.where(fired, weight, -weight).double().cumsum(dim=0)  # of a threshold just below each
        best = gain.max(dim=0)
        above = torch.where(best.values > 0, best.indices + 1, 0)
    padded = torch.cat([2 * z[:1] + 1, z, torch.zeros_like(z[:1])])
    low, high = padded.gather(0, above[None] + 1)[0], padded.gather(0, above[None])[0]
    return (low + high) / 2
