"""What is a dictionary called in tables and plots, and which L0 does its folder's name state?

By its file, or by its folder where every file of a format has the same name; and where two of those agree, by as many
of the folders in which their paths differ as it takes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from dictlab.errors import DictlabError

if TYPE_CHECKING:
    from dictlab.dictionary import Dictionary

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".npz")  # endings of files that hold dictionaries
STATED_L0 = re.compile(r"(?:.*[_-])?(?:average_)?l0[_-](\d{1,6}(?:\.\d+)?)", re.IGNORECASE)  # average_l0_71, l0-10
RELEASE = re.compile(
    r"(gpt2|pythia|gemma|llama|mistral|qwen|deepseek)[\w.-]*-(res|mlp|att|attn|resid|scope)", re.IGNORECASE
)
EVERYWHERE = ("sae_weights", "sae", "ae", "params")  # the name of every file of a format


def file_and_part(path: str) -> tuple[str, str | None]:
    """`file#part` taken apart, unless a file is really called that."""
    file, _, part = path.rpartition("#")
    return (file, part) if file and not Path(path).exists() else (path, None)


def check_existence(path: str) -> None:
    """Refuse the name of a file or folder that is not there, without the libraries that read one.

    Raises:
        DictlabError: It is no address on a hub, and there is no such file or folder.
    """
    try:
        local, _ = file_and_part(path)
        missing = "://" not in local and not Path(local).exists()
    except OSError:  # no permission, a name that is too long: said where it is opened
        return
    if missing:
        raise DictlabError(f"{local}: no such file.{near_name(Path(local))}")


def name_of(path: str | Path) -> str:
    """What a dictionary is called, from the path or address it is opened by."""
    path, part = file_and_part(str(path))
    last = Path(path.partition("://")[2] or path)
    stem = last.stem if last.suffix in WEIGHTS else last.name
    name = last.absolute().parent.name if stem in EVERYWHERE else stem
    name = f"{name}#{part}" if part else name
    return name.encode("utf-8", "backslashreplace").decode()  # bytes that are no UTF-8 as codes: tables hold text


def near_name(path: Path) -> str:
    """What to say of a file that is not there: one of nearly its name, or where a name of that form is on the Hub."""
    try:
        beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError:
        beside = []
    close = get_close_matches(path.name, beside, 1, cutoff=0.8)
    if close:
        return f" Did you mean {path.with_name(close[0])}?"
    parts = path.parts
    if not path.suffix or path.suffix not in WEIGHTS:
        if RELEASE.match(parts[0]):
            return f" A release of SAELens is written saelens://{parts[0]}/{'/'.join(parts[1:]) or 'ID'}."
        if parts[0] == "google" or (len(parts) == 2 and not path.parent.is_dir()):
            return f" A repository on the Hub is written hf://{path.as_posix()}."
    return ""


def l0_in(path: Path) -> float | None:
    """The L0 that a file's name or one of the two folders above it states; None where none does."""
    parts = (path.stem, *path.absolute().parts[-2:-4:-1])
    match = next((match for part in parts if (match := STATED_L0.fullmatch(part))), None)
    return float(match[1]) if match else None


def with_distinct_names(dictionaries: Sequence[Dictionary]) -> list[Dictionary]:
    """The dictionaries, those of equal names called by the folders that tell their files apart.

    Of `layer_20/width_16k/average_l0_71`, `layer_20/width_65k/average_l0_71` and `layer_21/width_16k/average_l0_71`,
    all are called by layer, width and L0; had the widths agreed, by layer and L0.

    Raises:
        DictlabError: The same file is given twice, or dictionaries that were read from none have the same name.
    """
    names = [dictionary.name for dictionary in dictionaries]
    renamed = list(dictionaries)
    for name in {name for name in names if names.count(name) > 1}:
        places = [place for place, other in enumerate(names) if other == name]
        paths = [path for place in places if (path := dictionaries[place].path) is not None]
        distinct = len({id(dictionaries[place]) for place in places})
        if distinct < len(places) or len({path.resolve() for path in paths}) < len(paths):
            raise DictlabError(
                f"two dictionaries are called {name!r}: the same one was given twice, and has nothing that it lacks; "
                "give another."
            )
        if len(paths) < len(places) - 1:
            raise DictlabError(
                f"two dictionaries are called {name!r}, and were read from no file that could tell them apart; "
                "name them: dataclasses.replace(dictionary, name=...)."
            )
        folders = dict(zip(paths, _distinguishing_folders(paths), strict=True))
        for place in places:
            path = dictionaries[place].path
            if path is not None:
                renamed[place] = replace(dictionaries[place], name=f"{folders[path]}{name}")
    names = [dictionary.name for dictionary in renamed]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DictlabError(
            f"two dictionaries are called {twice!r}; give one another name: dataclasses.replace(dictionary, name=...)."
        )
    return renamed


def _distinguishing_folders(paths: Sequence[Path]) -> list[str]:
    """For each file, the outermost folders (with `/` behind each) that make it differ from all others."""
    parents = [path.absolute().parent.parts for path in paths]
    if len(parents) == 1:
        return [f"{parents[0][-1]}/"]
    prefixes = [""] * len(paths)
    for level in zip_longest(*parents, fillvalue=""):
        longer = [prefix + (f"{folder}/" if folder else "") for prefix, folder in zip(prefixes, level, strict=True)]
        if len(set(longer)) > len(set(prefixes)):
            prefixes = longer
    return prefixes
