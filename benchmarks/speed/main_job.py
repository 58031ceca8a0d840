"""Time and peak memory of the main job: the commands of `make demo`, each in a process of its own.

python -m benchmarks.speed.main_job
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def commands() -> list[list[str]]:
    """The commands of the target `demo`, as make would run them."""
    shown = subprocess.run(["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = shown.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if "/dictlab " in line]


def main() -> None:
    total = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for command in commands():
            arguments = [
                *command[1 : command.index("--out") + 1],
                str(Path(folder) / command[1]),
                *command[command.index("--out") + 2 :],
            ]
            began = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", "dictlab", *arguments],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - began
            total += seconds
            if status:
                sys.exit(f"dictlab {shlex.join(arguments)} failed with status {status}")
            print(
                f"dictlab {' '.join(command[1:3])[:40]:40s} {seconds:6.1f} s   peak {usage.ru_maxrss / 1024:6.0f} MiB"
            )
    print(f"together {total:.1f} s on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
