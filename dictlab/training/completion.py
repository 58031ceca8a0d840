"""From the training loop to a complete run: the remaining steps, then dictionaries, measurements, records."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from dictlab import __about__, runs
from dictlab.dictionary import Dictionary, Metadata
from dictlab.formats import native
from dictlab.formats.loading import load
from dictlab.training import run_state
from dictlab.training.costs import cost_record, goals_record
from dictlab.training.learner.learner import Learner
from dictlab.training.run import Run, tell
from dictlab.training.training_loop import TrainingLoop


def run(loop: TrainingLoop) -> Run:
    """Take the steps that are left, write the dictionaries, and measure them.

    Raises:
        DictlabError: Every member diverged, the data cannot be read, or the disk is full.
    """
    ranks = loop.ranks
    about = ranks.on_rank_zero(lambda: _sat_down(loop)) or {}
    stopped = loop.fit()
    about |= {"members": list(loop.learners)}
    kept = _written(loop, stopped)
    kept, stopped = ranks.on_rank_zero(lambda: _ended(loop, about, kept, stopped)) or (kept, stopped)
    return Run(loop.folder, loop.config, tuple(kept), stopped, loop.diverged)


def _sat_down(loop: TrainingLoop) -> dict[str, Any]:
    """Tell that the run goes on; returns all that is told."""
    about = runs.open_run(loop.folder).about
    sitting = {
        "from_step": loop.step,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": loop.ranks.count * loop.ranks.shards,
        "shards": loop.ranks.shards,
    }
    about |= {"dictlab": __about__.VERSION, "sittings": [*about.get("sittings", []), sitting], "state": "running"}
    tell(loop.folder, about)
    return about


def _written(loop: TrainingLoop, stopped: str | None) -> list[Dictionary]:
    """The dictionaries, safe on the disk before anything else can go wrong; without metrics."""
    ranks, learners = loop.ranks, loop.learners
    with loop.writing():
        if ranks.shards == 1:
            kept = [_described(learner, loop, stopped) for learner in learners.values()]
            ranks.on_rank_zero(lambda: _save(kept, loop.folder))
            return kept
        from dictlab.training.distributed import gathering
        from dictlab.training.distributed.latent_sharding import LatentShardedRanks

        for name, learner in learners.items():
            own, width = _described(learner, loop, stopped), learner.member.width
            gathering.write(own, width, _path(loop.folder, name), cast(LatentShardedRanks, ranks))
    names = list(learners)
    learners.clear()  # the whole dictionary needs the room
    del learner, own
    return ranks.on_rank_zero(lambda: [load(_path(loop.folder, n)).to(loop.config.device) for n in names]) or []


def _ended(
    loop: TrainingLoop, about: dict[str, Any], kept: list[Dictionary], stopped: str | None
) -> tuple[list[Dictionary], str | None]:
    """Measurements and records on the disk; returns the dictionaries measured, and why it stopped."""
    folder = loop.folder
    with loop.writing():
        try:
            kept = loop.source.measured(kept)
            _save(kept, folder)
        except KeyboardInterrupt:
            stopped = stopped or "interrupted while it was measured"
        except torch.OutOfMemoryError as error:
            if loop.ranks.shards == 1:
                raise
            about["unmeasured"] = f"a whole dictionary does not fit one device beside the model ({error})"
            print(f"dictlab: not measured: {about['unmeasured']}. Its file is complete.", file=sys.stderr)
        loop.close()
        about |= {
            "state": "stopped" if stopped else "finished",
            "reason": stopped,
            "steps": loop.step,
            "tokens": loop.step * loop.config.batch,
            "seconds": loop.elapsed,
            "flops": {dictionary.name: dictionary.metadata.training.get("flops") for dictionary in kept},
            "diverged": loop.diverged,
        }
        tell(folder, about)
        if not stopped:
            run_state.remove(loop.state_path)
    return kept, stopped


def _save(dictionaries: Sequence[Dictionary], folder: Path) -> None:
    for dictionary in dictionaries:
        native.save(dictionary, _path(folder, dictionary.name))


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _described(learner: Learner, loop: TrainingLoop, stopped: str | None) -> Dictionary:
    """The finished dictionary with its metadata."""
    member, config, about = learner.member, loop.config, loop.source.described()
    kept = ("batch", "warmup", "final_lr", "clip", "ema", "precision")
    training = about.pop("training") | {key: getattr(config, key) for key in kept}
    training |= {"lr": learner.lr, "dead_after": config.dead_tokens, "interrupted": stopped is not None}
    training |= member.variant.record() | goals_record(member, config)
    training |= cost_record(member, config, loop.costs[member.name], loop.step)
    began_from = () if member.start is None else (member.start.name,)
    metadata = Metadata(
        site=member.site or None,
        objective=member.goal,
        seed=member.seed,
        tokens=loop.step * config.batch,
        training=training,
        sources=(*about.pop("sources", ()), *began_from),
        library=f"dictlab {__about__.VERSION}",
        **about,
    )
    return replace(learner.finished(), metadata=metadata)
