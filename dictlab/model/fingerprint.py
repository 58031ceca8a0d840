"""Are these the weights that a dictionary was trained on? SHA-256 over a sample of each parameter.

The fingerprint is that of the weights as they are kept in their file: a model opened in a lower precision has the
fingerprint of the same model opened in float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

SAMPLED = 1024  # values of each parameter
HALVES = (torch.float16, torch.bfloat16)


def fingerprint_of(weights: Iterable[tuple[str, Tensor]]) -> str:
    """16 hexadecimal digits, equal for equal names, shapes and (up to 1,024) float32 values of each parameter."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights):
        flat = weight.detach().flatten()
        values = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].float().cpu()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]


def in_half_precision(model: Any) -> bool:
    """Whether some weight of a model is in half precision, so that its file may hold it more precisely."""
    return any(p.dtype in HALVES for p in model.parameters())


def fingerprint_of_files(model: Any, files: Mapping[str, Path]) -> str | None:
    """The fingerprint of the weights of a model as `.safetensors` files hold them; None where one is not in them.

    Args:
        model: The model, for names, shapes, and weights that are one and the same.
        files: For each name in the files, the file.
    """
    base = getattr(model, "base_model_prefix", "")
    state: dict[str, Tensor] = model.state_dict()
    shared: dict[int, list[str]] = {}
    for name, weight in state.items():
        shared.setdefault(weight.data_ptr(), []).append(name)
    weights = []
    for name, weight in state.items():
        aliases = [name, *shared[weight.data_ptr()]]
        stored = (alias for n in aliases for alias in (n, n.removeprefix(f"{base}.")) if alias in files)
        key = next(stored, None)
        if key is None:
            return None
        with safe_open(files[key], framework="pt") as file:
            kept: Tensor = file.get_tensor(key)
        if kept.shape != weight.shape:
            return None
        weights.append((name, kept))
    return fingerprint_of(weights)


def safetensors_files(find: Callable[[str], Path | None]) -> dict[str, Path]:
    """For each tensor of a checkpoint in `.safetensors`, its file; empty where it has none.

    Args:
        find: Gives the path of a file of the checkpoint, or None.
    """
    index = find("model.safetensors.index.json")
    if index is not None:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        paths = {file: find(file) for file in set(named.values())}
        return {name: path for name, file in named.items() if (path := paths[file]) is not None}
    single = find("model.safetensors")
    if single is None:
        return {}
    with safe_open(single, framework="pt") as file:
        return dict.fromkeys(file.keys(), single)
