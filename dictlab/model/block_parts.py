"""What do attention and the MLP of a block add to the residual stream? The block is asked, on a few tokens.

    resid_pre + attn_out + mlp_out = resid_post

Which tensor that is differs between architectures: what the module returns (GPT-2, Llama), what a norm behind it
returns (Gemma 2, OLMo 2), that times a factor (Granite), or what an inner projection returns where the module adds the
residual stream itself (BLOOM). Of the tensors that the block computes, those two are taken for which the equation holds
to rounding; where there are none (MiniMax, Doge), the sites are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dictlab.errors import DictlabError
from dictlab.model.hooks import Affine, HookPoint
from dictlab.site_names import MLP_PROJECTION

ATTENTION = ("attn", "attention", "self_attn", "self_attention", "norm_attn_norm")
MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
ROUNDING = 32  # units in the last place of the largest terms: what the sum may be off by
WHOLE = 1e-4  # a factor this close to 1 is 1: float32 tells factors apart to about 1e-6


class Call(NamedTuple):
    """One call of a module inside a block: the first tensor that it was given, and the first that it returned."""

    module: nn.Module
    given: Tensor | None
    returned: Tensor | None


class BlockTrace(NamedTuple):
    """What a block computed for a few tokens, in float32 or better.

    Attributes:
        entering: The residual stream entering it.
        leaving: The residual stream leaving it.
        calls: Of the modules inside, in the order in which they were done.
    """

    entering: Float[Tensor, "batch context d_model"]
    leaving: Float[Tensor, "batch context d_model"]
    calls: list[Call]

    def call_of(self, module: nn.Module) -> Call | None:
        """The last call of a module, if it was called."""
        return next((call for call in reversed(self.calls) if call.module is module), None)


class Halves(NamedTuple):
    """Where a block computes what attention adds to the residual stream, and what the MLP adds."""

    attn_out: HookPoint
    mlp_out: HookPoint


def trace(block: nn.Module, run: Callable[[], object]) -> BlockTrace:
    """What a block computes in a forward. In half precision it is computed again by a float32 copy of the block.

    Args:
        block: The block.
        run: Runs the model, at least as far as this block's end.
    """
    given: list[tuple[Any, Any]] = []
    keep = block.register_forward_pre_hook(lambda _, *inputs: given.append(inputs), with_kwargs=True)
    try:
        with torch.no_grad(), _recorded(block) as calls:
            run()
    finally:
        keep.remove()
    if not calls:
        raise DictlabError(f"{type(block).__name__}: it is not run in the model's forward.")
    if calls[-1].returned is not None and calls[-1].returned.dtype in (torch.float16, torch.bfloat16):
        precise = deepcopy(block).float()
        args, kwargs = tree_map(lambda x: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x, given[0])
        with torch.no_grad(), _recorded(precise) as calls:
            precise(*args, **kwargs)
        original = dict(zip(precise.modules(), block.modules(), strict=True))
        calls = [call._replace(module=original[call.module]) for call in calls]
    *inner, whole = calls
    if whole.given is None or whole.returned is None or whole.given.ndim != 3:
        raise DictlabError(f"{type(block).__name__}: what enters and leaves it is not one vector a token.")
    return BlockTrace(whole.given, whole.returned, inner)


@contextmanager
def _recorded(block: nn.Module) -> Iterator[list[Call]]:
    """Record the calls of a block and its modules, with copies of the tensors: some are changed in place later."""
    calls: list[Call] = []
    starts: dict[nn.Module, list[Tensor | None]] = {module: [] for module in block.modules()}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        starts[module].append(_first(args[0] if args else kwargs.get("hidden_states")))

    def after(module: nn.Module, _: Any, output: Any) -> None:
        calls.append(Call(module, starts[module].pop(), _first(output)))

    handles = [m.register_forward_pre_hook(before, with_kwargs=True) for m in block.modules()]
    handles += [m.register_forward_hook(after) for m in block.modules()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _first(output: Any) -> Tensor | None:
    tensor = output[0] if isinstance(output, tuple) and output else output
    return tensor.clone() if isinstance(tensor, Tensor) else None


def halves(index: int, block: nn.Module, traced: BlockTrace) -> Halves | None:
    """The pair of tensors, each perhaps times a factor, that make up what a block adds; None where there is none.

    Outputs of attention and the MLP themselves are tried first, then of modules that run after them, then of their
    own parts.

    Raises:
        DictlabError: The block has no attention, or no MLP.
    """
    attention, mlp = attention_of(block), mlp_of(block)
    added = (traced.leaving.double() - traced.entering.double()).flatten().cpu()
    bound = ROUNDING * torch.finfo(traced.leaving.dtype).eps * float(traced.entering.norm() + traced.leaving.norm())
    for first in _candidates(attention, mlp, traced):
        for second in _candidates(mlp, attention, traced):
            if first.module is second.module:
                continue
            terms = torch.stack([_output(call).flatten() for call in (first, second)], dim=1).double().cpu()
            factors = torch.linalg.lstsq(terms, added[:, None]).solution[:, 0]
            factors = torch.where(((factors - 1).abs() < WHOLE) | (terms == 0).all(dim=0), 1.0, factors)
            if bool((factors != 0).all()) and float((terms @ factors - added).norm()) <= bound:
                return Halves(*(_scaled(index, call, f) for call, f in zip((first, second), factors, strict=True)))
    return None


def _output(call: Call) -> Tensor:
    assert call.returned is not None
    return call.returned


def _candidates(half: nn.Module, other: nn.Module, traced: BlockTrace) -> list[Call]:
    """Calls whose output may be what one half of a block adds, the likeliest first."""
    shape = traced.leaving.shape
    fitting = [call for call in traced.calls if call.returned is not None and call.returned.shape == shape]
    done = next((i for i, call in enumerate(fitting) if call.module is half), len(fitting))
    inside, outside = set(half.modules()), set(other.modules())
    own = [call for call in fitting if call.module is half]
    later = [call for call in fitting[done + 1 :] if call.module not in inside | outside]
    parts = [call for call in reversed(fitting) if call.module in inside and call.module is not half]
    return own + later + parts


def _scaled(index: int, call: Call, factor: Tensor) -> HookPoint:
    """The output of a module times a factor."""
    plain = HookPoint(index, "module", call.module, "out")
    if float(factor) == 1:
        return plain
    return HookPoint(index, "module", call.module, "out", affine=Affine(1 / factor, torch.zeros(())))


def normalised(index: int, norm: nn.Module, d_model: int, reference: Tensor) -> HookPoint:
    """The output of a norm without its gain and bias, whatever the architecture keeps those as: the norm is asked.

    A norm of 0 is its bias. A vector of +a and -a has mean 0 and root mean square a, so its norm without gain is its
    signs; a is large, so that the epsilon under the root does not count.

    Args:
        index: The block's index.
        norm: A layer norm or a root mean square norm.
        d_model: Its width.
        reference: A tensor of the device and precision that it takes.

    Raises:
        DictlabError: The width is odd, or the gain is 0 at some coordinate.
    """
    if d_model % 2:
        raise DictlabError(f"{type(norm).__name__}: the gain of a norm of odd width {d_model} is not determined here.")
    signs = (1.0 - 2.0 * (torch.arange(d_model, device=reference.device) % 2)).to(reference.dtype)
    with torch.no_grad():
        bias = norm(torch.zeros_like(signs)[None])[0].float()
        gain = (norm(1e3 * signs[None])[0].float() - bias) * signs.float()
    if bool((gain.abs() < 1e-6).any()):
        raise DictlabError(f"{type(norm).__name__}: its gain is 0 at some coordinate, so its input cannot be told.")
    return HookPoint(index, "module", norm, "out", affine=Affine(gain, bias))


def attention_of(block: nn.Module) -> nn.Module:
    """The attention of a block.

    Raises:
        DictlabError: It has none.
    """
    return child(block, ATTENTION)


def mlp_of(block: nn.Module) -> nn.Module:
    """The MLP of a block; where its linear maps lie in the block itself (OPT), the last of them.

    Raises:
        DictlabError: It has none.
    """
    return find(block, MLP) or child(block, (*MLP, *MLP_PROJECTION))


def child(block: nn.Module, names: Sequence[str]) -> nn.Module:
    """The part of a block that goes by one of these names.

    Raises:
        DictlabError: It has none.
    """
    part = find(block, names)
    if part is None:
        raise DictlabError(f"{type(block).__name__} has no module called {' or '.join(names)}; give the module's path.")
    return part


def find(block: nn.Module, names: Sequence[str]) -> nn.Module | None:
    """The part of a block that goes by one of these names, or None."""
    return next((m for name in names if isinstance(m := getattr(block, name, None), nn.Module)), None)


def tuple_length(output: Any) -> int | None:
    """The length of the tuple that a module returned, 0 of a bare tensor, None of anything else."""
    if isinstance(output, tuple):
        return len(output)
    return 0 if isinstance(output, Tensor) else None
