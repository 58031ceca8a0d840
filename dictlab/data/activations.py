"""The activations of a model at a site: a shuffled stream of them, and what they are like on average."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictlab.data.hf_datasets import Split
from dictlab.data.shuffle_buffer import BUFFER_TOKENS, ShuffledStream
from dictlab.data.shuffle_buffer import FORWARD_TOKENS as FORWARD_TOKENS  # also for those who capture by themselves
from dictlab.data.text import Text
from dictlab.errors import check_at_least
from dictlab.model.language_model import LanguageModel
from dictlab.token_selection import ALL, TokenSelection, rectangles

# On a CPU larger forwards are no faster, take more memory, and leave the line of progress where it is for seconds.
CPU_FORWARD_TOKENS = 2048


def forward_size(device: torch.device | str, context: int) -> int:
    """Contexts given to the model at once."""
    on_cpu = torch.device(device).type == "cpu"
    return max(1, (CPU_FORWARD_TOKENS if on_cpu else FORWARD_TOKENS) // context)


def shuffled_activations(
    model: LanguageModel,
    text: Text,
    site: str,
    *,
    context: int,
    batch: int,
    buffer: int = BUFFER_TOKENS,
    seed: int = 0,
    repeat: bool | int = True,
    selection: TokenSelection = ALL,
) -> Iterator[Float[Tensor, "batch d_in"]]:
    """Activation vectors of one site in random order (`ShuffledStream` serves several, and can be resumed).

    Args:
        model: The language model.
        text: Where its tokens come from.
        site: Where in the model.
        context: Tokens a context.
        batch: Vectors a batch; at the end of the text, what does not fill one is dropped.
        buffer: Vectors held; memory is bounded by three times `buffer * d_in` numbers, and one forward.
        seed: Decides the order of documents and vectors.
        repeat: Go round the text for ever, or so many times, in another order each time.
        selection: Which tokens count.
    """
    stream = ShuffledStream(
        select_tokens(model, selection, lambda tokens: model.capture(tokens, site)),
        lambda start: text.contexts(model.tokenizer, context, seed=seed, repeat=repeat, start=start),
        context=context,
        batch=batch,
        buffer=buffer,
        seed=seed,
    )
    for vectors in stream:
        yield vectors[site]


Capture: TypeAlias = Callable[[Int[Tensor, "batch context"]], Mapping[str, Float[Tensor, "batch context d_in"]]]
SelectedCapture: TypeAlias = Callable[[Int[Tensor, "batch context"]], Mapping[str, Float[Tensor, "tokens d_in"]]]


def select_tokens(model: LanguageModel, selection: TokenSelection, capture: Capture) -> SelectedCapture:
    """From contexts to the activations, site by site, of those of their tokens that count: the same at every site."""

    def selected(tokens: Tensor) -> dict[str, Tensor]:
        captured = capture(tokens)
        counted = selection.mask(captured.values(), tokens, model.tokenizer)
        return {site: x[counted] for site, x in captured.items()}

    return selected


def in_forwards(model: LanguageModel, capture: SelectedCapture) -> SelectedCapture:
    """The same capture of a batch of contexts, by as many forwards as it takes."""

    def captured(tokens: Tensor) -> Mapping[str, Tensor]:
        parts = [capture(some) for some in tokens.split(forward_size(model.device, tokens.shape[1]))]
        return {site: torch.cat([part[site] for part in parts]) for site in parts[0]} if len(parts) > 1 else parts[0]

    return captured


def sample_site(
    model: LanguageModel,
    text: Text,
    site: str,
    *,
    context: int,
    tokens: int,
    seed: int = 0,
    selection: TokenSelection = ALL,
) -> Iterator[Float[Tensor, "sequences counted d_in"]]:
    """Activations of the tokens that count, in contexts drawn from all over a text: about `tokens` tokens in all."""
    check_at_least(context, tokens=tokens)
    contexts = text.sample(model.tokenizer, context, tokens // context, seed=seed)
    yield from capture_sequences(model, site, contexts, selection)


def sample_sites(
    model: LanguageModel,
    text: Text,
    sites: Sequence[str],
    *,
    context: int,
    tokens: int,
    seed: int = 0,
    selection: TokenSelection = ALL,
) -> Iterator[Mapping[str, Float[Tensor, "tokens d_in"]]]:
    """Activations at several sites, by site, of the tokens that count there; the model is run once for all."""
    check_at_least(context, tokens=tokens)
    contexts = text.sample(model.tokenizer, context, tokens // context, seed=seed)
    capture = select_tokens(model, selection, lambda batch: model.capture(batch, sites))
    yield from map(capture, contexts.split(forward_size(model.device, context)))


def capture_sequences(
    model: LanguageModel, site: str, sequences: Int[Tensor, "n context"], selection: TokenSelection = ALL
) -> Iterator[Float[Tensor, "sequences counted d_in"]]:
    """Activations of some sequences of tokens, a few sequences at a time.

    With a selection, of the tokens that count; sequences with equally many of them then stand together, so that the
    order of the sequences may change.
    """
    for batch in sequences.split(forward_size(model.device, sequences.shape[1])):
        x = model.capture(batch, site)[site]
        yield from rectangles(x, selection.mask([x], batch, model.tokenizer))


class Activations(Protocol):
    """Activations of one place, whatever they come from: a model at a site (`ModelActivations`), or an array.

    Attributes:
        name: What reports call the source.
        d_in: Width.
        context: Tokens of a sequence.
        split: Which part of the source: "train", "heldout"; or "all" of an array.
        unit: What intervals are resampled over.
        counted: What `context` and samples count: tokens, or rows of an array.
        selection: Which of them count.
    """

    counted: ClassVar[str]

    @property
    def name(self) -> str: ...

    @property
    def d_in(self) -> int: ...

    @property
    def context(self) -> int: ...

    @property
    def split(self) -> str: ...

    @property
    def unit(self) -> str: ...

    @property
    def selection(self) -> TokenSelection: ...

    def as_split(self, split: Split) -> Activations:
        """The part that training is on, or the part that it never sees."""
        ...

    def sample(self, tokens: int, *, seed: int = 0) -> Iterator[Float[Tensor, "batch context d_in"]]:
        """Activations of the tokens that count, sequence by sequence, of about `tokens` drawn from all over the source.

        Batches have sequences of one length each; without a selection, all of the same.
        """
        ...

    def record(self) -> dict[str, Any]:
        """What a report's settings say of it."""
        ...


@dataclass(frozen=True)
class ModelActivations:
    """The activations of a model at one site.

    Attributes:
        model: The language model.
        text: Where its tokens come from.
        site: Where in the model.
        context: Tokens a sequence.
        selection: Which of them count.
    """

    model: LanguageModel
    text: Text
    site: str
    context: int
    selection: TokenSelection = ALL
    counted: ClassVar[str] = "tokens"
    _drawn: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.text.name

    @property
    def d_in(self) -> int:
        tokens = next(self.text.contexts(self.model.tokenizer, self.context))
        return int(self.model.capture(tokens[None], self.site)[self.site].shape[-1])

    @property
    def split(self) -> str:
        return self.text.split

    @property
    def unit(self) -> str:
        return "sequences"

    def as_split(self, split: Split) -> ModelActivations:
        return replace(self, text=self.text.as_split(split), _drawn={})  # what was drawn is of the other split

    def sample(self, tokens: int, *, seed: int = 0) -> Iterator[Float[Tensor, "batch context d_in"]]:
        yield from capture_sequences(self.model, self.site, self.sequences(tokens, seed), self.selection)

    def sequences(self, tokens: int, seed: int = 0) -> Int[Tensor, "n context"]:
        """The contexts that `sample` gives the activations of; they are drawn once."""
        check_at_least(self.context, tokens=tokens)
        if (tokens, seed) not in self._drawn:
            count = tokens // self.context
            self._drawn[tokens, seed] = self.text.sample(self.model.tokenizer, self.context, count, seed=seed)
        return self._drawn[tokens, seed]

    def record(self) -> dict[str, Any]:
        about = {"text": self.text.name, "model": self.model.name, "context": self.context}
        return about | {"token_selection": str(self.selection)}


def unit_of(activations: Activations) -> str:
    """What its sequences are called; held-out ones are named so."""
    return f"held-out {activations.unit}" if activations.split == "heldout" else activations.unit


@dataclass(frozen=True)
class Moments:
    """Moments of activations.

    Attributes:
        n: Tokens seen.
        mean: E[x].
        variance: E |x - E[x]|^2, summed over coordinates.
        covariance: E[(x - E[x]) (x - E[x])^T], where it was asked for.
    """

    n: int
    mean: Float[Tensor, " d_in"]
    variance: float
    covariance: Float[Tensor, "d_in d_in"] | None


def moments(batches: Iterable[Float[Tensor, "*tokens d_in"]], *, covariance: bool = False) -> Moments:
    """Mean, total variance and, on demand, covariance, in one pass in float64.

    Sums are taken about the mean of the first batch, so that a large mean costs no precision.

    Raises:
        ValueError: There was not a single token.
    """
    n, about = 0, None
    for batch in batches:
        x = batch.reshape(-1, batch.shape[-1]).double()
        if not len(x):
            continue
        if about is None:
            about = x.mean(dim=0)
            first = torch.zeros_like(about)
            second = about.new_zeros(len(about), len(about)) if covariance else torch.zeros_like(about)
        x = x - about
        n += len(x)
        first += x.sum(dim=0)
        second += x.T @ x if covariance else x.square().sum(dim=0)
    if about is None or n == 0:
        raise ValueError("statistics of no activations at all")
    shift = first / n
    if covariance:
        matrix = second / n - torch.outer(shift, shift)
        return Moments(n, (about + shift).float(), float(matrix.trace()), matrix.float())
    return Moments(n, (about + shift).float(), float((second / n - shift.square()).sum()), None)
