"""Where do tokens come from?

A `Text` is an ordered collection of documents with a training and a held-out split. It is one of

* the built-in corpus: the sources of the Python standard library, which are on every machine that runs this;
* a text file, or a folder of them;
* a Hugging Face dataset: saved on disk, a Parquet, JSON or CSV file, or streamed from the Hub.

`Text.contexts` packs documents, joined by the tokenizer's end-of-text token, into contexts of one fixed length.
"""

from __future__ import annotations

import random
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from dictlab import seeds
from dictlab.data.packing import Contexts, Position
from dictlab.errors import DictlabError

Split = Literal["train", "heldout"]

HELD_OUT_SHARE = 10  # one document in ten, chosen by the checksum of its name, is never trained on
SPREAD = 8  # contexts that a sampled one is drawn from
PIECE_ALONE = 1 << 14  # the pieces of a text that is a single file: they are all it has to divide into splits
PIECE = 1 << 20  # files are read in pieces of about this many characters, cut at line ends
TABLES = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
# Test suites are missing from some distributions of Python; _sysconfigdata holds this machine's paths.
NOT_CORPUS = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "idlelib", "lib2to3"}


@dataclass(frozen=True)
class Text:
    """Documents with a name and a split. Make one with `Text.open`, `Text.builtin`, `Text.files` or `Text.dataset`.

    Attributes:
        name: What `Text.open` was given, so that the same text can be opened again.
        split: "train", or "heldout": the tenth of the documents that training never sees.
    """

    name: str
    split: Split
    _source: Callable[[int | None], Iterator[tuple[str, str]]]  # seed -> (key, document); the key decides the split
    _reopen: Callable[[Split], Text]  # the same text, opened in the same way
    _already_split: bool = False  # the data set has splits of its own

    @classmethod
    def open(cls, spec: str | Path, split: Split = "train") -> Text:
        """Text from `"builtin"`, a file, a folder, or the name of a dataset on the Hugging Face Hub.

        Raises:
            DictlabError: Nothing of that name is known.
        """
        path = Path(spec)
        if str(spec) == "builtin":
            return cls.builtin(split)
        if path.is_dir() and ((path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()):
            return cls.dataset(str(spec), split)
        if _tables(path):
            return cls.dataset(str(spec), split)
        if path.exists():
            return cls.files(path, split)
        return cls.dataset(str(spec), split)

    @classmethod
    def builtin(cls, split: Split = "train") -> Text:
        """The sources of the Python standard library, in the order of their paths, without its test suites."""
        root = Path(sysconfig.get_path("stdlib"))
        paths = [p for p in sorted(root.rglob("*.py")) if _in_corpus(p.relative_to(root))]
        return cls("builtin", split, lambda seed: _read(root, paths, seed), cls.builtin)

    @classmethod
    def files(cls, path: str | Path, split: Split = "train") -> Text:
        """A text file, or every text file below a folder in the order of their paths.

        A document is a file, or a piece of a long one; of a single file, pieces of 16 thousand characters. Hidden files
        and folders are left out, and so are binary files (they hold a zero byte).

        Raises:
            DictlabError: There is no such file or folder, it holds no files, or the file is no text.
        """
        root = Path(path)
        if not root.exists():
            raise DictlabError(f"text {root}: no such file or folder.")
        paths = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file() and _visible(p, root))
        if not paths:
            raise DictlabError(f"text {root}: the folder holds no files.")
        if root.is_file() and next(_pieces(root, PIECE), None) is None:
            raise DictlabError(f"text {root}: the file is empty or binary; expected plain text.")
        return cls(str(path), split, lambda seed: _read(root, paths, seed), partial(cls.files, path))

    @classmethod
    def dataset(cls, name: str, split: Split = "train", column: str = "text") -> Text:
        """A Hugging Face dataset: a folder of `save_to_disk`, Parquet/JSON/CSV files, or a name on the Hub (streamed).

        The held-out split is the dataset's own "validation" or "test" split where it has one. Rows without text (null)
        are left out.

        Raises:
            DictlabError: The dataset cannot be opened, or has no column of that name.
        """
        rows, own_split = _open_dataset(name, split)
        columns = rows.column_names or list(next(_reading(name, rows), {}))  # a stream may not know before it is read
        if columns and column not in columns:
            raise DictlabError(f"text {name}: no column {column!r}; the dataset has {', '.join(columns)}.")

        def source(seed: int | None) -> Iterator[tuple[str, str]]:
            for row in _reading(name, rows if seed is None else rows.shuffle(seed=seed)):
                document = row.get(column)
                if document is None:
                    continue
                if not isinstance(document, str):
                    raise DictlabError(f"text {name}: column {column!r} holds {type(document).__name__}, not text.")
                yield document, document  # keyed by content, so that shuffling moves nothing between the splits

        return cls(name, split, source, partial(cls.dataset, name, column=column), own_split)

    def as_split(self, split: Split) -> Text:
        """The same text's other part, or itself."""
        return self if split == self.split else self._reopen(split)

    def documents(self, seed: int | None = None) -> Iterator[str]:
        """The documents of this split, in their own order, or shuffled by `seed`."""
        for key, document in self._source(seed):
            if self._already_split or _held_out(key) == (self.split == "heldout"):
                yield document

    def contexts(
        self,
        tokenizer: Any,
        length: int,
        *,
        seed: int | None = None,
        repeat: bool | int = False,
        start: Position | None = None,
    ) -> Contexts:
        """Token ids packed into contexts of `length` tokens.

        Documents are joined by the end-of-text token; where the tokenizer's rule is to begin with a beginning-of-text
        token, every context begins with it. The last, incomplete context is dropped.

        Args:
            tokenizer: A Hugging Face tokenizer.
            length: Tokens a context.
            seed: Shuffles the order of the documents; another order each time round.
            repeat: Go round for ever, or so many times.
            start: Where to begin: the `position` of an earlier iterator of the same settings.

        Raises:
            DictlabError: The split has too little text for a single context, or a context has no room for text.
        """
        return Contexts(
            lambda turn: self.documents(None if seed is None else seed + turn),
            tokenizer,
            length,
            turns=None if repeat is True else max(1, repeat),
            start=start,
            label=f"text {self.name}: its {self.split} split",
        )

    def sample(self, tokenizer: Any, length: int, size: int, *, seed: int = 0) -> Int[Tensor, "contexts length"]:
        """Up to `size` contexts from all over the text: drawn from the first `SPREAD * size` of a shuffled pass.

        Neighbouring contexts come from one document, and the first documents of a text are seldom typical of it.
        Fewer where the text ends before.
        """
        pool = list(islice(self.contexts(tokenizer, length, seed=seed), SPREAD * size))
        drawn = torch.randperm(len(pool), generator=seeds.generator(seed, "sample of contexts"))[:size]
        return torch.stack([pool[i] for i in drawn.tolist()])

    def batches(
        self, tokenizer: Any, length: int, size: int, *, seed: int | None = None, repeat: bool | int = False
    ) -> Iterator[Int[Tensor, "batch length"]]:
        """Contexts stacked by `size`; the last batch may be smaller."""
        contexts = self.contexts(tokenizer, length, seed=seed, repeat=repeat)
        while group := list(islice(contexts, size)):
            yield torch.stack(group)


def rows(name: str, split: Split, columns: Sequence[str], limit: int) -> tuple[list[dict[str, Any]], bool]:
    """The first rows of a data set, and whether this split is its own; if not, they are all of its rows.

    Raises:
        DictlabError: It cannot be opened or read, or a column is missing.
    """
    found, own_split = _open_dataset(name, split)
    read = list(islice(_reading(name, found), limit))
    missing = next((column for column in columns if read and column not in read[0]), None)
    if missing is not None:
        raise DictlabError(f"table {name}: no column {missing!r}; it has {', '.join(read[0])}.")
    return read, own_split


def _held_out(key: str) -> bool:
    return zlib.crc32(key.encode("utf-8", "surrogatepass")) % HELD_OUT_SHARE == 0


def _in_corpus(path: Path) -> bool:
    return not (
        NOT_CORPUS & set(path.parts) or path.name.startswith("_sysconfigdata") or path.parts[0][:7] == "config-"
    )


def _read(root: Path, paths: list[Path], seed: int | None) -> Iterator[tuple[str, str]]:
    """(key, piece) of every file; the key is relative to the root, so that the split is the same everywhere."""
    if seed is not None:
        paths = random.Random(seed).sample(paths, len(paths))
    for path in paths:
        base = path.name if path == root else path.relative_to(root).as_posix()
        for number, piece in enumerate(_pieces(path, PIECE_ALONE if path == root else PIECE)):
            yield f"{base}#{number}" if number else base, piece


def _pieces(path: Path, size: int) -> Iterator[str]:
    """The text of a file, cut at line ends; nothing of a binary file. A line longer than a piece is cut too."""
    with path.open(encoding="utf-8", errors="replace") as file:
        piece = file.read(size) + file.readline(size)
        while piece and "\0" not in piece:
            yield piece
            piece = file.read(size) + file.readline(size)


def _tables(path: Path) -> list[Path]:
    """The Parquet, JSON or CSV files that a path stands for: itself, or a folder of nothing else, all of one kind."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and _visible(p, path))
    kinds = {p.suffix for p in files}
    return files if len(kinds) == 1 and kinds <= set(TABLES) else []


def _visible(path: Path, root: Path) -> bool:
    """Neither hidden itself nor in a hidden folder, such as .git."""
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def _open_dataset(name: str, split: Split) -> tuple[Any, bool]:
    """The rows, and whether the dataset brought this split itself."""
    import datasets  # slow to import, and most work is on the built-in text

    path = Path(name)
    try:
        if tables := _tables(path):
            found = datasets.load_dataset(TABLES[tables[0].suffix], data_files=list(map(str, tables)), streaming=True)
        elif path.exists():
            found = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset(name, streaming=True)
    except Exception as error:  # datasets raises a dozen kinds; the user needs the one line
        tried = "it cannot be read as a dataset, and may be damaged or empty"
        if not path.exists():
            tried = "not 'builtin', no such file or folder, and no dataset of that name could be opened"
        raise DictlabError(f"text {name!r}: {tried} ({_first_line(error)}).") from error
    if not isinstance(found, dict):
        return found, False
    main = "train" if "train" in found else next(iter(found))
    held_out = next((own for own in ("validation", "test") if own in found), main)
    if held_out == main:
        return found[main], False
    return found[held_out if split == "heldout" else main], True


def _reading(name: str, rows: Any) -> Iterator[dict[str, Any]]:
    """The rows one by one. A damaged file, or a lost connection, shows only here."""
    try:
        yield from rows
    except Exception as error:  # of a dozen kinds, as above
        raise DictlabError(f"text {name}: the dataset cannot be read ({_first_line(error)}).") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
