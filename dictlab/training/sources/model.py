"""Activations of a language model as what is trained on, with the model itself where reconstructions are spliced in."""

from __future__ import annotations

import hashlib
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
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.evaluation.evaluate import evaluate
from dictlab.evaluation.sites import site_of
from dictlab.model.language_model import LanguageModel
from dictlab.model.model_options import ModelOptions
from dictlab.runtime import progress
from dictlab.runtime.cost_estimate import CostEstimate
from dictlab.runtime.progress import Phase
from dictlab.token_selection import ALL, AUTO, NORM_MULTIPLE, RECORD, TokenSelection
from dictlab.training.config import TrainConfig
from dictlab.training.costs import counted
from dictlab.training.distributed.ranks import SINGLE_PROCESS, Ranks
from dictlab.training.learner.warm_start import load_for_model
from dictlab.training.measure import with_metrics
from dictlab.training.member import Member
from dictlab.training.objectives import Batch, Objective, Splice
from dictlab.training.sources.base import FINETUNE_SEED, SAMPLE, goals_of
from dictlab.training.sources.batches import Batches, Part
from dictlab.training.sources.capture_progress import CaptureProgress
from dictlab.training.sources.training_cost import training_cost

EVALUATION_CONTEXTS, FEWEST_CONTEXTS = 64, 4
CHECKED = 4  # contexts of the stream that tell one text from another


class ModelSource:
    """Activations of a language model."""

    def __init__(
        self, config: TrainConfig, model: LanguageModel | None, text: Text | None, ranks: Ranks = SINGLE_PROCESS
    ) -> None:
        assert config.model is not None
        self._ranks, self._capture_progress = ranks, CaptureProgress()
        ranks.check_divisible(config.batch, "tokens")
        shown = ranks.is_rank_zero
        if model is None:
            with Phase(f"load {config.model}", shown=shown):
                options = ModelOptions(
                    config.model,
                    config.model_dtype,
                    config.model_revision,
                    config.trust_remote_code,
                    config.allow_other_weights,
                )
                model = LanguageModel.load(options, device=config.device)
        self.model = model
        with Phase(f"open text {config.text}", shown=shown and text is None):
            self.text = text or Text.open(config.text)
        self.context = self.model.context_length(config.context)
        self.config = replace(config, model=self.model.name, text=self.text.name, context=self.context)
        for site in config.sites:
            self.model.check_site(site)
        for note in self.text.notes(self.model.tokenizer):
            ranks.on_rank_zero(partial(progress.write, f"dictlab: text {self.text.name}: {note}\n"))
        self.selection = self._selected()
        self.config = replace(self.config, token_selection=str(self.selection))
        self.members: Sequence[Member] = list(
            self.config.members(load_for_model(config.start, self.model, config.sites[0]))
        )
        self._splices = [self._splices_for(goals) for goals in goals_of(self.config)]
        if config.cache and any(splice for splices in self._splices for splice in splices.values()):
            raise DictlabError("cache: spliced objectives need the model's whole forward; cache local training alone.")
        with Phase(f"read text {self.text.name}", shown=shown):
            next(self.text.as_split("heldout").contexts(self.model.tokenizer, self.context))  # is there enough?

    def cost(self) -> CostEstimate:
        """What the run is going to cost."""
        with Phase("estimate the cost", shown=self._ranks.is_rank_zero):
            return training_cost(
                self.config,
                self.members,
                self.model,
                context=self.context,
                sample=self.sample_tokens,
                evaluated=self.evaluation_contexts * self.context,
                passes=self.evaluation_passes,
                behind={site: self._behind(site) for site in self.config.sites},
            )

    def samples(self) -> dict[str, Tensor]:
        """Activations to start from, by site."""
        tokens = self.sample_tokens
        drawn = activations.sample_sites(
            self.model,
            self.text,
            self.config.sites,
            context=self.context,
            tokens=tokens,
            selection=self.selection,
        )
        parts = []
        with Phase("sample activations", tokens, unit="tokens", shown=self._ranks.is_rank_zero) as phase:
            for batch in drawn:
                parts.append({site: x.float() for site, x in batch.items()})
                phase.advance(len(parts[-1][self.config.sites[0]]))
        return {site: torch.cat([part[site] for part in parts]) for site in self.config.sites}

    @property
    def sample_tokens(self) -> int:
        """Size of the sample: 32,768, or an eighth of a shorter run, four contexts at least."""
        return min(SAMPLE, max(self.config.tokens // 8, 4 * self.context))

    @property
    def evaluation_passes(self) -> int:
        """How often the model is run, whole or from a site on, for each held-out token: for the mean activations, the
        clean forward, and with each dictionary, zeros and the mean put in."""
        return 2 + len(self.members) + 2 * len(self.config.sites)

    @property
    def evaluation_contexts(self) -> int:
        """Held-out contexts for metrics: 64, or of a shorter run as many as take a quarter of its forwards."""
        affordable = self.config.tokens // (4 * self.context * self.evaluation_passes)
        return min(EVALUATION_CONTEXTS, max(FEWEST_CONTEXTS, affordable))

    def batches(self, start: Mapping[str, Any] | None) -> Batches:
        """Shuffled activations; or, where reconstructions are spliced in, whole contexts with their clean forward."""
        config = self.config
        steps = [config.steps - config.finetune_steps, config.finetune_steps]
        parts = [self._part(*entry) for entry in enumerate(zip(steps, self._splices, strict=False))]
        return Batches(parts, start, self._ranks)

    def identity(self) -> dict[str, Any]:
        """The model's weights, and the first contexts of the text in the order of the run."""
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
            "training": {"text": self.text.name, "context": self.context, RECORD: str(self.selection)},
        }

    def with_metrics(self, dictionaries: Sequence[Dictionary]) -> list[Dictionary]:
        """Metrics on held-out text."""
        heldout, contexts = self.text.as_split("heldout"), self.evaluation_contexts
        evaluations = evaluate(dictionaries, self.model, heldout, contexts=contexts, context=self.context)
        return [
            counted(with_metrics(d, e), self.config, self._behind(site_of(d)))
            for d, e in zip(dictionaries, evaluations, strict=True)
        ]

    def show_progress(self, phase: Phase) -> None:
        """Show the model's forwards that fill the shuffle buffer."""
        if not any(any(splices.values()) for splices in self._splices):
            self._capture_progress.show_in(phase)

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
        capture = self._capture_progress.counting(
            activations.select_tokens(self.model, self.selection, self._ranks.share_capture(self._capture))
        )
        if config.cache is None and self._ranks.count * self._ranks.shards == 1:  # else a forward is shared, or kept
            capture = activations.in_forwards(self.model, capture)
        shuffled = partial(
            ShuffledStream,
            capture,
            contexts,
            context=self.context,
            batch=config.batch,
            buffer=min(BUFFER_TOKENS, config.tokens),
            seed=seed,
            total=steps * config.batch,
        )

        def stream(at: Mapping[str, Any] | None) -> ShuffledStream:
            made = shuffled(start=at)
            self._capture_progress.block = made.block_tokens
            return made

        return Part(steps, stream, _plain, splices)

    def _contexts(self, seed: int, start: Position | None) -> Contexts:
        repeat = True if self.config.epochs is None else self.config.epochs
        return self.text.contexts(self.model.tokenizer, self.context, seed=seed, repeat=repeat, start=start)

    def _selected(self) -> TokenSelection:
        """Which tokens count. By default all, or, where the model has attention sinks, all but these: see a few."""
        asked, sites = self.config.token_selection, self.config.sites
        selection = ALL if asked == AUTO else TokenSelection.parse(asked)
        with Phase("look for attention sinks", shown=self._ranks.is_rank_zero):
            sinks = find_sinks(self.model, self.text, sites, context=self.context, selection=selection)
        said: tuple[str, ...] = ()
        if asked == AUTO and sinks is not None:
            selection = TokenSelection(norm_multiple=NORM_MULTIPLE)
            said = (
                f"attention sinks at position {', '.join(map(str, sinks.positions))} of a context hold "
                f"{sinks.share:.1%} of the variance at {sinks.site}; training leaves them out (token selection "
                f"{selection}; `token_selection='all'` counts them).",
            )
        else:
            said = sinks_warning(sinks, selection)
        for line in said:
            self._ranks.on_rank_zero(partial(progress.write, f"dictlab: {line}\n"))
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
