"""Latents as Neuronpedia takes them: the body of `POST /api/feature/upload-batch`, and rows of its data sets.

    upload/batch-N.json                up to 128 latents: modelId, source, features
    features/batch-N.jsonl.gz          a row a latent, 1,024 latents a file; columns are those of its data base
    activations/batch-N.jsonl.gz       a row a context of these latents
    explanations/batch-N.jsonl.gz      what reports say of them in words, where the explorer has such

What Neuronpedia computes itself (embeddings) or dictlab does not measure (neuron alignment, histograms of logits,
attention sources) is left out. Read at hijohnnylin/neuronpedia ebb8426.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from analyses.explorer.folder_reader import ExplorerReader, ReadExample

UPLOADED, A_FILE = 128, 1024  # latents of an upload, and of a file of rows
LONGEST = 512  # characters of an explanation in an upload
TOP_BIN = -1.0  # in place of the bounds and the share of a bin: one of the strongest contexts


def write_neuronpedia(reader: ExplorerReader, dictionary: int, model_id: str, source: str, folder: Path) -> int:
    """Write all files of one dictionary; returns how many latents were left out of uploads, being active nowhere.

    Args:
        reader: The explorer.
        dictionary: Its number there.
        model_id: What Neuronpedia calls the model.
        source: What it is to call the dictionary: LAYER-SET.
        folder: For the files.
    """
    parts = {name: folder / name for name in ("upload", "features", "activations", "explanations")}
    for part in parts.values():
        part.mkdir(parents=True)
    index, labels = reader.index(dictionary), reader.labels(dictionary)
    about = reader.meta["dictionaries"][dictionary]
    names = {"modelId": model_id, "layer": source}
    uploads: list[dict[str, Any]] = []
    dead = 0
    latents = reader.records(dictionary)
    for number in range(-(-about["latents"] // A_FILE)):
        features, activations, explanations = [], [], []
        for latent, record in islice(latents, A_FILE):
            # What was drawn from all activations belongs to no bin.
            examples = [e for e in reader.examples(record) if e.group <= reader.meta["bands"]]
            key = names | {"index": str(latent)}
            features.append(key | {"hookName": about["site"]} | feature_row(reader, record, index, latent))
            activations += [
                key | {"id": f"{model_id}-{source}-{latent}-{k}"} | activation_row(reader, record, example)
                for k, example in enumerate(examples)
            ]
            explanations += [key | explanation_row(*label) for label in labels.get(latent, ())]
            dead += not examples
            if examples:
                uploads.append(upload_feature(reader, record, index, latent, examples, labels.get(latent, [])))
        for name, rows in (("features", features), ("activations", activations), ("explanations", explanations)):
            if rows or name != "explanations":
                _write_rows(parts[name] / f"batch-{number}.jsonl.gz", rows)
    for number, first in enumerate(range(0, len(uploads), UPLOADED)):
        body = {"modelId": model_id, "source": source, "features": uploads[first : first + UPLOADED]}
        (parts["upload"] / f"batch-{number}.json").write_text(json.dumps(body), encoding="utf-8")
    return dead


def feature_row(
    reader: ExplorerReader, record: dict[str, Any], index: dict[str, np.ndarray], latent: int
) -> dict[str, Any]:
    """The columns of a latent besides what names it."""
    histogram, width = record["hist"], record["width"]
    promoted, suppressed = record.get("up", []), record.get("down", [])
    return {
        "maxActApprox": float(index["max"][latent]),
        "frac_nonzero": float(index["rate"][latent]),
        "hasVector": False,
        "vector": [],
        "topkCosSimIndices": [j for j, _ in record["own"]],
        "topkCosSimValues": [cosine for _, cosine in record["own"]],
        "pos_str": [reader.word(token) for token, _ in promoted],
        "pos_values": [value for _, value in promoted],
        "neg_str": [reader.word(token) for token, _ in suppressed],
        "neg_values": [value for _, value in suppressed],
        "freq_hist_data_bar_heights": histogram,
        "freq_hist_data_bar_values": [(k + 0.5) * width for k in range(len(histogram))],
    }


def activation_row(reader: ExplorerReader, record: dict[str, Any], example: ReadExample) -> dict[str, Any]:
    """The columns of a context besides what names it."""
    values = np.round(example.values, 5)
    low, high, share = _bin(reader, record, example.group)
    return {
        "tokens": example.tokens,
        "values": values.tolist(),
        "maxValue": float(values.max()),
        "maxValueTokenIndex": int(values.argmax()),
        "minValue": float(values.min()),
        "binMin": low,
        "binMax": high,
        "binContains": share,
        "qualifyingTokenIndex": example.peak,
    }


def upload_feature(
    reader: ExplorerReader,
    record: dict[str, Any],
    index: dict[str, np.ndarray],
    latent: int,
    examples: Iterable[ReadExample],
    labels: Iterable[tuple[str, str]],
) -> dict[str, Any]:
    """A latent in the body of an upload."""
    logits = {
        name: [{"token": reader.word(token), "value": value} for token, value in record.get(key, [])]
        for name, key in (("topLogits", "up"), ("bottomLogits", "down"))
    }
    activations = []
    for example in examples:
        low, high, share = _bin(reader, record, example.group)
        activations.append(
            {
                "tokens": example.tokens,
                "values": np.round(example.values, 5).tolist(),
                "quantileMin": low,
                "quantileMax": high,
                "quantileFraction": share,
            }
        )
    explanations = [{"text": words[:LONGEST], "methodName": title, "modelName": "dictlab"} for title, words in labels]
    density = {"index": latent, "density": float(index["rate"][latent])}
    return density | logits | {"explanations": explanations, "activations": activations}


def explanation_row(title: str, words: str) -> dict[str, Any]:
    """The columns of an explanation besides what names the latent."""
    return {"description": words, "typeName": title, "explanationModelName": "dictlab"}


def _bin(reader: ExplorerReader, record: dict[str, Any], group: int) -> tuple[float, float, float]:
    """Bounds of the band of activations that an example is drawn from, and the band's share of all of them."""
    if group == 0:
        return TOP_BIN, TOP_BIN, TOP_BIN
    return record["quantiles"][group - 1], record["quantiles"][group], 1 / reader.meta["bands"]


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        for row in rows:
            file.write(json.dumps(row).encode() + b"\n")
