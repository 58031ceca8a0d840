"""Effects of inserting every latent: one pass over the text, against one reconstruction a latent.

python benchmarks/one_pass.py [--json]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from analyses.novelty import insertion_effects
from dictlab import Dictionary, LanguageModel, Text, activations, load
from dictlab.evaluate import site_of

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
LATENTS, TOKENS, ROUNDS = 64, 32_768, 3


@torch.no_grad()
def prepared(small: Dictionary, large: Dictionary, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What every latent needs, computed once: SMALL's error and LARGE's codes."""
    return (x - small.reconstruct(x)).double(), large.encode(x).dense().double()


@torch.no_grad()
def brute_force(residual: torch.Tensor, codes: torch.Tensor, large: Dictionary, latents: list[int]) -> torch.Tensor:
    """Change in MSE with each latent added, one at a time."""
    directions, before = large.W_dec.double(), residual.square().mean()
    return torch.stack([(residual - codes[:, [i]] * directions[i]).square().mean() - before for i in latents])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    as_json = parser.parse_args().json
    small, large = (load(CHECKPOINTS / f"local-topk16-{width}-s0.safetensors") for width in (2048, 4096))
    model = LanguageModel.load(small.metadata.model or "", beside=CHECKPOINTS)
    batches = list(activations.sample(model, Text.builtin(), site_of(small), context=model.context, tokens=TOKENS))
    latents = torch.randperm(large.n_latents, generator=torch.Generator().manual_seed(0))[:LATENTS].tolist()
    one_pass, one_by_one = [], []
    for _ in range(ROUNDS):  # alternating, so that a drift of the machine's speed falls on both
        began = time.perf_counter()
        effects = insertion_effects(small, large, batches)
        one_pass.append(time.perf_counter() - began)
        began = time.perf_counter()
        residual, codes = prepared(small, large, torch.cat(batches).flatten(0, 1))
        ready = time.perf_counter()
        expected = brute_force(residual, codes, large, latents)
        one_by_one.append(ready - began + (time.perf_counter() - ready) / LATENTS * large.n_latents)
    apart = (effects.change[latents] - expected).abs()
    active = expected != 0
    result = {
        "largest_difference_over_largest_effect": float(apart.max() / expected.abs().max()),
        "largest_relative_difference": float((apart[active] / expected[active].abs()).max()),
        "one_pass_s": sorted(one_pass)[ROUNDS // 2],
        "one_by_one_s": sorted(one_by_one)[ROUNDS // 2],
        "times_faster": sorted(b / a for a, b in zip(one_pass, one_by_one, strict=True))[ROUNDS // 2],
    }
    if as_json:
        print(json.dumps(result))
        return
    print(f"{large.n_latents} latents into {small.n_latents}, {TOKENS} tokens, {torch.get_num_threads()} threads")
    print(f"one pass, all latents:            {result['one_pass_s']:.2f} s")
    print(f"one reconstruction a latent:      {result['one_by_one_s']:.0f} s ({LATENTS} measured, scaled to all)")
    print(f"times faster (median of {ROUNDS}):       {result['times_faster']:.0f}")
    print(f"largest relative difference on {LATENTS} latents: {result['largest_relative_difference']:.1e}")
    print(f"the same, over the largest effect:       {result['largest_difference_over_largest_effect']:.1e}")


if __name__ == "__main__":
    main()
