"""Which tokens was a dictionary trained on? It is measured on the same, unless another selection is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.token_selection import RECORD, TokenSelection


def recorded_selection(dictionaries: Sequence[Dictionary]) -> TokenSelection:
    """The token selection that dictionaries were trained on; all tokens where a file says nothing.

    Raises:
        DictlabError: Two were trained on different ones: which is meant?
    """
    selections = [TokenSelection.parse(d.metadata.training.get(RECORD)) for d in dictionaries]
    for dictionary, selection in zip(dictionaries, selections, strict=True):
        if selection != selections[0]:
            raise DictlabError(
                f"{dictionaries[0].name} was trained on the tokens {str(selections[0])!r}, {dictionary.name} on "
                f"{str(selection)!r}. Say on which both are to be measured, for instance with "
                f"`token_selection='{selection}'`."
            )
    return selections[0]


def with_selection(dictionaries: Sequence[Dictionary], spec: str | TokenSelection | None) -> list[Dictionary]:
    """The dictionaries, to be measured on the tokens of `spec` in place of those they were trained on; None changes
    nothing."""
    if spec is None:
        return list(dictionaries)
    record = {RECORD: str(TokenSelection.parse(spec))}
    return [replace(d, metadata=replace(d.metadata, training={**d.metadata.training, **record})) for d in dictionaries]
