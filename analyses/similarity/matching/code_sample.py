"""The codes of several dictionaries on the same tokens, held sparsely, and what of them counts for a comparison.

The first token of each context is left out: models keep something of their own there. Of activations that are an array
every row counts, since nobody says where it is from. Codes are in the activations' units (times the scale that a
normalisation keeps of each token, and the length of the decoder direction): a dictionary that keeps its scales
elsewhere is the same dictionary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from analyses.common.inputs import DataLike, check_used, open_activations
from analyses.common.opening import ModelLike, TextLike, context_of, open_text, within_reach
from dictlab.data.activations import forward_size
from dictlab.dictionary import Dictionary
from dictlab.dictionary.codes import Codes
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.recorded_selection import recorded_selection
from dictlab.evaluation.sites import site_of
from dictlab.model.language_model import LanguageModel
from dictlab.runtime.progress import track
from dictlab.token_selection import TokenSelection, rectangles

Matrix: TypeAlias = sparse.csr_array  # tokens x latents
HELD = 1 << 14  # tokens whose activations are kept, for the codes of random latents


@dataclass(frozen=True, eq=False)
class Sample:
    """What dictionaries make of the same tokens.

    Attributes:
        codes: By dictionary, tokens x latents.
        sequence: Which sequence each token is of.
        x: The model's activations at the first `HELD` tokens.
        about: Model, text and context, or data; tokens: for the report.
    """

    codes: dict[str, Matrix]
    sequence: Int[np.ndarray, " tokens"]
    x: Float[np.ndarray, "some d_in"]
    about: dict[str, object]

    @property
    def n_tokens(self) -> int:
        """Tokens that count, first ones of contexts left out."""
        return len(self.sequence)

    @property
    def n_sequences(self) -> int:
        """Sequences they are of."""
        return int(self.sequence[-1]) + 1

    def dead(self) -> dict[str, int]:
        """Latents of each dictionary that are active nowhere."""
        return {name: int((firings(codes) == 0).sum()) for name, codes in self.codes.items()}

    def rates(self) -> dict[str, Tensor]:
        """Share of tokens at which each latent is active."""
        return {name: torch.from_numpy(firings(codes) / self.n_tokens) for name, codes in self.codes.items()}


def sampled(
    given: Sequence[Dictionary],
    model: ModelLike | None,
    text: TextLike,
    tokens: int,
    seed: int,
    device: str,
    data: DataLike | None = None,
) -> tuple[Sample | None, tuple[str, ...]]:
    """Codes on a sample of a text or of an array, and what a report must say of them; or none, and why.

    Args:
        given: The dictionaries, at one site.
        model: The model, or None for the one that they name, which may be out of reach.
        text: Where tokens come from; its training split is used.
        tokens: How many, about; 0 for none, and no model is opened.
        seed: Of the sample.
        device: Where to run.
        data: Activations in place of model and text.

    Raises:
        DictlabError: The model or the data that were given do not fit, the text cannot be opened or is too short, codes
            are not finite, or `tokens` are fewer than two contexts.
    """
    if tokens == 0:
        check_used(data, tokens)
        return None, ()
    loaded = [dictionary.to(dtype=torch.float32) for dictionary in given]
    if data is not None:
        return _of_array(loaded, model, data, tokens, seed, device)
    reached = within_reach(model, loaded, device)
    if isinstance(reached, DictlabError):
        said = "Only directions are compared: no activations, no firing sets, no spaces of codes."
        return None, (
            f"{said} {reached} Give the model with `model=...`, activations with `data=...`, or `tokens=0` "
            f"to do without.",
        )
    opened, placed = reached
    source = open_text(text).as_split("train")
    length = context_of(given, opened, source)
    check_at_least(2 * length, tokens=tokens)
    sequences = source.sample(opened.tokenizer, length, tokens // length, seed=seed)
    selection = recorded_selection(given)
    about = {"model": opened.name, "text": source.name, "context": length, "token_selection": str(selection)}
    return _encoded(placed, _captured(placed, opened, sequences, selection), about), ()


def _of_array(
    given: Sequence[Dictionary], model: ModelLike | None, data: DataLike, tokens: int, seed: int, device: str
) -> tuple[Sample, tuple[str, ...]]:
    reading = open_activations(given, model=model, data=data, device=device)
    source = reading.part("train")
    check_at_least(2 * source.context, tokens=tokens)
    batches = ([x] * len(given) for x in source.sample(tokens, seed=seed))
    sample = _encoded(reading.dictionaries, batches, source.record())
    if sample.n_sequences < 2:
        raise DictlabError(
            f"data {source.name}: 1 of its {source.unit} is no sample to compare on; expected 2 or more."
        )
    return sample, reading.cautions


def _captured(
    dictionaries: Sequence[Dictionary],
    model: LanguageModel,
    sequences: Int[Tensor, "sequences context"],
    selection: TokenSelection,
) -> Iterator[list[Float[Tensor, "batch positions d_in"]]]:
    """What each dictionary reads of some sequences at a time, of the tokens that count but for first ones."""
    selection = replace(selection, first=max(1, selection.first))
    sites = [site_of(dictionary) for dictionary in dictionaries]
    for tokens in track(sequences.split(forward_size(model.device, sequences.shape[1])), "codes", unit="batches"):
        captured = model.capture(tokens, list(dict.fromkeys(sites)))
        counted = selection.mask(captured.values(), tokens, model.tokenizer)
        parts = {site: rectangles(x.float(), counted) for site, x in captured.items()}
        for batch in zip(*parts.values(), strict=True):
            by_site = dict(zip(parts, batch, strict=True))
            yield [by_site[site] for site in sites]


@torch.no_grad()
def _encoded(
    dictionaries: Sequence[Dictionary],
    batches: Iterable[Sequence[Float[Tensor, "batch positions d_in"]]],
    about: dict[str, object],
) -> Sample:
    """The codes of each dictionary on what it reads."""
    parts: list[list[Matrix]] = [[] for _ in dictionaries]
    kept: list[NDArray[np.float32]] = []
    lengths: list[int] = []  # of the sequences
    for inputs in batches:
        for own, dictionary, x in zip(parts, dictionaries, inputs, strict=True):
            own.append(_matrix(dictionary, x))
        room = max(0, HELD - sum(map(len, kept)))
        kept.append(inputs[0].flatten(0, 1)[:room].cpu().numpy())
        lengths += [inputs[0].shape[1]] * len(inputs[0])
    codes = {d.name: sparse.vstack(own, format="csr") for d, own in zip(dictionaries, parts, strict=True)}
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    return Sample(codes, sequence, np.concatenate(kept), about | {"tokens": len(sequence)})


def _matrix(dictionary: Dictionary, x: Float[Tensor, "batch context d_in"]) -> Matrix:
    codes = dictionary.codes_in_input_units(dictionary.encode(x), x)
    if not bool(torch.isfinite(codes.values).all()):
        raise DictlabError(f"{dictionary.name}: its codes are not all finite on the sample; are its weights damaged?")
    return as_matrix(codes, dictionary.W_dec.norm(dim=1))


def as_matrix(codes: Codes, norm: Float[Tensor, " n_latents"]) -> Matrix:
    """Codes times the lengths of decoder directions as a sparse matrix, without entries that are 0."""
    values = (codes.values * norm[codes.indices]).cpu().numpy()
    entries = (values, codes.indices.int().cpu().numpy(), codes.offsets.int().cpu().numpy())
    matrix = sparse.csr_array(entries, shape=(codes.n_tokens, codes.n_latents))
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return matrix


def with_firing_rates(dictionaries: Sequence[Dictionary], sample: Sample | None) -> list[Dictionary]:
    """Dictionaries; those without firing rates in their files with the sample's, which say which latents are dead."""
    rates = {} if sample is None else sample.rates()
    return [
        replace(d, firing_rate=rates[d.name].float()) if d.firing_rate is None and d.name in rates else d
        for d in dictionaries
    ]


def firings(codes: Matrix) -> NDArray[np.int64]:
    """Tokens at which each latent is active."""
    return np.bincount(codes.indices, minlength=codes.shape[1])


def randomly_fired(
    x: Float[np.ndarray, "tokens d"], directions: Float[Tensor, "n d"], rates: Float[Tensor, " n"]
) -> Matrix:
    """Codes of random latents: max(0, x . u - threshold), each threshold such that it fires at its rate.

    Args:
        x: Activations.
        directions: Of the latents; taken at unit length.
        rates: Share of the tokens at which each is to fire; one token at least.
    """
    z = x @ torch.nn.functional.normalize(directions.float(), dim=1).numpy().T
    for column, rate in zip(z.T, rates.tolist(), strict=True):
        count = min(max(1, round(rate * len(x))), len(x) - 1)
        column -= np.partition(column, -count - 1)[-count - 1]
    return sparse.csr_array(np.maximum(z, 0))
