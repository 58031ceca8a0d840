"""Not there yet."""

from __future__ import annotations

from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.formats.source import Source


def recognise(source: Source) -> bool:
    """Nothing is."""
    return False


def read(source: Source) -> Dictionary:
    """Nothing is."""
    raise DictlabError("not there yet.")
