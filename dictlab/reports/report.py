"""What an analysis has to say: a sentence, tables, figures, cards, dictionaries it made, and how it came by them.

A `Report` shows itself in a notebook and saves itself as a folder: every table as CSV and Parquet, every figure as PNG
and SVG, cards as JSON, every dictionary as safetensors, one self-contained `report.html`, and `report.json` with the
provenance. A `Scatter` is a figure whose points can be asked, on the page, what they are.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import pandas as pd
import torch
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.text import Text as MatplotlibText

from dictlab.__about__ import VERSION
from dictlab.dictionary import Dictionary
from dictlab.dictionary.hashing import sha256_of_weights
from dictlab.errors import DictlabError
from dictlab.formats import native
from dictlab.reports.cards import Cards, template
from dictlab.reports.safe_text import for_csv, safe
from dictlab.reports.whole_folder import write_whole

SHOWN_ROWS = 20  # rows of a table in the page; the files hold all of them


@dataclass(frozen=True, eq=False)
class Table:
    """A frame and what it is about."""

    frame: pd.DataFrame
    caption: str

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return f"<p>{escape(safe(self.caption))}</p>{_safe_frame(self.frame).to_html(index=False, max_rows=SHOWN_ROWS)}"


@dataclass(frozen=True, eq=False)
class Plot:
    """A figure and what it shows: n, the interval and the chance level belong in the caption."""

    figure: Figure
    caption: str

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        caption = escape(safe(self.caption))
        return f'<figure><img src="{_data_uri(self.figure)}"><figcaption>{caption}</figcaption></figure>'


@dataclass(frozen=True, eq=False)
class Scatter(Plot):
    """A plot of points that say, on the page, what they are. In a notebook, and as PNG and SVG, it is its figure.

    Its frame is saved beside it as CSV and Parquet, under the same name.

    Attributes:
        frame: One row a point.
        x: Column of the abscissa; a point without one is not drawn.
        y: Column of the ordinate.
        group: Column that decides colour and shape, and that the legend lists.
        labels: Columns that a point shows when it is pointed at; what is missing is left out.
        marks: Column of names, several joined by ", ", of what points belong to together; None for none.
        colours: CSS colour of each group; groups are listed in this order.
    """

    frame: pd.DataFrame
    x: str
    y: str
    group: str
    labels: tuple[str, ...] = ()
    marks: str | None = None
    colours: Mapping[str, str] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """What the page's script draws, by column."""
        frame = self.frame
        groups = [str(name) for name in dict.fromkeys([*self.colours, *frame[self.group]])]
        number = {name: i for i, name in enumerate(groups)}
        return {
            "x": [_coordinate(value) for value in frame[self.x]],
            "y": [_coordinate(value) for value in frame[self.y]],
            "group": [number[str(name)] for name in frame[self.group]],
            "groups": [safe(name) for name in groups],
            "colours": [self.colours.get(name) for name in groups],
            "title": self.group,
            "labels": {safe(str(name)): [_shown_or_none(value) for value in frame[name]] for name in self.labels},
            "marks": None if self.marks is None else [_shown_or_none(value) for value in frame[self.marks]],
        }


@dataclass(frozen=True, eq=False)
class Report:
    """The outcome of an analysis.

    Attributes:
        title: The question that was asked.
        summary: The answer, in one or two sentences.
        tables: By the name of their files.
        plots: By the name of their files, which no table may have where it is a `Scatter`.
        cards: What single things are, by the name of their files; a table may have the same name.
        dictionaries: What the analysis made, by the name of their files.
        settings: The analysis' parameters, seeds included.
        inputs: The dictionaries that went in.
        warnings: What the reader must not overlook.
        passed: Whether all that was checked holds; None where the question was no pass or fail.
    """

    title: str
    summary: str
    tables: Mapping[str, Table] = field(default_factory=dict)
    plots: Mapping[str, Plot] = field(default_factory=dict)
    cards: Mapping[str, Cards] = field(default_factory=dict)
    dictionaries: Mapping[str, Dictionary] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Dictionary, ...] = ()
    warnings: tuple[str, ...] = ()
    passed: bool | None = None

    def __post_init__(self) -> None:
        """Refuse two frames that would share a file."""
        twice = [name for name, plot in self.plots.items() if isinstance(plot, Scatter) and name in self.tables]
        if twice:
            raise ValueError(f"a table and a scatter are both called {twice[0]!r}, and would share a file")
        if "report" in self.cards:
            raise ValueError("cards are called 'report', and would share a file with the record")

    @property
    def cautions(self) -> tuple[str, ...]:
        """The warnings, what reading the dictionaries brought to light, and those whose codes depend on the batch."""
        notes = [f"{d.name}: {note}" for d in self.inputs for note in d.metadata.notes]
        batchwise = [d.name for d in self.inputs if d.activation.batchwise]
        if batchwise:
            notes.append(
                f"{', '.join(batchwise)}: BatchTopK without a threshold. The codes of a token depend on the tokens "
                "that it is encoded with, so every number of it holds for batches as they were here."
            )
        return (*self.warnings, *notes)

    def save(self, folder: str | Path, *, force: bool = False, command: str | None = None) -> Path:
        """Write everything to a folder. It is prepared aside and moved in when complete: nothing is half-written.

        Args:
            folder: Made if it does not exist. Other files in it are left alone.
            force: Replace a report that is already there.
            command: What the user typed, for the provenance.

        Raises:
            DictlabError: `force` is False and the folder already holds a report or other files of the same names, or
                it is a file.
        """
        folder = Path(folder)
        check_folder(folder, force=force)
        write_whole(folder, lambda partial: self._write(partial, command), force=force)
        return folder

    def provenance(self, command: str | None = None) -> dict[str, Any]:
        """Versions, settings, and a hash of every dictionary that went in."""
        return {
            "dictlab": VERSION,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "numpy": numpy.__version__,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command,
            "settings": dict(self.settings),
            "inputs": [_described(dictionary) for dictionary in self.inputs],
        }

    def html(self, command: str | None = None) -> str:
        """One self-contained page."""
        return template("report.html").render(
            report=self,
            tables={name: (table.caption, _shown(table.frame)) for name, table in self.tables.items()},
            plots={name: (plot.caption, _data_uri(plot.figure)) for name, plot in self.plots.items()},
            cards=[cards.html() for cards in self.cards.values()],
            scatters={name: _embedded(plot.data()) for name, plot in self.plots.items() if isinstance(plot, Scatter)},
            provenance=_json(self.provenance(command)),
            page=True,
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return template("report.html").render(
            report=self,
            tables={name: (table.caption, _shown(table.frame)) for name, table in self.tables.items()},
            plots={name: (plot.caption, _data_uri(plot.figure)) for name, plot in self.plots.items()},
            cards=[cards.html() for cards in self.cards.values()],
            scatters={},
            page=False,
        )

    def __str__(self) -> str:
        """Title, summary and warnings."""
        return safe("\n".join([self.title, "", self.summary, *(f"\nWarning: {warning}" for warning in self.cautions)]))

    def _write(self, folder: Path, command: str | None) -> None:
        frames = {name: table.frame for name, table in self.tables.items()}
        frames |= {name: plot.frame for name, plot in self.plots.items() if isinstance(plot, Scatter)}
        for name, frame in frames.items():
            for_csv(frame).to_csv(folder / f"{name}.csv", index=False)
            frame.to_parquet(folder / f"{name}.parquet", index=False)
        for name, plot in self.plots.items():
            figure = _settled(plot.figure)
            figure.savefig(folder / f"{name}.png", dpi=150)
            # A fixed salt and no date: equal figures are equal files.
            with _svg_settings():
                figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        for name, cards in self.cards.items():
            (folder / f"{name}.json").write_text(_json(cards.data()) + "\n", encoding="utf-8")
        for name, dictionary in self.dictionaries.items():
            native.save(dictionary, folder / f"{name}.safetensors")
        (folder / "report.html").write_text(self.html(command), encoding="utf-8")
        files = sorted(path.name for path in folder.iterdir())
        content = {
            "title": self.title,
            "summary": self.summary,
            "warnings": list(self.cautions),
            "files": [*files, "report.json"],
            "provenance": self.provenance(command),
        }
        (folder / "report.json").write_text(_json(content) + "\n", encoding="utf-8")


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse, before any work is done, a folder that `Report.save` would refuse.

    Raises:
        DictlabError: It already holds a report and `force` is False, or it is a file.
    """
    standing = next(path for path in (folder, *folder.parents) if path.exists())
    if not standing.is_dir():
        raise DictlabError(f"{standing}: this is a file; the output is a folder. Choose another with --out.")
    if not os.access(standing, os.W_OK | os.X_OK):
        raise DictlabError(f"{standing}: you may not write there. Choose another folder with --out.")
    if (folder / "report.json").exists() and not force:
        raise DictlabError(f"{folder}: already holds a report. Choose another folder with --out, or give --force.")


def _described(dictionary: Dictionary) -> dict[str, Any]:
    metadata = dictionary.metadata
    return {
        "name": dictionary.name,
        "sha256_of_weights": sha256_of_weights(dictionary),
        "path": str(dictionary.path) if dictionary.path else None,
        "notes": list(dictionary.metadata.notes),
        "activation": dictionary.activation.record(),
        "model": metadata.model,
        "model_fingerprint": metadata.model_fingerprint,
        "site": metadata.site,
    }


def _shown(frame: pd.DataFrame) -> dict[str, Any]:
    head = frame.head(SHOWN_ROWS)
    rows = [[_cell(value) for value in row] for row in head.itertuples(index=False)]
    return {"columns": [str(column) for column in frame.columns], "rows": rows, "left_out": len(frame) - len(head)}


def _cell(value: Any) -> str:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "–"
    if isinstance(value, float | numpy.floating):
        return f"{value:.4g}"
    return safe(str(value))


def _safe_frame(frame: pd.DataFrame) -> pd.DataFrame:
    texts = frame.map(lambda value: safe(value) if isinstance(value, str) else value)
    return texts.rename(columns=lambda name: safe(str(name)))


def _coordinate(value: Any) -> float | None:
    """Five digits are more than a screen has."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _shown_or_none(value: Any) -> str | None:
    return None if pd.api.types.is_scalar(value) and pd.isna(value) else _cell(value)


def _embedded(content: Any) -> Markup:
    """JSON for a script element: no text in it can end the element, or open a comment there. ASCII only."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _json(content: Any) -> str:
    return json.dumps(_plain(content), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    """As JSON knows it; what JSON has no word for, NaN included, as its text."""
    if isinstance(value, numpy.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    known = value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))
    return value if known else str(value)


def _data_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    _settled(figure).savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _settled(figure: Figure) -> Figure:
    """The figure, its layout worked out once for all: each drawing would move it by another rounding error.

    Its texts are made safe to show first: a control character would leave an SVG that is no XML.
    """
    for text in figure.findobj(MatplotlibText):
        if safe(text.get_text()) != text.get_text():
            text.set_text(safe(text.get_text()))
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return figure


def _svg_settings() -> Any:
    import matplotlib as mpl

    return mpl.rc_context({"svg.hashsalt": "dictlab", "svg.fonttype": "none"})
