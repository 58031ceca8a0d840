"""Is a site what its name says, in this model? Tried on a few tokens before anything is measured there.

    place      one vector a token passes there, once a forward; whether the model overwrites it afterwards
    resuming   the forward resumed from the captured activation has the logits of the whole forward;
               with another activation, those of the whole forward with that activation put in by an ordinary hook;
               and these differ from the first

What attention and the MLP add is checked where it is looked for (`block_parts`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from dictlab.errors import DictlabError
from dictlab.model.hooks import HookPoint, hook, hook_resid_mid
from dictlab.model.partial_forwards import PartialForwards

TOLERANCE = 1e-4  # of the largest logit: a resumed forward does the same arithmetic, in float32 mostly bit for bit
HALF_TOLERANCE = 4  # units in the last place of the largest logit, in half precision


class SiteCheck(NamedTuple):
    """What trying a site showed.

    Attributes:
        refusal: Why a forward cannot be resumed from it; None where it can.
        needs_tokens: The blocks from there on look the tokens up again, so they have to be given.
    """

    refusal: str | None = None
    needs_tokens: bool = False


@torch.no_grad()
def check_places(model: PartialForwards, sites: Sequence[str]) -> list[HookPoint]:
    """The points of some sites, after a forward of a few tokens that passed them.

    Raises:
        DictlabError: A site is not passed, passed more than once, or what passes is not one vector a token.
    """
    tokens = model.probe
    points = [model.locate(site) for site in sites]
    passed: dict[str, list[tuple[Tensor, Tensor]]] = {site: [] for site in sites}
    with ExitStack() as stack:
        for site, point in zip(sites, points, strict=True):
            stack.enter_context(_observing(model, point, passed[site]))
        model.logits(tokens)
    checked = []
    for site, point in zip(sites, points, strict=True):
        seen = passed[site]
        if len(seen) != 1:
            times = f"{len(seen)} times" if seen else "not at all"
            raise DictlabError(f"site {site}: {model.name} passes it {times} in one forward; expected once.")
        tensor, copy = seen[0]
        if not tensor.is_floating_point() or tensor.ndim != 3 or tensor.shape[1] != tokens.shape[1]:
            raise DictlabError(
                f"site {site}: in {model.name} a {tensor.dtype} tensor of shape {list(tensor.shape)} passes there for "
                f"{tokens.shape[1]} tokens; expected one vector a token."
            )
        checked.append(replace(point, changed_in_place=not torch.equal(tensor, copy)))
    return checked


@contextmanager
def _observing(model: PartialForwards, point: HookPoint, passed: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Keep what passes a point, and a copy of it as it was then."""

    def keep(x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise DictlabError(f"{type(point.module).__name__} of {model.name} gives a {type(x).__name__}, no tensor.")
        passed.append((x, x.clone()))

    if point.kind == "resid_mid":
        with hook_resid_mid(model.blocks[point.block or 0], model.attn_out_of(point), keep):
            yield
    else:
        with hook(point, keep):
            yield


@torch.no_grad()
def check_resuming(model: PartialForwards, site: str) -> SiteCheck:
    """Whether a forward resumed from a site is the model's own."""
    tokens, (_, point) = model.probe.to(model.device), model.in_block(site)
    start = model.block_input(site)
    captured: dict[str, Tensor] = {}
    with model.capturing([start, site], captured):
        logits = model.logits(tokens)
    x = captured[site]
    altered = x + 0.1 * x.std() * torch.arange(x[0].numel(), device=x.device).view(x.shape).cos().to(x)

    def resumed(activation: Tensor, ids: Tensor | None) -> Tensor:
        with model.resuming(activation, site, (), captured[start], ids) as given:
            return model.logits(given)

    try:
        expected = _hooked(model, point, x, altered, tokens)
        errors = [_distance(resumed(x, tokens), logits), _distance(resumed(altered, tokens), expected)]
        needs_tokens = not _distance(resumed(altered, None), expected) <= _tolerance(logits)
    except DictlabError:
        raise
    except Exception as error:  # whatever a model raises when its earlier blocks do not run
        return SiteCheck(f"it raises {type(error).__name__}: {str(error)[:120]}")
    if not max(errors) <= _tolerance(logits):
        return SiteCheck(f"its logits differ by {max(errors):.2g} of the largest one")
    if torch.equal(expected, logits):
        return SiteCheck("an activation put in there changes nothing in the logits")
    return SiteCheck(needs_tokens=needs_tokens)


def _hooked(model: PartialForwards, point: HookPoint, x: Tensor, altered: Tensor, tokens: Tensor) -> Tensor:
    """Logits of a whole forward in which an ordinary hook puts in another activation."""
    if point.kind == "resid_mid":  # what is added to attention's output is added to the stream after it
        with hook(model.attn_out_of(point), lambda value: value + (altered - x)):
            return model.logits(tokens)
    with hook(point, lambda _: altered):
        return model.logits(tokens)


def _distance(logits: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest logit."""
    return float((logits.float() - expected.float()).abs().max() / expected.float().abs().max().clamp_min(1e-30))


def _tolerance(logits: Tensor) -> float:
    return max(TOLERANCE, HALF_TOLERANCE * torch.finfo(logits.dtype).eps if logits.dtype.itemsize < 4 else 0.0)
