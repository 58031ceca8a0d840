"""Where do tokens come from?

A `Text` is an ordered collection of documents with a training and a held-out split. It is one of

* the built-in corpus: the sources of the Python standard library, which are on every machine that runs this;
* a text file, or a folder of them;
* a data set: saved on disk, Parquet, JSON, CSV or TSV files, or streamed from the Hugging Face Hub;
* token ids: a column of a data set that is tokenized already, or a `.npy` file (a tensor: `in_memory`).

Documents are read in pieces, drawn from all over the text where it is shuffled, and tokenized when they are needed, so
that memory grows neither with a document nor with the text. `Text.contexts` packs them, joined by the tokenizer's
end-of-text token, into contexts of one fixed length.
"""

from __future__ import annotations

import random
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from dictlab.data import text_files
from dictlab.data.hf_datasets import Split as Split
from dictlab.data.hf_datasets import data_files, is_saved, open_dataset, reading
from dictlab.data.hf_datasets import rows as rows
from dictlab.data.mapped_file import MappedFile
from dictlab.data.packing import Contexts, Position, packing_notes
from dictlab.data.row_pieces import TOKENS, Document, mixed, pieces_of_rows, shuffled_rows
from dictlab.errors import DictlabError
from dictlab.numerics import seeds

HELD_OUT_SHARE = 10  # one document in ten, chosen by the checksum of its name, is never trained on
SPREAD = 8  # contexts that a sampled one is drawn from
PIECE_ALONE = 1 << 14  # bytes of a piece of a single file: they are all that it has to divide into splits
PIECE = 1 << 16  # bytes of a piece of a file in a folder
PIECE_BUILTIN = 1 << 20  # more than any file of the built-in corpus, whose documents are whole files
OPTIONS = ("column", "subset", "split", "documents")  # of a text, behind its name
# Test suites are missing from some distributions of Python; _sysconfigdata holds this machine's paths.
NOT_CORPUS = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "idlelib", "lib2to3"}


@dataclass(frozen=True)
class Text:
    """Documents with a name and a split. Make one with `Text.open`, `.builtin`, `.files`, `.dataset`, `.token_file`.

    Attributes:
        name: What `Text.open` was given, so that the same text can be opened again.
        split: "train", or "heldout": the tenth of the documents that training never sees.
        left_out: Binary files of its folder that are not read.
        separate: No context reaches from one document into the next; what does not fill one is dropped.
    """

    name: str
    split: Split
    _source: Callable[[int | None], Iterator[tuple[str, Any]]]  # seed -> (key, document); the key decides the split
    _reopen: Callable[[Split], Text]  # the same text, opened in the same way
    _already_split: bool = False  # the data set has splits of its own
    separate: bool = field(default=False, kw_only=True)
    left_out: tuple[str, ...] = field(default=(), kw_only=True)

    @classmethod
    def open(cls, spec: str | Path, split: Split = "train") -> Text:
        """Text from `"builtin"`, a file, a folder, or the name of a data set on the Hugging Face Hub.

        Settings stand behind the name, as in `NAME?column=body&subset=en&split=train&documents=separate`: the column
        that holds the text or its token ids ("text" by default), the configuration of a data set on the Hub, the one of
        its own splits to take, and whether contexts may cross documents ("joined", the default) or not ("separate").

        Raises:
            DictlabError: Nothing of that name is known, or a setting.
        """
        name, chosen = _settings(str(spec))
        separate = _separate(str(spec), chosen.get("documents", "joined"))
        path = Path(name)
        asked = {key: chosen[key] for key in ("column", "subset", "split") if key in chosen}
        if name == "builtin" and not asked:
            text = cls.builtin(split)
        elif path.suffix == ".npy" and path.is_file() and not asked:
            text = cls.token_file(path, split)
        elif asked or is_saved(path) or not path.exists() or data_files(path):
            text = cls.dataset(
                name, split, chosen.get("column", "text"), subset=chosen.get("subset"), source_split=chosen.get("split")
            )
        else:
            text = cls.files(path, split)
        if not chosen:
            return text
        return cls(
            str(spec),
            split,
            text._source,
            partial(cls.open, spec),
            text._already_split,
            separate=separate,
            left_out=text.left_out,
        )

    @classmethod
    def builtin(cls, split: Split = "train") -> Text:
        """The sources of the Python standard library, in the order of their paths, without its test suites."""
        root = Path(sysconfig.get_path("stdlib"))
        paths = [p for p in sorted(root.rglob("*.py")) if _in_corpus(p.relative_to(root))]
        source = partial(text_files.pieces, root, paths, PIECE_BUILTIN, strict=False)
        return cls("builtin", split, source, cls.builtin)

    @classmethod
    def files(cls, path: str | Path, split: Split = "train") -> Text:
        """A text file, or every text file below a folder in the order of their paths.

        A document is a file, or a piece of a long one: of 64 KiB, or, of a single file, of 16 KiB. Hidden files and
        folders are left out, and so are binary files (they hold a zero byte) and, of training, files whose names say
        that they are a test or validation split (test.txt, wiki.valid.raw), which are then the held-out split.

        Raises:
            DictlabError: There is no such file or folder, it holds no files, or a file is compressed or not UTF-8.
        """
        root = Path(path)
        if not root.exists():
            raise DictlabError(f"text {root}: no such file or folder.")
        paths = [root] if root.is_file() else text_files.visible_files(root)
        if not paths:
            raise DictlabError(f"text {root}: the folder holds no files.")
        everything, paths = paths, text_files.check_heads(paths)
        if not paths or (root.is_file() and not root.stat().st_size):
            raise DictlabError(f"text {root}: the file is empty or binary; expected plain text.")
        size = PIECE_ALONE if root.is_file() else PIECE
        train, held = text_files.own_splits(paths) if root.is_dir() else (paths, [])
        source = partial(text_files.pieces, root, held if held and split == "heldout" else train, size)
        kept = set(paths)
        left_out = tuple(p.relative_to(root).as_posix() for p in everything if p not in kept)
        return cls(str(path), split, source, partial(cls.files, path), bool(held), left_out=left_out)

    @classmethod
    def dataset(
        cls,
        name: str,
        split: Split = "train",
        column: str = "text",
        *,
        subset: str | None = None,
        source_split: str | None = None,
    ) -> Text:
        """A data set: a folder of `save_to_disk`, Parquet/JSON/CSV/TSV files, or a name on the Hub (streamed).

        The held-out split is the data set's own "validation" or "test" split where it has one; files whose paths say so
        are these. Rows without text (null) are left out, and long ones cut into pieces of 64 thousand characters.

        Args:
            name: Of the data set, the file or the folder.
            split: "train", or "heldout".
            column: Holds text, or token ids.
            subset: Configuration of a data set on the Hub.
            source_split: The one of its own splits that both are taken of.

        Raises:
            DictlabError: The data set cannot be opened, or has no column of that name.
        """
        opened, own_split = open_dataset(name, split, subset, source_split)
        # a stream may not know its columns before it is read
        columns = getattr(opened, "column_names", None) if not _reads_itself(opened) else None
        columns = columns or list(next(reading(name, opened), {}))
        if columns and column not in columns:
            raise DictlabError(f"text {name}: no column {column!r}; the dataset has {', '.join(columns)}.")

        def source(seed: int | None) -> Iterator[tuple[str, Document]]:
            keyed = pieces_of_rows(name, opened if seed is None else shuffled_rows(opened, seed), column)
            return keyed if seed is None else mixed(keyed, seed)

        reopen = partial(cls.dataset, name, column=column, subset=subset, source_split=source_split)
        return cls(name, split, source, reopen, own_split)

    @classmethod
    def token_file(cls, path: str | Path, split: Split = "train") -> Text:
        """Token ids in a `.npy` file: a row is a document, or one long row is cut into pieces. None are added.

        Raises:
            DictlabError: The file is damaged, or holds no whole numbers with one or two axes.
        """
        try:
            ids = np.load(path, mmap_mode="r", allow_pickle=False)
            file = MappedFile(Path(path), "text")
        except (ValueError, OSError, EOFError) as error:
            raise DictlabError(f"text {path}: no .npy array, or damaged ({error}).") from error
        if ids.ndim not in (1, 2) or not np.issubdtype(ids.dtype, np.integer):
            raise DictlabError(
                f"text {path}: {ids.dtype} of shape {list(ids.shape)}; expected token ids with one or two axes."
            )
        size = TOKENS if ids.ndim == 1 else 1

        def source(seed: int | None) -> Iterator[tuple[str, Document]]:
            order: Sequence[int] = range(-(-len(ids) // size))
            for number in order if seed is None else random.Random(seed).sample(order, len(order)):
                with file.unchanged():
                    piece = ids[number * size : (number + 1) * size].reshape(-1).tolist()
                yield str(number), piece

        return cls(str(path), split, source, partial(cls.token_file, path))

    def as_split(self, split: Split) -> Text:
        """The same text's other part, or itself."""
        return self if split == self.split else self._reopen(split)

    def documents(self, seed: int | None = None) -> Iterator[Any]:
        """The documents of this split, text or token ids, in their own order, or shuffled by `seed`."""
        for key, document in self._source(seed):
            if self._already_split or _held_out(key) == (self.split == "heldout"):
                yield document

    def notes(self, tokenizer: Any) -> tuple[str, ...]:
        """What must be said of this text before it is used: what is left out, and how it becomes tokens."""
        shown = ", ".join(self.left_out[:5]) + (", ..." if len(self.left_out) > 5 else "")
        binary = (f"{len(self.left_out)} binary files are left out: {shown}.",) if self.left_out else ()
        return (*binary, *packing_notes(self.documents(), tokenizer))

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
            separate=self.separate,
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


def _held_out(key: str) -> bool:
    return zlib.crc32(key.encode("utf-8", "surrogatepass")) % HELD_OUT_SHARE == 0


def _in_corpus(path: Path) -> bool:
    return not (
        NOT_CORPUS & set(path.parts) or path.name.startswith("_sysconfigdata") or path.parts[0][:7] == "config-"
    )


def _settings(spec: str) -> tuple[str, dict[str, str]]:
    """The name of a text, and the settings behind it.

    Raises:
        DictlabError: One of them is not known.
    """
    name, mark, behind = spec.partition("?")
    if not mark or Path(spec).exists():
        return spec, {}
    pairs = [part.partition("=") for part in behind.split("&")]
    unknown = next((key for key, _, value in pairs if key not in OPTIONS or not value), None)
    if unknown is not None:
        raise DictlabError(f"text {spec}: {unknown!r} is no setting with a value; known are {', '.join(OPTIONS)}.")
    return name, {key: value for key, _, value in pairs}


def _separate(spec: str, documents: str) -> bool:
    if documents not in ("joined", "separate"):
        raise DictlabError(f"text {spec}: documents={documents}; expected joined or separate.")
    return documents == "separate"


def _reads_itself(rows: Any) -> bool:
    """Whether asking for the columns of rows is reading the first of them."""
    return not hasattr(rows, "features")
