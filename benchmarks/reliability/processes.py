"""Attacks in processes of their own, forked so that nothing is imported again, and the table of what came of them."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from dictlab import DictlabError
from dictlab.runtime.folder_lock import InUseError

ENDED, FAILED, REFUSED, IN_USE = 0, 1, 2, 3  # exit codes of a process of an attack


def forked(work: Callable[[], int | None], log: Path | None = None) -> int:
    """Run something in a process of its own, whose exit code says how it ended; returns its number.

    Args:
        work: Returns its exit code, or None for `ENDED`.
        log: Where what it prints goes, tracebacks included; nowhere by default.
    """
    child = os.fork()
    if child:
        return child
    code = FAILED
    try:
        with (log or Path(os.devnull)).open("a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        code = work() or ENDED
    except InUseError:
        code = IN_USE
    except DictlabError:
        code = REFUSED
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
            sys.stdout.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a process; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def import_what_it_needs(work: Callable[[], int | None], scratch: Path) -> None:
    """Import here what `work` imports, so that processes forked later read no source: they are quicker, and what
    happens to the source meanwhile does not matter. It is run once, in a process that ends.

    Raises:
        RuntimeError: It does not end well even when nobody attacks it.
    """
    names, log = scratch / "modules.pickle", scratch / "unattacked.log"

    def run() -> int | None:
        code = work()
        names.write_bytes(pickle.dumps(sorted(name for name in sys.modules if name != "__main__")))
        return code

    if code := ended(forked(run, log)):
        raise RuntimeError(f"what is to be attacked ends with {code} although nobody attacks it: {last_line(log)}")
    for name in pickle.loads(names.read_bytes()):
        with contextlib.suppress(Exception):  # a module that was there under a second name alone
            importlib.import_module(name)


def last_line(log: Path) -> str:
    """The end of what a process printed."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1][-300:] if lines else "it printed nothing"


def print_table(attack: str, outcomes: Counter[str]) -> int:
    """Print outcomes as rows of a table; returns how many are failures."""
    for outcome, count in sorted(outcomes.items()):
        print(f"| {attack} | {outcome} | {count} |", flush=True)
    return sum(count for outcome, count in outcomes.items() if outcome.startswith("FAILED"))
