"""Do the tensors of a dictionary fit each other, and are they numbers?

Shapes and precisions are known from a file's header, so they are checked before anything is read. Whether every number
is finite takes reading them all.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError

PRECISIONS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_pre", "b_out")
BLOCK = 1 << 24  # numbers looked at together


def check_shapes(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors, under the names of dictlab's own file, that do not fit together.

    Raises:
        DictlabError: One is missing, or its shape does not follow from W_dec's, or it holds no numbers of a kind that
            dictionaries are kept in.
    """
    missing = [name for name in WEIGHTS if name not in tensors]
    if missing:
        raise DictlabError(f"the tensor {missing[0]!r} is missing; found {', '.join(sorted(tensors))[:200]}.")
    if tensors["W_dec"].ndim != 2 or 0 in tensors["W_dec"].shape:
        raise DictlabError(f"W_dec has shape {list(tensors['W_dec'].shape)}; expected [n_latents, d_in].")
    n_latents, d_in = tensors["W_dec"].shape
    expected = {
        "W_enc": [d_in, n_latents],
        "b_enc": [n_latents],
        "W_dec": [n_latents, d_in],
        "b_pre": [d_in],
        "b_out": [d_in],
        "firing_rate": [n_latents],
    }
    for name, tensor in tensors.items():
        if name in expected and list(tensor.shape) != expected[name]:
            raise DictlabError(
                f"{name} has shape {list(tensor.shape)}; expected {expected[name]} beside W_dec {[n_latents, d_in]}."
            )
        precisions = (torch.bool,) if name.endswith("emits") else PRECISIONS
        if (name in expected or "." in name) and tensor.dtype not in precisions:
            raise DictlabError(f"{name} holds {_named(tensor.dtype)}; expected {' or '.join(map(_named, precisions))}.")


def check(dictionary: Dictionary) -> None:
    """Refuse a dictionary whose parts do not fit together, or that holds values that are no finite float32.

    Raises:
        DictlabError: The first tensor at fault is named.
    """
    tensors = {**dict(dictionary._weights()), **_named_tensors(dictionary)}
    check_shapes(tensors)
    for name, tensor in tensors.items():
        bad = sum(int((~torch.isfinite(block.float())).sum()) for block in _blocks(tensor))
        if bad:
            raise DictlabError(f"{name} holds {bad} values that are NaN or infinite.")


def _named_tensors(dictionary: Dictionary) -> dict[str, Tensor]:
    own = {f"activation.{name}": tensor for name, tensor in dictionary.activation.tensors().items()}
    return own if dictionary.firing_rate is None else {**own, "firing_rate": dictionary.firing_rate}


def _blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    if tensor.ndim == 0:
        return (tensor,)
    return tensor.split(max(1, BLOCK // max(1, tensor[0].numel()))) if len(tensor) else ()


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
