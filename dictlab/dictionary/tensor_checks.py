"""Do the tensors of a dictionary fit each other, and are they numbers?

Shapes and precisions are known from a file's header, so they are checked before anything is read. Whether every number
is finite takes reading them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from dictlab.errors import DictlabError

TensorLike: TypeAlias = Tensor | NDArray[Any] | float  # the last for a bias of 0

PRECISIONS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_pre", "b_out")
BLOCK = 1 << 24  # numbers looked at together


def tensor_of(given: TensorLike, name: str) -> Tensor:
    """A tensor or array as a tensor of floating-point numbers, without its gradient.

    Raises:
        DictlabError: It is neither, or holds other numbers.
    """
    if not isinstance(given, Tensor | numpy.ndarray):
        raise DictlabError(f"{name} is a {type(given).__name__}; expected a tensor or a NumPy array.")
    if isinstance(given, numpy.ndarray) and given.dtype.kind != "f":
        raise DictlabError(f"{name} holds {given.dtype}; expected floating-point numbers.")
    tensor = torch.as_tensor(given).detach()
    if tensor.dtype not in PRECISIONS:
        raise DictlabError(f"{name} holds {_named(tensor.dtype)}; expected floating-point numbers.")
    return tensor


def bias(given: TensorLike | None, name: str, length: int, like: Tensor) -> Tensor:
    """A bias; zeros where 0 is said.

    Raises:
        DictlabError: It was not given, or is no vector of this length.
    """
    if given is None:
        instead = ", or b_dec where one bias is both" if name in ("b_pre", "b_out") else ""
        raise DictlabError(f"{name} is missing; give a vector of {length} numbers, or 0 where there is none{instead}.")
    if isinstance(given, int | float) and given == 0:
        return like.new_zeros(length)
    tensor = tensor_of(given, name)
    if list(tensor.shape) != [length]:
        raise DictlabError(f"{name} has shape {list(tensor.shape)}; expected [{length}].")
    return tensor


def check_shapes(
    tensors: Mapping[str, Tensor], *, complete: bool = True, transcodes: bool = False, may_be_empty: bool = False
) -> None:
    """Refuse tensors, under the names of dictlab's own file, that do not fit together.

    Args:
        tensors: By name.
        complete: All weights must be there; otherwise W_dec alone.
        transcodes: They are those of a transcoder, which may read another width than it writes.
        may_be_empty: There may be no latents: none of a pool is a subset of it as well. No file holds such a thing.

    Raises:
        DictlabError: One is missing, or its shape does not follow from W_dec's, or it holds no numbers of a kind that
            dictionaries are kept in.
    """
    missing = [name for name in (WEIGHTS if complete else ("W_dec",)) if name not in tensors]
    if missing:
        raise DictlabError(f"the tensor {missing[0]!r} is missing; found {', '.join(sorted(tensors))[:200]}.")
    shape = tensors["W_dec"].shape
    if len(shape) != 2 or shape[1] == 0 or (shape[0] == 0 and not may_be_empty):
        raise DictlabError(f"W_dec has shape {list(tensors['W_dec'].shape)}; expected [n_latents, d_in].")
    n_latents, d_out = tensors["W_dec"].shape
    d_in = d_out
    if transcodes and (W_enc := tensors.get("W_enc")) is not None:
        if W_enc.ndim != 2 or 0 in W_enc.shape:
            raise DictlabError(f"W_enc has shape {list(W_enc.shape)}; expected [d_in, n_latents].")
        d_in = W_enc.shape[0]
    expected = {
        "W_enc": [d_in, n_latents],
        "b_enc": [n_latents],
        "W_dec": [n_latents, d_out],
        "b_pre": [d_in],
        "b_out": [d_out],
        "W_skip": [d_in, d_out],
        "firing_rate": [n_latents],
    }
    for name, tensor in tensors.items():
        if name in expected and list(tensor.shape) != expected[name]:
            turned = "; transposed it would fit" if list(tensor.shape) == expected[name][::-1] else ""
            raise DictlabError(
                f"{name} has shape {list(tensor.shape)}; expected {expected[name]} beside W_dec {[n_latents, d_out]}"
                f"{turned}."
            )
        precisions = (torch.bool,) if name.endswith("emits") else PRECISIONS
        if (name in expected or "." in name) and tensor.dtype not in precisions:
            raise DictlabError(f"{name} holds {_named(tensor.dtype)}; expected {' or '.join(map(_named, precisions))}.")


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse values that are no finite float32.

    Raises:
        DictlabError: The first tensor at fault is named.
    """
    for name, tensor in tensors.items():
        bad = sum(int((~torch.isfinite(block.float())).sum()) for block in _blocks(tensor))
        if bad:
            raise DictlabError(f"{name} holds {bad} values that are NaN or infinite.")


def _blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    if tensor.ndim == 0:
        return (tensor,)
    return tensor.split(max(1, BLOCK // max(1, tensor[0].numel()))) if len(tensor) else ()


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
