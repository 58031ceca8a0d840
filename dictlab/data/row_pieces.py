"""Rows of a dataset as pieces of documents, and their order: shuffled within bounds of memory."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from dictlab.data.hf_datasets import reading
from dictlab.errors import DictlabError

Document: TypeAlias = str | list[int]  # text, or token ids
CHARACTERS = 1 << 16  # of a piece
TOKENS = 1 << 14  # token ids of a piece
SHUFFLED_PIECES, SHUFFLED_SIZE = 1000, 1 << 24  # pieces and characters that rows of a stream are shuffled among


def shuffled_rows(rows: Any, seed: int) -> Any:
    """Rows in another order; of a stream, its files, whose rows `mixed` then shuffles within bounds of memory."""
    streamed = hasattr(rows, "n_shards") and hasattr(rows, "take") and not hasattr(rows, "__len__")
    return rows.shuffle(seed=seed, buffer_size=1) if streamed else rows.shuffle(seed=seed)


def pieces_of_rows(name: str, rows: Iterable[Any], column: str) -> Iterator[tuple[str, Document]]:
    """Keyed by content, so that shuffling moves nothing between the splits.

    Raises:
        DictlabError: A row holds neither text nor token ids.
    """
    for row in reading(name, rows):
        document = row.get(column)
        if isinstance(document, str):
            for at in range(0, max(1, len(document)), CHARACTERS):
                piece = document[at : at + CHARACTERS]
                yield piece, piece
        elif isinstance(document, list) and all(type(token) is int for token in document[:8]):
            for at in range(0, len(document), TOKENS):
                ids = document[at : at + TOKENS]
                yield " ".join(map(str, ids)), ids
        elif document is not None:
            raise DictlabError(f"text {name}: column {column!r} holds {type(document).__name__}, not text.")


def mixed(keyed: Iterator[tuple[str, Document]], seed: int) -> Iterator[tuple[str, Document]]:
    """The same in random order within a window of so many pieces and characters."""
    order, held, size = random.Random(seed), [], 0
    for entry in keyed:
        held.append(entry)
        size += len(entry[1])
        while len(held) > SHUFFLED_PIECES or size > SHUFFLED_SIZE:
            at = order.randrange(len(held))
            held[at], held[-1] = held[-1], held[at]
            size -= len(held[-1][1])
            yield held.pop()
    order.shuffle(held)
    yield from held
