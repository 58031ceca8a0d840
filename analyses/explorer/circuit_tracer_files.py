"""Latents as the feature files that circuit-tracer and Anthropic's attribution-graph front end show.

One `ID.json` a latent, with ID = (l + f)(l + f + 1)/2 + f of layer l and latent f (Cantor's pairing). Fields: `index`;
`examples_quantiles`, groups of `quantile_name` and `examples` with `tokens`, `tokens_acts_list`, `train_token_ind` and
`is_repeated_datapoint`; `transcoder_id`, `top_logits`, `bottom_logits`, `act_min`, `act_max`, `quantile_values`,
`histogram`, `activation_frequency`. Read at decoderesearch/circuit-tracer 4bb8c0e.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from analyses.explorer.folder_reader import ExplorerReader, ReadExample


def cantor(layer: int, latent: int) -> int:
    """The number of a latent's file."""
    return (layer + latent) * (layer + latent + 1) // 2 + latent


def write_circuit_tracer(reader: ExplorerReader, dictionary: int, layer: int, folder: Path) -> int:
    """Write the feature files of one dictionary; returns how many.

    Args:
        reader: The explorer.
        dictionary: Its number there.
        layer: Of the model, that the files are numbered by.
        folder: For the files.
    """
    name = reader.meta["dictionaries"][dictionary]["name"]
    rates = reader.index(dictionary)["rate"]
    written = 0
    for latent, record in reader.records(dictionary):
        feature = circuit_tracer_feature(reader, record) | {
            "index": latent,
            "transcoder_id": name,
            "activation_frequency": float(rates[latent]),
        }
        (folder / f"{cantor(layer, latent)}.json").write_text(json.dumps(feature), encoding="utf-8")
        written += 1
    return written


def circuit_tracer_feature(reader: ExplorerReader, record: dict[str, Any]) -> dict[str, Any]:
    """The fields that follow from a latent's record."""
    bands, seen = reader.meta["bands"], set()
    names = {0: "Top activations", bands + 1: "Random"} | {
        band: f"{100 * (band - 1) // bands} % to {100 * band // bands} % of activations" for band in range(1, bands + 1)
    }
    groups: dict[int, list[dict[str, Any]]] = {}
    for place, example in zip(record["examples"], reader.examples(record), strict=True):
        key = tuple(place[1:])
        groups.setdefault(example.group, []).append(_example(example, repeated=key in seen))
        seen.add(key)
    order = [0, *range(bands, 0, -1), bands + 1]
    feature: dict[str, Any] = {
        "examples_quantiles": [
            {"quantile_name": names[group], "examples": groups[group]} for group in order if group in groups
        ],
        "top_logits": [reader.word(token) for token, _ in record.get("up", [])],
        "bottom_logits": [reader.word(token) for token, _ in record.get("down", [])],
        "quantile_values": record["quantiles"],
        "histogram": record["hist"],
    }
    if record["quantiles"]:
        feature |= {"act_min": record["quantiles"][0], "act_max": record["quantiles"][-1]}
    return feature


def _example(example: ReadExample, *, repeated: bool) -> dict[str, Any]:
    return {
        "tokens": example.tokens,
        "tokens_acts_list": np.round(example.values, 5).tolist(),
        "train_token_ind": example.peak,
        "is_repeated_datapoint": repeated,
    }
