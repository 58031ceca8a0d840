"""The training loop: steps, log and saved states, from the beginning or from a saved state."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from dictlab import runs
from dictlab.errors import DictlabError
from dictlab.training import run_state
from dictlab.training.costs import Cost
from dictlab.training.distributed.ranks import SINGLE_PROCESS, Ranks
from dictlab.training.learner import learner_state
from dictlab.training.learner.learner import Learner
from dictlab.training.logs import JsonLines, Silent, open_loggers
from dictlab.training.objectives import Batch, Splice
from dictlab.training.run import interruptible
from dictlab.training.run_state import State
from dictlab.training.sources.base import Source

Spliced: TypeAlias = tuple[dict[str, Batch], Mapping[str, Splice | None]]

LOG_EVERY = 25  # steps
SHOWN = {"loss": "loss", "l0": "L0", "explained_variance": "EV", "dead": "dead"}


class TrainingLoop:
    """The loop over the batches of a run, each of which trains every member of the family.

    Args:
        folder: The run's folder; its log is opened there.
        source: Where batches come from.
        learners: The members, as they start.
        identity: Of the run, for loggers that continue an earlier one.
        beginning: What every saved state holds besides the learners: statistics of the sample, identity of the source.
        saved: The state to continue from.
        ranks: The processes that share each batch, and the latents; rank zero writes.

    Attributes:
        learners: Those that have not diverged, by name.
        diverged: The first step whose loss was not finite, by member.
        step: Steps taken.
        saved_step: Steps taken when the state was saved.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        learners: Sequence[Learner],
        *,
        identity: str,
        beginning: State,
        saved: State | None = None,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:
        self.folder, self.source, self.config, self.ranks = folder, source, source.config, ranks
        self.learners = {learner.member.name: learner for learner in learners}
        self.diverged: dict[str, int] = {}
        self.step = self.saved_step = 0
        self._beginning = beginning
        self._first = self.config.steps - self.config.finetune_steps
        self._own = {name: [0.0, 0.0] for name in self.learners}  # seconds of its steps at first, and while fine-tuning
        self._total, position, size = [0.0, 0.0], None, 0
        if saved is not None:
            position, size = saved.record["position"], saved.record["log"]
            self._restore(saved)
        for learner in self.learners.values():
            ranks.broadcast_weights(learner.parameters, learner.common)  # machines may round differently
        self._batches = source.batches(position)
        device = torch.device(self.config.device)
        self._failed = {name: torch.full((), -1, dtype=torch.long, device=device) for name in self.learners}
        self.log = ranks.on_rank_zero(lambda: JsonLines(folder, size)) or Silent()
        self._loggers = [self.log, *(ranks.on_rank_zero(lambda: open_loggers(self.config, folder, identity)) or ())]
        self._saved_at = time.monotonic()
        self._logged_step, self._logged_seconds = self.step, self.elapsed

    @property
    def costs(self) -> dict[str, Cost]:
        """What each member cost, in all sittings: its own steps, and its share of the stream that serves all alike."""
        spent = [sum(own[part] for own in self._own.values()) for part in (0, 1)]
        shared = [(total - own) / len(self._own) for total, own in zip(self._total, spent, strict=True)]
        return {name: Cost(own[0] + shared[0], own[1] + shared[1]) for name, own in self._own.items()}

    @property
    def elapsed(self) -> float:
        """Seconds of training, in all sittings, without those of saving."""
        return sum(self._total)

    @property
    def state_path(self) -> Path:
        """Where the state is."""
        return self.folder / runs.STATE

    def fit(self) -> str | None:
        """Take the steps that are left, and save the state. Says why it stopped before the last one, if it did.

        Raises:
            DictlabError: Every member diverged, the data cannot be read, or the disk is full.
        """
        config, stopped = self.config, None
        total, done = config.steps * config.batch, self.step * config.batch
        bar = tqdm(
            total=total, initial=done, unit="tok", unit_scale=True, desc="train", disable=not self.ranks.is_rank_zero
        )
        with interruptible() as asked, bar:
            self.save()
            batches = iter(self._batches)
            while self.step < config.steps and not stopped:
                began, part = time.monotonic(), int(self.step >= self._first)
                batch = self._next(batches)
                if batch is None:
                    return self._exhausted()
                logged = (self.step + 1) % LOG_EVERY == 0 or self.step + 1 == config.steps
                terms = self._step(*batch, part, logged)
                bar.update(config.batch)
                self._total[part] += time.monotonic() - began
                if logged:
                    self._report(terms, bar)
                due = time.monotonic() - self._saved_at >= 60 * config.save_minutes
                asked_any, due = self.ranks.any_flags(asked.is_set(), due)
                if asked_any and self.step < config.steps:
                    stopped = "interrupted"
                elif due:
                    self.save()
            self.save()
        return stopped

    def save(self) -> None:
        """Replace the saved state by the present one, all of it finite.

        Raises:
            DictlabError: Every member diverged, or it cannot be written; the state saved before is left as it was.
        """
        self._drop(self._fallen() | {n: self.step for n, own in self.learners.items() if not own.finite})
        self._write()
        self.saved_step, self._saved_at = self.step, time.monotonic()

    def _write(self) -> None:
        tensors, members = dict(self._beginning.tensors), {}
        for name, learner in self.learners.items():
            own = learner_state.learner_state(learner)
            tensors |= {f"{name}/{key}": value for key, value in own.tensors.items()}
            members[name] = own.record
        tensors["random"] = torch.get_rng_state()
        record = self._beginning.record | {
            "step": self.step,
            "position": self._batches.position(),
            "seconds": {"own": self._own, "total": self._total},
            "diverged": self.diverged,
            "members": members,
        }
        widths = {name: learner.member.width for name, learner in self.learners.items()}
        with self.writing():
            now = State(tensors, record | {"log": self.log.synchronise()})
            run_state.write(self.state_path, now, widths, self.ranks)

    def close(self) -> None:
        """Close the logs, with the table of all that was logged."""
        with self.writing():
            self.log.table()
        for logger in self._loggers:
            logger.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What a disk that is full, or gone, means to the user."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise DictlabError(
                f"{self.folder}: cannot be written ({error}). The last good state, of step {self.saved_step}, is kept. "
                f"Free space, and go on with: dictlab train --resume {self.folder}"
            ) from error

    def _restore(self, saved: State) -> None:
        record = saved.record
        self.step = self.saved_step = record["step"]
        self.diverged, self._own, self._total = record["diverged"], record["seconds"]["own"], record["seconds"]["total"]
        for name in self.diverged:
            self.learners.pop(name, None)
        for name, learner in self.learners.items():
            learner_state.restore(learner, State(run_state.below(name, saved.tensors), record["members"][name]))
        torch.set_rng_state(saved.tensors["random"])

    def _next(self, batches: Iterator[Spliced]) -> Spliced | None:
        """The next batch; None where the data ended. Where it cannot be read, the state is saved first."""
        try:
            return next(batches, None)
        except DictlabError as error:
            self.save()
            raise DictlabError(
                f"{error} The state of step {self.step} is kept; go on with: dictlab train --resume {self.folder}"
            ) from error

    def _step(
        self, batch: Mapping[str, Batch], splices: Mapping[str, Splice | None], part: int, logged: bool
    ) -> dict[str, dict[str, Tensor]]:
        """A step of every member."""
        terms = {}
        self.step += 1
        for name, learner in self.learners.items():
            began, site = time.monotonic(), learner.member.site
            terms[name] = learner.step(batch[site], splices[site], logged=logged)
            failed = self._failed[name]
            first = (failed < 0) & ~torch.isfinite(terms[name]["loss"])
            self._failed[name] = torch.where(first, self.step, failed)  # no waiting for the device
            self._own[name][part] += time.monotonic() - began
        return terms

    def _report(self, terms: Mapping[str, Mapping[str, Tensor]], bar: tqdm[None]) -> None:
        """Metrics to the logs and to the bar; members that diverged are given up."""
        tokens = self.step * self.config.batch
        rate = (self.step - self._logged_step) * self.config.batch / max(self.elapsed - self._logged_seconds, 1e-9)
        self._logged_step, self._logged_seconds = self.step, self.elapsed
        records = {name: {key: float(value) for key, value in own.items()} for name, own in terms.items()}
        with self.writing():
            for name, values in records.items():
                where = {"member": name, "step": self.step, "tokens": tokens}
                for logger in self._loggers:
                    logger.write(where | {"seconds": self.elapsed, "tokens_per_second": rate} | values)
        self._drop(self._fallen())
        going = [records[name] for name in self.learners]
        ranges = {label: (min(r[key] for r in going), max(r[key] for r in going)) for key, label in SHOWN.items()}
        bar.set_postfix({label: f"{a:.3g}" if a == b else f"{a:.3g}..{b:.3g}" for label, (a, b) in ranges.items()})

    def _fallen(self) -> dict[str, int]:
        """Members whose loss was no number, and since which step."""
        steps = {name: int(self._failed[name]) for name in self.learners}
        return {name: step for name, step in steps.items() if step >= 0}

    def _drop(self, fallen: Mapping[str, int]) -> None:
        """Give members up.

        Raises:
            DictlabError: None is left.
        """
        for name, step in fallen.items():
            peak = self.learners.pop(name).lr
            self.diverged[name] = step
            message = f"the loss of {name} is no finite number at step {step}. Lower --lr (it peaks at {peak:.2g})"
            if not self.learners:
                raise DictlabError(
                    f"train: {message}; the log so far is in {self.folder / runs.METRICS}, and the last good state, "
                    f"of step {self.saved_step}, in {self.state_path}."
                )
            bar_safe = f"dictlab: {message}; it is given up, and the other {len(self.learners)} go on."
            self.ranks.on_rank_zero(partial(tqdm.write, bar_safe, file=sys.stderr))

    def _exhausted(self) -> str:
        """The data ended before its time."""
        self.save()
        config = self.config
        return (
            f"the data ended after {self.step * config.batch:,} of {config.tokens:,} tokens "
            f"({config.epochs} passes); allow more --epochs, or ask for fewer --tokens"
        )
