"""A state dict within what a training loop saved around it: unwrapped, so that formats see tensors by their own names.

    {"state_dict": {...}, "cfg": {...}}         the inner tensors, and the configuration as if it lay beside the file
    module.encoder.weight                       what parallel training puts before every name, taken away

What else stands around (an optimiser's state, a step) leaves the function as it is; a name that is not known to be
harmless stays among the file's entries, where readers refuse it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from dictlab.formats.reading.source import Source

INNER = ("state_dict", "model_state_dict", "sae_state_dict", "autoencoder_state_dict", "sae")
CONFIGURATIONS = ("cfg", "config", "hparams", "hyper_parameters")
HARMLESS = (
    *("optimizer", "optimizer_state_dict", "optimizer_states", "scheduler", "scheduler_state_dict", "lr_schedulers"),
    *("step", "global_step", "epoch", "loss", "n_tokens", "callbacks", "loops", "pytorch-lightning_version"),
)
PREFIXES = ("module.", "_forward_module.")


def unwrapped(source: Source) -> Source:
    """The same file with its state dict on the outside, if it has one state dict inside and no tensors beside it."""
    inside = [name for name in INNER if _holds_tensors(source.entries.get(name))]
    if len(inside) == 1 and not source.tensors:
        source = _without_wrapper(source, inside[0])
    for prefix in PREFIXES:
        if source.tensors and all(name.startswith(prefix) for name in source.tensors):
            named = {name.removeprefix(prefix): tensor for name, tensor in source.tensors.items()}
            source = replace(source, tensors=named)
    return source


def _without_wrapper(source: Source, inside: str) -> Source:
    inner: Mapping[str, Any] = source.entries[inside]
    around = {name: value for name, value in source.entries.items() if name not in (inside, *HARMLESS)}
    configs = {
        f"{name} in {source.path.name}": around.pop(name)
        for name in CONFIGURATIONS
        if isinstance(around.get(name), dict)
    }
    tensors = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in inner.items() if name not in tensors}
    return replace(source, tensors=tensors, entries={**around, **others}, inner_configs=configs)


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(inner, Tensor) for inner in value.values())
