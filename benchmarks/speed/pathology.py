"""Interventions at a site: the blocks behind it and a streamed unembedding, against one hooked forward each.

The obvious way runs the whole model for each intervention with a hook that puts the replacement in, and holds the
logits of the batch twice. Both ways are given the same replacements and must give the same KL. Cost per intervention,
at an early, a middle and a late site, of the shipped model and of a random GPT-2 with a vocabulary of 50,257.

    gain          time of the obvious way / time of this way, median of rounds that alternate
    flop ratio    floating-point operations of the whole model / of the blocks behind the site and the unembedding

python -m benchmarks.speed.pathology [--json] [--growth]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import log_softmax, nll_loss
from transformers import GPT2Config, GPT2LMHeadModel

from analyses.common.patching import CleanRun, clean_runs
from benchmarks._common import shipped_model
from dictlab import LanguageModel

INTERVENTIONS, ROUNDS = 8, 5  # as many interventions as the original has for a layer
SHIPPED, LARGE = "gpt2-python-2m", "random GPT-2"
TOKENS = {SHIPPED: (8, 256), LARGE: (8, 128)}


def model_of(name: str, blocks: int = 8, width: int = 384, vocabulary: int = 50_257) -> LanguageModel:
    if name == SHIPPED:
        return shipped_model()
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=256, n_embd=width, n_layer=blocks, n_head=width // 64, **ends
    )
    return LanguageModel(GPT2LMHeadModel(config), None, LARGE)


def flops(model: LanguageModel, blocks: int, context: int) -> int:
    """Floating-point operations a token: weights of blocks, attention over half the context on average, unembedding."""
    d = model.model.config.n_embd
    return blocks * (24 * d * d + 2 * d * context) + 2 * d * model.vocabulary


def tokens_of(model: LanguageModel, batch: int, context: int) -> torch.Tensor:
    return torch.randint(model.vocabulary, (batch, context), generator=torch.Generator().manual_seed(0))


def made(clean_run: CleanRun, versions: int) -> torch.Tensor:
    """Replacements: the activation and noise, a tenth of its size."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(versions, *clean_run.x.shape, generator=generator)
    return clean_run.x + 0.1 * clean_run.x.std() * noise


@torch.no_grad()
def obvious(
    model: LanguageModel, tokens: torch.Tensor, log_p: torch.Tensor, block: int, replacements: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A whole forward with a hook for each replacement; KL and CE from whole distributions."""
    found = []
    for replacement in replacements:

        def put(module: Any, args: tuple[Any, ...], kwargs: Any, new: torch.Tensor = replacement) -> Any:
            return (new, *args[1:]), kwargs

        handle = model.blocks[block].register_forward_pre_hook(put, with_kwargs=True)
        log_q = log_softmax(model.model(input_ids=tokens, use_cache=False).logits, dim=-1)
        handle.remove()
        kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
        ce = nll_loss(log_q[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        found.append((kl, ce))
    return torch.stack([kl for kl, _ in found]), torch.stack([ce for _, ce in found])


@torch.no_grad()
def ours(clean_run: CleanRun, replacements: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out = clean_run.outputs([replacements])
    return out.kl, out.ce[..., :-1].flatten(1)


def timed(action: Any, *arguments: Any) -> float:
    began = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - began


def measured(name: str, block: int, rounds: int = ROUNDS, versions: int = INTERVENTIONS) -> dict[str, Any]:
    """Gain at one site, and how far the two ways agree."""
    model, shape = model_of(name), TOKENS[name]
    tokens, site = tokens_of(model, *shape), f"blocks.{block}.hook_resid_pre"
    clean_run = clean_runs(model, tokens, [site])[site]
    replacements = made(clean_run, versions)
    with torch.no_grad():
        log_p = log_softmax(model.forward(tokens).logits, dim=-1)
    (kl, ce), (expected_kl, expected_ce) = (
        ours(clean_run, replacements),
        obvious(model, tokens, log_p, block, replacements),
    )
    fast, slow = [], []
    for _ in range(rounds):  # alternating, so that a drift of the machine's speed falls on both
        fast.append(timed(ours, clean_run, replacements) / versions)
        slow.append(timed(obvious, model, tokens, log_p, block, replacements) / versions)
    n = model.n_blocks
    return {
        "model": name,
        "site": site,
        "gain": sorted(s / f for s, f in zip(slow, fast, strict=True))[rounds // 2],
        "flop_ratio": flops(model, n, shape[1]) / flops(model, n - block, shape[1]),
        "ours_s": sorted(fast)[rounds // 2],
        "obvious_s": sorted(slow)[rounds // 2],
        "largest_difference_of_kl": float((kl - expected_kl).abs().max()),
        "largest_difference_of_ce": float((ce - expected_ce).abs().max()),
    }


def peak(folder: Path, way: str, shape: tuple[int, int], versions: int) -> float:
    """MiB that one way adds to a process that holds the large model: in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (folder, way, shape, versions))


def _peak(folder: Path, way: str, shape: tuple[int, int], versions: int) -> float:
    torch.set_num_threads(1)
    model, block = LanguageModel(GPT2LMHeadModel.from_pretrained(folder), None, LARGE), 4
    site = f"blocks.{block}.hook_resid_pre"
    clean_runs(model, tokens_of(model, 1, 8), [site])
    before = _high_water()
    tokens = tokens_of(model, *shape)
    clean_run = clean_runs(model, tokens, [site])[site]
    replacements = made(clean_run, versions)
    if way == "ours":
        ours(clean_run, replacements)
    else:
        with torch.no_grad():
            obvious(model, tokens, log_softmax(model.forward(tokens).logits, dim=-1), block, replacements)
    return (_high_water() - before) / 1024


def _high_water() -> int:
    """The most that this process has held so far, in KiB; ru_maxrss would begin with what its parent held."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def growth() -> None:
    """Seconds of a random GPT-2 (4 blocks, width 256, the last two run) as tokens, draws and vocabulary grow."""
    print("| tokens | draws | vocabulary | seconds | microseconds a token and draw |\n|---:|---:|---:|---:|---:|")
    base = {"tokens": 1024, "draws": 4, "vocabulary": 8192}
    cases = [base | {key: base[key] * factor} for key in base for factor in (1, 2, 4)]
    for case in dict.fromkeys(tuple(c.values()) for c in cases):
        tokens, draws, vocabulary = case
        model = model_of(LARGE, blocks=4, width=256, vocabulary=vocabulary)
        site = "blocks.2.hook_resid_pre"
        clean_run = clean_runs(model, tokens_of(model, tokens // 128, 128), [site])[site]
        replacements = made(clean_run, draws)
        ours(clean_run, replacements[:1])
        seconds = sorted(timed(ours, clean_run, replacements) for _ in range(3))[1]
        print(
            f"| {tokens} | {draws} | {vocabulary} | {seconds:.2f} | {1e6 * seconds / tokens / draws:.0f} |", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--growth", action="store_true", help="also the cost as tokens, draws and vocabulary grow")
    options = parser.parse_args()
    rows = []
    print(f"{torch.get_num_threads()} thread(s), {INTERVENTIONS} interventions on", TOKENS)
    print(
        "| model | site | obvious (s) | this (s) | gain | FLOP ratio | gain / FLOP ratio | largest difference of KL |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for name, blocks in ((SHIPPED, (1, 3, 5)), (LARGE, (1, 4, 7))):
        for block in blocks:
            row = measured(name, block)
            rows.append(row)
            print(
                f"| {name} | {row['site']} | {row['obvious_s']:.3f} | {row['ours_s']:.3f} | {row['gain']:.2f} | "
                f"{row['flop_ratio']:.2f} | {row['gain'] / row['flop_ratio']:.2f} | "
                f"{row['largest_difference_of_kl']:.1e} |",
                flush=True,
            )
    print("\nPeak memory above the model's own, vocabulary 50,257 (MiB):\n")
    print("| tokens | interventions | obvious | this |\n|---:|---:|---:|---:|")
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        model_of(LARGE).model.save_pretrained(folder)
        for shape, versions in (((4, 128), 4), ((16, 128), 4), ((4, 128), 16)):
            both = {way: peak(Path(folder), way, shape, versions) for way in ("obvious", "ours")}
            peaks.append({"tokens": shape[0] * shape[1], "interventions": versions, **both})
            print(f"| {shape[0] * shape[1]} | {versions} | {both['obvious']:.0f} | {both['ours']:.0f} |", flush=True)
    if options.growth:
        print()
        growth()
    if options.json:
        print(json.dumps({"rows": rows, "peak_mib": peaks}))


if __name__ == "__main__":
    main()
