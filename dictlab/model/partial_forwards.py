"""The model's own forward, left early, begun late, or with an activation replaced.

A forward from the middle is the whole forward with the earlier blocks made to return their input; what it computes
from there on is the model's own code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Int
from torch import Tensor

from dictlab.errors import DictlabError
from dictlab.model.block_parts import ATTENTION, MLP, find
from dictlab.model.hooks import (
    HookPoint,
    hook,
    hook_resid_mid,
    replace_forward,
    return_constant,
    return_input,
    return_zeros,
)
from dictlab.model.module_layout import Layout


class Reached(Exception):
    """The last site of a capture was reached."""


class PartialForwards(Layout):
    """A language model whose forward can be observed at sites and resumed from them. Sites are taken on trust."""

    @contextmanager
    def capturing(self, sites: Sequence[str], captured: dict[str, Tensor], leave: bool = False) -> Iterator[None]:
        """Put the activation at each site into `captured`; optionally raise `Reached` when all are there."""
        points = {site: self.locate(site) for site in sites}  # before there are hooks: it may try the model out
        with ExitStack() as stack:
            for site, point in points.items():

                def keep(x: Tensor, site: str = site) -> None:
                    captured[site] = x
                    if leave and len(captured) == len(set(sites)):
                        raise Reached

                if point.kind == "resid_mid":
                    stack.enter_context(hook_resid_mid(self.blocks[point.block or 0], self.attn_out_of(point), keep))
                else:
                    stack.enter_context(hook(point, keep))
            yield

    @contextmanager
    def resuming(
        self, activation: Tensor, site: str, sites: Sequence[str], residual: Tensor | None, tokens: Tensor | None
    ) -> Iterator[Int[Tensor, "batch context"]]:
        """Let a forward begin at `site`. Gives the token ids to run it with: zeros, where none are given.

        Raises:
            DictlabError: The residual stream is needed and not given, or one of `sites` is not computed.
        """
        (block, point), lengths = self.in_block(site), self.tuple_lengths
        if point.kind == "module" and residual is None:
            start = self.block_input(site)
            raise DictlabError(f"site {site} is not the whole residual stream: give resume the residual at {start}.")
        for other in sites:
            if not self.follows(other, point):
                raise DictlabError(f"site {other} is not computed when the forward is resumed from {site}.")
        activation = activation.contiguous()  # some modules take no other
        first = block + (point.kind == "resid_post")
        entering = residual if point.kind == "module" else activation
        with ExitStack() as stack:
            for skipped in self.blocks[:first]:
                stack.enter_context(replace_forward(skipped, return_input(lengths[skipped])))
            stack.enter_context(hook(self._entry(first), lambda _: entering))
            if point.kind == "resid_mid":
                zeros = return_zeros(lengths[point.module], activation)
                stack.enter_context(replace_forward(point.module, zeros))
            if self._is_constant(point):
                new = activation.clone() if point.changed_in_place else activation
                stack.enter_context(replace_forward(point.module, return_constant(lengths[point.module], new)))
            elif point.kind == "module":
                stack.enter_context(hook(point, lambda _: activation))
            ids = torch.zeros(activation.shape[:2], dtype=torch.long, device=activation.device)
            yield ids if tokens is None else tokens

    def _is_constant(self, point: HookPoint) -> bool:
        """Whether a site is all that matters of what its module returns, so that the module need not be run."""
        if point.kind != "module" or point.side != "out" or not point.whole:
            return False
        length = self.tuple_lengths.get(point.module)
        halves = [find(self.blocks[point.block or 0], names) for names in (ATTENTION, MLP)]
        return length == 0 or (length is not None and any(point.module is half for half in halves))

    def attn_out_of(self, middle: HookPoint) -> HookPoint:
        """Where attention adds to the stream that is read between attention and MLP."""
        return HookPoint(middle.block, "module", middle.module, "out", affine=middle.affine)

    def _entry(self, block: int) -> HookPoint:
        """Where the residual stream enters a block (or, after the last one, leaves the blocks)."""
        return self.locate(f"blocks.{block}.hook_resid_pre" if block < self.n_blocks else self.last_site)
