"""Analyses are found by their entry points, this package's own and those of others."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from dictlab.errors import DictlabError

GROUP = "dictlab.analyses"
COMMANDS = "dictlab.commands"  # functions that are a command of their own and return what is to be printed
SHORT = {"stitch": "stitching", "verify": "verification"}  # analyses that have a shorter name as well


def load_analysis(entry: EntryPoint) -> Callable[..., Any]:
    """The function behind an entry point.

    Raises:
        DictlabError: Another package or folder named `analyses` is imported in place of dictlab's own.
    """
    try:
        analysis: Callable[..., Any] = entry.load()
    except ModuleNotFoundError as error:
        hiding = sys.modules.get("analyses")
        if not (error.name or "").startswith("analyses.") or hasattr(hiding, "novelty"):
            raise
        where = getattr(hiding, "__file__", None)
        raise DictlabError(
            f"{Path(where).parent if where else 'another package'}: a package of this name hides dictlab's own package "
            "`analyses`. Rename it, or start Python in another folder."
        ) from error
    return analysis
