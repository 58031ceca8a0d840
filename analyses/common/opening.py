"""Dictionaries, a model and a text, opened by name where they are not there already.

In place of a name will do: a `Dictionary`, an SAE of SAELens, a dict of weights (`dictlab.formats.in_memory`); a
`LanguageModel`, a model of Hugging Face with its tokenizer, a `HookedTransformer` of TransformerLens; a `Text`, a list
of documents, a tensor of token ids (`dictlab.data.in_memory`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor, nn

from dictlab.data.in_memory import TokenIds, text_of_documents
from dictlab.data.text import Text
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.evaluation.recorded_selection import with_selection
from dictlab.evaluation.sites import check_plain, site_of
from dictlab.evaluation.transformer_lens import adapted
from dictlab.formats.in_memory import NAMELESS, SaeLensSae, from_saelens, from_tensors
from dictlab.formats.loading import load, mapped
from dictlab.formats.names import with_distinct_names
from dictlab.model.hooked_transformer import HookedTransformerModel, is_hooked_transformer
from dictlab.model.language_model import LanguageModel
from dictlab.model.model_options import ModelOptions
from dictlab.site_names import canonical_model

DictionaryLike: TypeAlias = Dictionary | str | Path | SaeLensSae | Mapping[str, Tensor | str]
ModelLike: TypeAlias = LanguageModel | ModelOptions | str | Path | tuple[Any, Any] | nn.Module
TextLike: TypeAlias = Text | str | Sequence[str] | Tensor

# Beside which folder the model of a name and fingerprint was found. The fingerprint is checked again each time.
_FOLDERS: dict[tuple[str, str | None], Path] = {}


def open_dictionary(given: DictionaryLike, *, in_place: bool = False) -> Dictionary:
    """A dictionary, read from its file if need be.

    Args:
        given: The dictionary, its file, an SAE of SAELens, or a dict of weights.
        in_place: Leave tensors in their file, in the precision of the file and unchecked for NaN, until they are used.
    """
    if isinstance(given, Dictionary):
        return given
    if isinstance(given, str | Path):
        return (mapped if in_place else load)(given)
    return from_tensors(given) if isinstance(given, Mapping) else from_saelens(given)


def one_or_several(given: Sequence[DictionaryLike] | DictionaryLike) -> list[DictionaryLike]:
    """A list of them, also where one stands alone."""
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]


def open_dictionaries(
    given: Sequence[DictionaryLike] | DictionaryLike,
    least: int = 1,
    *,
    analysis: str = "this analysis",
    transcoders: bool = False,
    in_place: bool = False,
    token_selection: str | None = None,
) -> list[Dictionary]:
    """Several dictionaries.

    Args:
        given: The dictionaries, or their files.
        least: How many the analysis needs.
        analysis: What it is called, for messages.
        transcoders: It is right for transcoders, and for dictionaries with a linear skip, as well. Others would be
            silently wrong on them, and so refuse them here.
        in_place: Leave tensors in their files, in the precision of the file and unchecked for NaN, until they are used.
        token_selection: Tokens that they are to be measured on; by default those that they were trained on.

    Raises:
        DictlabError: There are fewer than the analysis needs, two have the same name, or one is a transcoder or has a
            skip and the analysis is not made for these.
    """
    opened = [open_dictionary(one, in_place=in_place) for one in one_or_several(given)]
    if len(opened) < least:
        raise DictlabError(f"{analysis} compares {least} or more dictionaries; {len(opened)} were given.")
    if not transcoders:
        check_plain(opened, analysis)
    return with_selection(with_distinct_names(_numbered(opened)), token_selection)


def _numbered(dictionaries: Sequence[Dictionary]) -> list[Dictionary]:
    """Those in memory, which have no name of their own, are numbered where there are several."""
    nameless = [d.path is None and NAMELESS in d.name for d in dictionaries]
    if sum(nameless) < 2:
        return list(dictionaries)
    numbers = count(1)
    return [
        replace(d, name=f"{d.name} {next(numbers)}") if unnamed else d
        for d, unnamed in zip(dictionaries, nameless, strict=True)
    ]


def open_model(given: ModelLike | None, dictionaries: Sequence[Dictionary], device: str = "cpu") -> LanguageModel:
    """The model given, or the one that the dictionaries name; its weights must be those they were trained on.

    Args:
        given: A model, which stays on its own device, or a name, or a name with how to open it.
        dictionaries: What it is to be run with.
        device: Where to put a model that has to be opened.

    Raises:
        DictlabError: None is named, it is not found, or its weights are others and that was not allowed.
    """
    if given is None:
        given = ModelOptions()
    if isinstance(given, ModelOptions) and given.name is None:
        given = _model_named_by(dictionaries, device, given)
    if isinstance(given, ModelOptions | str | Path):
        given = LanguageModel.load(given, device=device)
    model = _wrapped(given)
    if isinstance(model, HookedTransformerModel):
        for dictionary in dictionaries:
            named = dictionary.metadata.model
            if named is not None and canonical_model(named) != canonical_model(model.name):
                raise DictlabError(f"{dictionary.name} was trained on {named}; the HookedTransformer is {model.name}.")
        return model
    for dictionary in [] if model.allow_other_weights else _of_other_weights(dictionaries, model):
        about = dictionary.metadata
        raise DictlabError(
            f"{dictionary.name} was trained on {about.model} with fingerprint {about.model_fingerprint}; "
            f"{model.name} has other weights ({model.fingerprint}). Give the right one with `model=...`, or, for a "
            "fine-tuned child of that model, `allow_other_weights=True`."
        )
    return model


def _wrapped(given: LanguageModel | tuple[Any, Any] | nn.Module) -> LanguageModel:
    """A model of another library as a `LanguageModel`. Its weights are frozen, and it is put in evaluation mode.

    Raises:
        DictlabError: It is none that is known, or comes without a tokenizer.
    """
    if isinstance(given, LanguageModel):
        return given
    model, tokenizer = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if is_hooked_transformer(model):
        return HookedTransformerModel(model, tokenizer)
    kind = f"{type(model).__module__}.{type(model).__name__}"
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise DictlabError(
            f"model: a {kind} will not do; expected a name, a LanguageModel, (model, tokenizer) of Hugging Face, or a "
            "HookedTransformer."
        )
    if tokenizer is None:
        raise DictlabError(f"model: a {kind} without its tokenizer; give model=(model, tokenizer).")
    return LanguageModel(model, tokenizer, str(getattr(model.config, "name_or_path", "") or type(model).__name__))


def weights_notes(model: LanguageModel, dictionaries: Sequence[Dictionary]) -> tuple[str, ...]:
    """What a report must say where the model is not that of the dictionaries, or it could not be proved to be."""
    known = [d.name for d in dictionaries if d.metadata.model_fingerprint is not None]
    if known and not isinstance(model, HookedTransformerModel):
        return tuple(
            f"{d.name} was trained on {d.metadata.model} ({d.metadata.model_fingerprint}) and is measured here on "
            f"{model.name}, which has other weights ({model.fingerprint})."
            for d in _of_other_weights(dictionaries, model)
        )
    if not known:
        return ()
    return (
        f"{', '.join(known)}: a HookedTransformer keeps its weights in a form of its own, so only the model's name "
        f"({model.name}) was compared with that of the dictionary.",
    )


def _of_other_weights(dictionaries: Sequence[Dictionary], model: LanguageModel) -> list[Dictionary]:
    return [d for d in dictionaries if d.metadata.model_fingerprint not in (None, model.fingerprint)]


def _model_named_by(dictionaries: Sequence[Dictionary], device: str, options: ModelOptions) -> LanguageModel:
    """The model that dictionaries name. A folder of that name is looked for beside the files of all of them.

    A dictionary made in memory has no file. Its model is looked for where that of a dictionary trained on the same
    weights was, earlier in this process.

    Raises:
        DictlabError: None is named, or it is not found.
    """
    about = next((d.metadata for d in dictionaries if d.metadata.model is not None), None)
    if about is None or about.model is None:
        raise DictlabError(f"{dictionaries[0].name}: its file names no model; give one with `model=...`.")
    named, weights = about.model, about.model_fingerprint
    folders = [d.path.parent for d in dictionaries if d.path is not None and d.metadata.model == named]
    known = _FOLDERS.get((named, weights))
    holding = (folder for folder in [*folders, known] if folder and (folder / named / "config.json").exists())
    beside = next(holding, next(iter(folders), None))
    model = LanguageModel.load(replace(options, name=named), beside=beside, device=device)
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


def context_of(dictionaries: Sequence[Dictionary], model: LanguageModel, text: Text | None = None) -> int:
    """Tokens a context: as the dictionaries were trained on (the shortest of them), or the model's own.

    Of a text that is token ids, no more than its sequences have.

    Raises:
        DictlabError: Some of its token ids are none of the model's.
    """
    trained = [c for d in dictionaries if isinstance(c := d.metadata.training.get("context"), int)]
    length = model.context_length(min(trained, default=None))
    if not isinstance(text, TokenIds):
        return length
    least, most = int(text.ids.min()), int(text.ids.max())
    if least < 0 or most >= model.vocabulary:
        raise DictlabError(
            f"text {text.name}: ids from {least} to {most}; {model.name} knows 0 to {model.vocabulary - 1}."
        )
    return model.context_length(min(length, text.longest))


def open_text(given: TextLike) -> Text:
    """A text, opened by name if need be; or out of a list of documents, or a tensor of token ids."""
    if isinstance(given, Text):
        return given
    if isinstance(given, str | Path):
        return Text.open(given)
    return TokenIds.of(given) if isinstance(given, Tensor) else text_of_documents(given)
