"""A report back from its folder: what is in it stands in `report.json`, and lies in the files beside that."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.image
import pandas as pd
from matplotlib.figure import Figure

from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.formats.loading import load
from dictlab.reports.cards import Cards
from dictlab.reports.contents import Plot, Scatter, Table
from dictlab.reports.page import axes_of
from dictlab.reports.whole_folder import RECORD

DPI = 150  # of the pictures in a folder
SCATTER_FIELDS = ("x", "y", "group", "labels", "marks", "colours")


class SavedReport(NamedTuple):
    """What a folder holds, under the names of a report's fields."""

    title: str
    summary: str
    tables: dict[str, Table]
    plots: dict[str, Plot]
    cards: dict[str, Cards]
    dictionaries: dict[str, Dictionary]
    settings: dict[str, Any]
    warnings: tuple[str, ...]
    passed: bool | None
    recorded: dict[str, Any]


def contents_record(
    tables: Mapping[str, Table], plots: Mapping[str, Plot], cards: Iterable[str], dictionaries: Iterable[str]
) -> dict[str, Any]:
    """What `report.json` says of a report's parts: names, captions, and what a scatter's columns mean."""
    return {
        "tables": {name: table.caption for name, table in tables.items()},
        "latents": {name: record for name, table in tables.items() if (record := _latents_record(table))},
        "plots": {name: {"caption": plot.caption, "scatter": _scatter_record(plot)} for name, plot in plots.items()},
        "cards": list(cards),
        "dictionaries": list(dictionaries),
    }


def read_folder(folder: Path) -> SavedReport:
    """What a report's folder holds.

    Raises:
        DictlabError: It holds no report, an earlier version wrote it, or a file of it is missing or damaged.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DictlabError(f"{folder}: holds no report (no {RECORD}); expected what Report.save wrote.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DictlabError(f"{folder / RECORD}: cannot be read ({error}).") from error
    if not isinstance(record, dict) or "tables" not in record:
        raise DictlabError(f"{folder / RECORD}: does not say what the report is made of; run the analysis again.")
    try:
        return _read(folder, record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # pyarrow's errors are ValueErrors
        raise DictlabError(f"{folder}: the report is damaged ({type(error).__name__}: {error}).") from error


def _read(folder: Path, record: dict[str, Any]) -> SavedReport:
    return SavedReport(
        title=record["title"],
        summary=record["summary"],
        tables={
            name: _table(_frame(folder, name), caption, record.get("latents", {}).get(name, {}))
            for name, caption in record["tables"].items()
        },
        plots={name: _plot(folder, name, **about) for name, about in record["plots"].items()},
        cards={
            name: Cards.of(json.loads(_file(folder, name, "json").read_text(encoding="utf-8")))
            for name in record["cards"]
        },
        dictionaries={name: load(_file(folder, name, "safetensors")) for name in record["dictionaries"]},
        settings=record["provenance"]["settings"],
        warnings=tuple(record["warnings"]),
        passed=record["passed"],
        recorded=record["provenance"],
    )


def _latents_record(table: Table) -> dict[str, Any]:
    """For each column of latents' numbers the dictionaries, and which of them each row's latent is of."""
    record = {}
    for column, names in table.dictionaries_of_latents.items():
        known = list(dict.fromkeys(names))
        of = [known.index(name) for name in names] if len(known) > 1 else None
        record[column] = {"dictionaries": known, "of": of}
    return record


def _table(frame: pd.DataFrame, caption: str, latents: Mapping[str, Any]) -> Table:
    of = {
        column: [about["dictionaries"][i] for i in about["of"]]
        if about["of"] is not None
        else about["dictionaries"] * len(frame)
        for column, about in latents.items()
    }
    return Table(frame, caption, of)


def _scatter_record(plot: Plot) -> dict[str, Any] | None:
    if not isinstance(plot, Scatter):
        return None
    return {name: getattr(plot, name) for name in SCATTER_FIELDS} | {"axes": axes_of(plot.figure)}


def _plot(folder: Path, name: str, caption: str, scatter: dict[str, Any] | None) -> Plot:
    figure = _pictured(_file(folder, name, "png"))
    if scatter is None:
        return Plot(figure, caption)
    axes = scatter.pop("axes")
    _restore_axes(figure, **axes)
    return Scatter(figure, caption, _frame(folder, name), **scatter | {"labels": tuple(scatter["labels"])})


def _pictured(path: Path) -> Figure:
    """A figure that is a picture, pixel for pixel at the resolution that it was saved with."""
    pixels = matplotlib.image.imread(path)
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.imshow(pixels, aspect="auto", interpolation="none")
    ax.set_axis_off()
    return figure


def _restore_axes(
    figure: Figure, xlabel: str, ylabel: str, vertical: Iterable[float], horizontal: Iterable[float]
) -> None:
    """The labels and thresholds of a plot, unseen in the picture, for the page that draws its points."""
    ax = figure.axes[0]
    limits = ax.get_xlim(), ax.get_ylim()
    ax.set(xlabel=xlabel, ylabel=ylabel)
    for x in vertical:
        ax.axvline(x, visible=False)
    for y in horizontal:
        ax.axhline(y, visible=False)
    ax.set(xlim=limits[0], ylim=limits[1])


def _frame(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(_file(folder, name, "parquet"))


def _file(folder: Path, name: str, ending: str) -> Path:
    """A file of the folder itself, whatever the record calls it."""
    file = f"{name}.{ending}"
    if Path(file).name != file:
        raise ValueError(f"{name[:60]!r} is no name of a file")
    return folder / file
