"""Latents' numbers in a report as links: to an explorer's page of the latent, or to the latent's card in the report.

An explorer is the folder that `dictlab explore` writes. Its `report.json` names its dictionaries by the hashes of their
weights, in the order in which its addresses number them; its `latents.parquet` holds contexts of each latent, which a
link shows when it is pointed at. Links are relative: they hold as long as both folders keep their places.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pandas as pd
from pyarrow.parquet import read_schema

from dictlab.errors import DictlabError
from dictlab.reports.cards import Cards
from dictlab.reports.safe_text import safe

PAGE, RECORD, LATENTS = "index.html", "report.json", "latents.parquet"
TITLES = 4000  # links of a page that show contexts when they are pointed at; others lead to them


class ColumnLinks(NamedTuple):
    """Where the cells of one column lead: a cell that reads `n` to `prefixes[of[row]] + n`, or nowhere (-1)."""

    prefixes: list[str]
    of: list[int]

    def address(self, row: int, text: str) -> str | None:
        """Where one cell leads."""
        number = self.of[row]
        return None if number < 0 or not text.isdigit() else self.prefixes[number] + text


@dataclass
class LatentLinks:
    """Where latents' numbers lead on one page.

    Attributes:
        explorer: Prefix of the addresses of a dictionary's latents in the explorer, by the dictionary's name.
        cards: Prefix of the addresses of the cards on the page, by dictionary and latent.
        contexts: Contexts of each latent in the explorer, by dictionary.
        titles: Contexts by address, of the links that the page holds so far.
        cautions: What the page must say of the links.
    """

    explorer: Mapping[str, str] = field(default_factory=dict)
    cards: Mapping[tuple[str, int], str] = field(default_factory=dict)
    contexts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    cautions: tuple[str, ...] = ()

    def column(self, latents: Sequence[Any], dictionaries: Sequence[str | None]) -> ColumnLinks:
        """The links of a column of latents' numbers.

        Args:
            latents: Their numbers; what is missing leads nowhere.
            dictionaries: For each the name of the dictionary that it is of.
        """
        known: dict[str, int] = {}
        of = []
        for value, name in zip(latents, dictionaries, strict=True):
            prefix = None if name is None or pd.isna(value) else self._prefix(str(name), int(value))
            of.append(-1 if prefix is None else known.setdefault(prefix, len(known)))
            if prefix is not None and name in self.explorer and len(self.titles) < TITLES:
                self.titles[f"{prefix}{int(value)}"] = safe(self.contexts[str(name)][int(value)])
        return ColumnLinks(list(known), of)

    def _prefix(self, name: str, latent: int) -> str | None:
        if name in self.explorer and 0 <= latent < len(self.contexts[name]):
            return self.explorer[name]
        return self.cards.get((name, latent))


def explorer_links(explorer: Path, folder: Path, inputs: Mapping[str, str]) -> LatentLinks:
    """Links from a report into an explorer.

    Args:
        explorer: The explorer's folder.
        folder: The report's.
        inputs: Hashes of the weights of the report's dictionaries, by name; those that the explorer does not hold
            have no links.

    Raises:
        DictlabError: The folder holds no explorer.
    """
    hashes = explorer_dictionaries(explorer)
    latents = pd.read_parquet(explorer / LATENTS, columns=["latent", "contexts"])
    base = f"{quote(os.path.relpath(explorer.resolve(), folder.resolve()))}/{PAGE}#view=latent&d="
    starts = (latents["latent"] == 0).to_numpy().nonzero()[0]  # dictionaries lie one after the other
    prefixes, contexts = {}, {}
    for name, digest in inputs.items():
        if digest in hashes:
            number = hashes.index(digest)
            start, end = [*starts.tolist(), len(latents)][number : number + 2]
            prefixes[name] = f"{base}{number}&i="
            contexts[name] = latents["contexts"].iloc[start:end].tolist()
    cautions = () if prefixes else (f"The explorer in {explorer} holds none of these dictionaries: nothing is linked.",)
    return LatentLinks(explorer=prefixes, contexts=contexts, cautions=cautions)


def explorer_dictionaries(explorer: Path) -> list[str]:
    """Hashes of the weights of an explorer's dictionaries, in the order of their numbers.

    Raises:
        DictlabError: The folder holds no explorer.
    """
    try:
        record = json.loads((explorer / RECORD).read_text(encoding="utf-8"))
        hashes = [str(one) for one in record["key"]["sha256_of_weights"]]
        if not (explorer / PAGE).is_file() or "contexts" not in read_schema(explorer / LATENTS).names:
            raise KeyError(PAGE)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DictlabError(
            f"explorer={str(explorer)!r}: this is no explorer's folder (its {RECORD}, {PAGE} or {LATENTS} is missing "
            "or of an earlier version). Make one with `dictlab explore`."
        ) from error
    return hashes


def card_links(decks: Mapping[str, Cards], prefix_of: Mapping[str, str]) -> dict[tuple[str, int], str]:
    """Prefixes of the addresses of all cards that are of a latent.

    Args:
        decks: The report's cards.
        prefix_of: Prefix of the identifiers of each deck's cards.
    """
    found: dict[tuple[str, int], str] = {}
    for name, deck in decks.items():
        for number, card in enumerate(deck.cards):
            if card.latent is not None:
                found.setdefault(card.latent, f"#{prefix_of[name]}-{number}-")
    return found
