"""The explorer's folder: the page, its data, the table of all latents, and the record of how it was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from analyses.common.inputs import ModelInputs, TokenSample
from analyses.common.max_activating import excerpt
from analyses.common.neighbours import nearest
from analyses.common.token_texts import token_text
from analyses.explorer.collection import Collected
from analyses.explorer.data_files import packed, write_data
from analyses.explorer.folder_frames import latent_contexts, measured_pairs
from analyses.explorer.folder_reader import ExplorerReader
from analyses.explorer.latents.direction_map import direction_map
from analyses.explorer.latents.examples import ExampleCounts
from analyses.explorer.latents.latent_index import index_columns, latent_frame, latent_index
from analyses.explorer.latents.latent_records import RecordInputs, latent_record
from analyses.explorer.latents.promoted_tokens import LogitTokens, stored_logit_tokens
from analyses.explorer.latents.token_firings import write_token_firings
from analyses.explorer.latents.twins import DictionaryPair, compare_pair
from analyses.explorer.page import PAGE, write_page
from analyses.explorer.page_meta import LATENTS_A_FILE, SCHEMA, PageParts, page_meta
from analyses.explorer.report_labels import Label
from analyses.explorer.sample_texts import write_texts, write_vocabulary
from dictlab.__about__ import VERSION
from dictlab.dictionary.hashing import sha256_of_weights
from dictlab.reports.safe_text import for_csv
from dictlab.reports.whole_folder import RECORD
from dictlab.runtime.progress import Phase

OWN = 5  # nearest latents in the dictionary itself
CONTEXTS = 3  # in the table of all latents
DATA = "data"  # the folder of the data files


class ExplorerSettings(NamedTuple):
    """What was asked for.

    Attributes:
        tokens: Of the sample.
        counts: Examples of each latent.
        seed: Of the sample, and of what is drawn.
        umap: The map is to be drawn by UMAP.
        labels: What reports say of latents in words.
    """

    tokens: int
    counts: ExampleCounts
    seed: int
    umap: bool
    labels: tuple[Label, ...] = ()


@dataclass(frozen=True)
class Explorer:
    """A folder that `explore` wrote.

    Attributes:
        folder: Where it is.
    """

    folder: Path

    @property
    def page(self) -> Path:
        """The page, to be opened in a browser."""
        return self.folder / PAGE

    @cached_property
    def latents(self) -> pd.DataFrame:
        """All latents of all dictionaries, a row each."""
        return pd.read_parquet(self.folder / "latents.parquet")

    def pairs(self, dictionary: str, other: str) -> pd.DataFrame:
        """The pairs of latents of two dictionaries that were measured, a row each.

        Args:
            dictionary: The name of one.
            other: The name of another.

        Raises:
            DictlabError: There is no dictionary of this name, or one is compared with itself.
        """
        return measured_pairs(ExplorerReader(self.folder), dictionary, other)

    def contexts(self, dictionary: str, latent: int) -> pd.DataFrame:
        """The contexts that are shown of a latent, a row each.

        Args:
            dictionary: Its name.
            latent: A number.

        Raises:
            DictlabError: There is no such latent.
        """
        return latent_contexts(ExplorerReader(self.folder), dictionary, latent)

    def __str__(self) -> str:
        """What the command prints."""
        return f"Explorer: {self.page}"


def write_explorer(
    folder: Path,
    inputs: ModelInputs,
    sample: TokenSample,
    collected: Collected,
    settings: ExplorerSettings,
    work: Path,
) -> None:
    """Write everything into an empty folder.

    Args:
        folder: Where.
        inputs: Dictionaries, model and text.
        sample: The tokens.
        collected: What the pass over them gave.
        settings: What was asked for.
        work: A folder that a stopped run leaves behind, for what takes long.
    """
    data = folder / DATA
    data.mkdir()
    dictionaries = [d.to(dtype=torch.float32) for d in inputs.adapted]
    ids = collected.sequences.flatten().numpy()
    strengths = [_mean_activations(codes.activations, codes.latents, codes.active) for codes in collected.codes]
    logits = [
        stored_logit_tokens(
            work / f"logits-{i}.safetensors", d, inputs.model, strength, collected.sequences, settings.seed
        )
        for i, (d, strength) in enumerate(zip(dictionaries, strengths, strict=True))
    ]

    def excerpt_of(sequence: int, position: int) -> str:
        return excerpt(inputs.model.tokenizer, collected.sequences[sequence], position)

    pairs = _compared(inputs, collected)
    indices = [
        latent_index(
            i,
            dictionary,
            collected.codes,
            collected.n_counted,
            ids,
            {e: pair for (d, e), pair in pairs.items() if d == i},
            {small: effects for (small, large), effects in collected.effects.items() if large == i},
            logits[i],
        )
        for i, dictionary in enumerate(dictionaries)
    ]
    used = set(np.unique(ids).tolist())
    contexts: list[list[str]] = []
    for number, dictionary in enumerate(dictionaries):
        own = nearest(dictionary.W_dec, dictionary.W_dec, top=OWN, itself=False, signed_a=dictionary.signed)
        of_number = {e: pair.twins for (d, e), pair in pairs.items() if d == number}
        record_inputs = RecordInputs(
            number=number,
            codes=collected.codes,
            ids=ids,
            context=inputs.context,
            twins=of_number,
            own=own,
            logits=logits[number],
            effects=indices[number].effects,
            counts=settings.counts,
            seed=settings.seed,
        )
        contexts.append(_write_records(data, record_inputs, dictionary.n_latents, dictionary.name, excerpt_of))
        used |= _tokens_of(logits[number])
        write_data(data, f"index-{number}", index_columns(indices[number]))
    sequences_a_file = write_texts(data, inputs.model.tokenizer, collected.sequences)
    for number, (codes, index) in enumerate(zip(collected.codes, indices, strict=True)):
        write_token_firings(data, number, codes, index.max_activation, sequences_a_file * inputs.context)
    write_vocabulary(data, inputs.model.tokenizer, sorted(used))
    names = [d.name for d in dictionaries]
    for (d, e), pair in pairs.items():
        if d < e:
            write_data(data, f"pairs-{d}-{e}", {k: packed(v) for k, v in pair.measured._asdict().items()})
    placed = direction_map(dictionaries, [~index.dead for index in indices], settings.umap, settings.seed)
    write_data(data, "map", {"positions": [packed(p) for p in placed.positions]})
    frame = latent_frame(names, indices, {t: token_text(inputs.model.tokenizer, t) for t in used}, contexts)
    frame.to_parquet(folder / "latents.parquet")
    for_csv(frame).to_csv(folder / "latents.csv", index=False)
    parts = PageParts(indices, logits, placed, sequences_a_file, len(settings.labels), settings.seed)
    if settings.labels:
        write_data(data, "labels", settings.labels)
    write_data(data, "meta", page_meta(inputs, sample, collected, parts))
    write_page(folder, f"{', '.join(names)} in {inputs.model.name}")
    _write_record(folder, inputs, settings)


def _mean_activations(values: Any, latents: Any, active: Any) -> torch.Tensor:
    """Mean activation of each latent where it is active; 0 of dead ones."""
    total = np.zeros(len(active))
    for start in range(0, len(latents), 1 << 22):
        part = slice(start, start + (1 << 22))
        total += np.bincount(latents[part], weights=np.asarray(values[part], dtype=np.float64), minlength=len(active))
    return torch.from_numpy(total / np.maximum(active, 1)).float()


def _compared(inputs: ModelInputs, collected: Collected) -> dict[tuple[int, int], DictionaryPair]:
    """Every two dictionaries, each seen from the other."""
    n, codes = len(inputs.adapted), collected.codes
    found: dict[tuple[int, int], DictionaryPair] = {}
    with Phase("Comparing dictionaries", n * (n - 1) // 2, unit="pairs") as phase:
        for i in range(n):
            for j in range(i + 1, n):
                a, b = inputs.adapted[i], inputs.adapted[j]
                found[i, j], found[j, i] = compare_pair(a, b, codes[i], codes[j], collected.n_counted)
                phase.advance()
    return found


def _write_records(
    data: Path, inputs: RecordInputs, n: int, name: str, excerpt_of: Callable[[int, int], str]
) -> list[str]:
    """Write the files of all latents; returns the contexts of each, a line each, the strongest first."""
    contexts = []
    with Phase(f"Writing latents of {name}", n, unit="latents") as phase:
        for first in range(0, n, LATENTS_A_FILE):
            some = range(first, min(first + LATENTS_A_FILE, n))
            records = [latent_record(inputs, latent) for latent in some]
            write_data(data, f"latents-{inputs.number}-{first // LATENTS_A_FILE}", records)
            for record in records:
                top = [(sequence, position) for group, sequence, position in record["examples"] if group == 0]
                contexts.append("\n".join(excerpt_of(*place) for place in top[:CONTEXTS]))
            phase.advance(len(some))
    return contexts


def _tokens_of(logits: LogitTokens | None) -> set[int]:
    return set() if logits is None else {*logits.promoted.ravel().tolist(), *logits.suppressed.ravel().tolist()}


def is_explorer_of(folder: Path, inputs: ModelInputs, settings: ExplorerSettings) -> bool:
    """Whether a folder holds the explorer that these settings give of these dictionaries, made by this version."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (
        isinstance(record, dict) and record.get("key") == explorer_key(inputs, settings) and (folder / PAGE).is_file()
    )


def explorer_key(inputs: ModelInputs, settings: ExplorerSettings) -> dict[str, Any]:
    """What decides the content of an explorer."""
    return {
        "schema": SCHEMA,
        "dictlab": VERSION,
        "sha256_of_weights": [sha256_of_weights(d) for d in inputs.dictionaries],
        "names": [d.name for d in inputs.dictionaries],
        "model": inputs.model.fingerprint,
        "text": inputs.text.name,
        "token_selection": str(inputs.selection),
        **_asked(settings),
    }


def _asked(settings: ExplorerSettings) -> dict[str, Any]:
    """The settings as JSON knows them; of labels a hash."""
    labels = hashlib.sha256(json.dumps(settings.labels).encode()).hexdigest()[:16] if settings.labels else None
    return settings._asdict() | {"counts": settings.counts._asdict(), "labels": labels}


def _write_record(folder: Path, inputs: ModelInputs, settings: ExplorerSettings) -> None:
    """How the folder was made, and which files are its own."""
    files = sorted(path.name for path in folder.iterdir())
    record = {
        "key": explorer_key(inputs, settings),
        "title": "Explorer of " + ", ".join(d.name for d in inputs.dictionaries),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "dictlab": VERSION,
        "settings": _asked(settings) | inputs.record(),
        "token_selection": str(inputs.selection),
        "inputs": [
            {
                "name": d.name,
                "path": str(d.path) if d.path else None,
                "sha256_of_weights": sha256_of_weights(d),
                "metadata": asdict(d.metadata),
            }
            for d in inputs.dictionaries
        ],
        "files": [*files, RECORD],
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1, default=str), encoding="utf-8")
