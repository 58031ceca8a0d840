"""Dictionaries that are there already: an SAE of SAELens, or a dict of weights. The formats' own readers read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.formats import mapping
from dictlab.formats.libraries import saelens
from dictlab.formats.reading.checks import check
from dictlab.formats.reading.source import Source

NAMELESS = " in memory"  # ends the name of what has none


class SaeLensSae(Protocol):
    """What is asked of an SAE of SAELens: its configuration, which knows `to_dict`, and its tensors."""

    cfg: Any

    def state_dict(self) -> Mapping[str, Tensor]:
        """Its tensors by name."""
        ...


@dataclass(frozen=True, eq=False)
class _InMemory(Source):
    """Tensors with a configuration, as if they lay in a folder."""

    configuration: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _beside(self) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        return ({"cfg.json": self.configuration} if self.configuration else {}), {}

    def beside(self, name: str) -> Source | None:
        return None


def from_saelens(sae: SaeLensSae) -> Dictionary:
    """The dictionary that an SAE of SAELens is, as `sae_lens.SAE.load_from_disk` or `from_pretrained` give it.

    Raises:
        DictlabError: It is no such SAE, or means something that a dictionary cannot express.
    """
    to_dict = getattr(getattr(sae, "cfg", None), "to_dict", None)
    if to_dict is None or not callable(getattr(sae, "state_dict", None)):
        raise DictlabError(
            f"a {type(sae).__module__}.{type(sae).__name__} is no dictionary: expected a Dictionary, the name of a "
            "file, an SAE of SAELens, or a dict of tensors with its activation function. Save others to a file."
        )
    tensors = {name: tensor.detach().cpu() for name, tensor in sae.state_dict().items()}
    source = _InMemory(Path(f"SAE{NAMELESS}"), tensors, configuration=dict(to_dict()))
    if not saelens.recognise(source):
        raise DictlabError(f"a {type(sae).__name__} has the tensors {', '.join(tensors)[:200]}; no SAE of SAELens.")
    return _checked(f"SAE{NAMELESS}", lambda: saelens.read(source))


def from_tensors(weights: Mapping[str, Tensor | str]) -> Dictionary:
    """The dictionary of a dict of weights, under the names of `dictlab.formats.mapping`.

    Args:
        weights: `W_enc [d_in, n_latents]`, `b_enc`, `W_dec [n_latents, d_in]`, `b_dec` (or `b_pre` and `b_out`), the
            tensors of the activation function, and, as texts, `activation` ("relu", "topk:32", "jumprelu"),
            `normalisation` ("none"), perhaps `site`, `model` and `convention`. Nothing is guessed. A bias may be
            "zero".

    Raises:
        DictlabError: Something is missing, unknown, or does not fit; the message names it.
    """
    tensors = {name: value.detach().cpu() for name, value in weights.items() if isinstance(value, Tensor)}
    said = {name: name if name in tensors else value for name, value in weights.items()}
    source = _InMemory(Path(f"tensors{NAMELESS}"), tensors)
    return _checked(f"tensors{NAMELESS}", lambda: mapping.read(source, said))  # type: ignore[arg-type]  # checked there


def _checked(label: str, read: Any) -> Dictionary:
    """In float32, its shapes and numbers checked as those of a file are."""
    try:
        dictionary: Dictionary = read()
        check(dictionary)
    except DictlabError as error:
        raise DictlabError(f"{label}: {error}") from None
    return replace(dictionary.to("cpu", torch.float32), name=_name(dictionary, label), path=None)


def _name(dictionary: Dictionary, label: str) -> str:
    """After its site where that is known, for want of a file's name."""
    site = dictionary.metadata.site
    return f"{label} ({site})" if site else label
