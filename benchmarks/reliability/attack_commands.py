"""Attacks on commands that write files, counted: kills at random moments, pairs of processes, disks that fill.

    python -m benchmarks.reliability.attack_commands --kills 30 --pairs 10 --disks 40 --seed 0
    python -m benchmarks.reliability.attack_commands --targets cache stitch --kills 5 --pairs 0 --disks 0

Commands are `train`, `train --cache`, `convert`, a report, `stitch` and `explore`, on planted files
(`benchmarks.reliability.targets`); counts are for each of them. Right is, of what the command writes,

    kill    it is whole or not there; or what was there before, whole (every second time there is something). Typed
            again, it ends with the bytes of a command that nobody killed, and nothing else lies beside. Training goes
            on from its state; a cache that was left is read by the next run, every second time by a new one.
    pair    of two processes that write it at once, one ends and the other is told who writes, or both end
    disk    a small file system fills at each of so many points, spread over what the command writes: one line that says
            so, status 2, what was there before whole. When there is room again, the command ends as above.

A traceback, a signal, other bytes, or something left beside is counted as a failure and named; the exit code is 1 then.
Small file systems are mounted (tmpfs), which takes root; elsewhere a limit of each file's size stands for them.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.reliability.processes import ENDED, ended, forked, import_what_it_needs, last_line, print_table
from benchmarks.reliability.targets import Content, Target, content, emptied, targets

COMPLAINT = 2  # exit status of a command that says in a line why it cannot
PAGE = 4096  # bytes that a tmpfs counts in
ROOM = 64 << 20  # bytes of a small file system that has room again


class Attacked(NamedTuple):
    """A command, what it writes when nobody attacks it, and how long that takes.

    Attributes:
        target: The command.
        whole: By seed, what it writes.
        lasting: Files that are the same, byte for byte, each time.
        seconds: Of one command.
        size: Bytes of all that it writes.
        room: A folder for attacks.
    """

    target: Target
    whole: tuple[Content, Content]
    lasting: frozenset[str]
    seconds: float
    size: int
    room: Path

    @property
    def log(self) -> Path:
        """What attacked processes print."""
        return self.room / "log"

    def start(self, place: Path, seed: int) -> int:
        """Begin the command in a process of its own; its number."""
        return forked(lambda: self.target.run(place, seed), self.log)

    def is_whole(self, place: Path, seed: int) -> bool:
        """Whether everything is there, of the right bytes."""
        found, right = content(place / self.target.written), self.whole[seed]
        return found.keys() == right.keys() and all(found[name] == right[name] for name in self.lasting)

    def state(self, place: Path) -> str | None:
        """What is there after something went wrong, in words; None where that is no state that may be."""
        if self.target.go_on is not None:
            return "a run to go on with"
        if not (place / self.target.written).exists():
            return "nothing"
        return next((f"that of seed {seed}, whole" for seed in (0, 1) if self.is_whole(place, seed)), None)

    def wrong(self, place: Path, seed: int) -> str | None:
        """What is wrong after the command has ended well; None if nothing is."""
        others = {path.name for path in place.iterdir()} - {self.target.written, "cache"}
        others |= {path.name for path in place.rglob(".*")}
        if others:
            return f"left beside: {', '.join(sorted(others))}"
        return None if self.is_whole(place, seed) else "other bytes"


def prepared(target: Target, room: Path) -> Attacked:
    """Run a command as nobody attacks it, twice with one seed and once with another."""
    room.mkdir()
    import_what_it_needs(lambda: target.run(emptied(room / "first"), 0), room)
    began = time.monotonic()
    wholes = []
    for number, seed in enumerate((0, 0, 1)):
        place = emptied(room / f"whole{number}")
        assert ended(forked(lambda place=place, seed=seed: target.run(place, seed), room / "log")) == ENDED, (  # type: ignore[misc]
            f"{target.name} does not end: {last_line(room / 'log')}"
        )
        wholes.append(content(place / target.written))
    seconds = (time.monotonic() - began) / 3
    lasting = frozenset(name for name, digest in wholes[0].items() if wholes[1].get(name) == digest)
    size = sum(PAGE * -(-file.stat().st_size // PAGE) for file in (room / "whole0").rglob("*") if file.is_file())
    return Attacked(target, (wholes[0], wholes[2]), lasting, seconds, size, room)


def begun(attacked: Attacked, place: Path, draw: random.Random) -> Path:
    """A place to write to; every second time with what a command of another seed has written there."""
    emptied(place)
    if attacked.target.go_on is None and draw.random() < 0.5:
        assert ended(attacked.start(place, 1)) == ENDED, last_line(attacked.log)
    return place


def attack_by_kills(attacked: Attacked, count: int, draw: random.Random) -> Counter[str]:
    """Kill commands at random moments, half of them in the last third, where most is written."""
    outcomes: Counter[str] = Counter()
    for number in range(count):
        place = begun(attacked, attacked.room / "place", draw)
        for _ in range(draw.randint(1, 2)):
            attacked.log.unlink(missing_ok=True)
            child = attacked.start(place, 0)
            time.sleep(attacked.seconds * draw.choice([draw.uniform(0, 1), draw.uniform(0.6, 1.1)]))
            os.kill(child, signal.SIGKILL)
            code, state = ended(child), attacked.state(place)
            happened = "killed" if code == -signal.SIGKILL else "ended before the kill"
            wrong = None if code in (-signal.SIGKILL, ENDED) and state else f"FAILED: kill {number}, exit {code}"
            outcomes[f"{happened}: {state}" if wrong is None else f"{wrong}, {last_line(attacked.log)}"] += 1
            if (place / "cache").exists() and draw.random() < 0.5:
                shutil.rmtree(place / "run", ignore_errors=True)
        outcomes[after(attacked, place, f"kill {number}")] += 1
    return outcomes


def after(attacked: Attacked, place: Path, attack: str) -> str:
    """The outcome of the command when nobody attacks it any more."""
    attacked.log.unlink(missing_ok=True)
    code = ended(attacked.start(place, 0))
    wrong = f"exit {code}, {last_line(attacked.log)}" if code else attacked.wrong(place, 0)
    return "typed again: the same bytes" if wrong is None else f"FAILED: after {attack}: {wrong}"


def attack_by_pairs(attacked: Attacked, count: int, draw: random.Random) -> Counter[str]:
    """Start two processes of one command, at nearly the same moment."""
    outcomes: Counter[str] = Counter()
    for number in range(count):
        place = begun(attacked, attacked.room / "place", draw)
        attacked.log.unlink(missing_ok=True)
        first = attacked.start(place, 0)
        time.sleep(draw.uniform(0, 0.5 * attacked.seconds))
        second = attacked.start(place, 0)
        codes = sorted([ended(second), ended(first)])
        wrong = attacked.wrong(place, 0)
        if codes not in ([ENDED, ENDED], [ENDED, COMPLAINT]) or wrong:
            outcomes[f"FAILED: pair {number}, exits {codes}, {wrong}, {last_line(attacked.log)}"] += 1
        else:
            outcomes["both end" if codes[1] == ENDED else "one ends, one is told"] += 1
    return outcomes


def attack_by_disks(attacked: Attacked, count: int, draw: random.Random) -> Counter[str]:
    """Let a small file system fill, at points spread over what a command writes, from its first byte on."""
    outcomes: Counter[str] = Counter()
    for number in range(count):
        place = attacked.room / "disk"
        with small_disk(place) as resize:
            before = attacked.target.go_on is None and draw.random() < 0.5
            if before:
                resize(ROOM)
                assert ended(attacked.start(place, 1)) == ENDED, last_line(attacked.log)
            resize(PAGE * (1 + number * (attacked.size // PAGE + 1) // count), used=before)
            attacked.log.unlink(missing_ok=True)
            code = ended(attacked.start(place, 0))
            printed = attacked.log.read_text(errors="replace")
            state = attacked.state(place) if code != ENDED else attacked.state(place) and "it had room enough"
            if code not in (ENDED, COMPLAINT) or state is None or "Traceback" in printed:
                outcomes[f"FAILED: disk {number}, exit {code}, {state}, {last_line(attacked.log)}"] += 1
            else:
                outcomes[f"full: {state}" if code else f"{state}"] += 1
            resize(ROOM)
            outcomes[after(attacked, place, f"disk {number}")] += 1
    return outcomes


@contextmanager
def small_disk(place: Path) -> Iterator[Callable[..., None]]:
    """A folder whose size can be set; what is called with `used` comes on top of what lies there."""
    emptied(place)
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(place)], stderr=subprocess.DEVNULL, check=False
    ).returncode

    def resize(size: int, used: bool = False) -> None:
        if mounted:
            taken = os.statvfs(place)
            size += (taken.f_blocks - taken.f_bfree) * taken.f_frsize if used else 0
            subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    try:
        yield resize
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


ATTACKS = {"kills": attack_by_kills, "pairs": attack_by_pairs, "disks": attack_by_disks}


def main(arguments: list[str] | None = None) -> int:
    """Attack, and print a table of outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("kills", 10), ("pairs", 5), ("disks", 10), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--targets", nargs="+", help="of train, cache, convert, report, stitch, explore; all by default"
    )
    asked = parser.parse_args(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)  # a forked process has no pool of threads
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file that grows over a limit is an error, as a full disk is
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        known = targets(Path(name) / "planted")
        for target in [known[wanted] for wanted in asked.targets or known]:
            attacked = prepared(target, Path(name) / target.name)
            print(f"{target.name}: {attacked.seconds:.1f} s and {attacked.size:,} bytes unattacked", flush=True)
            for attack, count in ((attack, getattr(asked, attack)) for attack in ATTACKS):
                if count:
                    draw = random.Random(f"{attack}:{target.name}:{asked.seed}")
                    failures += print_table(f"{attack}, {target.name}", ATTACKS[attack](attacked, count, draw))
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
