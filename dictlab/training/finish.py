"""What is left of a run once its sitting is set up: steps, dictionaries, measurements, records."""

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
from dictlab.training.learner import Learner
from dictlab.training.run import Run, tell
from dictlab.training.session import Session


def run(session: Session) -> Run:
    """Take the steps that are left, write the dictionaries, and measure them.

    Raises:
        DictlabError: Every member diverged, the data cannot be read, or the disk is full.
    """
    ranks = session.ranks
    about = ranks.once(lambda: _sat_down(session)) or {}
    stopped = session.fit()
    about |= {"members": list(session.going)}
    kept = _written(session, stopped)
    kept, stopped = ranks.once(lambda: _ended(session, about, kept, stopped)) or (kept, stopped)
    return Run(session.folder, session.config, tuple(kept), stopped, session.diverged)


def _sat_down(session: Session) -> dict[str, Any]:
    """Tell that the run goes on; returns all that is told."""
    about = runs.open_run(session.folder).about
    sitting = {
        "from_step": session.step,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": session.ranks.count * session.ranks.shards,
        "shards": session.ranks.shards,
    }
    about |= {"dictlab": __about__.VERSION, "sittings": [*about.get("sittings", []), sitting], "state": "running"}
    tell(session.folder, about)
    return about


def _written(session: Session, stopped: str | None) -> list[Dictionary]:
    """The dictionaries, safe on the disk before anything else can go wrong; without metrics."""
    ranks, learners = session.ranks, session.going
    with session.writing():
        if ranks.shards == 1:
            kept = [_described(learner, session, stopped) for learner in learners.values()]
            ranks.once(lambda: _save(kept, session.folder))
            return kept
        from dictlab.training.distributed import gathering
        from dictlab.training.distributed.latent_sharding import Sharded

        for name, learner in learners.items():
            own, width = _described(learner, session, stopped), learner.member.width
            gathering.write(own, width, _path(session.folder, name), cast(Sharded, ranks))
    names = list(learners)
    learners.clear()  # the whole dictionary needs the room
    del learner, own
    return ranks.once(lambda: [load(_path(session.folder, n)).to(session.config.device) for n in names]) or []


def _ended(
    session: Session, about: dict[str, Any], kept: list[Dictionary], stopped: str | None
) -> tuple[list[Dictionary], str | None]:
    """Measurements and records on the disk; returns the dictionaries measured, and why it stopped."""
    folder = session.folder
    with session.writing():
        try:
            kept = session.source.measured(kept)
            _save(kept, folder)
        except KeyboardInterrupt:
            stopped = stopped or "interrupted while it was measured"
        except torch.OutOfMemoryError as error:
            if session.ranks.shards == 1:
                raise
            about["unmeasured"] = f"a whole dictionary does not fit one device beside the model ({error})"
            print(f"dictlab: not measured: {about['unmeasured']}. Its file is complete.", file=sys.stderr)
        session.close()
        about |= {
            "state": "stopped" if stopped else "finished",
            "reason": stopped,
            "steps": session.step,
            "tokens": session.step * session.config.batch,
            "seconds": session.elapsed,
            "flops": {dictionary.name: dictionary.metadata.training.get("flops") for dictionary in kept},
            "diverged": session.diverged,
        }
        tell(folder, about)
        if not stopped:
            run_state.remove(session.state_path)
    return kept, stopped


def _save(dictionaries: Sequence[Dictionary], folder: Path) -> None:
    for dictionary in dictionaries:
        native.save(dictionary, _path(folder, dictionary.name))


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _described(learner: Learner, session: Session, stopped: str | None) -> Dictionary:
    """The finished dictionary with its metadata."""
    member, config, about = learner.member, session.config, session.source.described()
    kept = ("batch", "warmup", "final_lr", "clip", "ema", "precision")
    training = about.pop("training") | {key: getattr(config, key) for key in kept}
    training |= {"lr": learner.lr, "dead_after": config.dead_tokens, "interrupted": stopped is not None}
    training |= member.variant.record() | goals_record(member, config)
    training |= cost_record(member, config, session.costs[member.name], session.step)
    began_from = () if member.start is None else (member.start.name,)
    metadata = Metadata(
        site=member.site or None,
        objective=member.goal,
        seed=member.seed,
        tokens=session.step * config.batch,
        training=training,
        sources=(*about.pop("sources", ()), *began_from),
        library=f"dictlab {__about__.VERSION}",
        **about,
    )
    return replace(learner.finished(), metadata=metadata)
