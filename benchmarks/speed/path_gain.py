"""Following a path through subsets of a pool: once through the tokens, against decoding every point of it.

python -m benchmarks.speed.path_gain [--json]
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch

from analyses.composition.path.path_steps import StepSchedule
from analyses.composition.path.size_path import match_latents, order_steps, trace_path
from analyses.pool.dictionary_chain import DictionaryChain, encode_chain
from benchmarks._common import CHECKPOINTS, shipped_model
from dictlab import Dictionary, Text, load
from dictlab.data import activations
from dictlab.evaluation.sites import site_of

WIDTHS = (1024, 2048)
TOKENS, POINTS, ROUNDS = 16_384, 24, 3


def by_encoding(dictionary: Dictionary, batches: list[torch.Tensor]) -> tuple[float, float]:
    """MSE and L0 of the dictionary at a point, as anybody would measure them: encode, decode, compare."""
    error, active, tokens = 0.0, 0.0, 0
    with torch.no_grad():
        for batch in batches:
            x = batch.flatten(0, 1)
            codes, x_hat = dictionary(x)
            error += float((x - x_hat).double().square().sum())
            active += float(codes.l0().sum())
            tokens += len(x)
    return error / (tokens * dictionary.d_in), active / tokens


def by_decoding(chain: DictionaryChain, chosen: np.ndarray, bias: np.ndarray) -> float:
    """MSE at a point from codes that are kept: the least that a loop over points can do with them."""
    seen = chain.sample
    kept = np.flatnonzero(chosen)
    directions = chain.pool.W_dec.numpy()[kept]
    x_hat = seen.codes[:, kept] @ directions + seen.scale[:, None].astype(np.float32) * bias.astype(np.float32)
    return float(np.square(seen.target - x_hat, dtype=np.float64).mean())


def path_gain(tokens: int = TOKENS, points: int = POINTS, rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds for a whole path each way, their ratio, and how far the two are apart; medians of some rounds."""
    dictionaries = [load(CHECKPOINTS / f"local-topk16-{width}-s0.safetensors") for width in WIDTHS]
    model = shipped_model()
    site = site_of(dictionaries[0])
    batches = list(activations.sample_site(model, Text.builtin("train"), site, context=model.context, tokens=tokens))
    chain = encode_chain(dictionaries, batches)
    way = order_steps(chain, match_latents(chain, 0.7), "cosine", 0)
    where = np.unique(np.linspace(0, way.steps, points).astype(int))
    once, encoding, decoding = [], [], []
    for _ in range(rounds):  # alternating, so that a drift of the machine's speed falls on all
        began = time.perf_counter()
        encode_chain(dictionaries, batches)
        found = trace_path(chain, way)
        mse, l0 = found.mse("keep"), found.l0()
        once.append(time.perf_counter() - began)
        parts = [_part(chain, way, found.bias(int(point), "keep"), int(point)) for point in where]
        began = time.perf_counter()
        expected = [by_encoding(part, batches) for part in parts]
        encoding.append((time.perf_counter() - began) / len(where) * (way.steps + 1))
        began = time.perf_counter()
        again = [by_decoding(chain, way.chosen(int(p)), found.bias(int(p), "keep")) for p in where]
        decoding.append((time.perf_counter() - began) / len(where) * (way.steps + 1))
    errors, sparsity = np.array(expected).T
    middle = rounds // 2
    return {
        "points": float(way.steps + 1),
        "once_s": sorted(once)[middle],
        "every_point_encoded_s": sorted(encoding)[middle],
        "every_point_decoded_s": sorted(decoding)[middle],
        "path_gain": sorted(b / a for a, b in zip(once, encoding, strict=True))[middle],
        "path_gain_over_kept_codes": sorted(b / a for a, b in zip(once, decoding, strict=True))[middle],
        "largest_relative_difference": float(
            max(np.abs(mse[where] / errors - 1).max(), np.abs(mse[where] / np.array(again) - 1).max())
        ),
        "largest_difference_of_l0": float(np.abs(l0[where] - sparsity).max()),
    }


def _part(chain: DictionaryChain, way: StepSchedule, bias: np.ndarray, point: int) -> Dictionary:
    return chain.subset(way.chosen(point), bias, f"point {point}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    as_json = parser.parse_args().json
    found = path_gain()
    if as_json:
        print(json.dumps(found))
    else:
        tell(found)


def tell(found: dict[str, float]) -> None:
    """What `path_gain` found, in words."""
    print(f"{WIDTHS[0]} to {WIDTHS[1]} latents, {found['points']:.0f} points, {TOKENS} tokens")
    print(f"once through the tokens, encoding included:  {found['once_s']:.2f} s")
    print(
        f"every point encoded and decoded:  {found['every_point_encoded_s']:.0f} s ({POINTS} measured, scaled to all)"
    )
    print(f"every point decoded from kept codes: {found['every_point_decoded_s']:.0f} s (likewise)")
    print(f"times faster: {found['path_gain']:.0f}, with kept codes {found['path_gain_over_kept_codes']:.0f}")
    print(f"largest relative difference of the MSE: {found['largest_relative_difference']:.1e}")
    print(f"largest difference of L0: {found['largest_difference_of_l0']:.1e}")


if __name__ == "__main__":
    main()
