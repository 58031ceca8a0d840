"""An explorer's folder, read in Python: its latents with their examples, texts and tokens, a file at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.explorer.data_files import read_data, unpacked
from analyses.explorer.page_meta import SCHEMA
from dictlab.errors import DictlabError

TEXT_FILES, SEQUENCES = 16, 2048  # files of texts, and tokens of sequences, that are kept in memory
NO_TEXT = re.compile("[\x00\ud800-\udfff]")  # NUL, and halves of surrogate pairs: bytes that are no letter


class ReadExample(NamedTuple):
    """A latent on one context of the sample.

    Attributes:
        group: 0 for the strongest, 1 to `bands` for the bands of activations from weakest to strongest, `bands` + 1 for
            what was drawn from all.
        tokens: Texts of the tokens around the example, as far as activations are kept.
        values: Activation at each of them.
        peak: The token among them that the example is about.
    """

    group: int
    tokens: list[str]
    values: list[float]
    peak: int


class ExplorerReader:
    """An explorer's folder.

    Args:
        folder: That `explore` wrote.

    Raises:
        DictlabError: It holds no explorer, or one of another version of the data files.
    """

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        try:
            self.meta: dict[str, Any] = read_data(self.data, "meta")
            vocabulary = read_data(self.data, "vocabulary")
        except (OSError, ValueError) as error:
            raise DictlabError(f"{folder}: this is no explorer's folder (no readable data/meta.js).") from error
        if self.meta.get("schema") != SCHEMA:
            raise DictlabError(
                f"{folder}: its data files are of version {self.meta.get('schema')}, this dictlab reads {SCHEMA}. "
                "Make it again with `dictlab explore`."
            )
        self._words = dict(zip(vocabulary["ids"], vocabulary["texts"], strict=True))
        self._file_of_texts = lru_cache(maxsize=TEXT_FILES)(lambda number: read_data(self.data, f"text-{number}"))
        self._tokens = lru_cache(maxsize=SEQUENCES)(self._read_tokens)

    def index(self, dictionary: int) -> dict[str, NDArray[Any]]:
        """The columns of the index, by their names there."""
        return {name: unpacked(content) for name, content in read_data(self.data, f"index-{dictionary}").items()}

    def labels(self, dictionary: int) -> dict[int, list[tuple[str, str]]]:
        """What reports say of latents in words: (title of the report, words) by latent."""
        found: dict[int, list[tuple[str, str]]] = {}
        for of, latent, title, words in read_data(self.data, "labels") if self.meta["labels"] else ():
            if of == dictionary:
                found.setdefault(latent, []).append((title, words))
        return found

    def records(self, dictionary: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The record of each latent, with its number."""
        n, size = self.meta["dictionaries"][dictionary]["latents"], self.meta["latents_a_file"]
        for first in range(0, n, size):
            records = read_data(self.data, f"latents-{dictionary}-{first // size}")
            yield from enumerate(records, start=first)

    def examples(self, record: dict[str, Any]) -> list[ReadExample]:
        """The examples of a latent, in the order of the record."""
        reach = self.meta["reach"]
        found = []
        for (group, sequence, position), row in zip(record["examples"], record["acts"], strict=True):
            tokens, first = self._tokens(sequence), max(0, position - reach)
            window = tokens[first : position + reach + 1]
            values = np.zeros(len(window))
            values[np.array(row[0::2], dtype=int) - first] = np.array(row[1::2]) * record["unit"]
            found.append(ReadExample(group, window, values.tolist(), position - first))
        return found

    def word(self, token: int) -> str:
        """The text of a token that records name by its id."""
        return _text(self._words[token])

    def _read_tokens(self, sequence: int) -> list[str]:
        size = self.meta["sequences_a_file"]
        one = self._file_of_texts(sequence // size)[sequence % size]
        raw = one["text"].encode("utf-16-le", "surrogatepass")  # lengths are in UTF-16 code units
        ends = np.cumsum([0, *one["lengths"]]) * 2
        return [
            _text(raw[a:b].decode("utf-16-le", "surrogatepass"))
            for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
        ]


def _text(text: str) -> str:
    """The text with U+FFFD in place of what other readers of JSON and data bases cannot hold."""
    return NO_TEXT.sub("\ufffd", text)
