"""The training loop: steps, log and saved states, from the beginning or from a saved state."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from torch import Tensor

from dictlab import runs
from dictlab.errors import DictlabError
from dictlab.runtime import progress
from dictlab.runtime.progress import Phase
from dictlab.training import configfile
from dictlab.training.costs import Cost
from dictlab.training.distributed.ranks import SINGLE_PROCESS, Ranks
from dictlab.training.learner import learner_state
from dictlab.training.learner.learner import Learner
from dictlab.training.objectives import Batch, Splice
from dictlab.training.run_folder import run_state
from dictlab.training.run_folder.logs import JsonLines, NoLog, open_loggers
from dictlab.training.run_folder.run import StopSignal, interruptible
from dictlab.training.run_folder.run_state import State
from dictlab.training.run_folder.state_checks import check_tensors
from dictlab.training.sources.base import ActivationSource

SiteBatches: TypeAlias = tuple[dict[str, Batch], Mapping[str, Splice | None]]

LOG_EVERY = 25  # steps
SHOWN = {"loss": "loss", "l0": "L0", "explained_variance": "EV", "dead": "dead"}
DIVERGED = -1e6  # an explained variance below: reconstructions a thousand times as long as activations


class TrainingLoop:
    """The loop over the batches of a run, each of which trains every member of the family.

    Args:
        folder: The run's folder; its log is opened there.
        source: Where batches come from.
        learners: The members, as they start.
        identity: Of the run, for loggers that continue an earlier one.
        beginning: What every saved state holds besides the learners: statistics of the sample, identity of the source.
        saved: The state to continue from, its record checked.
        ranks: The processes that share each batch, and the latents; rank zero writes.

    Attributes:
        learners: Those that have not diverged, by name.
        diverged: The first step at which the loss was not finite, or had exploded, by member.
        step: Steps taken.
        saved_step: Steps taken when the state was saved.
        stop_signal: The signal that stopped it, if one did.

    Raises:
        DictlabError: The saved tensors are not those of these learners.
    """

    def __init__(
        self,
        folder: Path,
        source: ActivationSource,
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
        self.stop_signal: int | None = None
        self._beginning = beginning
        self._first = self.config.steps - self.config.finetune_steps
        self._seconds = {name: [0.0, 0.0] for name in self.learners}  # of its steps at first, and while fine-tuning
        self._total, position, size = [0.0, 0.0], None, 0
        if saved is not None:
            position, size = saved.record["position"], saved.record["log"]
            self._restore(saved)
        for learner in self.learners.values():
            ranks.broadcast_weights(learner.parameters, learner.common)  # machines may round differently
        self._resumed_step = self.step
        self._batches = source.batches(position)
        device = torch.device(self.config.device)
        self._failed = {name: torch.full((), -1, dtype=torch.long, device=device) for name in self.learners}
        self.log = ranks.on_rank_zero(lambda: JsonLines(folder, size)) or NoLog()
        self._loggers = [self.log, *(ranks.on_rank_zero(lambda: open_loggers(self.config, folder, identity)) or ())]
        self._saved_at = time.monotonic()
        self._logged_step, self._logged_seconds = self.step, self.elapsed

    @property
    def costs(self) -> dict[str, Cost]:
        """Seconds of each member, in all sessions: its own steps, and its share of the stream that serves all alike."""
        spent = [sum(seconds[part] for seconds in self._seconds.values()) for part in (0, 1)]
        shared = [(total - own) / len(self._seconds) for total, own in zip(self._total, spent, strict=True)]
        return {name: Cost(own[0] + shared[0], own[1] + shared[1]) for name, own in self._seconds.items()}

    @property
    def elapsed(self) -> float:
        """Seconds of training, in all sessions, without those of saving."""
        return sum(self._total)

    @property
    def state_path(self) -> Path:
        """Where the state is."""
        return self.folder / runs.STATE

    def fit(self) -> str | None:
        """Take the steps that are left, and save the state.

        Returns:
            Why it stopped before the last step, if it did.

        Raises:
            DictlabError: Every member diverged, the data cannot be read, or the disk is full.
        """
        config, stopped = self.config, None
        total, done = config.steps * config.batch, self.step * config.batch
        phase = Phase("train", total, done=done, unit="tokens", shown=self.ranks.is_rank_zero)
        with interruptible() as stop, phase:
            self.source.show_progress(phase)
            self.save(phase)
            batches = iter(self._batches)
            while self.step < config.steps and not stopped:
                began, part = time.monotonic(), int(self.step >= self._first)
                batch = self._next(batches, phase)
                if batch is None:
                    return self._exhausted()
                logged = (self.step + 1) % LOG_EVERY == 0 or self.step + 1 == config.steps
                terms = self._step(*batch, part, logged)
                self._total[part] += time.monotonic() - began
                if logged:
                    self._report(terms, phase)
                phase.advance(config.batch)
                if self._asked_to_stop(stop, phase) and self.step < config.steps:
                    stopped = "interrupted"
            self.save(phase)
        return stopped

    def save(self, phase: Phase | None = None) -> None:
        """Replace the saved state by the present one, all of it finite.

        Raises:
            DictlabError: Every member diverged, or it cannot be written; the state saved before is left as it was.
        """
        if phase is not None:
            phase.stage = f"saving the state of step {self.step}"
        self._drop(self._failed_steps() | {n: self.step for n, learner in self.learners.items() if not learner.finite})
        self._write()
        self.saved_step, self._saved_at = self.step, time.monotonic()
        if phase is not None:
            phase.stage = ""

    def close(self) -> None:
        """Close the logs, with the table of all that was logged."""
        with self.writing():
            self.log.table()
        for logger in self._loggers:
            logger.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Say what a disk that is full, or gone, means for the run."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise DictlabError(
                f"{self.folder}: cannot be written ({error}). The last good state, of step {self.saved_step}, is kept. "
                f"Free space, and go on with: dictlab train --resume {self.folder}"
            ) from error

    def _asked_to_stop(self, stop: StopSignal, phase: Phase) -> bool:
        """Whether a process got a signal to stop; where the state is due, it is saved."""
        due = time.monotonic() - self._saved_at >= 60 * self.config.save_minutes
        interrupt, terminate, due = self.ranks.any_flags(
            stop.number == signal.SIGINT, stop.number == signal.SIGTERM, due
        )
        if interrupt or terminate:
            self.stop_signal = int(signal.SIGTERM if terminate else signal.SIGINT)
        elif due:
            self.save(phase)
        return interrupt or terminate

    def _write(self) -> None:
        tensors, optimized = dict(self._beginning.tensors), {}
        for name, learner in self.learners.items():
            tensors |= {f"{name}/{key}": value for key, value in learner_state.learner_tensors(learner).items()}
            optimized[name] = learner_state.optimized(learner)
        tensors["random"] = torch.get_rng_state()
        record: dict[str, Any] = self._beginning.record | {
            "settings": configfile.settings(self.config),
            "step": self.step,
            "position": self._batches.position(),
            "seconds": {"members": self._seconds, "total": self._total},
            "diverged": self.diverged,
            "optimized": optimized,
        }
        widths = {name: learner.member.width for name, learner in self.learners.items()}
        with self.writing():
            state = State(tensors, record | {"log": self.log.synchronise()})
            run_state.write(self.state_path, state, widths, self.ranks)

    def _restore(self, saved: State) -> None:
        record = saved.record
        self.step = self.saved_step = record["step"]
        self.diverged, self._seconds = record["diverged"], record["seconds"]["members"]
        self._total = record["seconds"]["total"]
        for name in self.diverged:
            self.learners.pop(name, None)
        for name, learner in self.learners.items():
            tensors = run_state.below(name, saved.tensors)
            expected = learner_state.expected_tensors(learner, record["optimized"][name])
            check_tensors(self.state_path, name, tensors, expected)
            learner_state.restore(learner, tensors, self.step)
        random = saved.tensors.get("random", torch.empty(0))
        check_tensors(self.state_path, "random", {"": random}, {"": torch.get_rng_state()})
        torch.set_rng_state(random)

    def _next(self, batches: Iterator[SiteBatches], phase: Phase) -> SiteBatches | None:
        """The next batch; None where the data ended. Where it cannot be read, the state is saved first."""
        try:
            batch = next(batches, None)
        except DictlabError as error:
            self.save()
            raise DictlabError(
                f"{error} The state of step {self.step} is kept; go on with: dictlab train --resume {self.folder}"
            ) from error
        phase.stage = ""
        return batch

    def _step(
        self, batch: Mapping[str, Batch], splices: Mapping[str, Splice | None], part: int, logged: bool
    ) -> dict[str, dict[str, Tensor]]:
        """A step of every member."""
        terms = {}
        self.step += 1
        for name, learner in self.learners.items():
            began, site = time.monotonic(), learner.member.site
            terms[name] = learner.step(batch[site], splices[site], logged=logged)
            self._note_failure(name, ~torch.isfinite(terms[name]["loss"]))
            if logged:
                self._note_failure(name, terms[name]["explained_variance"] < DIVERGED)
            self._seconds[name][part] += time.monotonic() - began
        return terms

    def _note_failure(self, name: str, failing: Tensor) -> None:
        """Keep the first step at which a member failed, on the device: the host does not wait for it."""
        failed = self._failed[name]
        self._failed[name] = torch.where((failed < 0) & failing, self.step, failed)

    def _report(self, terms: Mapping[str, Mapping[str, Tensor]], phase: Phase) -> None:
        """Write metrics to the logs and the line of progress; members that diverged are given up."""
        tokens = self.step * self.config.batch
        rate = (self.step - self._logged_step) * self.config.batch / max(self.elapsed - self._logged_seconds, 1e-9)
        self._logged_step, self._logged_seconds = self.step, self.elapsed
        records = {name: {key: float(value) for key, value in own.items()} for name, own in terms.items()}
        with self.writing():
            for name, values in records.items():
                where = {"member": name, "step": self.step, "tokens": tokens}
                for logger in self._loggers:
                    logger.write(where | {"seconds": self.elapsed, "tokens_per_second": rate} | values)
        self._drop(self._failed_steps())
        remaining = [records[name] for name in self.learners]
        ranges = {
            label: (min(r[key] for r in remaining), max(r[key] for r in remaining)) for key, label in SHOWN.items()
        }
        phase.note = ", ".join(
            f"{label} {low:.3g}" if low == high else f"{label} {low:.3g}..{high:.3g}"
            for label, (low, high) in ranges.items()
        )

    def _failed_steps(self) -> dict[str, int]:
        """Members that failed, and since which step."""
        steps = {name: int(self._failed[name]) for name in self.learners}
        return {name: step for name, step in steps.items() if step >= 0}

    def _drop(self, failed: Mapping[str, int]) -> None:
        """Give members up.

        Raises:
            DictlabError: None is left.
        """
        for name, step in failed.items():
            peak = self.learners.pop(name).lr
            self.diverged[name] = step
            message = f"the loss of {name} is no finite number at step {step}. Lower `lr=...` (it peaks at {peak:.2g})"
            if not self.learners:
                raise DictlabError(
                    f"train: {message}; the log so far is in {self.folder / runs.METRICS}, and the last good state, "
                    f"of step {self.saved_step}, in {self.state_path}."
                )
            rest = f"dictlab: {message}; it is given up, and the other {len(self.learners)} go on.\n"
            self.ranks.on_rank_zero(partial(progress.write, rest))

    def _exhausted(self) -> str:
        """Save the state of a run whose data ended before its time, and say so."""
        self.save()
        config = self.config
        return (
            f"the data ended after {self.step * config.batch:,} of {config.tokens:,} tokens "
            f"({config.epochs} passes); allow more `epochs=...`, or ask for fewer `tokens=...`"
        )
