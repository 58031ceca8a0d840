"""Activations of a language model as what is trained on, with the model itself where reconstructions are spliced in."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from dictlab.data import activations
from dictlab.data.activation_cache import ActivationCache
from dictlab.data.attention_sinks import find_sinks, sinks_warning
from dictlab.data.packing import Contexts, Position
from dictlab.data.shuffle_buffer import BUFFER_TOKENS, ContextStream, ShuffledStream
from dictlab.data.text import Text
from dictlab.data.token_selection import ALL, AUTO, NORM_MULTIPLE, TokenSelection
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.evaluation.evaluate import site_of
from dictlab.evaluation.recorded_selection import KEY
from dictlab.model.language_model import LanguageModel
from dictlab.training import measure
from dictlab.training.config import TrainConfig
from dictlab.training.costs import counted
from dictlab.training.distributed.ranks import SINGLE_PROCESS, Ranks
from dictlab.training.learner.warm_start import load_for_model
from dictlab.training.member import Member
from dictlab.training.objectives import Batch, Objective, Splice
from dictlab.training.sources import base
from dictlab.training.sources.base import FINETUNE_SEED, SAMPLE, goals_of
from dictlab.training.sources.batches import Batches, Part

EVALUATION_CONTEXTS = 64
CHECKED = 4  # contexts of the stream that tell one text from another


class ModelSource:
    """Activations of a language model."""

    def __init__(
        self, config: TrainConfig, model: LanguageModel | None, text: Text | None, ranks: Ranks = SINGLE_PROCESS
    ) -> None:
        assert config.model is not None
        self._ranks = ranks
        ranks.check_divisible(config.batch, "tokens")
        self.model = model or LanguageModel.load(config.model, device=config.device)
        self.text = text or Text.open(config.text)
        self.context = self.model.context_length(config.context)
        self.config = replace(config, model=self.model.name, text=self.text.name, context=self.context)
        for site in config.sites:
            self.model.locate(site)  # is it there?
        self.selection = self._selected()
        self.config = replace(self.config, token_selection=str(self.selection))
        self.members: Sequence[Member] = list(
            self.config.members(load_for_model(config.start, self.model, config.sites[0]))
        )
        self._splices = [self._splices_for(goals) for goals in goals_of(self.config)]
        if config.cache and any(splice for splices in self._splices for splice in splices.values()):
            raise DictlabError("cache: spliced objectives need the model's whole forward; cache local training alone.")
        next(self.text.as_split("heldout").contexts(self.model.tokenizer, self.context))  # is there enough?

    def samples(self) -> dict[str, Tensor]:
        """Activations to start from, by site."""
        tokens = min(SAMPLE, max(self.config.tokens, 4 * self.context))
        drawn = activations.sample_sites(
            self.model,
            self.text,
            self.config.sites,
            context=self.context,
            tokens=tokens,
            selection=self.selection,
        )
        parts = [{site: x.float() for site, x in batch.items()} for batch in drawn]
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
            "training": {"text": self.text.name, "context": self.context, KEY: str(self.selection)},
        }

    def measured(self, dictionaries: Sequence[Dictionary]) -> list[Dictionary]:
        """Firing rates on training text, metrics on held-out text."""
        tokens = max(self.context, min(base.FIRING_TOKENS, self.config.tokens))
        found = measure.measure(
            dictionaries, self.model, self.text, context=self.context, tokens=tokens, contexts=EVALUATION_CONTEXTS
        )
        return [counted(d, self.config, self._behind(site_of(d))) for d in found]

    def _behind(self, site: str) -> int:
        """Parameters that a spliced objective goes through; of others the site may lie anywhere."""
        spliced = any(goal.needs_model for goals in goals_of(self.config) for goal in goals)
        return self.model.parameters_after(site) if spliced else 0

    def _part(self, number: int, what: tuple[int, dict[str, Splice | None]]) -> Part:
        """Other documents come first in the second part."""
        (steps, splices), config = what, self.config
        seed = config.seed[0] + number * FINETUNE_SEED
        contexts = partial(self._contexts, seed)
        if any(splices.values()):
            size = config.batch // self.context
            in_order = partial(ContextStream, contexts, size=size)
            return Part(steps, lambda at: in_order(start=at), partial(_clean, splices, self.selection), splices)
        shuffled = partial(
            ShuffledStream,
            activations.select_tokens(self.model, self.selection, self._ranks.share_capture(self._capture)),
            contexts,
            context=self.context,
            batch=config.batch,
            buffer=min(BUFFER_TOKENS, config.tokens),
            seed=seed,
        )
        return Part(steps, lambda at: shuffled(start=at), _plain, splices)

    def _contexts(self, seed: int, start: Position | None) -> Contexts:
        repeat = True if self.config.epochs is None else self.config.epochs
        return self.text.contexts(self.model.tokenizer, self.context, seed=seed, repeat=repeat, start=start)

    def _selected(self) -> TokenSelection:
        """Which tokens count. By default all, or, where the model has attention sinks, all but these: see a few."""
        asked, sites = self.config.token_selection, self.config.sites
        selection = ALL if asked == AUTO else TokenSelection.parse(asked)
        sinks = find_sinks(self.model, self.text, sites, context=self.context, selection=selection)
        said: tuple[str, ...] = ()
        if asked == AUTO and sinks is not None:
            selection = TokenSelection(norm_multiple=NORM_MULTIPLE)
            said = (
                f"attention sinks at position {', '.join(map(str, sinks.positions))} of a context hold "
                f"{sinks.share:.1%} of the variance at {sinks.site}; training leaves them out (token selection "
                f"{selection}; --token-selection all counts them).",
            )
        else:
            said = sinks_warning(sinks, selection)
        for line in said:
            self._ranks.on_rank_zero(partial(print, f"dictlab: {line}", file=sys.stderr))
        return selection

    @cached_property
    def _capture(self) -> Callable[[Tensor], Mapping[str, Tensor]]:
        config = self.config
        if config.cache is None:
            return lambda tokens: self.model.capture(tokens, config.sites)
        folder, gigabytes, processes = config.cache, config.cache_gb, self._ranks.count * self._ranks.shards
        made = partial(ActivationCache, folder, self.model, config.sites, context=self.context, gigabytes=gigabytes)
        self._ranks.broadcast_from_rank_zero(lambda: bool(made()))  # its folders are there before several look for them
        return made(writers=processes).capture

    def _splices_for(self, goals: Sequence[Objective]) -> dict[str, Splice | None]:
        """By site, where to splice, if an objective asks for it."""
        if not any(goal.needs_model for goal in goals):
            return dict.fromkeys(self.config.sites)
        if self.config.batch % self.context:
            raise DictlabError(
                f"batch is {self.config.batch}; spliced training takes whole contexts: a multiple of {self.context}."
            )
        self._ranks.check_divisible(self.config.batch // self.context, "contexts")
        downstream = any(goal.downstream for goal in goals)
        return {
            site: Splice(self.model, site, self.model.block_input(site), self._later(site) if downstream else [])
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


def _plain(vectors: Mapping[str, Tensor]) -> dict[str, Batch]:
    return {site: Batch(x.float()) for site, x in vectors.items()}


def _clean(splices: Mapping[str, Splice | None], selection: TokenSelection, tokens: Tensor) -> dict[str, Batch]:
    """One clean forward for all sites, and which of its tokens count: the same at every site."""
    given = [splice for splice in splices.values() if splice is not None]
    model = given[0].model
    clean = model.capture(tokens, list(dict.fromkeys(site for splice in given for site in splice.sites)))
    counted = selection.mask([clean[site] for site in splices], tokens, model.tokenizer)
    if bool(counted.all()):
        return {site: Batch(clean[site].float(), clean, tokens) for site in splices}
    return {site: Batch(clean[site][counted].float(), clean, tokens, counted) for site in splices}
