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
class HookPoint:
    """Where in a model a site is: the input or the output of one module.

    Attributes:
        block: Index of the block that it lies in; None outside the blocks.
        kind: "resid_pre", "resid_mid", "resid_post", or "module".
        module: The module at whose input or output it is read.
        side: "in" or "out".
    """

    block: int | None
    kind: str
    module: nn.Module
    side: str


@contextmanager
def hook(point: HookPoint, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call `function` with the tensor at a point in every forward; what it returns, if not None, replaces the tensor.

    Of a module that takes or returns several values, the tensor is the first.
    """

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            new = function(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        new = function(kwargs["hidden_states"])
        return None if new is None else (args, kwargs | {"hidden_states": new})

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        new = function(output[0] if isinstance(output, tuple) else output)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    if point.side == "in":
        handle = point.module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = point.module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def hook_resid_mid(block: nn.Module, attention: nn.Module, function: Callable[[Tensor], Any]) -> Iterator[None]:
    """Call `function` with the residual stream after attention: what entered the block plus attention's output."""
    entered: list[Tensor] = []
    with (
        hook(HookPoint(None, "resid_pre", block, "in"), lambda x: entered.append(x)),
        hook(HookPoint(None, "module", attention, "out"), lambda x: function(x + entered.pop())),
    ):
        yield


@contextmanager
def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Run another function in place of a module's forward."""
    shadowed = vars(module).get("forward")  # some libraries set it on the instance themselves
    module.forward = forward
    try:
        yield
    finally:
        if shadowed is None:
            del module.forward
        else:
            module.forward = shadowed


def return_input(length: int) -> Callable[..., Any]:
    """A forward that returns its first input, in a tuple of that length (0: bare)."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        return (x, *[None] * (length - 1)) if length else x

    return forward


def return_constant(length: int, x: Tensor) -> Callable[..., Any]:
    """A forward that returns `x` whatever it is given, in a tuple of that length (0: bare)."""
    return lambda *_, **__: (x, *[None] * (length - 1)) if length else x


def return_zeros(length: int, like: Tensor) -> Callable[..., Any]:
    """A forward that returns zeros in the shape of `like`, in a tuple of that length (0: bare)."""
    return return_constant(length, torch.zeros_like(like))
