"""Whatever library trained it: one dictionary.

A format is a module with three functions, found through the entry points of the group `dictlab.formats`:

    recognise(source) -> bool           whether a file of weights and what lies beside it are of this format
    read(source) -> Dictionary          the same function as the library's own, without reading more than it must
    write(dictionary, path) -> Path     absent where the format is only read
    WRITES_TWO_PLACES                   true where it can write transcoders, or a linear skip, as well
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import torch

from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.formats import hub, mapping
from dictlab.formats.libraries.fields import listed
from dictlab.formats.names import check_existence, file_and_part, l0_in
from dictlab.formats.reading.checks import check
from dictlab.formats.reading.source import Source, weight_files
from dictlab.formats.reading.wrappers import unwrapped

GROUP = "dictlab.formats"
SEEN = 12  # names of folders listed in an error
LONG = 2000  # characters of an error


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    format: str | None = None,
    map: Mapping[str, str] | None = None,
    scale: float | None = None,
    ignore: Sequence[str] = (),
) -> Dictionary:
    """Read a dictionary, whatever library trained it; computed with in float32.

    Args:
        path: A file, a folder that holds one dictionary, `hf://owner/repo/path[@revision]`, or
            `saelens://release/id`. Where a file holds several dictionaries, `#SITE` after it says which.
        device: Where to put it.
        format: The name of a format; by default it is recognised from what the file holds.
        map: For a plain state dict: which tensor is what (see `dictlab.formats.mapping`).
        scale: What inputs are multiplied by, where a configuration says that they are, and not by how much.
        ignore: Fields of a configuration to pass over, although they are unknown here and may change the function.

    Raises:
        DictlabError: There is no such file, it is damaged, of no known format, or means something that a `Dictionary`
            cannot express. The message names the file and what was found.
    """
    dictionary = mapped(path, format=format, map=map, scale=scale, ignore=ignore)
    try:
        check(dictionary)
    except DictlabError as error:
        raise DictlabError(_one_line(f"{dictionary.path}: {error}")) from None
    return dictionary.to(device, torch.float32)


def mapped(
    path: str | Path,
    *,
    format: str | None = None,
    map: Mapping[str, str] | None = None,
    scale: float | None = None,
    ignore: Sequence[str] = (),
) -> Dictionary:
    """The same as `load`, but tensors stay in the file until they are used, in the file's precision.

    Shapes are checked, numbers are not. For a look at a large dictionary's metadata, or at some of its rows.
    """
    try:
        return _mapped(str(path), format, map, scale, tuple(ignore))
    except DictlabError as error:
        raise DictlabError(_one_line(str(error))) from error
    except OSError as error:
        raise DictlabError(_one_line(f"{path}: cannot be read ({error.strerror or error}).")) from error


def _mapped(
    path: str, format: str | None, map: Mapping[str, str] | None, scale: float | None, ignore: tuple[str, ...]
) -> Dictionary:
    if map is not None and format is not None:
        raise DictlabError(f"{path}: a mapping is given, and the format {format!r}; give one of the two.")
    path, part = file_and_part(path)
    local, known = hub.fetched(path)
    like = Source(local, {}, part=part, ignore=ignore, scale=scale, registered=known)
    sources, broken = ([like.other(local)], []) if local.is_file() else _in_folder(local, like)
    if map is None:
        sources = [unwrapped(source) for source in sources]
    reader, source = _only(local, sources, broken, format) if map is None else (None, _single(local, sources))
    try:
        made = mapping.read(source, map or {}) if reader is None else reader.read(source)
    except DictlabError as error:
        raise DictlabError(f"{source.path}: {error}") from error
    about, l0 = made.metadata, l0_in(source.path)
    if l0 is not None and "l0" not in about.metrics:
        about = replace(about, metrics={**about.metrics, "l0": l0})
    name = f"{source.name}#{part}" if part else source.name
    return replace(made, name=name, path=source.path, metadata=about)


def formats() -> dict[str, ModuleType]:
    """The formats that are installed, by name."""
    return _installed()[0]


def format_of(name: str) -> ModuleType:
    """A format by its name.

    Raises:
        DictlabError: There is none of that name, or it cannot be loaded.
    """
    found, broken = _installed()
    if name in broken:
        raise DictlabError(broken[name])
    if name not in found:
        meant = "".join(f" Did you mean {close}?" for close in get_close_matches(name, found, 1))
        raise DictlabError(f"format {name!r} is unknown; known are {', '.join(found)}.{meant}")
    return found[name]


@cache
def _installed() -> tuple[dict[str, ModuleType], dict[str, str]]:
    """The formats that can be loaded, and why the others cannot: one package's mistake leaves the rest alone."""
    found, broken = {}, {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            module = entry.load()
        except Exception as error:  # another package's code
            broken[entry.name] = f"format {entry.name!r} cannot be loaded from {entry.value} ({error})."
            continue
        if all(callable(getattr(module, name, None)) for name in ("recognise", "read")):
            found[entry.name] = module
        else:
            broken[entry.name] = f"format {entry.name!r}: {entry.value} has no functions recognise and read."
    return found, broken


def recognised(source: Source) -> list[str]:
    """The names of the formats that a file is of: one, if all is well."""
    return [name for name, module in formats().items() if module.recognise(source)]


def _in_folder(folder: Path, like: Source) -> tuple[list[Source], list[str]]:
    """The files of weights in a folder, and what is wrong with those that cannot be opened: perhaps another's business.

    Raises:
        DictlabError: There is none.
    """
    found, broken = [], []
    check_existence(str(folder))
    if not folder.is_dir():
        raise DictlabError(f"{folder}: neither a file nor a folder.")
    for file in weight_files(folder):
        try:
            found.append(like.other(file))
        except DictlabError as error:
            broken.append(str(error))
    if not found:
        has = _folders(_inner(folder)) or "no file of weights"
        raise DictlabError(broken[0] if broken else f"{folder}: this is a folder with {has}.")
    return found, broken


def _inner(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def _folders(inner: Sequence[Path]) -> str:
    more = f" and {len(inner) - SEEN} more" if len(inner) > SEEN else ""
    return f"folders ({', '.join(p.name for p in inner[:SEEN])}{more}); name one of them" if inner else ""


def _only(
    path: Path, sources: Sequence[Source], broken: Sequence[str], format: str | None
) -> tuple[ModuleType, Source]:
    """The one dictionary among some files of weights, and who reads it."""
    if format is not None:
        module = format_of(format)
        own = [source for source in sources if module.recognise(source)]
        return module, _single(path, own or sources)
    by_source = [(source, recognised(source)) for source in sources]
    found = [(source, names) for source, names in by_source if names]
    if not found and path.is_dir() and (inner := [p for p in _inner(path) if weight_files(p) or _inner(p)]):
        raise DictlabError(f"{path}: no dictionary lies in this folder itself, but it has {_folders(inner)}.")
    if not found:
        raise DictlabError(_unknown(sources[0], broken))
    if len(found) > 1:
        files = ", ".join(source.path.name for source, _ in found[:SEEN])
        files += f" and {len(found) - SEEN} more" if len(found) > SEEN else ""
        raise DictlabError(f"{path}: this folder holds {len(found)} dictionaries ({files}); name one of the files.")
    source, names = found[0]
    if len(names) > 1:
        raise DictlabError(
            f"{source.path}: it could be of the formats {' and '.join(names)}; say which with `format=...`."
        )
    return formats()[names[0]], source


def _single(path: Path, sources: Sequence[Source]) -> Source:
    if len(sources) != 1:
        files = ", ".join(source.path.name for source in sources) or "none"
        raise DictlabError(f"{path}: expected one file of weights; found {files}.")
    return sources[0]


def _unknown(source: Source, broken: Sequence[str]) -> str:
    """What was found in a file that is no dictionary."""
    configs = ", ".join([*source.configs, *(f"{name} ({why})" for name, why in source.damaged.items())]) or "none"
    reasons = (*broken, *_installed()[1].values())
    return (
        f"{source.path}: no dictionary of a known format. Tensors: {listed(source.tensors)}; configurations beside it: "
        f"{configs}. Known formats: {', '.join(formats())}. A plain state dict can be read by saying which tensor is "
        f"what: see `map=...` of load and convert.{''.join(f' {reason}' for reason in reasons)}"
    )


def _one_line(text: str) -> str:
    """A message without what a file may have put into it to move the cursor."""
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= LONG else f"{text[:LONG]}..."
