"""Where in a text, or in an array of activations, is each latent most active?

One pass over a sample. For every latent the sequences are kept in which its largest activation is largest,
at most `top`, with the position of that activation:

    a sequence s counts with    max_t |f_i(s, t)|        f_i(s, t): the activation of latent i at token t of s

so that the examples of a latent come from different sequences. Memory: latents x (top + sequences of a batch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from analyses.common.inputs import DataLike, check_used, open_activations
from analyses.common.opening import ModelLike, TextLike, context_of, open_text, within_reach
from analyses.common.token_texts import token_texts
from dictlab.data.activations import forward_size
from dictlab.data.arrays import ArrayActivations
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.recorded_selection import recorded_selection
from dictlab.evaluation.sites import site_of
from dictlab.evaluation.stated_l0 import l0_notes_in_model
from dictlab.model.language_model import LanguageModel
from dictlab.runtime.progress import track
from dictlab.token_selection import ALL, TokenSelection

TOP = 3  # sequences kept for each latent
BEFORE, AFTER = 8, 4  # tokens shown around the one at the maximum


class Peaks(NamedTuple):
    """The strongest sequences of each latent, best first; an activation of 0 means that there was none.

    Attributes:
        activation: The largest activation in the sequence, as an absolute value.
        sequence: Which sequence of the sample.
        position: Which token of it.
    """

    activation: Float[Tensor, "n_latents top"]
    sequence: Int[Tensor, "n_latents top"]
    position: Int[Tensor, "n_latents top"]


class LatentContexts(NamedTuple):
    """Where each latent of each dictionary is most active.

    Attributes:
        peaks: By dictionary.
        shown: What stands for the peaks of some latents: excerpts of the text, or the numbers of rows.
        record: What settings say of it.
        called: What one of these is called in tables.
    """

    peaks: Mapping[str, Peaks]
    shown: Callable[[Peaks, Iterable[int]], dict[int, list[str]]]
    record: dict[str, Any]
    called: str = "context"

    def dead(self) -> dict[str, int]:
        """Latents of each dictionary that are active nowhere in the sample."""
        return {name: int((peaks.activation[:, 0] == 0).sum()) for name, peaks in self.peaks.items()}

    def of(self, dictionary: str, latents: Sequence[int]) -> dict[int, list[str]]:
        """The strongest activations of some latents."""
        return self.shown(self.peaks[dictionary], latents)


def find_contexts(
    given: Sequence[Dictionary],
    model: ModelLike | None,
    text: TextLike,
    tokens: int,
    seed: int,
    device: str,
    data: DataLike | None = None,
) -> tuple[LatentContexts | None, tuple[str, ...]]:
    """Contexts, or none and a warning that says why.

    A model that is given must do. One that the dictionaries only name may be out of reach; then there are no contexts.

    Args:
        given: The dictionaries.
        model: The model, or None for the one that they name.
        text: Where tokens come from; its training split is used.
        tokens: How many; 0 for no contexts, and no model is opened.
        seed: Of the sample of text.
        device: Where to put a model that has to be opened.
        data: Activations in place of model and text; their rows take the place of excerpts.

    Raises:
        DictlabError: The model or the data that were given do not fit, the text cannot be opened or is too short, or
            `tokens` are fewer than one context.
    """
    if tokens == 0:
        check_used(data, tokens)
        return None, ()
    if data is not None:
        return _of_array(given, model, data, tokens, seed, device)
    reached = within_reach(model, given, device)
    if isinstance(reached, DictlabError):
        return None, (
            f"No contexts are shown. {reached} Give the model with `model=...`, or `tokens=0` to do without.",
        )
    opened, placed = reached
    source = open_text(text).as_split("train")
    length = context_of(given, opened, source)
    check_at_least(length, tokens=tokens)
    sequences = source.sample(opened.tokenizer, length, tokens // length, seed=seed)
    selection = recorded_selection(given)
    found = dict(zip([d.name for d in given], peaks(placed, opened, sequences, selection=selection), strict=True))
    record = {"model": opened.name, "text": source.name, "context": length, "tokens": sequences.numel()}
    record["token_selection"] = str(selection)
    notes = l0_notes_in_model(placed, opened, source, context=length, selection=selection)
    return LatentContexts(found, partial(excerpts, opened.tokenizer, sequences), record), notes


def _of_array(
    given: Sequence[Dictionary], model: ModelLike | None, data: DataLike, tokens: int, seed: int, device: str
) -> tuple[LatentContexts, tuple[str, ...]]:
    reading = open_activations(given, model=model, data=data, device=device)
    source = reading.part("train")
    assert isinstance(source, ArrayActivations)
    numbers = source.drawn(tokens, seed)
    whole = replace(source, selection=ALL).sample(tokens, seed=seed)
    batches = (([x] * len(given), [source.selection.mask([x])] * len(given)) for x in whole)
    found = dict(zip([d.name for d in given], _strongest_of(reading.dictionaries, batches, TOP), strict=True))
    record = source.record() | {"tokens": len(numbers) * source.context}
    return LatentContexts(found, partial(row_numbers, source, numbers), record, "strongest row"), reading.cautions


def with_activity(dictionaries: Sequence[Dictionary], contexts: LatentContexts | None) -> list[Dictionary]:
    """Dictionaries whose files have no firing rates, with those latents dead that were active nowhere in the sample."""
    if contexts is None:
        return list(dictionaries)
    return [
        replace(d, firing_rate=(contexts.peaks[d.name].activation[:, 0] > 0).float()) if d.firing_rate is None else d
        for d in dictionaries
    ]


def with_contexts(
    frame: pd.DataFrame, dictionaries: Sequence[str], latents: Sequence[int], contexts: LatentContexts | None
) -> pd.DataFrame:
    """A table of latents with a column for each of their contexts.

    Args:
        frame: One row a latent.
        dictionaries: The name of the dictionary of each row's latent.
        latents: The number of each row's latent.
        contexts: Where each latent is most active; None leaves the table as it is.
    """
    if contexts is None:
        return frame
    asked = list(zip(dictionaries, latents, strict=True))
    shown = {
        (name, latent): texts
        for name in dict.fromkeys(dictionaries)
        for latent, texts in contexts.of(name, sorted({latent for of, latent in asked if of == name})).items()
    }
    texts = [shown[key] for key in asked]
    columns = {f"{contexts.called} {i + 1}": [t[i] if i < len(t) else None for t in texts] for i in range(TOP)}
    return frame.assign(**{name: pd.Series(column, dtype=object) for name, column in columns.items()})


@torch.no_grad()
def peaks(
    dictionaries: Sequence[Dictionary],
    model: LanguageModel,
    sequences: Int[Tensor, "sequences context"],
    *,
    top: int = TOP,
    selection: TokenSelection | None = None,
) -> list[Peaks]:
    """The strongest sequences of every latent of every dictionary, in one pass over the sequences.

    Args:
        dictionaries: At sites of the model; on its device, and reading its activations.
        model: The language model.
        sequences: Token ids.
        top: Sequences to keep for each latent.
        selection: Tokens that count, by default those that the dictionaries were trained on; activations at others
            are no peaks.

    Raises:
        DictlabError: A dictionary names no site, or emits what is not a number.
    """
    sites = [site_of(dictionary) for dictionary in dictionaries]
    size = forward_size(model.device, sequences.shape[1])
    selected = recorded_selection(dictionaries) if selection is None else selection

    def read() -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        for tokens in track(sequences.split(size), "contexts", unit="batches"):
            captured = model.capture(tokens, list(dict.fromkeys(sites)))
            counted = {site: selected.mask([x], tokens, model.tokenizer) for site, x in captured.items()}
            yield [captured[site] for site in sites], [counted[site] for site in sites]

    return _strongest_of(dictionaries, read(), top)


def _strongest_of(
    dictionaries: Sequence[Dictionary],
    batches: Iterable[tuple[Sequence[Float[Tensor, "batch context d_in"]], Sequence[Bool[Tensor, "batch context"]]]],
    top: int,
) -> list[Peaks]:
    """The strongest sequences by what each dictionary reads of some sequences at a time, and which tokens count."""
    found, start = [_none(dictionary) for dictionary in dictionaries], 0
    for inputs, masks in batches:
        for i, (dictionary, x, counted) in enumerate(zip(dictionaries, inputs, masks, strict=True)):
            found[i] = _best(found[i], _strongest(dictionary, x, counted, start), top)
        start += len(inputs[0])
    return found


def excerpt(tokenizer: Any, tokens: Int[Tensor, " context"], position: int) -> str:
    """The text around a token, which stands between « and »; invisible characters as `token_texts` shows them."""
    peak = min(position, BEFORE)
    window = tokens[max(0, position - BEFORE) : position + 1 + AFTER].tolist()
    texts = token_texts(tokenizer, window, peak)
    return f"{''.join(texts[:peak])}«{texts[peak]}»{''.join(texts[peak + 1 :])}"


def excerpts(
    tokenizer: Any, sequences: Int[Tensor, "sequences context"], found: Peaks, latents: Iterable[int]
) -> dict[int, list[str]]:
    """For each of some latents the text around its strongest activations, best first; none where it was silent."""
    return _told(lambda sequence, position: excerpt(tokenizer, sequences[sequence], position), found, latents)


def row_numbers(
    source: ArrayActivations, numbers: NDArray[np.int64], found: Peaks, latents: Iterable[int]
) -> dict[int, list[str]]:
    """For each of some latents the rows of an array at which it is strongest, best first.

    Args:
        source: The array.
        numbers: Of the sequences that peaks were looked for in.
        found: The peaks.
        latents: Which.
    """

    def told(sequence: int, position: int) -> str:
        number = int(numbers[sequence])
        if source.in_blocks:
            return f"row {number * source.context + position}"
        return f"sequence {number}, row {position}"

    return _told(told, found, latents)


def _told(told: Callable[[int, int], str], found: Peaks, latents: Iterable[int]) -> dict[int, list[str]]:
    """Words for each peak above 0."""
    return {
        latent: [
            told(sequence, position)
            for value, sequence, position in zip(*(part[latent].tolist() for part in found), strict=True)
            if value > 0
        ]
        for latent in latents
    }


def _none(dictionary: Dictionary) -> Peaks:
    nowhere = torch.zeros(dictionary.n_latents, 0, dtype=torch.long)
    return Peaks(torch.zeros(dictionary.n_latents, 0), nowhere, nowhere)


def _strongest(
    dictionary: Dictionary,
    x: Float[Tensor, "batch context d_in"],
    counted: Bool[Tensor, "batch context"],
    start: int,
) -> Peaks:
    """The strongest activation of each latent in each sequence of a batch."""
    codes, context = dictionary.encode(x), x.shape[1]
    if not bool(torch.isfinite(codes.values).all()):
        raise DictlabError(f"{dictionary.name}: its codes are not all finite on the text; are its weights damaged?")
    batch, n = codes.n_tokens // context, codes.n_latents
    row = codes.rows
    strength = codes.values.abs() * counted.flatten()[row]
    place = row // context * n + codes.indices
    value = strength.new_zeros(batch * n).scatter_reduce_(0, place, strength, "amax")
    first = strength == value[place]
    position = torch.full((batch * n,), context, device=row.device)
    position.scatter_reduce_(0, place[first], row[first] % context, "amin")
    sequence = torch.arange(start, start + batch).expand(n, -1)
    return Peaks(value.view(batch, n).T.cpu(), sequence, position.view(batch, n).T.cpu())


def _best(held: Peaks, more: Peaks, top: int) -> Peaks:
    both = [torch.cat(parts, dim=1) for parts in zip(held, more, strict=True)]
    order = both[0].sort(dim=1, descending=True, stable=True).indices[:, :top]
    return Peaks(*(part.gather(1, order) for part in both))
