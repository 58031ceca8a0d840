"""A plain state dict, by saying which tensor is what."""

from __future__ import annotations

from collections.abc import Mapping

from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.formats.source import Source


def read(source: Source, map: Mapping[str, str]) -> Dictionary:
    """The dictionary that a mapping describes."""
    raise DictlabError("mappings are not known yet.")
