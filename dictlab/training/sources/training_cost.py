"""What a training run on a model is going to cost, from two forwards of a context and one product of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from dictlab.data.activations import forward_size
from dictlab.data.shuffle_buffer import BUFFER_TOKENS
from dictlab.model.language_model import LanguageModel
from dictlab.numerics.flops import state_bytes, training_flops
from dictlab.runtime.cost_estimate import CostEstimate, seconds_of
from dictlab.training.config import TrainConfig
from dictlab.training.member import Member

WINDOWS = 3  # times the shuffle buffer that a stream holds at most
RUNTIME_BYTES = 5e8  # the interpreter, torch, a forward, the text
PRODUCT = 1 << 24  # pre-activations of the product that is timed, at most
ACTIVE_SHARE = 1 / 8  # of the latents, in the course of training, where no k says how many


class ForwardProbe(NamedTuple):
    """What a forward of one context showed.

    Attributes:
        to_sites: Seconds a token, up to the last site that is trained on.
        whole: Seconds a token, up to the last block.
        widths: Of the activations at each site.
        itemsize: Bytes of a number of these.
    """

    to_sites: float
    whole: float
    widths: dict[str, int]
    itemsize: int


def probe(model: LanguageModel, sites: Sequence[str], context: int) -> ForwardProbe:
    """Time forwards of one context of arbitrary tokens."""
    tokens = (torch.arange(context) % model.vocabulary)[None]
    captured = model.capture(tokens, sites)
    widths = {site: x.shape[-1] for site, x in captured.items()}
    itemsize = next(iter(captured.values())).element_size()
    to_sites = seconds_of(lambda: model.capture(tokens, sites)) / context
    whole = seconds_of(lambda: model.capture(tokens, model.last_site)) / context
    return ForwardProbe(to_sites, max(whole, to_sites), widths, itemsize)


def training_cost(
    config: TrainConfig,
    members: Sequence[Member],
    model: LanguageModel,
    *,
    context: int,
    sample: int,
    evaluated: int,
    passes: int,
    behind: dict[str, int],
) -> CostEstimate:
    """Estimate a run.

    Args:
        config: Its settings.
        members: Its dictionaries.
        model: The model.
        context: Tokens a context.
        sample: Tokens of the sample that it starts from.
        evaluated: Held-out tokens that it is measured on.
        passes: How often each of these goes through the model; two times whole, else from a site on.
        behind: Parameters of the model that spliced objectives go through, by site; 0 where there are none.
    """
    probed = probe(model, config.sites, context)
    streamed = sample + config.tokens
    resumed = max(0.0, probed.whole - probed.to_sites)
    forwarding = streamed * probed.to_sites + evaluated * (2 * probed.whole + (passes - 2) * resumed)
    operations, state, widest = 0.0, 0, max(members, key=lambda member: member.width)
    for member in members:
        d_in = probed.widths[member.site]
        k = member.variant.record().get("k")
        active = k if isinstance(k, int) else member.width * ACTIVE_SHARE
        operations += training_flops(
            member.width, d_in, config.tokens, active, batch=config.batch, parameters_behind=behind[member.site]
        )
        state += state_bytes(member.width, d_in, ema=config.ema is not None)
    buffer = WINDOWS * min(BUFFER_TOKENS, config.tokens) * sum(probed.widths.values()) * probed.itemsize
    weights = sum(p.numel() * p.element_size() for p in model.model.parameters())
    size = forward_size(model.device, context) * context
    return CostEstimate(
        "train",
        streamed + evaluated * passes,
        -(-streamed // size) + -(-evaluated // size) * passes,
        forwarding + operations / _operations_per_second(widest.width, probed.widths[widest.site], config),
        (weights + buffer + state + RUNTIME_BYTES) / 1e9,
        f"{config.steps:,} steps",
    )


def _operations_per_second(width: int, d_in: int, config: TrainConfig) -> float:
    """Of the product of a batch with an encoder, or of as many of its rows as take little memory."""
    rows = max(1, min(config.batch, PRODUCT // width))
    x = torch.ones(rows, d_in, device=config.device)
    encoder = torch.ones(d_in, width, device=config.device)
    return 2 * rows * d_in * width / max(1e-6, seconds_of(lambda: float((x @ encoder)[0, 0])))
