"""Reading and writing the tensors that pass through a module, without touching the module's code.

Each change is a context manager: the module is as it was found afterwards, whatever happens inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Affine:
    """A site that is a module's tensor less a shift, divided by a gain: value = (tensor - shift) / gain.

    Attributes:
        gain: A number (a factor that a block applies to what attention adds), or one number a coordinate (a norm's).
        shift: Likewise; a norm's bias.
    """

    gain: Float[Tensor, "*d"]
    shift: Float[Tensor, "*d"]


@dataclass(frozen=True)
class HookPoint:
    """Where in a model a site is: the input or the output of one module, or a part or multiple of it.

    Attributes:
        block: Index of the block that it lies in; None outside the blocks.
        kind: "resid_pre", "resid_mid", "resid_post", or "module".
        module: The module at whose input or output it is read.
        side: "in" or "out".
        columns: The coordinates of the module's tensor that are read (one head's, say); None for all.
        affine: What the tensor is less and divided by; None where it is read as it is.
        changed_in_place: The model overwrites this tensor after it has passed the point, so it has to be copied.
    """

    block: int | None
    kind: str
    module: nn.Module
    side: str
    columns: tuple[int, ...] | None = None
    affine: Affine | None = None
    changed_in_place: bool = field(default=False, compare=False)

    @property
    def whole(self) -> bool:
        """Whether the site is the module's tensor, whole and as it is."""
        return self.columns is None and self.affine is None

    def read(self, tensor: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens d_in"]:
        """The site's value in the module's tensor."""
        value = tensor if self.columns is None else tensor[..., self._index]
        if self.affine is not None:
            value = (value - self.affine.shift.to(value)) / self.affine.gain.to(value)
        return value.clone() if self.changed_in_place else value

    def write(self, tensor: Float[Tensor, "*tokens d"], value: Float[Tensor, "*tokens d_in"]) -> Tensor:
        """The module's tensor with another value at the site. With the value read from it, the tensor bit for bit."""
        if self.whole:
            return value.clone() if self.changed_in_place else value
        difference = value - self.read(tensor)
        if self.affine is not None:
            difference = difference * self.affine.gain.to(difference)
        if self.columns is None:
            return tensor + difference
        new = tensor.clone()
        new[..., self._index] += difference
        return new

    @property
    def _index(self) -> slice | list[int]:
        """The columns as torch takes them: as a slice where they are next to each other, which copies nothing."""
        columns = self.columns or ()
        together = columns == tuple(range(columns[0], columns[-1] + 1))
        return slice(columns[0], columns[-1] + 1) if together else list(columns)


@contextmanager
def hook(point: HookPoint, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call `function` with the value at a point in every forward; what it returns, if not None, replaces the value.

    Of a module that takes or returns several values, the tensor is the first.
    """

    def replaced(tensor: Tensor) -> Tensor | None:
        new = function(point.read(tensor) if isinstance(tensor, Tensor) else tensor)
        return None if new is None else point.write(tensor, new)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            new = replaced(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        new = replaced(kwargs["hidden_states"])
        return None if new is None else (args, kwargs | {"hidden_states": new})

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        new = replaced(output[0] if isinstance(output, tuple) else output)
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
def hook_resid_mid(block: nn.Module, attn_out: HookPoint, function: Callable[[Tensor], Any]) -> Iterator[None]:
    """Call `function` with the residual stream after attention: what entered the block plus what attention adds."""
    entered: list[Tensor] = []
    with (
        hook(HookPoint(None, "resid_pre", block, "in"), lambda x: entered.append(x)),
        hook(attn_out, lambda x: function(x + entered.pop())),
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
