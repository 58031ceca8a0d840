"""How long does a training step take, beside the encoder's product alone and beside other libraries' steps?

    floor    torch's `x @ W_enc` for the batch, and nothing else
    step     forward, loss, backward, clipping, Adam, decoder rows back to unit length

All of them take turns in one run; medians over the rounds. Activations are synthetic: 16 of 2,048 random directions
each, 4,096 vectors a batch, k = 32.

python -m benchmarks.speed.topk_step
python -m benchmarks.speed.topk_step --peers PYTHON     also the libraries that this Python has (see peers.py)
python -m benchmarks.speed.topk_step --kind KIND
    relu         L1, as training begins: about half of the latents are active
    trained      L1, as training ends: dictlab's biases are set so that 64 are active; others' steps cost what they cost
    batchtopk    BatchTopK
    inference    TopK, encode and decode without gradients
python -m benchmarks.speed.topk_step --precision bfloat16     dictlab's latents chosen by a product in half precision
python -m benchmarks.speed.topk_step --device cuda --d-in 768 --widths 24576 98304 --precision bfloat16 --tflops PEAK
    on a GPU; the floor is the product in that precision, PEAK what its maker says of it
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import torch

from benchmarks.speed.peers import BATCH, D_IN, K, synthetic
from dictlab.data.activations import moments
from dictlab.errors import DictlabError
from dictlab.model.loading import check_device
from dictlab.training import TrainConfig
from dictlab.training.config import Precision
from dictlab.training.learner.initialisation import geometric_median
from dictlab.training.learner.learner import Learner
from dictlab.training.objectives import Batch

PEERS = {
    "topk": ("sparsify", "dictionary_learning", "saelens"),
    "relu": ("dictionary_learning", "saelens"),
    "trained": ("dictionary_learning", "saelens"),
    "batchtopk": ("dictionary_learning", "saelens"),
    "inference": ("sparsify", "dictionary_learning", "saelens"),
}
HERE = Path(__file__).parent


class Work(NamedTuple):
    """What is timed, at each width.

    Attributes:
        kind: One of PEERS.
        precision: In which dictlab's latents are chosen, and of the floor.
        d_in: Width of the activations.
        device: cpu or cuda.
    """

    kind: str
    precision: Precision
    d_in: int
    device: str


class Peer:
    """Another library's step, in a process of its own."""

    def __init__(self, python: str, library: str, work: Work, width: int) -> None:
        kind = "relu" if work.kind == "trained" else work.kind
        self.process = subprocess.Popen(
            [python, str(HERE / "peers.py"), library, kind, str(width), str(work.d_in), work.device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answer()

    def __call__(self) -> float:
        """Seconds of one step."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Let it end."""
        self.process.kill()
        self.process.wait()

    def _answer(self) -> float:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("SECONDS"):
                return float(line.split()[1])
        raise SystemExit(f"{' '.join(self.process.args)} ended: run it by hand to see why")  # type: ignore[arg-type]


def learner(width: int, work: Work, x: torch.Tensor) -> Learner:
    """A dictionary in training."""
    kind = work.kind
    l1 = kind in ("relu", "trained")
    rule: dict[str, Any] = {"activation": "relu", "l1": (1.0,)} if l1 else {"k": (min(K, width),)}
    if kind == "batchtopk":
        rule["activation"] = kind
    rule |= {"precision": work.precision, "device": work.device}
    config = TrainConfig("none", "none", width=(width,), batch=BATCH, tokens=BATCH * 100_000, **rule)
    made = Learner(next(config.members()), config, moments([x]), geometric_median(x))
    if kind == "trained":
        with torch.no_grad():
            z = made.dictionary.pre_activations(x[:512])
            made.b_enc.sub_(z.flatten().kthvalue(max(1, z.numel() - len(z) * 2 * K)).values)
    return made


def own(width: int, work: Work, pool: list[torch.Tensor]) -> Callable[[], float]:
    """dictlab's step (or reconstruction), timed."""
    trained, turn = learner(width, work, pool[0]), iter(range(10**9))

    def step(x: torch.Tensor) -> None:
        trained.step(Batch(x), None, logged=False)

    @torch.no_grad()
    def reconstruct(x: torch.Tensor) -> None:
        trained.dictionary.reconstruct(x)

    run = reconstruct if work.kind == "inference" else step
    return lambda: timed(lambda: run(pool[next(turn) % len(pool)]))


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def floor(width: int, work: Work, x: torch.Tensor) -> Callable[[], float]:
    """The encoder's product alone: on a GPU in the precision asked for, on a CPU in float32 whatever that is."""
    dtype = torch.float32 if work.device == "cpu" else getattr(torch, work.precision)
    h, W = x.to(dtype), torch.randn(work.d_in, width, device=work.device, dtype=dtype)
    return lambda: timed(lambda: h @ W)


def measure(width: int, work: Work, rounds: int, python: str | None) -> dict[str, Any]:
    """Medians of everything at one width."""
    pool = synthetic(d_in=work.d_in, device=work.device)
    runs: dict[str, Callable[[], float]] = {"floor": floor(width, work, pool[0]), "dictlab": own(width, work, pool)}
    peers = {name: Peer(python, name, work, width) for name in PEERS[work.kind]} if python else {}
    runs |= peers
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 2):  # two to warm up
        for name, run in runs.items():
            took = run()
            if number >= 2:
                seconds[name].append(took)
    for peer in peers.values():
        peer.close()
    median = {name: statistics.median(own) for name, own in seconds.items()}
    return {
        "width": width,
        "ratio_to_floor": median["dictlab"] / median["floor"],
        "ratio_to": {name: median[name] / median["dictlab"] for name in peers},
        "seconds": median,
        "least": {name: min(own) for name, own in seconds.items()},
        "flops": 2 * BATCH * work.d_in * width,
        "memory": memory(width, work),
    }


def memory(width: int, work: Work) -> dict[str, float]:
    """Peak of a process of its own above what it held before, in MiB, beside inputs and four times the parameters."""
    given = {"widths": width, "kind": work.kind, "precision": work.precision, "d-in": work.d_in, "device": work.device}
    command = [
        sys.executable,
        __file__,
        "--memory",
        *(word for name, v in given.items() for word in (f"--{name}", str(v))),
    ]
    peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    return {
        "peak": peak,
        "inputs": BATCH * work.d_in * 4 / 2**20,
        "parameters": (2 * width * work.d_in + width + work.d_in) * 4 / 2**20,
    }


def peak_of(width: int, work: Work) -> None:
    """Print the peak of three steps above the process with its data, once a narrow dictionary has loaded all code."""
    pool = synthetic(1, d_in=work.d_in, device=work.device)
    for own_width in (2 * K, width):
        before = held(work.device, forget=True)
        step = own(own_width, work, pool)
        for _ in range(3):
            step()
    print(held(work.device, peak=True) - before)


def held(device: str, *, peak: bool = False, forget: bool = False) -> float:
    """MiB that this process holds, of the device's memory; or the most that it held since the peak was forgotten."""
    if device != "cpu":
        if forget:
            torch.cuda.reset_peak_memory_stats()
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    return status("VmHWM" if peak else "VmRSS")


def status(field: str) -> float:
    """Memory of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def show(work: Work, rows: list[dict[str, Any]], rounds: int, tflops: float | None) -> None:
    where = f"{torch.get_num_threads()} threads" if work.device == "cpu" else torch.cuda.get_device_name()
    print(f"{work.kind}: {BATCH} vectors of width {work.d_in} a step, k {K}, float32, {where}")
    print(f"dictlab's latents chosen in {work.precision}; medians of {rounds} rounds, all taking turns\n")
    print("| width | who | seconds | least | vectors/s | times the floor | dictlab is faster by |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        for name, took in row["seconds"].items():
            ratio = f"{row['ratio_to'][name]:.2f}" if name in row["ratio_to"] else ""
            least = row["least"][name]
            shown = f"{took:.3f} | {least:.3f} | {BATCH / took:,.0f} | {took / row['seconds']['floor']:.2f} | {ratio}"
            print(f"| {row['width']} | {name} | {shown} |")
    print()
    for row in rows:
        if tflops:
            shares = {name: row["flops"] / took / (tflops * 1e12) for name, took in row["seconds"].items()}
            shown = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
            print(f"width {row['width']}: share of {tflops:g} TFLOP/s, counting the encoder's product alone: {shown}.")
        m = row["memory"]
        print(
            f"width {row['width']}: a step takes {m['peak']:.0f} MiB; its inputs are {m['inputs']:.0f} MiB, "
            f"its parameters with gradients and two moments {4 * m['parameters']:.0f} MiB."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--kind", choices=PEERS, default="topk")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32")
    parser.add_argument("--d-in", type=int, default=D_IN)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tflops", type=float, help="what the device is said to reach, to print the share of it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", metavar="PYTHON", help="a Python that has the other libraries")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    try:
        check_device(given.device)
    except DictlabError as error:
        parser.error(str(error))
    work = Work(given.kind, given.precision, given.d_in, given.device)
    if given.memory:
        peak_of(given.widths[0], work)
        return
    rows = [measure(width, work, given.rounds, given.peers) for width in given.widths]
    if given.json:
        print(json.dumps({**work._asdict(), "rows": rows}))
    else:
        show(work, rows, given.rounds, given.tflops)


if __name__ == "__main__":
    main()
