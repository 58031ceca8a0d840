"""A sparse dictionary: its weights, activation function and input normalisation, and the codes that it gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dictlab.dictionary.metadata import Metadata

if TYPE_CHECKING:
    from dictlab.dictionary.dictionary import Dictionary

__all__ = ["Dictionary", "Metadata"]


def __getattr__(name: str) -> Any:
    """`Dictionary`, imported with torch when it is first asked for: what a file says of itself needs neither."""
    if name != "Dictionary":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dictlab.dictionary.dictionary import Dictionary

    globals()[name] = Dictionary
    return Dictionary
