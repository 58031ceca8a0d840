"""Damaged dictionaries of every format: each is read, or refused in one line that names the file.

python -m benchmarks.reliability.fuzz_formats [--files 10000] [--seed 0] [--keep FOLDER] [--json]

Files are opened in a child process under a limit of memory. A crash, a hang, an error of another class, a message that
does not name the file, or memory and time out of proportion is a finding, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

from dictlab.formats.loading import formats
from tests.fuzzing.mutations import damage
from tests.fuzzing.opener import Opener, Verdict
from tests.fuzzing.seeds import SEEDS, Seed


def one(
    folder: Path, seed: Seed, source: Path, others: list[Path], random: Random, opener: Opener
) -> tuple[str, Verdict]:
    """Damage a copy of a seed in `folder`, and open it."""
    shutil.copytree(source, folder)
    done = damage(folder, random, others)
    path = folder if random.random() < 0.3 else folder / seed.weights
    format = random.choice((None, None, None, seed.format, random.choice(sorted(formats()))))
    return f"{seed.format}, opened as {format}: {'; '.join(done)}", opener.open(path, seed.part, format)


def run(files: int, seed: int, keep: Path | None) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Outcomes by format, and what was found."""
    counts: Counter[tuple[str, str]] = Counter()
    found = []
    with tempfile.TemporaryDirectory() as temporary, Opener() as opener:
        sources = [Path(temporary) / f"seed-{index}" for index in range(len(SEEDS))]
        for source, kind in zip(sources, SEEDS, strict=True):
            source.mkdir()
            kind.write(source)
        for number in range(files):
            index = number % len(SEEDS)
            folder = Path(temporary) / f"file-{number}"
            random = Random(f"{seed} {number}")
            done, verdict = one(folder, SEEDS[index], sources[index], sources, random, opener)
            counts[SEEDS[index].format, verdict.outcome if verdict.fine else "findings"] += 1
            if not verdict.fine:
                found.append(f"{number} {done}: {verdict.outcome}: {verdict.said}")
                if keep is not None:
                    shutil.copytree(folder, keep / str(number), dirs_exist_ok=True)
            shutil.rmtree(folder)
    return counts, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the files that are findings")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    counts, found = run(options.files, options.seed, options.keep)
    names = ("loaded", "refused", "findings")
    rows = {format: {name: counts[format, name] for name in names} for format in sorted(formats())}
    if options.json:
        print(json.dumps({"seed": options.seed, "formats": rows, "findings": found}))
        return 1 if found else 0
    print(f"{'format':<22}{'files':>8}{'loaded':>8}{'refused':>9}{'findings':>10}")
    for format, row in [*rows.items(), ("all", {name: sum(row[name] for row in rows.values()) for name in names})]:
        print(f"{format:<22}{sum(row.values()):>8}{row['loaded']:>8}{row['refused']:>9}{row['findings']:>10}")
    print(*found, sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
