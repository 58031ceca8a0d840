"""Train a family of dictionaries from one stream of activations: the model is run once a batch for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import torch

from dictlab import runs
from dictlab.data.arrays import ArrayActivations, ArrayLike
from dictlab.data.text import Text
from dictlab.errors import DictlabError
from dictlab.formats.loading import load
from dictlab.model.language_model import LanguageModel
from dictlab.model.loading import check_device
from dictlab.runs import RunFolder
from dictlab.runtime.atomic_files import replace_text
from dictlab.runtime.folder_lock import folder_lock
from dictlab.runtime.progress import Phase
from dictlab.training import configfile
from dictlab.training.config import TrainConfig
from dictlab.training.distributed.launch import training_processes
from dictlab.training.distributed.ranks import SINGLE_PROCESS, Ranks, check_width
from dictlab.training.learner.learner import Learner
from dictlab.training.member import Member
from dictlab.training.run_folder import completion, run_state
from dictlab.training.run_folder.logs import check_loggers
from dictlab.training.run_folder.run import Run, check_free, check_links, write_record
from dictlab.training.run_folder.run_state import State
from dictlab.training.run_folder.state_checks import check_record, check_sample, check_settings
from dictlab.training.sample_statistics import SampleStatistics
from dictlab.training.sources.array import ArraySource
from dictlab.training.sources.base import ActivationSource
from dictlab.training.sources.model import ModelSource
from dictlab.training.training_loop import TrainingLoop


def train(
    config: TrainConfig,
    *,
    out: str | Path | None = None,
    model: LanguageModel | None = None,
    text: Text | None = None,
    data: ArrayLike | ArrayActivations | None = None,
    force: bool = False,
) -> Run:
    """Train every member of `config`, write the dictionaries, and measure them on held-out text.

    Ctrl-C finishes the step, saves the state, and keeps what was learnt so far; `resume` goes on from there, as it does
    after the process was killed.

    Of several processes that `torchrun` started, each takes its share of every batch (or of the latents, with
    `config.shards`), and the first alone writes and measures: the others return a run whose dictionaries have no
    metrics (none, of latents that are shared out), maybe before the files are there.

    Args:
        config: What to train.
        out: The run's folder; `runs/...` by default.
        model: The language model, if it is already open; `config.model` is then only its name.
        text: The training text, if it is already open; its held-out split is opened by name for the evaluation.
        data: The activations, if they are in memory; `config.data` is then only their name.
        force: Write into a folder that already holds a run; files of the same names are replaced.

    Raises:
        DictlabError: The model, site, text, data or device is not there, the folder is taken, every member diverged, or
            the disk is full.
    """
    config = _spelt_out(config)
    check_loggers(config)
    folder = Path(out) if out is not None else config.default_out()
    with ExitStack() as stack:
        ranks = stack.enter_context(training_processes(config.device, config.shards))
        ranks.broadcast_from_rank_zero(lambda: check_free(folder, (), force))  # before anything is written or loaded
        stack.enter_context(_only_writer(folder, ranks))
        source = ranks.on_every_rank(lambda: _open_source(config, model, text, data, ranks))
        config = source.config
        ranks.broadcast_from_rank_zero(lambda: check_free(folder, [member.name for member in source.members], force))
        ranks.on_rank_zero(lambda: _announce_cost(source))
        beginning = ranks.broadcast_from_rank_zero(lambda: _beginning(source))
        identity = ranks.broadcast_from_rank_zero(lambda: _begin(folder, config))
        return completion.run(_loop(folder, source, identity, beginning, ranks=ranks))


def resume(
    folder: str | Path,
    *,
    model: LanguageModel | None = None,
    text: Text | None = None,
    data: ArrayLike | ArrayActivations | None = None,
    shards: int | None = None,
    trust_remote_code: bool = False,
) -> Run:
    """Go on with a run that was stopped or killed. On a CPU the result is the one it would have had, bit for bit.

    (With another number of processes or shards it is the same up to rounding.)

    Args:
        folder: The run's.
        model: The language model, if it is already open.
        text: The training text, likewise.
        data: The activations, likewise; needed where they were given in memory.
        shards: Parts that the latents of each dictionary are cut into from now on; as before by default.
        trust_remote_code: Run code that comes with the model; a run's folder does not decide that.

    Raises:
        DictlabError: It is no run's folder, or the model, text or data are not those it began with.
    """
    known = runs.open_run(folder)
    if known.finished:
        return _finished_run(known)
    config = _config_of(known, shards, trust_remote_code)
    check_loggers(config)
    with training_processes(config.device, config.shards) as ranks, _only_writer(Path(folder), ranks):
        known = runs.open_run(folder)  # as the one who wrote there before has left it
        if known.finished:
            return _finished_run(known)
        ranks.broadcast_from_rank_zero(lambda: check_links(known.path))
        if "id" not in known.about:
            raise DictlabError(
                f"{known.path / runs.ABOUT}: missing, or without the run's id; put back a copy, or train anew."
            )
        config = _config_of(known, shards, trust_remote_code)
        source = ranks.on_every_rank(lambda: _open_source(config, model, text, data, ranks))
        saved = ranks.on_every_rank(lambda: _saved_state(known, config, source, ranks))
        beginning = _kept(saved) if saved else ranks.broadcast_from_rank_zero(lambda: _beginning(source))
        return completion.run(_loop(known.path, source, known.about["id"], beginning, saved, ranks))


@contextmanager
def _only_writer(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Be the only run that writes a folder.

    Raises:
        DictlabError: Another process writes there; it is named.
    """
    with ExitStack() as stack:
        ranks.broadcast_from_rank_zero(lambda: stack.enter_context(folder_lock(folder, "train")))
        yield


def _config_of(known: RunFolder, shards: int | None, trust_remote_code: bool) -> TrainConfig:
    """The settings of a run's folder.

    Raises:
        DictlabError: A setting is none, or its device is not there.
    """
    settings = configfile.of_run(known.config) | ({} if shards is None else {"shards": shards})
    config = TrainConfig(**configfile.checked(settings, str(known.path / runs.CONFIG)))
    return _spelt_out(replace(config, trust_remote_code=trust_remote_code))


def _spelt_out(config: TrainConfig) -> TrainConfig:
    """The settings with those of the recipe, and the precision that the device decides where none is given.

    Raises:
        DictlabError: The device is not there.
    """
    check_device(config.device)
    config = config.spelt_out()
    if config.precision is not None:
        return config
    fast = torch.device(config.device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return replace(config, precision="bfloat16" if fast else "float32")


def _open_source(
    config: TrainConfig,
    model: LanguageModel | None,
    text: Text | None,
    data: ArrayLike | ArrayActivations | None,
    ranks: Ranks,
) -> ActivationSource:
    """What a run trains on, in every process: what a configuration names, or what is open already.

    Raises:
        DictlabError: Something of it is not there, or does not fit the rest.
    """
    source: ActivationSource
    if config.model is not None:
        if data is not None:
            raise DictlabError(f"train: model {config.model} and plain activations; give one of the two.")
        source = ModelSource(config, model, text, ranks)
    elif model is not None or text is not None:
        raise DictlabError("train: a model or text, and plain activations; give one of the two.")
    else:
        source = ArraySource(config, data, ranks)
    for member in source.members:
        _check_member(member, config, ranks)
    return source


def _check_member(member: Member, config: TrainConfig, ranks: Ranks) -> None:
    """Refuse a dictionary that cannot be trained with these settings.

    Raises:
        DictlabError: Its latents cannot be shared out over processes, or its AuxK cannot be computed.
    """
    if member.variant.revived and config.batch < 2:
        raise DictlabError(
            f"batch is {config.batch}: {member.variant.label} divides its AuxK by the variance of the error over a "
            "batch, and one token has none; expected 2 tokens or more."
        )
    if ranks.shards > 1:
        check_width(member.width, ranks.shards)
        if not member.variant.shared:
            raise DictlabError(
                f"activation {member.variant.label}: it cannot be trained with its latents shared out over processes; "
                "leave out `shards=...`, or take topk, batchtopk, relu, jumprelu, gated, prolu or matryoshka of these."
            )


def _saved_state(known: RunFolder, config: TrainConfig, source: ActivationSource, ranks: Ranks) -> State | None:
    """The state that a run goes on from, its record checked; None where it was killed before the first one.

    Raises:
        DictlabError: It is damaged, of other settings, or the source is another one now.
    """
    path = known.path / runs.STATE
    if not path.exists():
        return None
    saved = run_state.read(path, {member.name: member.width for member in source.members}, ranks)
    first = config.steps - config.finetune_steps
    steps = [first, config.finetune_steps] if config.finetune else [first]
    check_settings(path, saved.record, configfile.settings(config))
    check_record(path, saved.record, steps, config.batch, [member.name for member in source.members])
    check_sample(path, saved.tensors, saved.record.get("variances"), len(config.sites or ("",)))
    began = saved.record.get("identity")
    changed = [
        what for what, value in source.identity().items() if not isinstance(began, dict) or began.get(what) != value
    ]
    if changed:
        raise DictlabError(
            f"{known.path}: the {' and '.join(changed)} of this run changed since it began; "
            "it goes on with the same only."
        )
    return saved


def _kept(saved: State) -> State:
    """The part of a state that a run has from its beginning to its end."""
    return State(
        {name: t for name, t in saved.tensors.items() if name.startswith("start/")},
        {name: saved.record[name] for name in ("identity", "variances")},
    )


def _announce_cost(source: ActivationSource) -> None:
    cost = source.cost()
    if cost is not None:
        cost.announce()


def _beginning(source: ActivationSource) -> State:
    """Measure what a run starts from: statistics of a sample at each site, and what identifies the source."""
    config, starts = source.config, []
    for site, x in source.samples().items():
        what = f"site {site}: the activations of {config.text}" if site else f"data {config.data}: the activations"
        with Phase(f"measure {len(x):,} activations{f' at {site}' if site else ''}"):
            starts.append(SampleStatistics.of(x, what))
    tensors = {f"start/{i}/{name}": t for i, start in enumerate(starts) for name, t in start.tensors().items()}
    with Phase("fingerprint of model and text" if config.model else "fingerprint of the data"):
        identity = source.identity()
    return State(tensors, {"identity": identity, "variances": [start.moments.variance for start in starts]})


def _loop(
    folder: Path,
    source: ActivationSource,
    identity: str,
    beginning: State,
    saved: State | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> TrainingLoop:
    """Make the members from the statistics of the sample, and the loop that trains them."""
    config, starts = source.config, {}
    for i, site in enumerate(config.sites or ("",)):
        tensors = run_state.below(f"start/{i}", beginning.tensors)
        starts[site] = SampleStatistics.from_tensors(tensors, beginning.record["variances"][i], config.device)
    with Phase("initialise the dictionaries", shown=ranks.is_rank_zero):
        learners = [Learner(member, config, *starts[member.site], ranks) for member in source.members]
    return TrainingLoop(folder, source, learners, identity=identity, beginning=beginning, saved=saved, ranks=ranks)


def _begin(folder: Path, config: TrainConfig) -> str:
    """Take the folder: an earlier run's records go, then config.toml makes it a run. Returns the run's identity."""
    run_state.remove(folder / runs.STATE)
    for name in (runs.CONFIG, runs.ABOUT, runs.METRICS, runs.TABLE, "config.json"):
        (folder / name).unlink(missing_ok=True)
    identity = uuid4().hex[:12]
    write_record(folder, {"id": identity, "state": "running"})
    replace_text(folder / runs.CONFIG, configfile.dumped(config))
    return identity


def _finished_run(known: RunFolder) -> Run:
    """A run that is complete already, from its files.

    Raises:
        DictlabError: Its records are damaged, or one of its dictionaries is gone.
    """
    config = TrainConfig(**configfile.checked(configfile.of_run(known.config), str(known.path / runs.CONFIG)))
    dictionaries = tuple(load(known.path / f"{name}.safetensors") for name in known.about.get("members", ()))
    return Run(known.path, config, dictionaries, None, known.about.get("diverged", {}))
