"""Who asks the child process, and judges what it says."""

from __future__ import annotations

import contextlib
import json
import selectors
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent.parent
HANGS = 60.0  # seconds without an answer
SECONDS = 10.0  # of computing for one small file
MEGABYTES = 200.0  # by which the peak of memory may grow for one small file
LONGEST = 2100  # characters of a message


class Verdict(NamedTuple):
    """What came of one file.

    Attributes:
        outcome: "loaded", "refused", or what is wrong.
        said: The message or traceback.
    """

    outcome: str
    said: str

    @property
    def fine(self) -> bool:
        return self.outcome in ("loaded", "refused")


class Opener:
    """A child process that opens files, and another one when it has died or has opened many."""

    def __init__(self, batch: int = 500):
        self.batch, self.opened = batch, 0
        self.child: subprocess.Popen[str] | None = None

    def __enter__(self) -> Opener:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.communicate()
            self.child = None

    def open(self, path: Path, part: str = "", format: str | None = None) -> Verdict:
        """What comes of a file or folder."""
        if self.opened % self.batch == 0:
            self.close()
        self.opened += 1
        answer = self._ask({"path": f"{path}#{part}" if part else str(path), "format": format})
        return judged(answer, path)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        if self.child is None:
            self.child = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.fuzzing.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=ROOT,
            )
        child, line = self.child, ""
        assert child.stdin is not None and child.stdout is not None
        with contextlib.suppress(BrokenPipeError), selectors.DefaultSelector() as selector:
            child.stdin.write(json.dumps(question) + "\n")
            child.stdin.flush()
            selector.register(child.stdout, selectors.EVENT_READ)
            line = child.stdout.readline() if selector.select(HANGS) else None
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        outcome = "hangs" if line is None else f"crash ({child.wait()})"
        self.close()
        return {"outcome": outcome, "said": "", "seconds": 0, "megabytes": 0}


def judged(answer: dict[str, Any], path: Path) -> Verdict:
    """Whether an answer is what a file may get."""
    outcome, said = answer["outcome"], answer["said"]
    if outcome == "refused":
        if answer["cause"]:
            return Verdict("out of memory", answer["cause"])
        if not said.isprintable() or len(said) > LONGEST:
            return Verdict("message is not one line", said)
        if str(path) not in said:
            return Verdict("message does not name the file", said)
    if answer["seconds"] > SECONDS:
        return Verdict(f"slow ({answer['seconds']:.0f} s)", said)
    if answer["megabytes"] > MEGABYTES:
        return Verdict(f"memory ({answer['megabytes']:.0f} MB)", said)
    return Verdict(outcome, said)
