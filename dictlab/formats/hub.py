"""Dictionaries that lie on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from dictlab.errors import DictlabError


def fetched(name: str) -> Path:
    """Where a dictionary lies on this machine, downloaded if it has to be."""
    if "://" in name:
        raise DictlabError(f"{name}: names on the Hub are not known yet.")
    return Path(name)
