"""What would one training step of a wide dictionary hold, send and take? By the formulas of dictlab/numerics/flops.py.

python -m benchmarks.speed.plan --d-in 768 --batch 131072 --k 256 --tokens 4e10 --gpus 64
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

from dictlab.numerics.flops import exchanged_bytes, gathered_bytes, gradient_bytes, state_bytes, training_flops

GB, TERA = 1e9, 1e12
WIDTHS = (2**15, 2**17, 2**20, 2**22, 2**24)
HEAD = ("width", "shards", "state GB", "fits", "PFLOP/step", "compute s", "gradients GB", "latents GB", "inputs GB")


class Plan(NamedTuple):
    """What is counted of a step, for each GPU; see the options for units."""

    state: float
    flops: float
    compute: float
    gradients: float
    latents: float
    inputs: float


def planned(width: int, shards: int, a: argparse.Namespace) -> Plan:
    """Counts of one width, its latents in so many parts."""
    copies = a.gpus // shards
    flops = training_flops(width, a.d_in, a.batch, a.k, batch=a.batch)
    adam = training_flops(width, a.d_in, 1, 0, batch=1) - training_flops(width, a.d_in, 1, 0, batch=10**15)
    compute = ((flops - adam) / a.gpus + adam / shards) / (a.tflops * TERA)  # Adam: each process for its own latents
    tokens = a.batch // copies
    exchanged = exchanged_bytes(a.d_in, tokens, a.k, shards) + exchanged_bytes(a.d_in, tokens, a.aux_k, shards)
    return Plan(
        state=state_bytes(width, a.d_in, shards=shards),
        flops=flops,
        compute=compute,
        gradients=gradient_bytes(width, a.d_in, copies, shards),
        latents=exchanged,
        inputs=gathered_bytes(a.d_in, a.batch, a.gpus),
    )


def row(width: int, shards: int, a: argparse.Namespace) -> str:
    """A line of the table."""
    p = planned(width, shards, a)
    sending = (p.gradients + p.latents + p.inputs) / (a.gbytes * GB)
    days = (p.compute + sending) * a.tokens / a.batch / 86_400
    figures = (p.flops / 1e15, p.compute, p.gradients / GB, p.latents / GB, p.inputs / GB, sending, days)
    fits = "yes" if p.state < a.memory * GB else "no"
    cells = [f"{width:,}", str(shards), f"{p.state / GB:.3g}", fits, *(f"{f:.3g}" for f in figures)]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print a table: a row for each width, and for the widest one for each number of shards."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--d-in", type=int, default=768)
    asked.add_argument("--batch", type=int, default=131_072, help="tokens a step, of all processes")
    asked.add_argument("--k", type=int, default=256)
    asked.add_argument("--aux-k", type=int, default=512, help="dead latents revived at once, in every step")
    asked.add_argument("--tokens", type=float, default=4e10)
    asked.add_argument("--gpus", type=int, default=64, help="processes, each with a GPU")
    asked.add_argument("--shards", type=int, nargs="+", default=[4, 8, 16, 64], help="each a divisor of --gpus")
    asked.add_argument("--memory", type=float, default=141, help="of a GPU, GB")
    asked.add_argument("--tflops", type=float, default=50, help="reached in float32 or TF32 products by a GPU: measure")
    asked.add_argument("--gbytes", type=float, default=50, help="a second that a GPU sends to its neighbour: measure")
    a = asked.parse_args()
    print(f"d_in {a.d_in}, k {a.k}, {a.batch:,} tokens a step, {a.tokens:.3g} tokens, {a.gpus} GPUs.")
    print(f"Assumed of a GPU: {a.memory:g} GB, {a.tflops:g} TFLOP/s reached, {a.gbytes:g} GB/s sent. Not measured.\n")
    print("| " + " | ".join((*HEAD, "sending s", "days")) + " |\n|" + "---:|" * (len(HEAD) + 2))
    for width, shards in [(width, 1) for width in WIDTHS] + [(WIDTHS[-1], shards) for shards in a.shards]:
        print(row(width, shards, a))


if __name__ == "__main__":
    main()
