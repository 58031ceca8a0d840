"""Novelty without the obvious loops: the effects of inserting every latent, from one pass over the text.

python -m benchmarks.speed.novelty [--json]

The obvious loop keeps reconstructions and codes, and computes the error with one latent after the other added; the gain
is taken against it. One that does so batch by batch finds more of its numbers in the processor's caches; one that keeps
nothing encodes anew for each latent. Some latents are timed and scaled to all; loops and pass alternate, so that a
drift of the machine's speed falls on all.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch

from analyses.composition.insertion.insertion_effects import insertion_effects
from benchmarks._common import CHECKPOINTS, shipped_model
from benchmarks.speed.path_gain import path_gain, tell
from dictlab import Dictionary, Text, TopK, load
from dictlab.data import activations
from dictlab.evaluation.sites import site_of

WIDTHS, RANDOM = (256, 512, 1024, 2048, 4096), (8192,)
LATENTS, TOKENS, ROUNDS = 16, 32_768, 3
LOOPS = ("one pass", "latent by latent", "batch by batch", "encoding anew")


def family() -> tuple[list[Dictionary], list[torch.Tensor]]:
    """The shipped dictionaries, wider random ones that cost what such a width costs, and activations in batches."""
    dictionaries = [load(CHECKPOINTS / f"local-topk16-{width}-s0.safetensors") for width in WIDTHS]
    model = shipped_model()
    site = site_of(dictionaries[0])
    batches = list(activations.sample_site(model, Text.builtin(), site, context=model.context, tokens=TOKENS))
    return [*dictionaries, *(random_dictionary(width, dictionaries[-1].d_in) for width in RANDOM)], batches


def random_dictionary(width: int, d_in: int) -> Dictionary:
    """Random directions under TopK, k = 16, as in the shipped ones."""
    generator = torch.Generator().manual_seed(width)
    rows = torch.nn.functional.normalize(torch.randn(width, d_in, generator=generator), dim=1)
    zero = torch.zeros(d_in)
    return Dictionary(rows.T.clone(), torch.zeros(width), rows, zero, zero, TopK(16), name=f"random-{width}")


def chosen(large: Dictionary) -> list[int]:
    """The latents that the loop is timed on."""
    return torch.randperm(large.n_latents, generator=torch.Generator().manual_seed(0))[:LATENTS].tolist()


class Kept(NamedTuple):
    """A batch with all that does not depend on the latent."""

    x: torch.Tensor
    base: torch.Tensor
    codes: torch.Tensor


@torch.no_grad()
def kept(small: Dictionary, large: Dictionary, batch: torch.Tensor) -> Kept:
    x = batch.flatten(0, 1)
    return Kept(x, small.reconstruct(x), large.encode(x).dense())


@torch.no_grad()
def added(batch: Kept, directions: torch.Tensor, latent: int) -> float:
    """The squared error with one latent added, less that without."""
    x_hat = batch.base + batch.codes[:, latent : latent + 1] * directions[latent]
    return float((batch.x - x_hat).square().sum() - (batch.x - batch.base).square().sum())


def latent_by_latent(batches: list[Kept], directions: torch.Tensor, latents: list[int]) -> list[float]:
    return [sum(added(batch, directions, i) for batch in batches) for i in latents]


def batch_by_batch(batches: list[Kept], directions: torch.Tensor, latents: list[int]) -> None:
    for batch in batches:
        for i in latents:
            added(batch, directions, i)


def spent(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def measured(small: Dictionary, large: Dictionary, batches: list[torch.Tensor]) -> dict[str, float]:
    """Seconds of the pass and of the loops over all latents, in turns; and how far apart their results are."""
    latents, share = chosen(large), large.n_latents / LATENTS
    seconds: dict[str, list[float]] = {name: [] for name in LOOPS}
    for _ in range(ROUNDS):
        seconds["one pass"].append(spent(lambda: insertion_effects(small, large, batches)))
        began = time.perf_counter()
        held = [kept(small, large, batch) for batch in batches]
        encoding = time.perf_counter() - began
        for name, loop in (("latent by latent", latent_by_latent), ("batch by batch", batch_by_batch)):
            seconds[name].append(encoding + share * spent(lambda h=held, f=loop: f(h, large.W_dec, latents)))
        seconds["encoding anew"].append(seconds["latent by latent"][-1] + (large.n_latents - 1) * encoding)
    exact = [Kept(*(part.double() for part in held[0]))]
    expected = torch.tensor(latent_by_latent(exact, large.W_dec.double(), latents)) / batches[0].numel()
    apart = (insertion_effects(small, large, batches[:1]).change[latents] - expected).abs()
    gains = [b / a for a, b in zip(seconds["one pass"], seconds["latent by latent"], strict=True)]
    return {name: median(values) for name, values in seconds.items()} | {
        "gain": median(gains),
        "apart": float(apart.max() / expected.abs().max()),
    }


def one_pass_gain() -> float:
    """Print the cost of each doubling of the width; returns how many times faster the pass is from 2,048 to 4,096."""
    dictionaries, batches = family()
    threads = torch.get_num_threads()
    print(f"{TOKENS:,} tokens, d = {dictionaries[0].d_in}, k = 16, {threads} threads; seconds, median of {ROUNDS}\n")
    print(f"| inserted | into | {' | '.join(LOOPS)} | gain | apart / largest |")
    print(f"|---:|---:|{'---:|' * len(LOOPS)}---:|---:|")
    gain = float("nan")
    for small, large in pairwise(dictionaries):
        found = measured(small, large, batches)
        seconds = " | ".join(f"{found[name]:,.{2 if name == 'one pass' else 0}f}" for name in LOOPS)
        widths = f"{large.n_latents:,} | {small.n_latents:,}"
        print(f"| {widths} | {seconds} | {found['gain']:.0f} | {found['apart']:.1e} |", flush=True)
        if large.n_latents == WIDTHS[-1]:
            gain = found["gain"]
    print(f"\nLoops: {LATENTS} latents timed, scaled to all. Widths above {WIDTHS[-1]:,} are random dictionaries.")
    return gain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    as_json = parser.parse_args().json
    gains = {"one_pass_gain": round(one_pass_gain(), 1)}
    print()
    along = path_gain()
    tell(along)
    gains["path_gain"] = round(along["path_gain"], 1)
    if as_json:
        print(json.dumps(gains))


if __name__ == "__main__":
    main()
