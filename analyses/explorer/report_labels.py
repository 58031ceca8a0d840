"""What reports say of single latents in words: probe tasks, n-gram patterns, explanations.

Every table of a report with the columns `dictionary` (or `features`) and `latent`, and one of `COLUMNS`, is read from
its Parquet file, with the F1 where it has one. These are words to show and to search; nothing is computed from them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dictlab.errors import DictlabError
from dictlab.reports.whole_folder import RECORD

COLUMNS = ("explanation", "pattern", "task", "label")
MOST = 6  # words of one table on one latent

Label = tuple[int, int, str, str]  # number of the dictionary, latent, title of the report, words


def report_labels(folders: Sequence[Path], names: Sequence[str], sizes: Sequence[int]) -> list[Label]:
    """The words of some reports on the latents of some dictionaries.

    Args:
        folders: Of reports, as `dictlab report` writes them.
        names: Of the dictionaries; reports call them by the same names.
        sizes: Their latents.

    Raises:
        DictlabError: A folder holds no report, or none of its tables says anything of latents of these dictionaries.
    """
    found: list[Label] = []
    for folder in folders:
        try:
            title = str(json.loads((folder / RECORD).read_text(encoding="utf-8"))["title"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DictlabError(f"reports {folder}: this is no folder of a report (no readable {RECORD}).") from error
        own = [label for path in sorted(folder.glob("*.parquet")) for label in _labels(path, title, names, sizes)]
        if not own:
            raise DictlabError(
                f"reports {folder}: no table says anything in words of latents of {', '.join(names)}; expected the "
                f"columns dictionary, latent and one of {', '.join(COLUMNS)}."
            )
        found += own
    return found


def _labels(path: Path, title: str, names: Sequence[str], sizes: Sequence[int]) -> list[Label]:
    frame = pd.read_parquet(path)
    frame = frame.rename(columns={"features": "dictionary"}) if "dictionary" not in frame else frame
    column = next((name for name in COLUMNS if name in frame.columns), None)
    if column is None or not {"dictionary", "latent"} <= set(frame.columns):
        return []
    scores = [f" (F1 {score:.2f})" for score in frame["F1"]] if "F1" in frame else [""] * len(frame)
    frame = frame.assign(words=[f"{text}{score}" for text, score in zip(frame[column], scores, strict=True)])
    numbers = {name: i for i, name in enumerate(names)}
    frame = frame.dropna(subset=["dictionary", "latent", column]).drop_duplicates(["dictionary", "latent", "words"])
    frame = frame[frame["dictionary"].isin(numbers)].groupby(["dictionary", "latent"], sort=False).head(MOST)
    return [
        (numbers[name], int(latent), title, words)
        for name, latent, words in zip(frame["dictionary"], frame["latent"], frame["words"], strict=True)
        if 0 <= int(latent) < sizes[numbers[name]]
    ]
