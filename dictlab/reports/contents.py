"""What a report is made of: tables, plots, and plots whose points say what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from markupsafe import escape
from matplotlib.figure import Figure

from dictlab.reports.page import (
    PLAIN,
    SHOWN_ROWS,
    axes_of,
    cell_or_none,
    coordinate,
    picture,
    safe_frame,
)
from dictlab.reports.safe_text import safe


@dataclass(frozen=True, eq=False)
class Table:
    """A frame and what it is about.

    Attributes:
        frame: Its content.
        caption: What it is about.
        latents: For each column of latents' numbers, the name of the dictionary that each row's latent is of, or None.
            On the page these numbers lead to what the latent is.
        named_in: For each other column of latents' numbers, the column that holds the name of their dictionary.
    """

    frame: pd.DataFrame
    caption: str
    latents: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    named_in: Mapping[str, str] = field(default_factory=dict)

    @property
    def dictionaries_of_latents(self) -> dict[str, Sequence[str | None]]:
        """For each column of latents' numbers, the name of the dictionary that each row's latent is of."""
        return {**self.latents, **{latent: self.frame[name].tolist() for latent, name in self.named_in.items()}}

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return f"<p>{escape(safe(self.caption))}</p>{safe_frame(self.frame).to_html(index=False, max_rows=SHOWN_ROWS)}"


@dataclass(frozen=True, eq=False)
class Plot:
    """A figure and what it shows: n, the interval and the chance level belong in the caption."""

    figure: Figure
    caption: str

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        caption = escape(safe(self.caption))
        return f'<figure><img src="{picture(self.figure, PLAIN)}"><figcaption>{caption}</figcaption></figure>'


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
            "x": [coordinate(value) for value in frame[self.x]],
            "y": [coordinate(value) for value in frame[self.y]],
            "group": [number[str(name)] for name in frame[self.group]],
            "groups": [safe(name) for name in groups],
            "colours": [self.colours.get(name) for name in groups],
            "title": self.group,
            "labels": {safe(str(name)): [cell_or_none(value) for value in frame[name]] for name in self.labels},
            "marks": None if self.marks is None else [cell_or_none(value) for value in frame[self.marks]],
            **axes_of(self.figure),
        }
