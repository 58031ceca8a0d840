"""Where a run's activations come from: a model at one or more sites, an array, or another dictionary's decoder.

A source gives a sample to start from, a stream of batches that can be taken up again, and the measurement in the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dictlab import activations
from dictlab.arrays import ArrayActivations, ArrayLike, RowStream, open_array
from dictlab.cache import ActivationCache
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.evaluate import site_of
from dictlab.formats.loading import load
from dictlab.lm import LanguageModel
from dictlab.packing import Contexts, Position
from dictlab.stream import BUFFER, Consecutive, Shuffled, Stream
from dictlab.text import Text
from dictlab.train import measure
from dictlab.train.config import Member, TrainConfig
from dictlab.train.costs import counted
from dictlab.train.objectives import Batch, Objective, Splice
from dictlab.train.ranks import ALONE, Ranks
from dictlab.train.start import going_on_from, opened

SAMPLE = 32_768  # activations that the scale and the initial bias are taken from
EVALUATION_CONTEXTS = 64
EVALUATION_ROWS = 1 << 15  # of an array, likewise
FIRING_TOKENS = 1 << 18  # training tokens on which firing rates are measured in the end
FINETUNE_SEED = 1 << 20  # added to the seed of the data's order: other documents come first
CHECKED = 4  # contexts of the stream that tell one text from another


class Source(Protocol):
    """What a run trains on.

    Attributes:
        config: The run's settings, with what the source decides filled in.
        members: What is trained.
    """

    config: TrainConfig
    members: Sequence[Member]

    def samples(self) -> Mapping[str, Tensor]:
        """Activations to start from, by site, `[n, d_in]`."""
        ...

    def batches(self, start: Mapping[str, Any] | None) -> Batches:
        """Batches from the beginning, or from a position."""
        ...

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        ...

    def described(self) -> dict[str, Any]:
        """Fields of a dictionary's metadata; `training` holds settings."""
        ...

    def measured(self, dictionaries: Sequence[Dictionary]) -> list[Dictionary]:
        """The dictionaries with firing rates, metrics and the operations of their training."""
        ...


class Part(NamedTuple):
    """Some steps in a row that are for the same objectives.

    Attributes:
        steps: How many.
        stream: From a position to what gives its batches.
        batch_of: From what the stream gives to a batch a site.
        splices: Where reconstructions go, by site; None where no objective asks for it.
    """

    steps: int
    stream: Callable[[Mapping[str, Any] | None], Stream]
    batch_of: Callable[[Any], dict[str, Batch]]
    splices: Mapping[str, Splice | None]


class Batches:
    """The batches of a run's parts, one part after the other.

    Args:
        parts: The parts.
        start: `position()` of an earlier one.
        ranks: The processes that share each batch.
    """

    def __init__(self, parts: Sequence[Part], start: Mapping[str, Any] | None, ranks: Ranks = ALONE) -> None:
        self._parts, self._ranks = parts, ranks
        at: Mapping[str, Any] = start or {"part": 0, "taken": 0, "stream": None}
        self._part: int = at["part"]
        self._taken: int = at["taken"]
        self._stream = parts[self._part].stream(at["stream"])

    def position(self) -> dict[str, Any]:
        """Which part, how many of its steps were taken, and where its stream is."""
        return {"part": self._part, "taken": self._taken, "stream": self._stream.position()}

    def __iter__(self) -> Iterator[tuple[dict[str, Batch], Mapping[str, Splice | None]]]:
        """A batch for each site, and where reconstructions go. Ends early where a stream does."""
        while True:
            part = self._parts[self._part]
            for entry in islice(self._stream, part.steps - self._taken):
                self._taken += 1
                yield part.batch_of(self._ranks.share(entry)), part.splices
            if self._taken < part.steps or self._part + 1 == len(self._parts):
                return
            self._part, self._taken = self._part + 1, 0
            self._stream = self._parts[self._part].stream(None)


class ModelSource:
    """Activations of a language model."""

    def __init__(
        self, config: TrainConfig, model: LanguageModel | None, text: Text | None, ranks: Ranks = ALONE
    ) -> None:
        assert config.model is not None
        self._ranks = ranks
        ranks.check(config.batch, "tokens")
        self.model = model or LanguageModel.load(config.model, device=config.device)
        self.text = text or Text.open(config.text)
        self.context = self.model.context_length(config.context)
        self.config = replace(config, model=self.model.name, text=self.text.name, context=self.context)
        for site in config.sites:
            self.model.locate(site)  # is it there?
        self.members: Sequence[Member] = list(self.config.members(opened(config.start, self.model, config.sites[0])))
        self._splices = [self._splices_for(goals) for goals in goals_of(self.config)]
        if config.cache and any(splice for splices in self._splices for splice in splices.values()):
            raise DictlabError("cache: spliced objectives need the model's whole forward; cache local training alone.")
        next(self.text.as_split("heldout").contexts(self.model.tokenizer, self.context))  # is there enough?

    def samples(self) -> dict[str, Tensor]:
        """Activations to start from, by site."""
        tokens = min(SAMPLE, max(self.config.tokens, 4 * self.context))
        drawn = activations.samples(self.model, self.text, self.config.sites, context=self.context, tokens=tokens)
        parts = [{site: x.flatten(0, 1).float() for site, x in batch.items()} for batch in drawn]
        return {site: torch.cat([part[site] for part in parts]) for site in self.config.sites}

    def batches(self, start: Mapping[str, Any] | None) -> Batches:
        """Shuffled activations; or, where reconstructions are spliced in, whole contexts with their clean forward."""
        config = self.config
        steps = [config.steps - config.finetune_steps, config.finetune_steps]
        parts = [self._part(*entry) for entry in enumerate(zip(steps, self._splices, strict=False))]
        return Batches(parts, start, self._ranks)

    def identity(self) -> dict[str, Any]:
        """The model's weights, and the beginning of the text in the order of the run."""
        contexts = self._contexts(self.config.seed[0], None)
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
        found = measure.measure(
            dictionaries, self.model, self.text, context=self.context, tokens=tokens, contexts=EVALUATION_CONTEXTS
        )
        return [counted(d, self.config, self._behind(site_of(d))) for d in found]

    def _behind(self, site: str) -> int:
        """Parameters that a spliced objective goes through; of others the site may lie anywhere."""
        spliced = any(goal.needs_model for goals in goals_of(self.config) for goal in goals)
        return self.model.parameters_behind(site) if spliced else 0

    def _part(self, number: int, what: tuple[int, dict[str, Splice | None]]) -> Part:
        """Other documents come first in the second part."""
        (steps, splices), config = what, self.config
        seed = config.seed[0] + number * FINETUNE_SEED
        contexts = partial(self._contexts, seed)
        if any(splices.values()):
            size = config.batch // self.context
            return Part(steps, lambda at: Consecutive(contexts, size=size, start=at), partial(_clean, splices), splices)
        shuffled = partial(
            Shuffled,
            self._ranks.captured(self._capture),
            contexts,
            context=self.context,
            batch=config.batch,
            buffer=min(BUFFER, config.tokens),
            seed=seed,
        )
        return Part(steps, lambda at: shuffled(start=at), _plain, splices)

    def _contexts(self, seed: int, start: Position | None) -> Contexts:
        repeat = True if self.config.epochs is None else self.config.epochs
        return self.text.contexts(self.model.tokenizer, self.context, seed=seed, repeat=repeat, start=start)

    @cached_property
    def _capture(self) -> Callable[[Tensor], Mapping[str, Tensor]]:
        config = self.config
        if config.cache is None:
            return lambda tokens: self.model.capture(tokens, config.sites)
        folder, gigabytes, processes = config.cache, config.cache_gb, self._ranks.count * self._ranks.shards
        made = partial(ActivationCache, folder, self.model, config.sites, context=self.context, gigabytes=gigabytes)
        self._ranks.agreed(lambda: bool(made()))  # its folders are there before several look for them
        return made(writers=processes).capture

    def _splices_for(self, goals: Sequence[Objective]) -> dict[str, Splice | None]:
        """By site, where to splice, if an objective asks for it."""
        if not any(goal.needs_model for goal in goals):
            return dict.fromkeys(self.config.sites)
        if self.config.batch % self.context:
            raise DictlabError(
                f"batch is {self.config.batch}; spliced training takes whole contexts: a multiple of {self.context}."
            )
        self._ranks.check(self.config.batch // self.context, "contexts")
        downstream = any(goal.downstream for goal in goals)
        return {
            site: Splice(self.model, site, self.model.start_of(site), self._later(site) if downstream else [])
            for site in self.config.sites
        }

    def _later(self, site: str) -> list[str]:
        """The sites after, where the error is looked at once more."""
        place = self.model.locate(site)
        for other in self.config.later:
            if self.model.locate(other) == place or not self.model.follows(other, place):
                raise DictlabError(f"later: {other} does not come after {site}.")
        later = list(self.config.later) or self.model.later_sites(site)
        if not later:
            raise DictlabError(
                f"site {site}: the downstream error is that of later blocks' inputs, and no block comes after it."
            )
        return later


def goals_of(config: TrainConfig) -> list[list[Objective]]:
    """What is trained for at first, and while fine-tuning."""
    last = [[config.weights(config.finetune)]] if config.finetune else []
    return [[config.weights(name) for name in config.objective], *last]


def _plain(vectors: Mapping[str, Tensor]) -> dict[str, Batch]:
    return {site: Batch(x.float()) for site, x in vectors.items()}


def _clean(splices: Mapping[str, Splice | None], tokens: Tensor) -> dict[str, Batch]:
    """One clean forward for all sites."""
    given = [splice for splice in splices.values() if splice is not None]
    clean = given[0].model.capture(tokens, list(dict.fromkeys(site for splice in given for site in splice.sites)))
    return {site: Batch(clean[site].float(), clean, tokens) for site in splices}


class ArraySource:
    """Activations in an array, or the decoder of another dictionary."""

    def __init__(self, config: TrainConfig, data: ArrayLike | ArrayActivations | None, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks
        ranks.check(config.batch, "rows")
        self._base = load(config.on[1]) if config.on and data is None else None
        if self._base is not None:
            data = decoder_rows(self._base)
        opened = open_array(data if data is not None else str(config.data), config.data)
        self.data = replace(opened, device=config.device)
        self.train, self.heldout = self.data.as_split("train"), self.data.as_split("heldout")
        tokens = config.tokens if config.epochs is None else config.epochs * self.train.n_rows
        self.config = replace(config, tokens=tokens, epochs=None)
        starts = going_on_from(config.start, self.data.name, self.data.d_in)
        self.members: Sequence[Member] = list(self.config.members(starts))

    def samples(self) -> dict[str, Tensor]:
        """Rows to start from."""
        return {"": torch.cat([x.flatten(0, 1) for x in self.train.sample(SAMPLE)])}

    def batches(self, start: Mapping[str, Any] | None) -> Batches:
        """Rows in random order."""
        config = self.config
        steps = [config.steps - config.finetune_steps, config.finetune_steps][: len(goals_of(config))]
        seeds = [config.seed[0] + number * FINETUNE_SEED for number in range(len(steps))]
        streams = [partial(RowStream, self.train, batch=config.batch, seed=seed) for seed in seeds]
        return Batches(
            [
                Part(count, lambda at, stream=stream: stream(start=at), lambda x: {"": Batch(x)}, {"": None})  # type: ignore[misc]
                for count, stream in zip(steps, streams, strict=True)
            ],
            start,
            self._ranks,
        )

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
        found = measure.measure_on(
            dictionaries, self.train, self.heldout, firing_tokens=FIRING_TOKENS, tokens=EVALUATION_ROWS
        )
        return [counted(d, self.config, 0) for d in found]


def open_source(
    config: TrainConfig,
    *,
    model: LanguageModel | None = None,
    text: Text | None = None,
    data: ArrayLike | ArrayActivations | None = None,
    ranks: Ranks = ALONE,
) -> Source:
    """What a configuration names, or what is open already.

    Raises:
        DictlabError: Something of it is not there, or does not fit the rest.
    """
    if config.model is not None:
        if data is not None:
            raise DictlabError(f"train: model {config.model} and plain activations; give one of the two.")
        return ModelSource(config, model, text, ranks)
    if model is not None or text is not None:
        raise DictlabError("train: a model or text, and plain activations; give one of the two.")
    return ArraySource(config, data, ranks)


def decoder_rows(dictionary: Dictionary) -> ArrayActivations:
    """Unit-norm decoder rows of the alive latents of a dictionary, as activations (Leask et al. 2025, section 5).

    Raises:
        DictlabError: No latent is alive.
    """
    rows = dictionary.directions[dictionary.alive].float().cpu()
    if not len(rows):
        raise DictlabError(f"{dictionary.name}: no latent is alive; there are no decoder rows to train on.")
    return open_array(rows, f"decoder of {dictionary.name}", whole=True)
