"""What analyses are given: dictionaries, a model and a text, or an array of activations; each as itself or by its name.

`open_inputs` is for analyses that run the model, `open_activations` for those that need its activations alone or an
array of them. Both look for the model beside the dictionaries that name it, and prove that it is theirs. Which objects
will do in place of a name stands in `analyses.common.opening`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from analyses.common.compatibility import check_same_place, sites_of
from analyses.common.opening import (
    DictionaryLike,
    ModelLike,
    TextLike,
    context_of,
    in_model,
    open_dictionaries,
    open_model,
    open_text,
    weights_notes,
)
from dictlab.data.activations import Activations, ModelActivations
from dictlab.data.arrays import ArrayActivations, ArrayLike, open_array
from dictlab.data.attention_sinks import find_sinks, sinks_of, sinks_warning
from dictlab.data.hf_datasets import Split
from dictlab.data.text import Text
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.evaluation.recorded_selection import recorded_selection
from dictlab.evaluation.sites import site_of, site_pair
from dictlab.evaluation.stated_l0 import l0_notes_in_model, l0_notes_on_rows
from dictlab.model.language_model import LanguageModel
from dictlab.token_selection import ALL, TokenSelection

DataLike: TypeAlias = ArrayActivations | ArrayLike

PROBE_ROWS = 4096  # of an array that are looked at for attention sinks

SPLITS: dict[Split, str] = {"train": "training", "heldout": "held-out"}  # as reports call them


class TokenSample(NamedTuple):
    """Contexts drawn from all over one split of a text.

    Attributes:
        tokens: Token ids.
        asked: Contexts that were asked for; more than there are, where the text is too short.
        split: Of the text.
    """

    tokens: Int[Tensor, "contexts context"]
    asked: int
    split: Split

    @property
    def size(self) -> str:
        """How much it is, in words."""
        return f"{len(self.tokens)} {SPLITS[self.split]} sequences ({self.tokens.numel()} tokens)"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a report must say of it: that it is smaller than was asked for."""
        if len(self.tokens) >= self.asked:
            return ()
        return (
            f"The text's {SPLITS[self.split]} split holds {len(self.tokens)} contexts, {self.asked} were asked for.",
        )


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """Dictionaries, the model that they belong to, and a text to run it on.

    Attributes:
        dictionaries: As they were given.
        adapted: The same on the model's device, reading its activations whatever library's conventions they follow.
        model: The language model.
        text: Where tokens come from.
        sites: Where in the model the dictionaries are, each once.
        context: Tokens of a sequence.
        selection: The tokens that count: those that were asked for, or that the dictionaries were trained on.
        warnings: What a report must say of them.
    """

    dictionaries: list[Dictionary]
    adapted: list[Dictionary]
    model: LanguageModel
    text: Text
    sites: list[str]
    context: int
    selection: TokenSelection
    warnings: tuple[str, ...] = ()

    def sample(self, contexts: int, split: Split = "heldout", *, seed: int = 0) -> TokenSample:
        """Contexts drawn from all over one split of the text: as many as are asked for, or all there are."""
        part = self.text.as_split(split)
        return TokenSample(part.sample(self.model.tokenizer, self.context, contexts, seed=seed), contexts, split)

    def record(self) -> dict[str, Any]:
        """What a report's settings say of the model and the text."""
        about = {"text": self.text.name, "model": self.model.name, "context": self.context}
        return about | {"token_selection": str(self.selection)}


def open_inputs(
    given: Sequence[DictionaryLike] | DictionaryLike,
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    device: str = "cpu",
    analysis: str = "this analysis",
    transcoders: bool = False,
    least: int = 1,
    same_place: bool = False,
    resumable: bool = False,
    context: int | None = None,
    token_selection: str | None = None,
) -> ModelInputs:
    """Everything that an analysis of the model's behaviour needs, opened and found to belong together.

    Args:
        given: The dictionaries, or their files.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from.
        device: Where to run.
        analysis: What the analysis is called, for messages.
        transcoders: It is right for transcoders, and for dictionaries with a linear skip, as well.
        least: How many dictionaries the analysis needs.
        same_place: They must read the same activations.
        resumable: The forward is to be resumed from their sites, so these must lie in the blocks.
        context: Tokens of a sequence; by default as the dictionaries were trained, or the model's own length.
        token_selection: The tokens that count; by default those that the dictionaries were trained on.

    Raises:
        DictlabError: Something is not there, or does not fit the rest; the message names it.
    """
    dictionaries = open_dictionaries(
        given, least, analysis=analysis, transcoders=transcoders, token_selection=token_selection
    )
    if same_place:
        check_same_place(dictionaries, model)
    opened, source = open_model(model, dictionaries, device), open_text(text)
    sites = sites_of(dictionaries, opened)
    for site in sites if resumable else ():
        opened.block_input(site)
    length = context_of(dictionaries, opened, source) if context is None else opened.context_length(context)
    selection = recorded_selection(dictionaries)
    sinks = find_sinks(opened, source, sites, context=length, selection=selection)
    adapted = in_model(dictionaries, opened)
    l0_notes = l0_notes_in_model(adapted, opened, source, context=length, selection=selection)
    warnings = (*weights_notes(opened, dictionaries), *sinks_warning(sinks, selection), *l0_notes)
    return ModelInputs(dictionaries, adapted, opened, source, sites, length, selection, warnings)


class ActivationInputs(NamedTuple):
    """What dictionaries read, for an analysis that needs activations and nothing else of a model.

    Attributes:
        activations: All of them.
        dictionaries: As they read these activations, on their device.
        unknown: They are an array that none of the dictionaries was trained on.
        warnings: What a report must say of them, but for `l0_notes`.
        l0_notes: Where a dictionary's file states another L0 than is measured.
    """

    activations: Activations
    dictionaries: list[Dictionary]
    unknown: bool = False
    warnings: tuple[str, ...] = ()
    l0_notes: tuple[str, ...] = ()

    @property
    def cautions(self) -> tuple[str, ...]:
        """All that a report must say of them."""
        return (*self.warnings, *self.l0_notes)

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
) -> ActivationInputs:
    """Activations that dictionaries of one place read: those of a model on a text, or an array and no model at all.

    Args:
        dictionaries: At one site (`check_same_place`).
        model: The language model; by default the one that the dictionaries name. Not with `data`.
        text: Where its tokens come from.
        data: Activations instead: an array, or the name of a file.
        device: Where to run.

    The tokens that count are those that the dictionaries were trained on (`with_selection` says otherwise).

    Raises:
        DictlabError: The dictionaries were trained on different tokens; both a model and data are given; or what is
            given is not there or does not fit the dictionaries.
    """
    if data is None:
        opened = open_model(model, dictionaries, device)
        placed = in_model(dictionaries, opened)
        selection, site, source = recorded_selection(dictionaries), site_of(placed[0]), open_text(text)
        context = context_of(dictionaries, opened, source)
        read_and_written = list(dict.fromkeys(site for dictionary in placed for site in site_pair(dictionary)))
        sinks = find_sinks(opened, source, read_and_written, context=context, selection=selection)
        activations = ModelActivations(opened, source, site, context, selection)
        l0_notes = l0_notes_in_model(placed, opened, source, context=context, selection=selection)
        warnings = (*weights_notes(opened, dictionaries), *sinks_warning(sinks, selection))
        return ActivationInputs(activations, placed, warnings=warnings, l0_notes=l0_notes)
    if model is not None:
        raise DictlabError("a model and data are given; activations come from one of the two. Leave one of them out.")
    array = replace(open_array(data), device=device)
    if array.selection == ALL:
        array = replace(array, selection=recorded_selection(dictionaries))
    for dictionary in dictionaries:
        if dictionary.d_in != array.d_in:
            raise DictlabError(
                f"data {array.name}: activations of width {array.d_in}; {dictionary.name} reads {dictionary.d_in}."
            )
    trained = any(d.metadata.training.get("data_fingerprint") == array.fingerprint for d in dictionaries)
    unit = f"Intervals and standard errors are over {array.unit} of {array.name}, which has no sequences."
    placed = [dictionary.to(device) for dictionary in dictionaries]
    x = next(array.sample(PROBE_ROWS), None)
    if x is None:
        raise DictlabError(f"data {array.name}: no row counts (token selection {array.selection}).")
    sinks = sinks_of(x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))
    warnings = ((unit,) if array.in_blocks else ()) + sinks_warning(sinks, array.selection)
    return ActivationInputs(array, placed, unknown=not trained, warnings=warnings, l0_notes=l0_notes_on_rows(placed, x))


def check_used(data: DataLike | None, tokens: int) -> None:
    """Refuse data of which nothing would be read.

    Raises:
        DictlabError: Data is given, and 0 tokens.
    """
    if data is not None and tokens == 0:
        raise DictlabError("data and 0 tokens are given; nothing would be read of the data. Leave out one of them.")
