"""Dictionaries, a model and a text, opened by name where they are not there already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from dictlab.data.text import Text
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.evaluation.evaluate import site_of
from dictlab.evaluation.recorded_selection import with_selection
from dictlab.evaluation.transformer_lens import adapted
from dictlab.formats.loading import load, mapped
from dictlab.formats.names import with_distinct_names
from dictlab.model.language_model import LanguageModel

DictionaryLike: TypeAlias = Dictionary | str | Path
ModelLike: TypeAlias = LanguageModel | str | Path
TextLike: TypeAlias = Text | str

# Beside which folder the model of a name and fingerprint was found. The fingerprint is checked again each time.
_FOLDERS: dict[tuple[str, str | None], Path] = {}


def open_dictionary(given: DictionaryLike) -> Dictionary:
    """A dictionary, read from its file if need be."""
    return given if isinstance(given, Dictionary) else load(given)


def open_dictionaries(
    given: Sequence[DictionaryLike] | DictionaryLike,
    least: int = 1,
    *,
    in_place: bool = False,
    token_selection: str | None = None,
) -> list[Dictionary]:
    """Several dictionaries.

    Args:
        given: The dictionaries, or their files.
        least: How many the analysis needs.
        in_place: Leave tensors in their files, in the precision of the file and unchecked for NaN, until they are used.
        token_selection: Tokens that they are to be measured on; by default those that they were trained on.

    Raises:
        DictlabError: There are fewer than the analysis needs, or two have the same name.
    """
    several = [given] if isinstance(given, DictionaryLike) else given
    opened = [one if isinstance(one, Dictionary) else (mapped if in_place else load)(one) for one in several]
    if len(opened) < least:
        raise DictlabError(f"this analysis compares {least} or more dictionaries; {len(opened)} were given.")
    return with_selection(with_distinct_names(opened), token_selection)


def open_model(given: ModelLike | None, dictionaries: Sequence[Dictionary], device: str = "cpu") -> LanguageModel:
    """The model given, or the one that the dictionaries name; its weights must be those they were trained on.

    Args:
        given: A model, which stays on its own device, or a name.
        dictionaries: What it is to be run with.
        device: Where to put a model that has to be opened.

    Raises:
        DictlabError: None is named, it is not found, or its weights are others.
    """
    if given is None:
        given = _model_named_by(dictionaries, device)
    if isinstance(given, str | Path):
        given = LanguageModel.load(given, device=device)
    for dictionary in dictionaries:
        expected = dictionary.metadata.model_fingerprint
        if expected is not None and expected != given.fingerprint:
            raise DictlabError(
                f"{dictionary.name} was trained on {dictionary.metadata.model} with fingerprint {expected}; "
                f"{given.name} has other weights ({given.fingerprint}). Give the right one with --model."
            )
    return given


def _model_named_by(dictionaries: Sequence[Dictionary], device: str) -> LanguageModel:
    """The model that dictionaries name. A folder of that name is looked for beside the files of all of them.

    A dictionary made in memory has no file. Its model is looked for where that of a dictionary trained on the same
    weights was, earlier in this process.

    Raises:
        DictlabError: None is named, or it is not found.
    """
    about = next((d.metadata for d in dictionaries if d.metadata.model is not None), None)
    if about is None or about.model is None:
        raise DictlabError(f"{dictionaries[0].name}: its file names no model; give one with --model.")
    named, weights = about.model, about.model_fingerprint
    folders = [d.path.parent for d in dictionaries if d.path is not None and d.metadata.model == named]
    known = _FOLDERS.get((named, weights))
    holding = (folder for folder in [*folders, known] if folder and (folder / named / "config.json").exists())
    beside = next(holding, next(iter(folders), None))
    model = LanguageModel.load(named, beside=beside, device=device)
    if weights is not None and beside is not None:
        _FOLDERS[named, weights] = beside
    return model


def within_reach(
    given: ModelLike | None, dictionaries: Sequence[Dictionary], device: str = "cpu"
) -> tuple[LanguageModel, list[Dictionary]] | DictlabError:
    """The model, and the dictionaries on it; or why there is none, where it was only named by the dictionaries.

    Args:
        given: A model, which must do, or None for the one that the dictionaries name, which may be out of reach.
        dictionaries: What it is to be run with; each must name its site.
        device: Where to put a model that has to be opened.

    Raises:
        DictlabError: The model that was given does not fit.
    """
    try:
        opened = open_model(given, dictionaries, device)
        placed = in_model(dictionaries, opened)
        for dictionary in dictionaries:
            site_of(dictionary)
    except DictlabError as error:
        if given is not None:
            raise
        return error
    return opened, placed


def in_model(dictionaries: Sequence[Dictionary], model: LanguageModel) -> list[Dictionary]:
    """The dictionaries on the model's device, each reading that model's activations whatever library trained it."""
    return [adapted(dictionary, model).to(model.device) for dictionary in dictionaries]


def context_of(dictionaries: Sequence[Dictionary], model: LanguageModel) -> int:
    """Tokens a context: as the dictionaries were trained on (the shortest of them), or the model's own."""
    trained = [c for d in dictionaries if isinstance(c := d.metadata.training.get("context"), int)]
    return model.context_length(min(trained, default=None))


def open_text(given: TextLike) -> Text:
    """A text, opened by name if need be."""
    return given if isinstance(given, Text) else Text.open(given)
