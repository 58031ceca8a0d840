"""What analyses are given: dictionaries, models and texts, each as the thing itself or as its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch

from dictlab.data.activations import Activations, ModelActivations
from dictlab.data.arrays import ArrayActivations, ArrayLike, open_array
from dictlab.data.text import Split, Text
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.evaluation.evaluate import site_of
from dictlab.evaluation.transformer_lens import adapted
from dictlab.formats.loading import load, mapped
from dictlab.model.language_model import LanguageModel
from dictlab.site_names import canonical_model, canonical_site

DictionaryLike: TypeAlias = Dictionary | str | Path
ModelLike: TypeAlias = LanguageModel | str | Path
TextLike: TypeAlias = Text | str
DataLike: TypeAlias = ArrayActivations | ArrayLike


class Reading(NamedTuple):
    """What dictionaries read, for an analysis that needs activations and nothing else of a model.

    Attributes:
        activations: All of them.
        dictionaries: As they read these activations, on their device.
        cautions: What a report must say of them.
        unknown: They are an array that none of the dictionaries was trained on.
    """

    activations: Activations
    dictionaries: list[Dictionary]
    cautions: tuple[str, ...] = ()
    unknown: bool = False

    def part(self, split: Split) -> Activations:
        """For an analysis that needs one split: that one, or the whole of an array that no dictionary has seen."""
        return self.activations if self.unknown else self.activations.as_split(split)

    def parts(self) -> tuple[Activations, Activations]:
        """To choose or fit on, and, held out, to measure on what came of it."""
        return self.activations.as_split("train"), self.activations.as_split("heldout")


def open_activations(
    dictionaries: Sequence[Dictionary],
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    data: DataLike | None = None,
    device: str = "cpu",
) -> Reading:
    """Activations that dictionaries of one place read: those of a model on a text, or an array and no model at all.

    Args:
        dictionaries: At one site (`check_same_place`).
        model: The language model; by default the one that the dictionaries name. Not with `data`.
        text: Where its tokens come from.
        data: Activations instead: an array, or the name of a file.
        device: Where to run.

    Raises:
        DictlabError: Both a model and data are given, or what is given is not there or does not fit the dictionaries.
    """
    if data is None:
        opened = open_model(model, dictionaries, device)
        placed = in_model(dictionaries, opened)
        context = context_of(dictionaries, opened)
        return Reading(ModelActivations(opened, open_text(text), site_of(placed[0]), context), placed)
    if model is not None:
        raise DictlabError("a model and data are given; activations come from one of the two. Leave one of them out.")
    array = replace(open_array(data), device=device)
    for dictionary in dictionaries:
        if dictionary.d_in != array.d_in:
            raise DictlabError(
                f"data {array.name}: activations of width {array.d_in}; {dictionary.name} reads {dictionary.d_in}."
            )
    trained = any(d.metadata.training.get("data_fingerprint") == array.fingerprint for d in dictionaries)
    unit = f"Intervals and standard errors are over {array.unit} of {array.name}, which has no sequences."
    placed = [dictionary.to(device) for dictionary in dictionaries]
    return Reading(array, placed, (unit,) if array.in_blocks else (), unknown=not trained)


def check_used(data: DataLike | None, tokens: int) -> None:
    """Refuse data of which nothing would be read.

    Raises:
        DictlabError: Data is given, and 0 tokens.
    """
    if data is not None and tokens == 0:
        raise DictlabError("data and 0 tokens are given; nothing would be read of the data. Leave out one of them.")


def open_dictionary(given: DictionaryLike) -> Dictionary:
    """A dictionary, read from its file if need be."""
    return given if isinstance(given, Dictionary) else load(given)


def open_dictionaries(
    given: Sequence[DictionaryLike] | DictionaryLike, least: int = 1, *, in_place: bool = False
) -> list[Dictionary]:
    """Several dictionaries.

    Args:
        given: The dictionaries, or their files.
        least: How many the analysis needs.
        in_place: Leave tensors in their files, in the precision of the file and unchecked for NaN, until they are used.

    Raises:
        DictlabError: There are fewer than the analysis needs, or two have the same name.
    """
    several = [given] if isinstance(given, DictionaryLike) else given
    opened = [one if isinstance(one, Dictionary) else (mapped if in_place else load)(one) for one in several]
    if len(opened) < least:
        raise DictlabError(f"this analysis compares {least} or more dictionaries; {len(opened)} were given.")
    opened = _told_apart(opened)
    names = [dictionary.name for dictionary in opened]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        alike = {one.path.resolve() if one.path else id(one.W_dec) for one in opened if one.name == twice}
        how = "rename a file, so that tables can tell them apart"
        if len(alike) < names.count(twice):
            how = "the same one was given twice, and has nothing that it lacks; give another"
        raise DictlabError(f"two dictionaries are called {twice!r}: {how}.")
    return opened


def _told_apart(dictionaries: Sequence[Dictionary]) -> list[Dictionary]:
    """Dictionaries from files of the same name get the name of the folder that differs in front."""
    names = [dictionary.name for dictionary in dictionaries]
    told = []
    for dictionary in dictionaries:
        alike = [other.path for other in dictionaries if other.name == dictionary.name and other.path is not None]
        path, name = dictionary.path, dictionary.name
        if path is not None and names.count(name) > 1 and len(set(alike)) == names.count(name):
            folders = [other.absolute().parts for other in alike]
            depth = next(i for i, parts in enumerate(zip(*folders, strict=False)) if len(set(parts)) > 1)
            name = f"{path.absolute().parts[depth]}/{name}"
        told.append(replace(dictionary, name=name))
    return told


def open_model(given: ModelLike | None, dictionaries: Sequence[Dictionary], device: str = "cpu") -> LanguageModel:
    """The model given, or the one that the dictionaries name; its weights must be those they were trained on.

    Args:
        given: A model, which stays on its own device, or a name.
        dictionaries: What it is to be run with.
        device: Where to put a model that has to be opened.

    Raises:
        DictlabError: None is named, it is not found, or its weights are others.
    """
    first = dictionaries[0]
    if given is None:
        if first.metadata.model is None:
            raise DictlabError(f"{first.name}: its file names no model; give one with --model.")
        beside = first.path.parent if first.path else None
        given = LanguageModel.load(first.metadata.model, beside=beside, device=device)
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


def sites_of(dictionaries: Sequence[Dictionary], model: LanguageModel) -> list[str]:
    """Their sites, each once, after a look at whether the model has them and they are as wide as their dictionaries.

    Raises:
        DictlabError: A dictionary names no site, or one that is not the model's, or has another width than the site.
    """
    sites = list(dict.fromkeys(site_of(dictionary) for dictionary in dictionaries))
    found = model.capture(torch.zeros(1, 1, dtype=torch.long), sites)
    for dictionary in dictionaries:
        width = found[site_of(dictionary)].shape[-1]
        if width != dictionary.d_in:
            raise DictlabError(
                f"{dictionary.name} reads activations of width {dictionary.d_in}, and {site_of(dictionary)} of "
                f"{model.name} is {width} wide: is it a dictionary of another model or site?"
            )
    return sites


def context_of(dictionaries: Sequence[Dictionary], model: LanguageModel) -> int:
    """Tokens a context: as the dictionaries were trained on (the shortest of them), or the model's own."""
    trained = [c for d in dictionaries if isinstance(c := d.metadata.training.get("context"), int)]
    return model.context_length(min(trained, default=None))


def open_text(given: TextLike) -> Text:
    """A text, opened by name if need be."""
    return given if isinstance(given, Text) else Text.open(given)


def check_same_place(dictionaries: Sequence[Dictionary]) -> None:
    """Refuse dictionaries that do not read the same activations. What a file does not say is taken on trust.

    Raises:
        DictlabError: Two differ in width, site or model; both are named.
    """
    first = dictionaries[0]
    for other in dictionaries[1:]:
        for what, a, b in (
            ("width d_in", first.d_in, other.d_in),
            ("site", *_if_different(first.metadata.site, other.metadata.site, _site_in(first, other))),
            ("model", *_models(first, other)),
        ):
            if a is not None and b is not None and a != b:
                raise DictlabError(f"{first.name} and {other.name} cannot be compared: {what} is {a} and {b}.")


def _site_in(first: Dictionary, other: Dictionary) -> Callable[[str], str]:
    """How sites of the model are compared, which one of the two may name."""
    model = first.metadata.model or other.metadata.model
    return lambda site: canonical_site(site, model)


def _if_different(a: str | None, b: str | None, canonical: Callable[[str], str]) -> tuple[str | None, str | None]:
    """Both names, unless they are two spellings of one thing."""
    same = a is not None and b is not None and canonical(a) == canonical(b)
    return (None, None) if same else (a, b)


def _models(a: Dictionary, b: Dictionary) -> tuple[str | None, str | None]:
    """What to compare: fingerprints where both are known, since one model can have several names; else the names."""
    prints = [d.metadata.model_fingerprint for d in (a, b)]
    if None in prints:
        return _if_different(a.metadata.model, b.metadata.model, canonical_model)
    if prints[0] == prints[1]:
        return None, None
    one, other = (f"{d.metadata.model} ({d.metadata.model_fingerprint})" for d in (a, b))
    return one, other
