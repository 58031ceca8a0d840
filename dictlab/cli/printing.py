"""What a command shows: a report or a run in the terminal, examples in a help page."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from dictlab.reports.safe_text import safe

if TYPE_CHECKING:  # both are slow to import
    from dictlab.reports.report import Report, Table
    from dictlab.training.run_folder.run import Run

ARGUMENT = re.compile(r"`([a-z]\w*)=([^`]*)`")  # as messages name an argument, for who calls a function
WRAPPED = 24  # characters that a column of text needs to be worth wrapping
SHOWN = 12  # rows of a table in the terminal


def as_options(text: str) -> str:
    """Arguments that a message names, as they are typed: `model=...` is --model, `tokens=0` --tokens 0.

    Messages say what to pass to a function; on the command line the same arguments are options.
    """

    def option(match: re.Match[str]) -> str:
        name, value = match[1].replace("_", "-"), match[2].strip("'\"")
        if value == "False":
            return f"--no-{name}"
        return f"--{name}" if value in ("...", "True") else f"--{name} {value}"

    return ARGUMENT.sub(option, text)


class _Console(Console):
    """A console for text from files and users: what could steer the terminal is shown as its code.

    That nobody reads the output any more, or that there is no room for it, is no failure of the work.
    """

    def render_str(self, text: str, **settings: Any) -> Text:
        """Every text passes here, cells of tables included."""
        return super().render_str(safe(text), **settings)

    def print(self, *objects: Any, **settings: Any) -> None:
        """Print, as long as there is somebody to print to."""
        with suppress(OSError, ValueError):  # ValueError: the file is closed
            super().print(*objects, **settings)

    def on_broken_pipe(self) -> None:
        """Say no more: the pipe's reader has ended."""
        self.quiet = True


def console(*, stderr: bool = False) -> Console:
    """Text from files and users is shown as it is: brackets are no markup, colons no emoji."""
    return _Console(stderr=stderr, highlight=False, markup=False, emoji=False)


@contextmanager
def whole_output() -> Iterator[None]:
    """In the end, give up what cannot be printed any more: Python would report it at exit, and change the status."""
    try:
        yield
    finally:
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            try:
                if stream is not None:
                    stream.flush()
            except (OSError, ValueError):
                with suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def print_report(report: Report, folder: Path) -> None:
    """What a report says, its first table, and where the rest is."""
    out = console()
    out.print(report.title, style="bold")
    out.print(report.summary)
    if report.tables:
        out.print(grid_of(next(iter(report.tables.values())), out.width))
    for warning in report.cautions:
        out.print(f"WARNING: {warning}", style="bold yellow")
    out.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
    for name in report.dictionaries:
        out.print(f"Dictionary: {folder / name}.safetensors", soft_wrap=True)


def print_run(run: Run) -> None:
    """What a run made, and how to go on if it was stopped."""
    import pandas as pd

    from dictlab.reports.report import Table

    out = console()
    keys = [k for k in ("l0", "explained_variance", "ce_increase", "dead") if k in run.dictionaries[0].metadata.metrics]
    if keys:
        rows = [{"dictionary": d.name, **{k: d.metadata.metrics[k] for k in keys}} for d in run.dictionaries]
        out.print(grid_of(Table(pd.DataFrame(rows), ""), out.width))
        measures = "L0, explained variance and CE increase" if "ce_increase" in keys else "L0 and explained variance"
        on = "the rows trained on" if run.config.on else "held-out data; dead latents on training data"
        out.print(f"{measures} on {on}.")
    for name, step in run.diverged.items():
        out.print(f"{name} was given up at step {step}: its loss was no finite number.", style="yellow")
    out.print(f"Run: {run.folder}", soft_wrap=True)
    if run.stopped:
        done = run.dictionaries[0].metadata.tokens or 0
        out.print(f"Stopped after {done:,} of {run.config.tokens:,} tokens: {as_options(run.stopped)}.", style="yellow")
        out.print(f"Go on with: dictlab train --resume {run.folder}", style="yellow", soft_wrap=True)


def grid_of(table: Table, width: int) -> Grid:
    """The first rows and as many columns as fit the terminal; the files hold the rest."""
    if len(table.frame) == 1:
        return _fields(table)
    head = table.frame.head(SHOWN)
    cells = {str(name): [_cell(value) for value in head[name]] for name in head.columns}
    widths = {name: max(map(len, [*name.split(), *column])) + 2 for name, column in cells.items()}
    kept = [name for name, used in zip(widths, accumulate(widths.values()), strict=True) if used <= width]
    kept = kept or list(widths)[:1]
    grid = Grid(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in kept:
        grid.add_column(name.replace(" ", "\n"), overflow="fold", min_width=widths[name] - 2)
    room, following = width - sum(widths[name] for name in kept), list(widths)[len(kept) : len(kept) + 1]
    if following and room >= WRAPPED and head[following[0]].map(lambda cell: isinstance(cell, str)).all():
        grid.add_column(following[0], overflow="fold")  # text can take several lines
        kept.append(following[0])
    for row in zip(*(cells[name] for name in kept), strict=True):
        grid.add_row(*row)
    left_out = [
        f"{count} more {what}"
        for count, what in ((len(table.frame) - len(head), "rows"), (len(widths) - len(kept), "columns"))
        if count
    ]
    if left_out:
        grid.caption = f"{' and '.join(left_out)} in the files"
    return grid


def _fields(table: Table) -> Grid:
    """A table of one row, a line for each of its columns."""
    grid = Grid(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, value in table.frame.iloc[0].items():
        grid.add_row(str(name), _cell(value))
    return grid


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def examples(*lines: str) -> str:
    """Lines to be copied; long ones continue after a backslash, so that the terminal does not break them."""
    return "Examples:\n\n" + "\n".join(
        " \\\n".join(textwrap.wrap(line, 76, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False))
        for line in lines
    )
