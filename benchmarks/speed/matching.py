"""Nearest neighbours both ways against the bare matrix product they are made of, and the memory they take.

python -m benchmarks.speed.matching [--small] [--whole] [--json]
python -m benchmarks.speed.matching --files [--rows N] [--width D] [--allowed MB] [--alone]
python -m benchmarks.speed.matching --cuda
torchrun --nproc_per_node 2 benchmarks/speed/matching.py --ranks

The product is timed in the same run, on the same rows at unit length, in blocks of the same size, with the faster of
NumPy and torch; the two alternate. With --files, two dictionaries are written to a temporary folder slice by slice,
and a process that may hold no more than the allowed memory of its own finds their neighbours, looks some of them up by
hand, and times the product on every fourth block of rows (not with --alone): --width 768 takes about fifteen minutes on
two cores. With --cuda, a million rows by a million, on a GPU. With --ranks, processes share the rows, and the answer is
compared with that of one process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch.nn.functional import normalize

from analyses.common.distributed_search import count, ranks
from analyses.common.neighbours import Neighbours, neighbours
from dictlab import Dictionary, ReLU
from dictlab.formats.loading import mapped
from dictlab.formats.native import native_file as native

TOP, ROUNDS, BLOCK = 8, 2, 6144
SLICE, CHECKED = 4096, 64  # rows of a file that are held at once; rows each way that are looked up by hand
MILLION = (1_000_000, 1_000_000, 768)
FULL, SMALL = (24_576, 98_304, 768), (8_192, 32_768, 768)


def rows(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.empty(n, d).normal_(generator=torch.Generator().manual_seed(seed))


def spent(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def product(a: torch.Tensor, b: torch.Tensor, library: str) -> None:
    """Every block of a @ b.T, each forgotten."""
    out = torch.empty(min(BLOCK, len(a)) * min(BLOCK, len(b)))
    for rows_a in a.split(BLOCK):
        for rows_b in b.split(BLOCK):
            into = out[: len(rows_a) * len(rows_b)].view(len(rows_a), len(rows_b))
            if library == "numpy":
                np.matmul(rows_a.numpy(), rows_b.numpy().T, out=into.numpy())
            else:
                torch.mm(rows_a, rows_b.T, out=into)


def timed(shape: tuple[int, int, int]) -> dict[str, object]:
    """Seconds of the product and of the neighbours, in turns."""
    a, b = (normalize(rows(n, shape[2], seed), dim=1) for seed, n in enumerate(shape[:2]))
    trial = {
        which: min(spent(partial(product, a[:BLOCK], b[: 2 * BLOCK], which)) for _ in range(3))
        for which in ("numpy", "torch")
    }
    library = min(trial, key=lambda one: trial[one])
    neighbours(a[:256], b[:256], top=TOP)
    seconds: dict[str, list[float]] = {"product": [], "neighbours": []}
    for _ in range(ROUNDS):
        seconds["product"].append(spent(lambda: product(a, b, library)))
        seconds["neighbours"].append(spent(lambda: neighbours(a, b, top=TOP)))
    share = sum(seconds["product"]) / sum(seconds["neighbours"])
    return {"shape": shape, "library": library, "trial_s": trial, **seconds, "share_of_product": round(share, 3)}


def whole_matrix(shape: tuple[int, int, int]) -> float:
    """The obvious way: the whole cosine matrix, then its largest entries by row and by column."""
    a, b = (rows(n, shape[2], seed) for seed, n in enumerate(shape[:2]))

    def search() -> None:
        cosine = normalize(a, dim=1) @ normalize(b, dim=1).T
        cosine.topk(TOP, dim=1)
        cosine.topk(TOP, dim=0)

    return spent(search)


def status(field: str) -> float:
    """A line of /proc/self/status, in MB."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024 / 1e6


def memory(shape: tuple[int, int, int]) -> float:
    """Peak memory beside the inputs, in MB; to be called in a process of its own."""
    a, b = (rows(n, shape[2], seed) for seed, n in enumerate(shape[:2]))
    neighbours(a[:256], b[:256], top=TOP)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    neighbours(a, b, top=TOP)
    return status("VmHWM") - before


def streamed(files: list[str], allowed: float, alone: bool) -> dict[str, object]:
    """Neighbours from files, in a process that may not hold more of its own than `allowed` MB on top of its start."""
    a, b = (mapped(file).W_dec for file in files)
    neighbours(a[:256], b[:256], top=TOP)
    start, peak, done = status("RssAnon"), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], status("RssAnon"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    limit = int((status("VmData") + allowed) * 1e6)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    began, worked = time.perf_counter(), time.process_time()
    found = neighbours(a, b, top=TOP)
    seconds, core_s = time.perf_counter() - began, time.process_time() - worked
    done.set()
    watcher.join()
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    result: dict[str, object] = {"seconds": round(seconds, 1), "core_s": round(core_s, 1)}
    result["gflop_per_core_s"] = round(2 * len(a) * len(b) * a.shape[1] / core_s / 1e9, 1)
    result |= {"extra_mb": round(peak[0] - start), "rows_checked": 2 * CHECKED}
    result["furthest_off"] = max(off(*way) for way in ((a, b, found[0]), (b, a, found[1])))
    if not alone:
        result["share_of_product"] = round(min(part_of_product(a, b, one) for one in ("numpy", "torch")) / seconds, 3)
    return result


def off(a: torch.Tensor, b: torch.Tensor, found: Neighbours) -> float:
    """By how much the cosines found, or those of the rows named, miss the largest of some rows with all of the other.

    All cosines of `CHECKED` rows from all over a are computed in float64, and sorted.
    """
    some = torch.linspace(0, len(a) - 1, CHECKED).long()
    ours = normalize(a[some].double(), dim=1)
    cosine = torch.cat([ours @ normalize(part.double(), dim=1).T for part in b.split(SLICE)], dim=1)
    best = cosine.topk(TOP, dim=1).values
    named = cosine.gather(1, found.rows[some])
    if any(len(set(row)) < TOP for row in found.rows[some].tolist()):
        raise SystemExit("a neighbour is named twice")
    return float(max((found.cosine[some] - best).abs().max(), (named - best).abs().max()))


def part_of_product(a: torch.Tensor, b: torch.Tensor, library: str) -> float:
    """Seconds of the product from files, from every fourth block of rows of a."""
    blocks = a.split(BLOCK)[::4]
    seconds = spent(lambda: [product(block, b, library) for block in blocks])
    return seconds * len(a) / sum(map(len, blocks))


def from_files(n: int, d: int, allowed: float, alone: bool) -> dict[str, object]:
    """Write two dictionaries of n latents in float32, and search them in a process with little memory."""
    with tempfile.TemporaryDirectory() as folder:
        files = [str(written(Path(folder) / f"{seed}.safetensors", n, d, seed)) for seed in (0, 1)]
        size = sum(Path(file).stat().st_size for file in files) / 1e6
        found = json.loads(child("--streamed", *files, "--allowed", str(allowed), *(["--alone"] if alone else [])))
    about = {"rows": n, "width": d, "cores": torch.get_num_threads(), "files_mb": round(size)}
    return about | {"decoders_mb": round(2 * n * d * 4 / 1e6), "allowed_mb": allowed, **found}


def written(path: Path, n: int, d: int, seed: int) -> Path:
    """A dictionary's file of n random latents, of which no more than `SLICE` are held at once."""
    zeros = torch.zeros(d)
    small = Dictionary(torch.ones(d, 1), torch.zeros(1), torch.ones(1, d), zeros, zeros, ReLU())
    with safe_open(native.save(small, path), framework="pt") as file:
        about = file.metadata()
    shapes = {"W_dec": (n, d), "W_enc": (d, n), "b_enc": (1, n), "b_pre": (1, d), "b_out": (1, d)}
    header, at = {"__metadata__": about}, 0
    for name, (lines, width) in shapes.items():
        shape = [width] if name.startswith("b") else [lines, width]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at := at + 4 * lines * width]}
    start = json.dumps(header).encode()
    start += b" " * (-len(start) % 8)
    draw = torch.Generator().manual_seed(seed)
    with path.open("wb") as file:
        file.write(len(start).to_bytes(8, "little") + start)
        for lines, width in shapes.values():
            for first in range(0, lines, slices := max(1, SLICE * d // width)):
                part = torch.empty(min(slices, lines - first), width).normal_(generator=draw)
                file.write(part.numpy().tobytes())
    return path


def on_gpu(shape: tuple[int, int, int]) -> dict[str, object]:
    """Seconds of the product alone, in blocks, and of the neighbours, on a GPU."""
    n, m, d = shape
    a, b = (torch.randn(k, d, device="cuda", generator=torch.Generator("cuda").manual_seed(k)) for k in (n, m + 1))
    a, b = normalize(a, dim=1), normalize(b[:m], dim=1)
    out = torch.empty(8192, 8192, device="cuda")

    def multiplied() -> None:
        for i in range(0, n - 8191, 8192):
            for j in range(0, m - 8191, 8192):
                torch.mm(a[i : i + 8192], b[j : j + 8192].T, out=out)
        torch.cuda.synchronize()

    def searched() -> None:
        neighbours(a, b, top=TOP)
        torch.cuda.synchronize()

    seconds = {"product": spent(multiplied), "neighbours": spent(searched)}
    return {"shape": shape, **seconds, "share_of_product": round(seconds["product"] / seconds["neighbours"], 3)}


def over_ranks(shape: tuple[int, int, int]) -> dict[str, object]:
    """Whether processes that share the rows find what one finds alone, and the seconds of both."""
    a, b = (rows(n, shape[2], seed) for seed, n in enumerate(shape[:2]))
    began = time.perf_counter()
    alone = neighbours(a, b, top=TOP)
    middle = time.perf_counter()
    with ranks():
        shared = neighbours(a, b, top=TOP)
        seconds, processes = time.perf_counter() - middle, count()
    equal = all(torch.equal(one.rows, other.rows) for one, other in zip(alone, shared, strict=True))
    return {"shape": shape, "processes": processes, "alone_s": middle - began, "shared_s": seconds, "equal": equal}


def child(*arguments: str) -> str:
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help=f"{SMALL} instead of {FULL}")
    parser.add_argument("--whole", action="store_true", help="also time the whole matrix at once (10 GB in full size)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--files", action="store_true", help="stream two files larger than the memory allowed")
    parser.add_argument("--rows", type=int, default=262_144, help="latents of each file")
    parser.add_argument("--width", type=int, default=768, help="d_in of each file")
    parser.add_argument("--allowed", type=float, default=512, help="MB that the process may hold beside its start")
    parser.add_argument("--alone", action="store_true", help="with --files: do not time the product")
    parser.add_argument("--cuda", action="store_true", help="a million rows by a million, on a GPU")
    parser.add_argument("--ranks", action="store_true", help="under torchrun: processes share the rows")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--streamed", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    shape = SMALL if given.small else FULL
    if given.memory:
        print(memory(shape))
    elif given.streamed:
        print(json.dumps(streamed(given.streamed, given.allowed, given.alone)))
    elif given.cuda:
        print(json.dumps(on_gpu(MILLION)) if torch.cuda.is_available() else "skipped: there is no GPU here")
    elif given.ranks:
        print(json.dumps(over_ranks(shape)))
    elif given.files:
        print(json.dumps(from_files(given.rows, given.width, given.allowed, given.alone)))
    else:
        result = timed(shape)
        result["extra_mb"] = round(float(child("--memory", *(["--small"] if given.small else []))))
        if given.whole:
            result["whole_matrix_s"] = whole_matrix(shape)
        for name, value in result.items():
            print(f"{name}: {value}")
        if given.json:
            print(json.dumps({name: result[name] for name in ("share_of_product", "extra_mb")}))


if __name__ == "__main__":
    main()
