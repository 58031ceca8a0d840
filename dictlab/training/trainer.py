"""Train a family of dictionaries from one stream of activations: the model is run once a batch for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import torch
from torch import Tensor

from dictlab import runs
from dictlab.data.activations import Moments, moments
from dictlab.data.arrays import ArrayActivations, ArrayLike
from dictlab.data.text import Text
from dictlab.data.token_selection import ALL
from dictlab.errors import DictlabError
from dictlab.formats.loading import load
from dictlab.model.language_model import LanguageModel, check_device
from dictlab.runs import RunFolder
from dictlab.training import completion, configfile, run_state
from dictlab.training.config import TrainConfig
from dictlab.training.distributed.launch import together
from dictlab.training.distributed.ranks import SINGLE_PROCESS, Ranks, check_width
from dictlab.training.learner.initialisation import geometric_median
from dictlab.training.learner.learner import Learner
from dictlab.training.logs import check_loggers
from dictlab.training.member import Member
from dictlab.training.run import Run, check_free, replace_text, tell
from dictlab.training.run_state import State
from dictlab.training.sources.array import ArraySource
from dictlab.training.sources.base import Source
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
    config = _settled(config)
    check_loggers(config)
    folder = Path(out) if out is not None else config.default_out()
    with together(config.device, config.shards) as ranks:
        source = ranks.on_every_rank(lambda: _opened(config, model, text, data, ranks))
        config = source.config
        ranks.broadcast_from_rank_zero(lambda: check_free(folder, [member.name for member in source.members], force))
        keep = ranks.broadcast_from_rank_zero(lambda: _beginning(source))
        return completion.run(
            _loop(folder, source, ranks.broadcast_from_rank_zero(lambda: _begin(folder, config)), keep, ranks=ranks)
        )


def resume(
    folder: str | Path,
    *,
    model: LanguageModel | None = None,
    text: Text | None = None,
    data: ArrayLike | ArrayActivations | None = None,
    shards: int | None = None,
) -> Run:
    """Go on with a run that was stopped or killed. On a CPU the result is the one it would have had, bit for bit.

    (With another number of processes or shards it is the same up to rounding.)

    Args:
        folder: The run's.
        model: The language model, if it is already open.
        text: The training text, likewise.
        data: The activations, likewise; needed where they were given in memory.
        shards: Parts that the latents of each dictionary are cut into from now on; as before by default.

    Raises:
        DictlabError: It is no run's folder, or the model, text or data are not those it began with.
    """
    known = runs.open_run(folder)
    # A run that says nothing of it began before tokens were selected.
    settings = {"token_selection": str(ALL)} | known.config | ({} if shards is None else {"shards": shards})
    config = TrainConfig(**configfile.checked(settings, str(known.path / runs.CONFIG)))
    check_loggers(config)
    if known.finished:
        return _finished(known, config)
    config = _settled(config)
    with together(config.device, config.shards) as ranks:
        source = ranks.on_every_rank(lambda: _opened(config, model, text, data, ranks))
        path = known.path / runs.STATE
        # None: it was killed before the first step.
        saved = run_state.read(path, ranks) if ranks.broadcast_from_rank_zero(path.exists) else None
        keep = _kept(folder, source, saved) if saved else ranks.broadcast_from_rank_zero(lambda: _beginning(source))
        return completion.run(_loop(known.path, source, known.about["id"], keep, saved, ranks))


def _settled(config: TrainConfig) -> TrainConfig:
    """The settings with what the device decides.

    Raises:
        DictlabError: It is not there.
    """
    check_device(config.device)
    if config.precision is not None:
        return config
    fast = torch.device(config.device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return replace(config, precision="bfloat16" if fast else "float32")


def _opened(
    config: TrainConfig,
    model: LanguageModel | None,
    text: Text | None,
    data: ArrayLike | ArrayActivations | None,
    ranks: Ranks,
) -> Source:
    """What a run trains on, by all of its processes: what a configuration names, or what is open already.

    Raises:
        DictlabError: Something of it is not there, or does not fit the rest.
    """
    source: Source
    if config.model is not None:
        if data is not None:
            raise DictlabError(f"train: model {config.model} and plain activations; give one of the two.")
        source = ModelSource(config, model, text, ranks)
    elif model is not None or text is not None:
        raise DictlabError("train: a model or text, and plain activations; give one of the two.")
    else:
        source = ArraySource(config, data, ranks)
    _check_shared(source.members, ranks)
    return source


def _check_shared(members: Sequence[Member], ranks: Ranks) -> None:
    """Refuse dictionaries whose latents cannot be shared out.

    Raises:
        DictlabError: One of them is named.
    """
    for member in members if ranks.shards > 1 else ():
        check_width(member.width, ranks.shards)
        if not member.variant.shared:
            raise DictlabError(
                f"activation {member.variant.label}: it cannot be trained with its latents shared out over processes; "
                "leave out --shards, or take topk, batchtopk, relu, jumprelu, gated, prolu or matryoshka of these."
            )


def _kept(folder: str | Path, source: Source, saved: State) -> State:
    """What a run that goes on began with.

    Raises:
        DictlabError: The source is another one now.
    """
    if saved.record["identity"] != source.identity():
        changed = [what for what, value in source.identity().items() if saved.record["identity"].get(what) != value]
        raise DictlabError(
            f"{folder}: the {' and '.join(changed)} of this run changed since it began; it goes on with the same only."
        )
    return State(
        {name: t for name, t in saved.tensors.items() if name.startswith("start/")},
        {name: saved.record[name] for name in ("identity", "variances")},
    )


def _beginning(source: Source) -> State:
    """What a run begins with, and keeps: moments of a sample at each site, and what the source is."""
    starts = [Start.of(x, site, source.config) for site, x in source.samples().items()]
    tensors = {f"start/{i}/{name}": t for i, start in enumerate(starts) for name, t in start.tensors().items()}
    return State(tensors, {"identity": source.identity(), "variances": [s.statistics.variance for s in starts]})


def _loop(
    folder: Path, source: Source, identity: str, keep: State, saved: State | None = None, ranks: Ranks = SINGLE_PROCESS
) -> TrainingLoop:
    """The members, made of what the run began with, and the sitting that trains them."""
    config, starts = source.config, {}
    for i, site in enumerate(config.sites or ("",)):
        tensors = run_state.below(f"start/{i}", keep.tensors)
        starts[site] = Start.again(tensors, keep.record["variances"][i], config.device)
    learners = [Learner(member, config, *starts[member.site], ranks) for member in source.members]
    return TrainingLoop(folder, source, learners, identity=identity, beginning=keep, saved=saved, ranks=ranks)


class Start(NamedTuple):
    """What a learner is made of besides its settings: moments of a sample, and its geometric median."""

    statistics: Moments
    centre: Tensor

    @classmethod
    def of(cls, x: Tensor, site: str, config: TrainConfig) -> Start:
        """Of a sample `[n, d_in]`.

        Raises:
            DictlabError: It does not vary.
        """
        sample_moments = moments([x])
        if not sample_moments.variance > 0:
            what = f"site {site}: the activations of {config.text}" if site else f"data {config.data}: the activations"
            raise DictlabError(f"{what} do not vary; nothing to learn.")
        return cls(sample_moments, geometric_median(x))

    @classmethod
    def again(cls, tensors: Mapping[str, Tensor], variance: float, device: str) -> Start:
        """Out of a saved state."""
        kept = {name: t.to(device) for name, t in tensors.items()}
        return cls(Moments(int(kept["n"]), kept["mean"], variance, None), kept["centre"])

    def tensors(self) -> dict[str, Tensor]:
        """What a state keeps as tensors."""
        tensors = {"n": torch.tensor(self.statistics.n), "mean": self.statistics.mean, "centre": self.centre}
        return {name: t.cpu() for name, t in tensors.items()}


def _begin(folder: Path, config: TrainConfig) -> str:
    """Take the folder: an earlier run's records go, then config.toml makes it a run. Returns the run's identity."""
    folder.mkdir(parents=True, exist_ok=True)
    run_state.remove(folder / runs.STATE)
    for name in (runs.CONFIG, runs.ABOUT, runs.METRICS, runs.TABLE, "config.json"):
        (folder / name).unlink(missing_ok=True)
    identity = uuid4().hex[:12]
    tell(folder, {"id": identity, "state": "running"})
    replace_text(folder / runs.CONFIG, configfile.dumped(config))
    return identity


def _finished(known: RunFolder, config: TrainConfig) -> Run:
    """A run that came to its end already, from its files."""
    kept = tuple(load(known.path / f"{name}.safetensors") for name in known.about["members"])
    return Run(known.path, config, kept, None, known.about["diverged"])
