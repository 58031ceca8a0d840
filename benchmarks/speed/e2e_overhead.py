"""What does an end-to-end training step cost, beside its necessary parts, local training, and the obvious way?

    parts      one clean forward of the whole model; one forward of the blocks behind the site with the reconstruction
               in place; the backward of these blocks towards activations; the dictionary's own step (local loss)
    local      a clean forward up to the site, and the dictionary's own step
    obvious    two whole forwards with hooks, KL of two full tensors of logits, backward

All of them take turns in one run; medians over the rounds. The model is a GPT-2 with random weights: what a step costs
does not depend on what the weights are.

python -m benchmarks.speed.e2e_overhead
python -m benchmarks.speed.e2e_overhead --vocabulary 50257 --batch 1024
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
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import torch
from torch.nn.functional import kl_div
from transformers import GPT2Config, GPT2LMHeadModel

from dictlab import LanguageModel
from dictlab.data.activations import moments
from dictlab.training import TrainConfig
from dictlab.training.learner.initialisation import geometric_median
from dictlab.training.learner.learner import Learner
from dictlab.training.objectives import Batch, Splice

CONTEXT, BLOCKS, D, WIDTH, K = 128, 8, 384, 4096, 32
SITE = f"blocks.{BLOCKS // 2}.hook_resid_pre"
PARTS = ("clean forward", "spliced forward", "spliced backward", "dictionary")


class Setting(NamedTuple):
    """A model, a batch of tokens, and a dictionary in training for each objective."""

    model: LanguageModel
    tokens: torch.Tensor
    splice: Splice
    clean: dict[str, torch.Tensor]
    local: Learner
    e2e: Learner
    obvious: Learner


def setting(vocabulary: int, batch: int) -> Setting:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=vocabulary, n_positions=CONTEXT, n_embd=D, n_layer=BLOCKS, n_head=6)
    model = LanguageModel(GPT2LMHeadModel(config), None, "random")
    tokens = torch.randint(vocabulary, (batch // CONTEXT, CONTEXT))
    splice = Splice(model, SITE, SITE, [])
    clean = model.capture(tokens, splice.sites)
    learners = [learner(objective, clean[SITE].flatten(0, 1), batch) for objective in ("local", "e2e", "e2e")]
    return Setting(model, tokens, splice, clean, *learners)


def learner(objective: str, sample: torch.Tensor, batch: int) -> Learner:
    config = TrainConfig(
        "random", SITE, width=(WIDTH,), k=(K,), objective=(objective,), batch=batch, tokens=batch * 10**5
    )
    return Learner(next(config.members()), config, moments([sample]), geometric_median(sample))


def end_to_end(s: Setting) -> None:
    clean = s.model.capture(s.tokens, s.splice.sites)
    s.e2e.step(Batch(clean[SITE], clean), s.splice, logged=False)


def local(s: Setting) -> None:
    s.local.step(Batch(s.model.capture(s.tokens, SITE)[SITE]), None, logged=False)


def obvious(s: Setting) -> None:
    """The whole model twice, by hooks of torch, on one tensor of logits each."""
    block, found = s.model.blocks[BLOCKS // 2], []

    def spliced(_: object, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        codes, x_hat = s.obvious.dictionary(arguments[0])
        found.append(codes)
        return (x_hat, *arguments[1:])

    with torch.no_grad():
        log_p = s.model.model(s.tokens, use_cache=False).logits.log_softmax(-1).flatten(0, 1)
    handle = block.register_forward_pre_hook(spliced)
    log_q = s.model.model(s.tokens, use_cache=False).logits.log_softmax(-1).flatten(0, 1)
    handle.remove()
    s.obvious.optimizer.zero_grad()
    kl_div(log_q, log_p, log_target=True, reduction="batchmean").backward()
    s.obvious._update()


def clean_forward(s: Setting) -> float:
    with torch.no_grad():
        return timed(lambda: s.model.logits(s.tokens))


def spliced_forward(s: Setting) -> float:
    with torch.no_grad():
        return timed(lambda: s.model.resume(s.clean[SITE], SITE))


def spliced_backward(s: Setting) -> float:
    x = s.clean[SITE].clone().requires_grad_()
    logits = s.model.resume(x, SITE).logits
    upstream = torch.randn_like(logits)
    return timed(lambda: torch.autograd.grad(logits, x, upstream))


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def measure(vocabulary: int, batch: int, rounds: int) -> dict[str, float]:
    """Medians of everything, in seconds."""
    s = setting(vocabulary, batch)
    runs: dict[str, Callable[[], float]] = {
        "end to end": lambda: timed(lambda: end_to_end(s)),
        "local": lambda: timed(lambda: local(s)),
        "obvious": lambda: timed(lambda: obvious(s)),
        "clean forward": lambda: clean_forward(s),
        "spliced forward": lambda: spliced_forward(s),
        "spliced backward": lambda: spliced_backward(s),
        "dictionary": lambda: timed(lambda: s.local.step(Batch(s.clean[SITE]), None, logged=False)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):  # one to warm up
        for name, run in runs.items():
            took = run()
            if number:
                seconds[name].append(took)
    assert all(p.grad is None for p in s.model.model.parameters()), "the model's weights were given gradients"
    return {name: statistics.median(own) for name, own in seconds.items()}


def peak_of(way: str, vocabulary: int, batch: int) -> None:
    """Print what two steps take at their peak, above the process with model, data, dictionary and a local step."""
    s = setting(vocabulary, batch)
    local(s)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for _ in range(2):
        {"end_to_end": end_to_end, "obvious": obvious}[way](s)
    print(status("VmHWM") - before)


def status(field: str) -> float:
    """Memory of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def peak(way: str, vocabulary: int, batch: int) -> float:
    command = [sys.executable, __file__, "--memory-of", way, "--vocabulary", str(vocabulary), "--batch", str(batch)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=50_257)
    parser.add_argument("--batch", type=int, default=1024, help="tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        peak_of(given.memory_of, given.vocabulary, given.batch)
        return
    took = measure(given.vocabulary, given.batch, given.rounds)
    whole, parts = took["end to end"], sum(took[name] for name in PARTS)
    ratios = {
        "ratio_to_parts": whole / parts,
        "ratio_to_local": whole / took["local"],
        "gain_over_two_forwards": took["obvious"] / whole,
    }
    memory = {way: peak(way, given.vocabulary, given.batch) for way in ("end_to_end", "obvious")}
    if given.json:
        print(json.dumps(ratios | {"seconds": took, "peak_mib": memory}))
        return
    print(
        f"GPT-2 of {BLOCKS} blocks, width {D}, vocabulary {given.vocabulary:,}; {given.batch} tokens a step; dictionary"
    )
    print(f"of {WIDTH} latents (TopK {K}) at {SITE}; {torch.get_num_threads()} threads, medians of {given.rounds}\n")
    print("| what | seconds |\n|---|---|")
    for name, seconds in took.items():
        print(f"| {name} | {seconds:.3f} |")
    print(f"\nend to end / its parts: {ratios['ratio_to_parts']:.2f}")
    print(f"end to end / local: {ratios['ratio_to_local']:.2f}")
    print(f"two whole forwards / end to end: {ratios['gain_over_two_forwards']:.2f}")
    logits = 2 * given.batch * given.vocabulary * 4 / 2**20
    print(f"memory at the peak: {memory['end_to_end']:.0f} MiB; by two whole forwards {memory['obvious']:.0f} MiB")
    print(f"(two tensors of logits: {logits:.0f} MiB)")


if __name__ == "__main__":
    main()
