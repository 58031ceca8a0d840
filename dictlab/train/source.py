"""Where a run's activations come from: a model at one or more sites, an array, or another dictionary's decoder.

A source gives a sample to start from, a stream of batches that can be taken up again, and the measurement in the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dictlab import activations
from dictlab.arrays import ArrayActivations, ArrayLike, RowStream, open_array
from dictlab.cache import ActivationCache
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.formats.loading import load
from dictlab.lm import LanguageModel
from dictlab.packing import Contexts, Position
from dictlab.stream import BUFFER, Consecutive, Shuffled, Stream
from dictlab.text import Text
from dictlab.train import measure
from dictlab.train.config import TrainConfig
from dictlab.train.objectives import Batch, Splice

SAMPLE = 32_768  # activations that the scale and the initial bias are taken from
EVALUATION_CONTEXTS = 64
EVALUATION_ROWS = 1 << 15  # of an array, likewise
FIRING_TOKENS = 1 << 18  # training tokens on which firing rates are measured in the end
CHECKED = 4  # contexts of the stream that tell one text from another


class Source(Protocol):
    """What a run trains on.

    Attributes:
        config: The run's settings, with what the source decides filled in.
        splices: Where reconstructions go, by site; of sites where no member asks for it, None.
    """

    config: TrainConfig
    splices: Mapping[str, Splice | None]

    def samples(self) -> Mapping[str, Tensor]:
        """Activations to start from, by site, `[n, d_in]`."""
        ...

    def stream(self, start: Mapping[str, Any] | None) -> Batches:
        """Batches from the beginning, or from a position."""
        ...

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        ...

    def described(self) -> dict[str, Any]:
        """Fields of a dictionary's metadata; `training` holds settings."""
        ...

    def measured(self, dictionaries: Sequence[Dictionary]) -> list[Dictionary]:
        """The dictionaries with firing rates and metrics."""
        ...


class Batches:
    """A stream's batches as training wants them, by site."""

    def __init__(self, stream: Stream, batch_of: Any) -> None:
        self._stream, self._batch_of = stream, batch_of

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        """One batch after the other."""
        for entry in self._stream:
            yield self._batch_of(entry)

    def position(self) -> dict[str, Any]:
        """Where the stream is."""
        return self._stream.position()


class ModelSource:
    """Activations of a language model."""

    def __init__(self, config: TrainConfig, model: LanguageModel | None, text: Text | None) -> None:
        assert config.model is not None
        self.model = model or LanguageModel.load(config.model, device=config.device)
        self.text = text or Text.open(config.text)
        self.context = self.model.context_length(config.context)
        self.config = replace(config, model=self.model.name, text=self.text.name, context=self.context)
        for site in config.sites:
            self.model.locate(site)  # is it there?
        self.splices: Mapping[str, Splice | None] = _splices(self.config, self.model, self.context)
        self._spliced = any(self.splices.values())
        if self._spliced and config.cache:
            raise DictlabError("cache: spliced objectives need the model's whole forward; cache local training alone.")
        next(self.text.as_split("heldout").contexts(self.model.tokenizer, self.context))  # is there enough?

    def samples(self) -> dict[str, Tensor]:
        """Activations to start from, by site."""
        tokens = min(SAMPLE, max(self.config.tokens, 4 * self.context))
        drawn = activations.samples(self.model, self.text, self.config.sites, context=self.context, tokens=tokens)
        parts = [{site: x.flatten(0, 1).float() for site, x in batch.items()} for batch in drawn]
        return {site: torch.cat([part[site] for part in parts]) for site in self.config.sites}

    def stream(self, start: Mapping[str, Any] | None) -> Batches:
        """Shuffled activations; or, where reconstructions are spliced in, whole contexts with their clean forward."""
        config = self.config
        if self._spliced:
            size = config.batch // self.context
            return Batches(Consecutive(self._contexts, size=size, start=start), self._clean)
        capture = self._cache().capture if config.cache else lambda t: self.model.capture(t, config.sites)
        shuffled = Shuffled(
            capture,
            self._contexts,
            context=self.context,
            batch=config.batch,
            buffer=min(BUFFER, config.tokens),
            seed=config.seed[0],
            start=start,
        )
        return Batches(shuffled, lambda vectors: {site: Batch(x.float()) for site, x in vectors.items()})

    def identity(self) -> dict[str, Any]:
        """The model's weights, and the beginning of the text in the order of the run."""
        contexts = self._contexts(None)
        digest = hashlib.sha256()
        for _, tokens in zip(range(CHECKED), contexts, strict=False):
            digest.update(tokens.numpy().tobytes())
        return {"model": self.model.fingerprint, "text": digest.hexdigest()[:16]}

    def described(self) -> dict[str, Any]:
        """Model and context."""
        return {
            "model": self.model.name,
            "model_fingerprint": self.model.fingerprint,
            "convention": "huggingface",
            "training": {"text": self.text.name, "context": self.context},
        }

    def measured(self, dictionaries: Sequence[Dictionary]) -> list[Dictionary]:
        """Firing rates on training text, metrics on held-out text."""
        tokens = max(self.context, min(FIRING_TOKENS, self.config.tokens))
        return measure.measure(
            dictionaries, self.model, self.text, context=self.context, tokens=tokens, contexts=EVALUATION_CONTEXTS
        )

    def _contexts(self, start: Position | None) -> Contexts:
        return self.text.contexts(
            self.model.tokenizer,
            self.context,
            seed=self.config.seed[0],
            repeat=True if self.config.epochs is None else self.config.epochs,
            start=start,
        )

    def _cache(self) -> ActivationCache:
        config = self.config
        assert config.cache is not None
        return ActivationCache(config.cache, self.model, config.sites, context=self.context, gigabytes=config.cache_gb)

    def _clean(self, tokens: Tensor) -> dict[str, Batch]:
        sites = [site for splice in self.splices.values() if splice is not None for site in splice.sites]
        clean = self.model.capture(tokens, list(dict.fromkeys(sites)))
        return {site: Batch(clean[site].float(), clean) for site in self.config.sites}


class ArraySource:
    """Activations in an array, or the decoder of another dictionary."""

    def __init__(self, config: TrainConfig, data: ArrayLike | ArrayActivations | None) -> None:
        self._base = load(config.on[1]) if config.on and data is None else None
        if self._base is not None:
            data = decoder_rows(self._base)
        opened = open_array(data if data is not None else str(config.data), config.data)
        self.data = replace(opened, device=config.device)
        self.train, self.heldout = self.data.as_split("train"), self.data.as_split("heldout")
        self.splices: Mapping[str, Splice | None] = {"": None}
        tokens = config.tokens if config.epochs is None else config.epochs * self.train.n_rows
        self.config = replace(config, tokens=tokens, epochs=None)

    def samples(self) -> dict[str, Tensor]:
        """Rows to start from."""
        return {"": torch.cat([x.flatten(0, 1) for x in self.train.sample(SAMPLE)])}

    def stream(self, start: Mapping[str, Any] | None) -> Batches:
        """Rows in random order."""
        rows = RowStream(self.train, batch=self.config.batch, seed=self.config.seed[0], start=start)
        return Batches(rows, lambda x: {"": Batch(x)})

    def identity(self) -> dict[str, Any]:
        """The array's content."""
        return {"data": self.data.fingerprint}

    def described(self) -> dict[str, Any]:
        """The array, and the dictionary that it was made from."""
        training = self.data.record() | {"rows": self.train.n_rows}
        if self.config.on is None:
            return {"training": training}
        return {"training": training | {"on": list(self.config.on)}, "sources": (Path(self.config.on[1]).stem,)}

    def measured(self, dictionaries: Sequence[Dictionary]) -> list[Dictionary]:
        """Firing rates on rows of the training split, metrics on rows of the held-out one."""
        return measure.measure_on(
            dictionaries, self.train, self.heldout, firing_tokens=FIRING_TOKENS, tokens=EVALUATION_ROWS
        )


def open_source(
    config: TrainConfig,
    *,
    model: LanguageModel | None = None,
    text: Text | None = None,
    data: ArrayLike | ArrayActivations | None = None,
) -> Source:
    """What a configuration names, or what is open already.

    Raises:
        DictlabError: Something of it is not there, or does not fit the rest.
    """
    if config.model is not None:
        if data is not None:
            raise DictlabError(f"train: model {config.model} and plain activations; give one of the two.")
        return ModelSource(config, model, text)
    if model is not None or text is not None:
        raise DictlabError("train: a model or text, and plain activations; give one of the two.")
    return ArraySource(config, data)


def decoder_rows(dictionary: Dictionary) -> ArrayActivations:
    """Unit-norm decoder rows of the alive latents of a dictionary, as activations (Leask et al. 2025, section 5).

    Raises:
        DictlabError: No latent is alive.
    """
    rows = dictionary.directions[dictionary.alive].float().cpu()
    if not len(rows):
        raise DictlabError(f"{dictionary.name}: no latent is alive; there are no decoder rows to train on.")
    return open_array(rows, f"decoder of {dictionary.name}", whole=True)


def _splices(config: TrainConfig, model: LanguageModel, context: int) -> dict[str, Splice | None]:
    """By site, where to splice, if a member there asks for it."""
    return {site: _splice(config, model, site, context) for site in config.sites}


def _splice(config: TrainConfig, model: LanguageModel, site: str, context: int) -> Splice | None:
    objectives = [config.weights(member) for member in config.members()]
    if not any(objective.needs_model for objective in objectives):
        return None
    if config.batch % context:
        raise DictlabError(f"batch is {config.batch}; spliced training takes whole contexts: a multiple of {context}.")
    later = model.later_sites(site) if any(objective.downstream for objective in objectives) else []
    if any(objective.downstream for objective in objectives) and not later:
        raise DictlabError(f"site {site}: e2e+ds compares later blocks' inputs, and no block comes after it.")
    return Splice(model, site, model.start_of(site), later)
