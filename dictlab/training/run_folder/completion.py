"""From the training loop to a complete run: the remaining steps, then dictionaries, measurements, records."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from dictlab import __about__, runs
from dictlab.dictionary import Dictionary, Metadata
from dictlab.formats.loading import load
from dictlab.formats.native import native_file as native
from dictlab.runtime import progress
from dictlab.runtime.atomic_files import synchronise_folder
from dictlab.runtime.interruption import interrupts
from dictlab.runtime.progress import Phase
from dictlab.training.costs import cost_record, goals_record
from dictlab.training.learner.learner import Learner
from dictlab.training.measure import with_firing_tokens
from dictlab.training.run_folder import run_state
from dictlab.training.run_folder.run import Run, write_record
from dictlab.training.training_loop import TrainingLoop


def run(loop: TrainingLoop) -> Run:
    """Take the steps that are left, write the dictionaries, and measure them.

    Raises:
        DictlabError: Every member diverged, the data cannot be read, or the disk is full.
    """
    ranks = loop.ranks
    about = ranks.on_rank_zero(lambda: _record_session(loop)) or {}
    stopped = loop.fit()
    about |= {"members": list(loop.learners)}
    dictionaries = _write_dictionaries(loop, stopped)
    measured = ranks.on_rank_zero(lambda: _measure(loop, about, dictionaries, stopped))
    dictionaries, stopped = measured or (dictionaries, stopped)
    return Run(loop.folder, loop.config, tuple(dictionaries), stopped, loop.diverged, loop.stop_signal)


def _record_session(loop: TrainingLoop) -> dict[str, Any]:
    """Write into run.json that the run goes on, and with what; returns its fields."""
    about = runs.open_run(loop.folder).about
    session = {
        "from_step": loop.step,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": loop.ranks.count * loop.ranks.shards,
        "shards": loop.ranks.shards,
    }
    about |= {"dictlab": __about__.VERSION, "sittings": [*about.get("sittings", []), session], "state": "running"}
    with loop.writing():
        write_record(loop.folder, about)
    return about


def _write_dictionaries(loop: TrainingLoop, stopped: str | None) -> list[Dictionary]:
    """Write the dictionaries, safe on the disk before anything else can go wrong; without metrics of held-out data."""
    ranks, learners = loop.ranks, loop.learners
    shown = ranks.is_rank_zero
    with loop.writing(), Phase("write the dictionaries", len(learners), unit="files", shown=shown) as phase:
        if ranks.shards == 1:
            dictionaries = [_finished(learner, loop, stopped) for learner in learners.values()]
            ranks.on_rank_zero(lambda: _save(dictionaries, loop.folder, phase))
            return dictionaries
        from dictlab.training.distributed import gathering
        from dictlab.training.distributed.latent_sharding import LatentShardedRanks

        for name, learner in learners.items():
            part, width = _finished(learner, loop, stopped), learner.member.width
            gathering.write(part, width, _path(loop.folder, name), cast(LatentShardedRanks, ranks))
            phase.advance()
    names = list(learners)
    learners.clear()  # the whole dictionary needs the room
    del learner, part
    return ranks.on_rank_zero(lambda: [load(_path(loop.folder, n)).to(loop.config.device) for n in names]) or []


def _measure(
    loop: TrainingLoop, about: dict[str, Any], dictionaries: list[Dictionary], stopped: str | None
) -> tuple[list[Dictionary], str | None]:
    """Measure dictionaries on held-out data, write them again and the run's records; the state is removed last.

    Returns:
        The dictionaries with metrics, and why the run ended before its time, if it did.
    """
    with loop.writing(), interrupts() as caught:
        try:
            dictionaries = loop.source.with_metrics(dictionaries)
            _save(dictionaries, loop.folder)
        except KeyboardInterrupt:
            stopped = stopped or "interrupted while it was measured"
            loop.stop_signal = caught.number or int(signal.SIGINT)
        except torch.OutOfMemoryError as error:
            if loop.ranks.shards == 1:
                raise
            about["unmeasured"] = f"a whole dictionary does not fit one device beside the model ({error})"
            progress.write(f"dictlab: not measured: {about['unmeasured']}. Its file is complete.\n")
        loop.close()
        about |= {
            "state": "stopped" if stopped else "finished",
            "reason": stopped,
            "steps": loop.step,
            "tokens": loop.step * loop.config.batch,
            "seconds": loop.elapsed,
            "flops": {dictionary.name: dictionary.metadata.training.get("flops") for dictionary in dictionaries},
            "diverged": loop.diverged,
        }
        write_record(loop.folder, about)
        if not stopped:
            run_state.remove(loop.state_path)
    return dictionaries, stopped


def _save(dictionaries: Sequence[Dictionary], folder: Path, phase: Phase | None = None) -> None:
    """Write dictionaries, and return when they are on the disk: what they replace, the state, may go then."""
    for dictionary in dictionaries:
        native.save(dictionary, _path(folder, dictionary.name))
        if phase is not None:
            phase.advance()
    synchronise_folder(folder)


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _finished(learner: Learner, loop: TrainingLoop, stopped: str | None) -> Dictionary:
    """The finished dictionary with its metadata."""
    member, config, about = learner.member, loop.config, loop.source.described()
    settings = ("batch", "recipe", "schedule", "warmup", "decay", "final_lr", "clip", "ema", "precision")
    training = about.pop("training") | {key: getattr(config, key) for key in settings}
    training |= {"lr": learner.lr, "dead_after": config.dead_tokens, "interrupted": stopped is not None}
    training |= member.variant.record() | goals_record(member, config)
    training |= cost_record(member, config, loop.costs[member.name], loop.step)
    started_from = () if member.start is None else (member.start.name,)
    metadata = Metadata(
        site=member.site or None,
        objective=member.goal,
        seed=member.seed,
        tokens=loop.step * config.batch,
        training=training,
        sources=(*about.pop("sources", ()), *started_from),
        library=f"dictlab {__about__.VERSION}",
        **about,
    )
    finished = replace(learner.finished(), metadata=metadata)
    return with_firing_tokens(finished, learner.firing_counts.tokens)
