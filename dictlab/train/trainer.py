"""Train a family of dictionaries from one stream of activations: the model is run once a batch for all of them."""

from __future__ import annotations

import math
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
from dictlab.train.config import TrainConfig
from dictlab.train.learner import Learner, geometric_median
from dictlab.train.measure import measure
from dictlab.train.objectives import Batch, Splice
from dictlab.train.run import Log, Run, check_free, interruptible

SAMPLE = 32_768  # activations that the scale and the initial bias are taken from
LOG_EVERY = 25  # steps
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

    Ctrl-C finishes the step and keeps what was learnt so far.

    Args:
        config: What to train.
        out: The run's folder; `runs/...` by default.
        model: The language model, if it is already open; `config.model` is then only its name.
        text: The training text, if it is already open; its held-out split is opened by name for the evaluation.
        force: Write into a folder that already holds a run; files of the same names are replaced.

    Raises:
        DictlabError: The model, site, text or device is not there, the folder is taken, or training diverged.
    """
    check_device(config.device)
    folder = Path(out) if out is not None else config.default_out()
    model = model or LanguageModel.load(config.model, device=config.device)
    text = text or Text.open(config.text)
    config = replace(config, model=model.name, text=text.name)  # what was given, if not opened here
    check_free(folder, [member.name for member in config.members()], force)
    splice = _splice(config, model)
    next(text.as_split("heldout").contexts(model.tokenizer, model.context_length(config.context)))  # is there enough?
    learners = _learners(config, model, text)
    log = Log(folder, config)
    steps, seconds = _fit(learners, _batches(config, model, text, splice), splice, config, log)
    finished = [_described(learner, config, model, steps, seconds[learner.member.name]) for learner in learners]
    for dictionary in finished:  # safe before anything else can go wrong
        native.save(dictionary, folder / f"{dictionary.name}.safetensors")
    context = model.context_length(config.context)
    tokens = max(context, min(FIRING_TOKENS, config.tokens))
    measured = measure(finished, model, text, context=context, tokens=tokens, contexts=EVALUATION_CONTEXTS)
    for dictionary in measured:
        native.save(dictionary, folder / f"{dictionary.name}.safetensors")
    return Run(folder, config, tuple(measured), steps < config.steps)


def _fit(
    learners: Sequence[Learner], batches: Iterator[Batch], splice: Splice | None, config: TrainConfig, log: Log
) -> tuple[int, dict[str, float]]:
    """All steps, or those before an interrupt; their number, and the seconds each member cost."""
    seconds = dict.fromkeys((learner.member.name for learner in learners), 0.0)
    started, steps = time.perf_counter(), 0
    with interruptible() as asked, tqdm(total=config.tokens, unit="tok", unit_scale=True, desc="train") as bar:
        for batch in islice(batches, config.steps):
            steps += 1
            logged = steps % LOG_EVERY == 0 or steps == config.steps
            terms = [_timed_step(learner, batch, splice, seconds, logged) for learner in learners]
            bar.update(config.batch)
            if logged:
                _report(log, bar, learners, terms, steps, config, started)
            if asked.is_set():
                break
    shared = (time.perf_counter() - started - sum(seconds.values())) / len(learners)  # the stream serves all alike
    return steps, {name: own + shared for name, own in seconds.items()}


def _timed_step(
    learner: Learner, batch: Batch, splice: Splice | None, seconds: dict[str, float], logged: bool
) -> dict[str, Tensor]:
    began = time.perf_counter()
    terms = learner.step(batch, splice, logged=logged)
    seconds[learner.member.name] += time.perf_counter() - began
    return terms


def _splice(config: TrainConfig, model: LanguageModel) -> Splice | None:
    """Where to splice, if a member asks for it."""
    objectives = [config.weights(member) for member in config.members()]
    if not any(objective.needs_model for objective in objectives):
        return None
    context = model.context_length(config.context)
    if config.batch % context:
        raise DictlabError(f"batch is {config.batch}; spliced training takes whole contexts: a multiple of {context}.")
    later = model.later_sites(config.site) if any(objective.downstream for objective in objectives) else []
    if any(objective.downstream for objective in objectives) and not later:
        raise DictlabError(f"site {config.site}: e2e+ds compares later blocks' inputs, and no block comes after it.")
    return Splice(model, config.site, model.start_of(config.site), later)


def _batches(config: TrainConfig, model: LanguageModel, text: Text, splice: Splice | None) -> Iterator[Batch]:
    """Shuffled activations; or, where a reconstruction is spliced in, whole contexts with their clean forward."""
    context = model.context_length(config.context)
    if splice is None:
        buffer = min(activations.BUFFER, config.tokens)
        stream = activations.shuffled(
            model, text, config.site, context=context, batch=config.batch, buffer=buffer, seed=config.seed[0]
        )
        yield from (Batch(x.float()) for x in stream)
        return
    for tokens in text.batches(model.tokenizer, context, config.batch // context, seed=config.seed[0], repeat=True):
        clean = model.capture(tokens, splice.sites)
        yield Batch(clean[config.site].float(), clean)


def _learners(config: TrainConfig, model: LanguageModel, text: Text) -> list[Learner]:
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
    return [Learner(member, config, statistics, centre) for member in config.members()]


def _report(
    log: Log,
    bar: tqdm[None],
    learners: Sequence[Learner],
    terms: Sequence[dict[str, Tensor]],
    steps: int,
    config: TrainConfig,
    started: float,
) -> None:
    """Metrics to the file and to the bar; stops a run that diverged."""
    rate = steps * config.batch / (time.perf_counter() - started)
    records = [{name: float(value) for name, value in values.items()} for values in terms]
    for learner, values in zip(learners, records, strict=True):
        where = {"member": learner.member.name, "step": steps, "tokens": steps * config.batch}
        log.write(where | {"tokens_per_second": rate} | values)
        if not math.isfinite(values["loss"]):
            raise DictlabError(
                f"train: the loss of {learner.member.name} is {values['loss']} at step {steps}. "
                f"Lower --lr (it peaks at {learner.schedule.base_lrs[0]:.2g}); the log so far is in {log.path}."
            )
    shown = {"loss": "loss", "l0": "L0", "explained_variance": "EV", "dead": "dead"}
    ranges = {label: (min(r[name] for r in records), max(r[name] for r in records)) for name, label in shown.items()}
    bar.set_postfix({label: f"{a:.3g}" if a == b else f"{a:.3g}..{b:.3g}" for label, (a, b) in ranges.items()})


def _described(learner: Learner, config: TrainConfig, model: LanguageModel, steps: int, seconds: float) -> Dictionary:
    """The finished dictionary with its metadata."""
    member = learner.member
    kept = ("text", "batch", "warmup", "final_lr", "clip", "ema", "downstream")
    settings = {key: asdict(config)[key] for key in kept}
    training = settings | {
        "context": model.context_length(config.context),
        "l1": member.l1,
        "lr": learner.schedule.base_lrs[0],
        "dead_after": config.dead_tokens,
        "seconds": seconds,
        "interrupted": steps < config.steps,
    }
    metadata = Metadata(
        model=model.name,
        model_fingerprint=model.fingerprint,
        site=config.site,
        objective=member.objective,
        seed=member.seed,
        tokens=steps * config.batch,
        training=training,
        library=f"dictlab {__about__.VERSION}",
        convention="huggingface",
    )
    return replace(learner.finished(), metadata=metadata)
