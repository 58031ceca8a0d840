"""What would one training step of a wide dictionary hold, send and take? From the formulas in dictlab/flops.py.

python benchmarks/plan.py --d-in 768 --batch 131072 --k 256 --tokens 4e10 --gpus 64
"""

from __future__ import annotations

import argparse

from dictlab.flops import gathered_bytes, gradient_bytes, state_bytes, training_flops

GB, TERA = 1e9, 1e12
WIDTHS = (2**15, 2**17, 2**20, 2**22, 2**24)


def main() -> None:
    """Print a table, a row for each width."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--d-in", type=int, default=768)
    asked.add_argument("--batch", type=int, default=131_072, help="tokens a step, of all processes")
    asked.add_argument("--k", type=int, default=256)
    asked.add_argument("--tokens", type=float, default=4e10)
    asked.add_argument("--gpus", type=int, default=64, help="processes, each with a GPU")
    asked.add_argument("--memory", type=float, default=141, help="of a GPU, GB")
    asked.add_argument("--tflops", type=float, default=50, help="reached in float32 or TF32 products by a GPU: measure")
    asked.add_argument("--gbytes", type=float, default=50, help="a second that a GPU sends to its neighbour: measure")
    a = asked.parse_args()
    print(f"d_in {a.d_in}, k {a.k}, {a.batch:,} tokens a step, {a.tokens:.3g} tokens, {a.gpus} GPUs.")
    print(f"Assumed of a GPU: {a.memory:g} GB, {a.tflops:g} TFLOP/s reached, {a.gbytes:g} GB/s sent. Not measured.\n")
    head = ("width", "state GB", "fits", "PFLOP/step", "compute s", "gradient GB sent", "sending s", "contexts GB sent")
    print("| " + " | ".join((*head, "days")) + " |\n|" + "---:|" * (len(head) + 1))
    for width in WIDTHS:
        state = state_bytes(width, a.d_in)
        flops = training_flops(width, a.d_in, a.batch, a.k, batch=a.batch)
        adam = training_flops(width, a.d_in, 1, 0, batch=1) - training_flops(width, a.d_in, 1, 0, batch=10**15)
        compute = ((flops - adam) / a.gpus + adam) / (a.tflops * TERA)  # every process takes the whole step of Adam
        gradient = gradient_bytes(width, a.d_in, a.gpus)
        contexts = gathered_bytes(a.d_in, a.batch, a.gpus)
        sending = gradient / (a.gbytes * GB)
        days = (compute + sending + contexts / (a.gbytes * GB)) * a.tokens / a.batch / 86_400
        fits = "yes" if state < a.memory * GB else f"on {-(-state // (a.memory * GB)):.0f}"
        figures = (state / GB, fits, flops / 1e15, compute, gradient / GB, sending, contexts / GB, days)
        print(f"| {width:,} | " + " | ".join(f if isinstance(f, str) else f"{f:.3g}" for f in figures) + " |")


if __name__ == "__main__":
    main()
