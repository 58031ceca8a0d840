"""Train a family of dictionaries from one stream of activations: the model is run once a batch for all of them."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dictlab import __about__, activations
from dictlab.dictionary import Dictionary, Metadata
from dictlab.errors import DictlabError
from dictlab.formats import native
from dictlab.lm import LanguageModel, check_device
from dictlab.text import Text
from dictlab.train.config import Member, TrainConfig
from dictlab.train.costs import Cost, cost_record, goals_record
from dictlab.train.learner import Learner, geometric_median
from dictlab.train.measure import measure
from dictlab.train.objectives import Batch, Objective, Splice
from dictlab.train.run import Log, Run, check_free, interruptible
from dictlab.train.start import opened

SAMPLE = 32_768  # activations that the scale and the initial bias are taken from
LOG_EVERY = 25  # steps
FINETUNE_SEED = 1 << 20  # added to the seed of the data's order: other documents come first
EVALUATION_CONTEXTS = 64
FIRING_TOKENS = 1 << 18  # training tokens on which firing rates are measured in the end


def train(
    config: TrainConfig,
    *,
    out: str | Path | None = None,
    model: LanguageModel | None = None,
    text: Text | None = None,
    force: bool = False,
) -> Run:
    """Train every member of `config`, write the dictionaries, and measure them on held-out text.

    Ctrl-C finishes the step and keeps what was learnt so far. A member whose loss is no number any more is stopped and
    leaves no file; the others go on.

    Args:
        config: What to train.
        out: The run's folder; `runs/...` by default.
        model: The language model, if it is already open; `config.model` is then only its name.
        text: The training text, if it is already open; its held-out split is opened by name for the evaluation.
        force: Write into a folder that already holds a run; files of the same names are replaced.

    Raises:
        DictlabError: The model, site, text, device or a dictionary to go on from is not there, the folder is taken,
            or all members diverged.
    """
    check_device(config.device)
    folder = Path(out) if out is not None else config.default_out()
    model = model or LanguageModel.load(config.model, device=config.device)
    text = text or Text.open(config.text)
    config = replace(config, model=model.name, text=text.name)  # what was given, if not opened here
    members = list(config.members(opened(config.start, model, config.site)))
    check_free(folder, [member.name for member in members], force)
    splices = [_splice(config, model, goals) for goals in goals_of(config)]
    next(text.as_split("heldout").contexts(model.tokenizer, model.context_length(config.context)))  # is there enough?
    learners = _learners(members, config, model, text)
    log = Log(folder, config)
    steps, costs, diverged = _fit(learners, _stream(config, model, text, splices), config, log)
    finished = [
        _described(learner, config, model, steps, costs[learner.member.name])
        for learner in learners
        if learner.member.name not in diverged
    ]
    for dictionary in finished:  # safe before anything else can go wrong
        native.save(dictionary, folder / f"{dictionary.name}.safetensors")
    context = model.context_length(config.context)
    tokens = max(context, min(FIRING_TOKENS, config.tokens))
    measured = measure(finished, model, text, context=context, tokens=tokens, contexts=EVALUATION_CONTEXTS)
    for dictionary in measured:
        native.save(dictionary, folder / f"{dictionary.name}.safetensors")
    return Run(folder, config, tuple(measured), steps < config.steps, diverged)


def _fit(
    learners: Sequence[Learner], stream: Iterator[tuple[Batch, Splice | None]], config: TrainConfig, log: Log
) -> tuple[int, dict[str, Cost], dict[str, str]]:
    """All steps, or those before an interrupt; their number, what each member cost, and which diverged."""
    own = {learner.member.name: [0.0, 0.0] for learner in learners}  # seconds at first, and while fine-tuning
    total, steps, first = [0.0, 0.0], 0, config.steps - config.finetune_steps
    diverged: dict[str, str] = {}
    began = time.perf_counter()
    with interruptible() as asked, tqdm(total=config.tokens, unit="tok", unit_scale=True, desc="train") as bar:
        for batch, splice in islice(stream, config.steps):
            part = int(steps >= first)
            steps += 1
            logged = steps % LOG_EVERY == 0 or steps == config.steps
            active = [learner for learner in learners if learner.member.name not in diverged]
            terms = [_timed_step(learner, batch, splice, own[learner.member.name], part, logged) for learner in active]
            bar.update(config.batch)
            if logged:
                diverged |= _report(log, bar, active, terms, steps, config, sum(total) + time.perf_counter() - began)
            total[part] += time.perf_counter() - began
            began = time.perf_counter()
            if asked.is_set() or len(diverged) == len(learners):
                break
    if len(diverged) == len(learners):
        raise DictlabError(f"{next(iter(diverged.values()))}; the log so far is in {log.path}.")
    shared = [(total[part] - sum(spent[part] for spent in own.values())) / len(learners) for part in (0, 1)]
    costs = {name: Cost(spent[0] + shared[0], spent[1] + shared[1]) for name, spent in own.items()}  # served all alike
    return steps, costs, diverged


def _timed_step(
    learner: Learner, batch: Batch, splice: Splice | None, spent: list[float], part: int, logged: bool
) -> dict[str, Tensor]:
    began = time.perf_counter()
    terms = learner.step(batch, splice, logged=logged)
    spent[part] += time.perf_counter() - began
    return terms


def goals_of(config: TrainConfig) -> list[list[Objective]]:
    """What is trained for at first, and while fine-tuning."""
    last = [[config.weights(config.finetune)]] if config.finetune else []
    return [[config.weights(name) for name in config.objective], *last]


def _splice(config: TrainConfig, model: LanguageModel, goals: Sequence[Objective]) -> Splice | None:
    """Where to splice, if an objective asks for it."""
    if not any(goal.needs_model for goal in goals):
        return None
    context = model.context_length(config.context)
    if config.batch % context:
        raise DictlabError(f"batch is {config.batch}; spliced training takes whole contexts: a multiple of {context}.")
    later = _later(config, model) if any(goal.downstream for goal in goals) else []
    return Splice(model, config.site, model.start_of(config.site), later)


def _later(config: TrainConfig, model: LanguageModel) -> list[str]:
    """The sites after, where the error is looked at once more."""
    place = model.locate(config.site)
    for site in config.later:
        if model.locate(site) == place or not model.follows(site, place):
            raise DictlabError(f"later: {site} does not come after {config.site}.")
    later = list(config.later) or model.later_sites(config.site)
    if not later:
        raise DictlabError(
            f"site {config.site}: the downstream error is that of later blocks' inputs, and no block comes after it."
        )
    return later


def _stream(
    config: TrainConfig, model: LanguageModel, text: Text, splices: Sequence[Splice | None]
) -> Iterator[tuple[Batch, Splice | None]]:
    """Batches of the run's parts one after the other, each with where reconstructions go."""
    first = config.steps - config.finetune_steps
    for number, (splice, steps) in enumerate(zip(splices, (first, config.finetune_steps), strict=False)):
        seed = config.seed[0] + number * FINETUNE_SEED
        yield from ((batch, splice) for batch in islice(_batches(config, model, text, splice, seed), steps))


def _batches(
    config: TrainConfig, model: LanguageModel, text: Text, splice: Splice | None, seed: int
) -> Iterator[Batch]:
    """Shuffled activations; or, where a reconstruction is spliced in, whole contexts with their clean forward."""
    context = model.context_length(config.context)
    if splice is None:
        buffer = min(activations.BUFFER, config.tokens)
        stream = activations.shuffled(
            model, text, config.site, context=context, batch=config.batch, buffer=buffer, seed=seed
        )
        yield from (Batch(x.float()) for x in stream)
        return
    for tokens in text.batches(model.tokenizer, context, config.batch // context, seed=seed, repeat=True):
        clean = model.capture(tokens, splice.sites)
        yield Batch(clean[config.site].float(), clean, tokens)


def _learners(members: Sequence[Member], config: TrainConfig, model: LanguageModel, text: Text) -> list[Learner]:
    """Every member, initialised from the same sample of activations."""
    context = model.context_length(config.context)
    tokens = min(SAMPLE, max(config.tokens, 4 * context))
    sample = [
        x.flatten(0, 1).float() for x in activations.sample(model, text, config.site, context=context, tokens=tokens)
    ]
    statistics = activations.statistics(sample)
    if not statistics.variance > 0:
        raise DictlabError(f"site {config.site}: the activations of {config.text} do not vary; nothing to learn.")
    centre = geometric_median(torch.cat(sample))
    return [Learner(member, config, statistics, centre) for member in members]


def _report(
    log: Log,
    bar: tqdm[None],
    learners: Sequence[Learner],
    terms: Sequence[dict[str, Tensor]],
    steps: int,
    config: TrainConfig,
    seconds: float,
) -> dict[str, str]:
    """Metrics to the file and to the bar; members that diverged, and what is to be said of them."""
    rate = steps * config.batch / seconds
    records = [{name: float(value) for name, value in values.items()} for values in terms]
    diverged = {}
    for learner, values in zip(learners, records, strict=True):
        where = {"member": learner.member.name, "step": steps, "tokens": steps * config.batch}
        log.write(where | {"tokens_per_second": rate} | values)
        if not (math.isfinite(values["loss"]) and learner.finite):
            diverged[learner.member.name] = _complaint(learner, values["loss"], steps)
            tqdm.write(diverged[learner.member.name], file=sys.stderr)
    shown = {"loss": "loss", "l0": "L0", "explained_variance": "EV", "dead": "dead"}
    ranges = {label: (min(r[name] for r in records), max(r[name] for r in records)) for name, label in shown.items()}
    bar.set_postfix({label: f"{a:.3g}" if a == b else f"{a:.3g}..{b:.3g}" for label, (a, b) in ranges.items()})
    return diverged


def _complaint(learner: Learner, loss: float, steps: int) -> str:
    what = f"the loss of {learner.member.name} is {loss}"
    if math.isfinite(loss):
        what = f"weights of {learner.member.name} are no numbers any more"
    return f"train: {what} at step {steps}. Lower --lr (it peaks at {learner.lr:.2g})"


def _described(learner: Learner, config: TrainConfig, model: LanguageModel, steps: int, cost: Cost) -> Dictionary:
    """The finished dictionary with its metadata."""
    member = learner.member
    kept = ("text", "batch", "warmup", "final_lr", "clip", "ema")
    settings = {key: asdict(config)[key] for key in kept}
    training = settings | {
        "context": model.context_length(config.context),
        "lr": learner.lr,
        "dead_after": config.dead_tokens,
        "interrupted": steps < config.steps,
    }
    training |= member.variant.record() | goals_record(member, config) | cost_record(member, config, cost, steps)
    metadata = Metadata(
        model=model.name,
        model_fingerprint=model.fingerprint,
        site=config.site,
        objective=member.goal,
        seed=member.seed,
        tokens=steps * config.batch,
        training=training,
        sources=() if member.start is None else (member.start.name,),
        library=f"dictlab {__about__.VERSION}",
        convention="huggingface",
    )
    return replace(learner.finished(), metadata=metadata)
