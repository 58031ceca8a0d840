"""Reading and writing the tensors that pass through a module, without touching the module's code.

Each change is a context manager: the module is as it was found afterwards, whatever happens inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Place:
    """A site, found in a model.

    Attributes:
        block: The block it lies in; None outside the blocks.
        kind: "resid_pre", "resid_mid", "resid_post", or "module".
        module: The module at whose input or output it is read.
        side: "in" or "out".
    """

    block: int | None
    kind: str
    module: nn.Module
    side: str


@contextmanager
def visiting(place: Place, visit: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Show the tensor at a place to `visit`, and put what it returns in its stead."""

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            new = visit(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        new = visit(kwargs["hidden_states"])
        return None if new is None else (args, kwargs | {"hidden_states": new})

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        new = visit(output[0] if isinstance(output, tuple) else output)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    if place.side == "in":
        handle = place.module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = place.module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def visiting_sum(block: nn.Module, attention: nn.Module, visit: Callable[[Tensor], Any]) -> Iterator[None]:
    """Show the residual stream after attention: what entered the block plus what attention adds."""
    entered: list[Tensor] = []
    with (
        visiting(Place(None, "resid_pre", block, "in"), lambda x: entered.append(x)),
        visiting(Place(None, "module", attention, "out"), lambda x: visit(x + entered.pop())),
    ):
        yield


@contextmanager
def standing_in(module: nn.Module, instead: Callable[..., Any]) -> Iterator[None]:
    """Let another function stand in for a module's forward."""
    own = vars(module).get("forward")  # some libraries shadow the class's method themselves
    module.forward = instead
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def passing_on(length: int) -> Callable[..., Any]:
    """A forward that returns its input, in a tuple of that length (0: bare)."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        return (x, *[None] * (length - 1)) if length else x

    return forward


def giving(length: int, x: Tensor) -> Callable[..., Any]:
    """A forward that returns `x` whatever it is given, in a tuple of that length (0: bare)."""
    return lambda *_, **__: (x, *[None] * (length - 1)) if length else x


def adding_nothing(length: int, like: Tensor) -> Callable[..., Any]:
    """A forward that returns zeros, in a tuple of that length (0: bare)."""
    return giving(length, torch.zeros_like(like))
