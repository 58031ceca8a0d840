"""What the page must know before it loads anything else: dictionaries, the sample, and how the data lie in files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from analyses.common.inputs import ModelInputs, TokenSample
from analyses.explorer.collection import Collected
from analyses.explorer.latents.direction_map import DirectionMap
from analyses.explorer.latents.examples import BANDS
from analyses.explorer.latents.latent_index import CLASSES, LatentIndex, classes
from analyses.explorer.latents.latent_records import REACH, STEPS
from analyses.explorer.latents.promoted_tokens import LogitTokens
from analyses.explorer.latents.token_firings import KEPT
from dictlab.__about__ import VERSION
from dictlab.dictionary.hashing import sha256_of_weights

SCHEMA = 2  # of the data files
LATENTS_A_FILE = 32


class PageParts(NamedTuple):
    """What was written of each dictionary and of all, as far as the page must know of it.

    Attributes:
        indices: Of each dictionary.
        logits: Of each dictionary; None where there are none.
        placed: The map.
        sequences_a_file: Of the files of texts.
        labels: Words of reports on latents.
        seed: Of the sample.
    """

    indices: Sequence[LatentIndex]
    logits: Sequence[LogitTokens | None]
    placed: DirectionMap
    sequences_a_file: int
    labels: int
    seed: int


def page_meta(inputs: ModelInputs, sample: TokenSample, collected: Collected, parts: PageParts) -> dict[str, Any]:
    """The content of the data file `meta`."""
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "identity": identity_of(inputs),
        "dictionaries": [_about(inputs, collected, parts, i) for i in range(len(inputs.dictionaries))],
        "model": inputs.model.name,
        "text": inputs.text.name,
        "selection": str(inputs.selection),
        "context": inputs.context,
        "sequences": len(collected.sequences),
        "tokens": collected.sequences.numel(),
        "counted": collected.n_counted,
        "seed": parts.seed,
        "latents_a_file": LATENTS_A_FILE,
        "sequences_a_file": parts.sequences_a_file,
        "bands": BANDS,
        "reach": REACH,
        "steps": STEPS,
        "classes": list(CLASSES),
        "firings_a_token": KEPT,
        "map": {"kind": parts.placed.kind, "landmarks": parts.placed.landmarks},
        "labels": parts.labels,
        "warnings": [*inputs.warnings, *sample.warnings],
    }


def identity_of(inputs: ModelInputs) -> str:
    """Equal for explorers of the same dictionaries: what a browser keeps notes under."""
    hashes = "".join(sha256_of_weights(dictionary) for dictionary in inputs.dictionaries)
    return hashlib.sha256(hashes.encode()).hexdigest()[:16]


def _about(inputs: ModelInputs, collected: Collected, parts: PageParts, i: int) -> dict[str, Any]:
    dictionary, fidelity, logits = inputs.dictionaries[i], collected.fidelity[i], parts.logits[i]
    return {
        "name": dictionary.name,
        "latents": dictionary.n_latents,
        "site": dictionary.metadata.site,
        "activation": dictionary.activation.record().get("kind"),
        "l0": fidelity.l0,
        "mse": fidelity.mse,
        "unexplained": None if np.isnan(fidelity.unexplained) else fidelity.unexplained,
        "declared_l0": dictionary.metadata.metrics.get("l0"),
        "dead": int(parts.indices[i].dead.sum()),
        "classes": {str(e): np.bincount(classes(f), minlength=3).tolist() for e, f in parts.indices[i].effects.items()},
        "streams": None if logits is None else logits.streams,
    }
