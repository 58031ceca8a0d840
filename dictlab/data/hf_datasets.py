"""Data sets: folders of `save_to_disk`, Parquet, JSON, CSV and TSV files, and the Hugging Face Hub, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from dictlab.data.json_rows import JsonRows
from dictlab.data.text_files import in_split_named, visible_files
from dictlab.errors import DictlabError

Split = Literal["train", "heldout"]

TABLES = {
    ".parquet": "parquet", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv",
}  # fmt: skip
VALIDATION, TEST = {"validation", "valid", "val", "dev"}, {"test", "testing", "eval", "evaluation", "heldout"}
ABOUT = {".md", ".rst", ".yaml", ".yml", ".cff", ".bib"}  # what stands beside data files, and is no data
ABOUT_NAMES = {"license", "licence", "dataset_infos.json", "dataset_info.json", "state.json", "citation", "notice"}
SAVED = ("dataset_info.json", "dataset_dict.json")  # in the folder of save_to_disk


def is_saved(path: Path) -> bool:
    """Whether a folder is one of `save_to_disk`."""
    return path.is_dir() and any((path / name).exists() for name in SAVED)


def data_files(path: Path) -> list[Path]:
    """The data files that a path stands for: itself, or those of a folder of data files of one kind and their README.

    None where it is a folder of text.

    Raises:
        DictlabError: A folder holds data files and text, or data files of several kinds, or a saved data set.
    """
    if path.is_file():
        return [path] if path.suffix.lower() in TABLES else []
    if is_saved(path):
        return []
    files = visible_files(path) if path.is_dir() else []
    if saved := next((f.parent for f in files if f.name in SAVED and is_saved(f.parent)), None):
        raise DictlabError(f"text {path}: holds a saved data set in {saved.relative_to(path)}; give that folder.")
    files = [f for f in files if f.name.lower() not in ABOUT_NAMES and f.stem.lower() not in ABOUT_NAMES]
    tables = [f for f in files if f.suffix.lower() in TABLES]
    others = [f for f in files if f not in set(tables) and not _about(f)]
    if not tables or sum(f.stat().st_size for f in others) > sum(f.stat().st_size for f in tables):
        return []  # a folder of text, of source code say, with a few tables among it
    kinds = sorted({f.suffix.lower() for f in tables})
    if others or len({(TABLES[kind], kind == ".tsv") for kind in kinds}) > 1:
        found = ", ".join([*kinds, *sorted({f.suffix.lower() or f.name for f in others})[:4]])
        raise DictlabError(
            f"text {path}: holds data files beside others ({found}); give a folder of data files of one kind, with its "
            "README at most, or of text files."
        )
    return tables


def open_dataset(
    name: str, split: Split, subset: str | None = None, source_split: str | None = None
) -> tuple[Any, bool]:
    """The rows, and whether the data set brought this split itself.

    Args:
        name: A folder, a file, or a name on the Hub.
        split: "train", or "heldout".
        subset: Configuration of a data set on the Hub.
        source_split: The one of its own splits to take, for both.

    Raises:
        DictlabError: It cannot be opened, or has no split of that name.
    """
    path = Path(name)
    files = data_files(path)
    try:
        opened = _opened(name, path, files, subset)
    except Exception as error:  # datasets raises a dozen kinds; the user needs the one line
        tried = "it cannot be read as a dataset, and may be damaged or empty"
        if not path.exists():
            tried = "not 'builtin', no such file or folder, and no dataset of that name could be opened"
        raise DictlabError(f"text {name!r}: {tried} ({first_line(error)}).") from error
    if not isinstance(opened, dict):
        if source_split not in (None, "train"):
            raise DictlabError(f"text {name}: no split {source_split!r}; it has none.")
        return opened, False
    if source_split is not None:
        if source_split not in opened:
            raise DictlabError(f"text {name}: no split {source_split!r}; it has {', '.join(opened)}.")
        return opened[source_split], False
    main = "train" if "train" in opened else next(iter(opened))
    held_out = next((own for own in ("validation", "test") if own in opened), main)
    if held_out == main:
        return opened[main], False
    return opened[held_out if split == "heldout" else main], True


def _opened(name: str, path: Path, files: Sequence[Path], subset: str | None) -> Any:
    """A data set, or several by the name of their split."""
    if not files:
        import datasets  # slow to import, and most work is on the built-in text

        if path.exists():
            return datasets.load_from_disk(str(path))
        return datasets.load_dataset(name, subset, streaming=True)
    by_split = {
        "validation": [f for f in files if in_split_named(f, path, VALIDATION)],
        "test": [f for f in files if in_split_named(f, path, TEST) and not in_split_named(f, path, VALIDATION)],
    }
    held = {f for own in by_split.values() for f in own}
    by_split = {"train": [f for f in files if f not in held]} | by_split
    kept = {split: own for split, own in by_split.items() if own} if by_split["train"] else {"train": list(files)}
    kind = files[0].suffix.lower()
    if TABLES[kind] == "json":
        return {split: JsonRows(own) for split, own in kept.items()}
    import datasets

    options = {"sep": "\t"} if kind == ".tsv" else {}
    paths = {split: [str(f) for f in own] for split, own in kept.items()}
    return datasets.load_dataset(TABLES[kind], data_files=paths, streaming=True, **options)


def rows(name: str, split: Split, columns: Sequence[str], limit: int) -> tuple[list[dict[str, Any]], bool]:
    """The first rows of a data set, and whether this split is its own; if not, they are all of its rows.

    Raises:
        DictlabError: It cannot be opened or read, or a column is missing.
    """
    opened, own_split = open_dataset(name, split)
    read = list(islice(reading(name, opened), limit))
    missing = next((column for column in columns if read and column not in read[0]), None)
    if missing is not None:
        raise DictlabError(f"table {name}: no column {missing!r}; it has {', '.join(read[0])}.")
    return read, own_split


def reading(name: str, rows: Any) -> Iterator[dict[str, Any]]:
    """The rows one by one. A damaged file, or a lost connection, shows only here."""
    try:
        yield from rows
    except Exception as error:  # of a dozen kinds, as above
        raise DictlabError(f"text {name}: the dataset cannot be read ({first_line(error)}).") from error


def first_line(error: Exception) -> str:
    """What an error of another library says first."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"


def _about(path: Path) -> bool:
    return path.suffix.lower() in ABOUT or path.stem.lower() in ("readme", "license", "licence")
