"""`dictlab info` and `dictlab convert`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table as Grid

from dictlab.cli.printing import console
from dictlab.dictionary.describe import describe, description
from dictlab.errors import DictlabError
from dictlab.formats.names import check_existence, name_of
from dictlab.formats.native.header import described


def info(
    file: str,
    *,
    format: str | None = None,
    map: tuple[str, ...] = (),
    scale: float | None = None,
    ignore: tuple[str, ...] = (),
) -> None:
    """What a dictionary is, where it came from, and how good it was at the end of training.

    Parameters
    ----------
    file
        A dictionary of any library's: a file, a folder, hf://owner/repo/path, or saelens://release/id.
    format
        The format to read; recognised from the content by default.
    map
        For a plain state dict, NAME=TENSOR for each of its parts, such as W_enc=encoder.weight.T.
    scale
        What its inputs are multiplied by, where its configuration does not say.
    ignore
        Fields of its configuration to pass over although they are unknown here.
    """
    check_existence(file)
    rows = None
    if format is None and scale is None and not map and not ignore and file.endswith(".safetensors"):
        rows = _from_header(Path(file))
    if rows is None:
        from dictlab.formats.loading import mapped

        rows = describe(mapped(file, format=format, map=_pairs(map), scale=scale, ignore=ignore))
    grid = Grid(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows:
        grid.add_row(name, value, style=None)
    console().print(grid)


def _from_header(path: Path) -> list[tuple[str, str]] | None:
    """What `describe` says, from the header of a usual file of dictlab's alone: torch is not imported."""
    found = described(path) if path.is_file() else None
    if found is None:
        return None
    n, d_in, activation, normalisation, about, dtype = found
    return description(name_of(path), n, d_in, activation, normalisation, about, dtype, emitting=n)


def convert(
    source: str,
    target: Path,
    *,
    to: str = "dictlab",
    format: str | None = None,
    map: tuple[str, ...] = (),
    scale: float | None = None,
    ignore: tuple[str, ...] = (),
    site: str | None = None,
    writes: str | None = None,
    model: str | None = None,
    force: bool = False,
) -> None:
    """Write a dictionary in another library's format; it is read back and compared before anything is replaced.

    Parameters
    ----------
    source
        A dictionary of any library's: a file, a folder, hf://owner/repo/path, or saelens://release/id.
    target
        What to write: a .safetensors file for dictlab, a folder for other libraries.
    to
        The format to write.
    format
        The format to read; recognised from the content by default.
    map
        For a plain state dict, NAME=TENSOR for each of its parts, such as W_enc=encoder.weight.T.
    scale
        What its inputs are multiplied by, where its configuration does not say.
    ignore
        Fields of its configuration to pass over although they are unknown here.
    site
        Where in the model it belongs (a transcoder: which site it reads), if the source does not say, or says it
        wrongly.
    writes
        Which site a transcoder writes, likewise.
    model
        The model it belongs to, likewise.
    force
        Replace what is already there.
    """
    from dictlab.formats import conversion
    from dictlab.formats.loading import load

    dictionary = load(source, format=format, map=_pairs(map), scale=scale, ignore=ignore)
    about = dictionary.metadata
    if writes is not None and not dictionary.transcodes:
        raise DictlabError(f"--writes {writes}: {source} is no transcoder, and writes the site that it reads.")
    about = replace(about, site=site or about.site, writes=writes or about.writes, model=model or about.model)
    written = conversion.write(replace(dictionary, metadata=about), target, to, force=force)
    out = console()
    out.print(f"Dictionary: {written}", soft_wrap=True)
    for note in about.notes:
        out.print(f"Note: {note}", style="yellow", soft_wrap=True)


def _pairs(texts: Sequence[str]) -> dict[str, str] | None:
    """What --map says, or None where it was not given."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name or not value:
            raise DictlabError(f"--map {text!r}: expected NAME=TENSOR, such as W_enc=encoder.weight.T.")
        if name in pairs:
            raise DictlabError(f"--map {text!r}: {name} is {pairs[name]!r} already.")
        pairs[name] = value
    return pairs or None
