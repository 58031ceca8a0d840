"""Attacks on training runs, counted: kills at random moments, pairs of processes in one folder, damaged states, links.

    python -m benchmarks.reliability.attack_runs --kills 60 --pairs 50 --states 2000 --links 20 --seed 0

Runs are small, on a planted array, and trained by `dictlab.training` in processes of their own (forked, so that nothing
is imported again). Each attack has one outcome that is right, or one of two:

    kill    the run resumes to the bits of one that was never killed
    pair    of two processes that train in one folder at once, one ends and the other is told who writes; or both end
    state   a byte of state.safetensors, run.json, config.toml or metrics.jsonl is changed, cut or repeated: a
            DictlabError, or the bits of the whole run
    link    something that the run writes is a link to a victim's file: a DictlabError, and the victim is as it was

Everything else (a traceback, a signal, other bits) is counted as a failure and named; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.reliability.processes import (
    ENDED,
    IN_USE,
    REFUSED,
    ended,
    forked,
    import_what_it_needs,
    last_line,
    print_table,
)
from dictlab.numerics import seeds
from dictlab.runs import open_run
from dictlab.training import TrainConfig, resume, train
from dictlab.training.learner.learner import Learner

DATA = torch.randn(1500, 16, generator=seeds.generator(0, "data of the attack on runs"))
SETTINGS = TrainConfig(
    data="attack", width=16, activation=("topk", "batchtopk"), k=2, tokens=64 * 50, batch=64, ema=0.9, save_minutes=0.0
)
FILES = ("state.safetensors", "run.json", "config.toml", "metrics.jsonl")
LINKED = (*FILES, "metrics.parquet", ".state.safetensors.partial", ".run.json.partial", ".dictlab.lock")
Bits = dict[str, dict[str, torch.Tensor]]


def begin(folder: Path) -> None:
    """Train, or go on, as somebody who restarts a job would."""
    if (folder / "config.toml").exists():
        resume(folder, data=DATA)
    else:
        train(SETTINGS, out=folder, data=DATA)


def begun(folder: Path) -> int:
    """The number of a process that trains, or goes on. What it prints is beside the folder."""
    return forked(lambda: begin(folder), log_of(folder))


def resumed(folder: Path) -> int:
    """The exit code of a process that goes on with a run."""

    def go_on() -> None:
        resume(folder, data=DATA)

    return ended(forked(go_on, log_of(folder)))


def log_of(folder: Path) -> Path:
    """What processes of a folder print."""
    return folder.with_name(f"{folder.name}.log")


def bits(folder: Path) -> Bits:
    """The tensors of a run's dictionaries."""
    return {path.name: load_file(path) for path in sorted(folder.glob("local-*.safetensors"))}


def same(a: Bits, b: Bits) -> bool:
    """Whether all tensors are equal, bit for bit."""
    return a.keys() == b.keys() and all(
        a[name].keys() == b[name].keys() and all(torch.equal(t, b[name][key]) for key, t in a[name].items())
        for name in a
    )


def attack_by_kills(count: int, draw: random.Random, room: Path, whole: Bits, seconds: float) -> Counter[str]:
    """Kill runs again and again, at moments spread over the time that one takes, then let them end."""
    outcomes: Counter[str] = Counter()
    for number in range(count):
        folder = room / f"kill{number}"
        for _ in range(draw.randint(1, 3)):
            child = begun(folder)
            time.sleep(draw.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
            outcomes["killed" if ended(child) == -signal.SIGKILL else "ended before the kill"] += 1
        code = ended(begun(folder))
        right = code == ENDED and same(bits(folder), whole)
        failure = f"FAILED: kill, run {number}, exit {code}, {last_line(log_of(folder))}"
        outcomes["same bits" if right else failure] += 1
        shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def attack_by_pairs(count: int, draw: random.Random, room: Path, whole: Bits, seconds: float) -> Counter[str]:
    """Start two processes on one folder, at nearly the same moment."""
    outcomes: Counter[str] = Counter()
    for number in range(count):
        folder = room / f"pair{number}"
        first = begun(folder)
        time.sleep(draw.uniform(0, 0.5 * seconds))
        codes = sorted([ended(begun(folder)), ended(first)])
        right = codes in ([ENDED, ENDED], [ENDED, IN_USE], [ENDED, REFUSED])
        if not right or not open_run(folder).finished or not same(bits(folder), whole):
            outcomes[f"FAILED: pair {number}, {codes}, {last_line(log_of(folder))}"] += 1
        else:
            outcomes["one ends, one is told" if codes[1] != ENDED else "both end"] += 1
        shutil.rmtree(folder)
    return outcomes


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A file of which something is changed, cut off, left out or there twice."""
    at = draw.randrange(len(content) if draw.random() < 0.5 else min(len(content), 4096))
    end = min(len(content), at + draw.choice([1, 2, 8, 100, 4000]))
    how = draw.choice(["change", "cut", "leave out", "repeat", "zeros"])
    parts = {
        "change": content[:at] + draw.randbytes(end - at) + content[end:],
        "cut": content[:at],
        "leave out": content[:at] + content[end:],
        "repeat": content[:end] + content[at:],
        "zeros": content[:at] + bytes(end - at) + content[end:],
    }
    return parts[how]


def attack_states(count: int, draw: random.Random, room: Path, stopped: Path, whole: Bits) -> Counter[str]:
    """Damage one file of a stopped run, and resume it."""
    outcomes: Counter[str] = Counter()
    for number in range(count):
        folder = Path(shutil.copytree(stopped, room / f"state{number}"))
        name = draw.choice(FILES)
        (folder / name).write_bytes(damaged((folder / name).read_bytes(), draw))
        code = resumed(folder)
        if code == REFUSED:
            outcomes[f"{name}: refused"] += 1
        elif code == ENDED and same(bits(folder), whole):
            outcomes[f"{name}: same bits"] += 1
        else:
            outcomes[f"FAILED: state {number}, {name}, exit {code}, {last_line(log_of(folder))}"] += 1
        shutil.rmtree(folder)
    return outcomes


def attack_links(count: int, draw: random.Random, room: Path, stopped: Path) -> Counter[str]:
    """Put a link to a victim's file where a run writes."""
    outcomes: Counter[str] = Counter()
    for number in range(count):
        folder, name = Path(shutil.copytree(stopped, room / f"link{number}")), LINKED[number % len(LINKED)]
        victim = room / f"victim{number}"
        victim.write_bytes((folder / name).read_bytes() if (folder / name).exists() else draw.randbytes(1000))
        before = victim.read_bytes()
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(victim)
        code = resumed(folder)
        right = code == REFUSED and victim.read_bytes() == before
        outcomes["refused, victim unchanged" if right else f"FAILED: link {name}, exit {code}"] += 1
        shutil.rmtree(folder)
    return outcomes


def stopped_run(room: Path) -> Path:
    """A run that was stopped half way: it sends itself SIGTERM."""
    folder, step = room / "stopped", Learner.step

    def stopping(learner: Learner, *arguments: Any, **options: Any) -> Any:
        if learner.steps == SETTINGS.steps // 2 and learner.member.variant.label == "topk2":
            signal.raise_signal(signal.SIGTERM)
        return step(learner, *arguments, **options)

    def train_and_stop() -> None:
        Learner.step = stopping  # type: ignore[method-assign]
        begin(folder)

    code = ended(forked(train_and_stop, log_of(folder)))
    assert code == ENDED and (folder / "state.safetensors").exists(), f"no run to attack: {last_line(log_of(folder))}"
    return folder


def main(arguments: list[str] | None = None) -> int:
    """Attack, and print a table of outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("kills", 20), ("pairs", 10), ("states", 200), ("links", len(LINKED)), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a forked process has no pool of threads
    os.fsync = lambda descriptor: None  # a kill does not touch what the disk has yet to write
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        import_what_it_needs(lambda: begin(room / "first"), room)
        began = time.monotonic()
        code = ended(begun(room / "whole"))
        seconds, whole = time.monotonic() - began, bits(room / "whole")
        assert code == ENDED and whole, f"a run that nobody attacks does not end: {last_line(log_of(room / 'whole'))}"
        print(f"a run that nobody attacks: {seconds:.1f} s", flush=True)
        stopped = stopped_run(room)
        for kind, attack in {
            "kills": lambda draw: attack_by_kills(asked.kills, draw, room, whole, seconds),
            "pairs": lambda draw: attack_by_pairs(asked.pairs, draw, room, whole, seconds),
            "states": lambda draw: attack_states(asked.states, draw, room, stopped, whole),
            "links": lambda draw: attack_links(asked.links, draw, room, stopped),
        }.items():
            failures += print_table(kind, attack(random.Random(f"{kind}:{asked.seed}")))
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
