"""The page of a report, and what a notebook shows of it. All text is escaped where it is put in.

A table on the page shows its first rows; all of them are in the page as data, so that they can be sorted, filtered and
shown without a network (`templates/tables.js`). The points of a `Scatter` are data in the same way (`scatter.js`).
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.text import Text as MatplotlibText

from dictlab.reports.cards import template
from dictlab.reports.latent_links import LatentLinks
from dictlab.reports.safe_text import safe

SHOWN_ROWS = 20  # rows of a table before it is opened
EMBEDDED_CELLS = 500_000  # of a table in the page; what has more is in the files alone
SHARP, PLAIN = 180, 110  # dots an inch: on the page, in a notebook


def rendered(**parts: Any) -> str:
    """The page, or what a notebook shows of it.

    Args:
        parts: title, summary, warnings; plots, tables and cards as `plot_data` and `table_data` give them; provenance
            as `flattened` gives it; page, False for a notebook.
    """
    return template("report.html").render(**parts)


def table_data(
    name: str, caption: str, frame: pd.DataFrame, latents: Mapping[str, Sequence[str | None]], links: LatentLinks
) -> dict[str, Any]:
    """What the template needs of a table: its first rows, and all rows as data where they fit into the page.

    Args:
        name: Of its files.
        caption: What it is about.
        frame: Its content.
        latents: For each column of latents' numbers, the name of the dictionary that each row's latent is of.
        links: Where latents' numbers lead.
    """
    columns = [str(column) for column in frame.columns]
    fits = frame.size <= EMBEDDED_CELLS
    embedded_frame = frame if fits else frame.head(SHOWN_ROWS)
    rows = _cells(embedded_frame)
    n = len(embedded_frame)
    linked = {
        columns.index(column): links.column(embedded_frame[column].tolist(), list(names)[:n])
        for column, names in latents.items()
    }
    linked = {column: found for column, found in linked.items() if found.prefixes}
    return {
        "id": anchor("table", name),
        "title": title_of(name),
        "caption": caption,
        "columns": columns,
        "numeric": [pd.api.types.is_numeric_dtype(dtype) for dtype in frame.dtypes],
        "rows": rows[:SHOWN_ROWS],
        "addresses": [
            [linked[c].address(r, text) if c in linked else None for c, text in enumerate(row)]
            for r, row in enumerate(rows[:SHOWN_ROWS])
        ],
        "links": embedded({c: found._asdict() for c, found in linked.items()}) if linked else None,
        "n_rows": len(frame),
        "data": embedded(rows) if fits and len(frame) > 1 else None,
    }


def plot_data(name: str, caption: str, figure: Figure, *, page: bool) -> dict[str, Any]:
    """What the template needs of a plot: the picture as it is shown, and how wide it is in CSS pixels."""
    width = round(figure.get_figwidth() * PLAIN)
    return {
        "id": anchor("plot", name),
        "title": title_of(name),
        "caption": caption,
        "source": picture(figure, SHARP if page else PLAIN),
        "width": width,
    }


def title_of(name: str) -> str:
    """A file's name as a heading: `quality_by_k` is "Quality by k", `equal_l0` "Equal L0"."""
    words = re.sub(r"\bl0\b", "L0", name.replace("_", " ").replace("-", " "))
    return words[:1].upper() + words[1:]


def anchor(kind: str, name: str) -> str:
    """The identifier of a part of the page."""
    return f"{kind}-{re.sub(r'[^A-Za-z0-9]+', '-', name)}"


def cell(value: Any) -> str:
    """A value as a table shows it: numbers to four digits, what is missing as a dash."""
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "–"
    if isinstance(value, float | numpy.floating):
        return f"{value:.4g}"
    return safe(str(value))


def cell_or_none(value: Any) -> str | None:
    """The same, and None for what is missing."""
    return None if pd.api.types.is_scalar(value) and pd.isna(value) else cell(value)


def safe_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with every text safe to show."""
    texts = frame.map(lambda value: safe(value) if isinstance(value, str) else value)
    return texts.rename(columns=lambda name: safe(str(name)))


def coordinate(value: Any) -> float | None:
    """A coordinate to five digits, which are more than a screen has; None where it is not finite."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def embedded(content: Any) -> Markup:
    """JSON for a script element: no text in it can end the element, or open a comment there. ASCII only."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def as_json(content: Any) -> str:
    """Indented JSON of whatever a report holds; what JSON has no word for, NaN included, is its text."""
    return json.dumps(_plain(content), indent=2, allow_nan=False)


def flattened(content: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested settings as (name, text), names joined by dots."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flattened(value, f"{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(one, Mapping) for one in value):
            yield from flattened({str(i): one for i, one in enumerate(value)}, f"{name}.")
        elif value is not None:
            yield name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def picture(figure: Figure, dpi: int) -> str:
    """A figure as the address of a PNG that stands in the page itself."""
    buffer = io.BytesIO()
    settled(figure).savefig(buffer, format="png", dpi=dpi)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def axes_of(figure: Figure) -> dict[str, Any]:
    """What the axes of a figure's first plot say: labels, and where lines across all of it stand (thresholds)."""
    if not figure.axes:
        return {"xlabel": "", "ylabel": "", "vertical": [], "horizontal": []}
    ax = figure.axes[0]
    across: dict[str, list[float]] = {"vertical": [], "horizontal": []}
    for line in ax.lines:
        points = numpy.asarray(line.get_xydata(), dtype=float)
        if points.shape != (2, 2):
            continue
        (x0, y0), (x1, y1) = points.tolist()
        if x0 == x1 and (y0, y1) == (0, 1):  # as `axvline` draws it
            across["vertical"].append(x0)
        elif y0 == y1 and (x0, x1) == (0, 1):
            across["horizontal"].append(y0)
    return {"xlabel": safe(ax.get_xlabel()), "ylabel": safe(ax.get_ylabel()), **across}


def settled(figure: Figure) -> Figure:
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


def _cells(frame: pd.DataFrame) -> list[list[str]]:
    columns = [[cell(value) for value in frame.iloc[:, i]] for i in range(frame.shape[1])]
    return [list(row) for row in zip(*columns, strict=True)] if columns else []


def _plain(value: Any) -> Any:
    if isinstance(value, numpy.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    known = value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))
    return value if known else str(value)
