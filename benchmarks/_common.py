"""What the scripts share: the shipped dictionaries and their model, and tables in Markdown."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from dictlab import LanguageModel

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
MODEL = "gpt2-python-2m"


def shipped(*names: str) -> list[Path]:
    """The files of shipped dictionaries."""
    return [CHECKPOINTS / f"{name}.safetensors" for name in names]


def shipped_model() -> LanguageModel:
    """The model that the shipped dictionaries were trained on."""
    return LanguageModel.load(MODEL, beside=CHECKPOINTS)


def row(cells: Iterable[object]) -> str:
    """A line of a Markdown table; numbers to four significant digits."""
    return f"| {' | '.join(f'{cell:.4g}' if isinstance(cell, float) else str(cell) for cell in cells)} |"


def head(columns: Iterable[object], numbers: int = 0) -> str:
    """The first two lines of a Markdown table, its last `numbers` columns aligned to the right."""
    names = [str(column) for column in columns]
    rules = itertools.chain(["---"] * (len(names) - numbers), ["---:"] * numbers)
    return f"{row(names)}\n|{'|'.join(rules)}|"


def print_frame(frame: pd.DataFrame) -> None:
    """A frame as a Markdown table."""
    print(head(frame.columns))
    for cells in frame.itertuples(index=False):
        print(row(cells))
    print(flush=True)


def interval(value: float, low: float, high: float, form: str = ".3f") -> str:
    """A number with its interval."""
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def estimate(row: pd.Series, name: str, form: str = ".4g") -> str:
    """A column of a report's table with its interval, as far as they are known."""
    if pd.isna(row[name]):
        return ""
    low, high = row[f"{name} low"], row[f"{name} high"]
    return f"{row[name]:{form}}" if pd.isna(low) else interval(row[name], low, high, form)


def print_estimates(frame: pd.DataFrame, labels: Iterable[str], estimates: Iterable[str], form: str = ".4g") -> None:
    """A report's table as Markdown: columns as they are, then columns with their intervals."""
    labels, estimates = list(labels), list(estimates)
    print(head([*labels, *estimates]))
    for _, line in frame.iterrows():
        print(row([*(line[name] for name in labels), *(estimate(line, name, form) for name in estimates)]))
    print()
