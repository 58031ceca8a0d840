"""Which tokens a dictionary of another library was trained on, from and to the settings that the library has for it.

    SAELens                prepend_bos, seqpos_slice, exclude_special_tokens      in cfg.json or its metadata
    dictionary_learning    remove_bos, max_activation_norm_multiple, ignore_tokens      under `buffer` in config.json

They become a `TokenSelection` in the metadata's record of the training, which every measurement obeys. Other libraries
keep no such setting in a dictionary's files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dictlab.dictionary import Metadata
from dictlab.errors import DictlabError
from dictlab.formats.libraries.fields import short
from dictlab.token_selection import ALL, RECORD, TokenSelection

SAELENS = ("prepend_bos", "seqpos_slice", "exclude_special_tokens")
DICTIONARY_LEARNING = ("remove_bos", "max_activation_norm_multiple", "ignore_tokens")


def read(config: Mapping[str, Any], names: tuple[str, ...]) -> tuple[dict[str, str], tuple[str, ...]]:
    """What the record of the training keeps of a library's settings, and a note where they cannot be followed.

    Args:
        config: Where the settings stand.
        names: Which of it are such settings.
    """
    settings = {name: config[name] for name in names if config.get(name) is not None}
    try:
        for name, value in settings.items():
            if not _sound(name, value):
                raise DictlabError(f"{name} is {short(value)}")
        selection = TokenSelection.of_library(**settings)
    except DictlabError as error:
        return {}, (f"trained on tokens that no token selection describes ({error}); all are taken to count.",)
    return ({} if selection == ALL else {RECORD: str(selection)}), ()


def _sound(name: str, value: Any) -> bool:
    """Whether a setting is of the type that its library gives it."""
    if name in ("prepend_bos", "remove_bos"):
        return type(value) is bool
    if name == "max_activation_norm_multiple":
        return type(value) in (int, float)
    if name == "exclude_special_tokens" and type(value) is bool:
        return True
    optional = name == "seqpos_slice"
    return isinstance(value, list | tuple) and all(type(v) is int or (optional and v is None) for v in value)


def written_for_saelens(metadata: Metadata) -> dict[str, Any]:
    """The settings of SAELens for the tokens that a dictionary was trained on, as far as it has some."""
    selection = TokenSelection.parse(metadata.training.get(RECORD))
    special: bool | list[int] = selection.without_special or list(selection.without_ids)
    return {
        "prepend_bos": not selection.without_bos,
        "seqpos_slice": [selection.first or None, selection.stop]
        if (selection.first, selection.stop) != (0, None)
        else [None],
        "exclude_special_tokens": special or False,
    }


def written_for_dictionary_learning(metadata: Metadata) -> dict[str, Any]:
    """The settings of dictionary_learning for the tokens that a dictionary was trained on, as far as it has some."""
    selection = TokenSelection.parse(metadata.training.get(RECORD))
    ids = {"ignore_tokens": list(selection.without_ids)} if selection.without_ids else {}
    return {
        "remove_bos": selection.first == 1,
        "max_activation_norm_multiple": selection.norm_multiple,
        **ids,
    }
