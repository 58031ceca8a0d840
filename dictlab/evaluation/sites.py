"""Which site does a dictionary read, and which does it write? They are one, but for a transcoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from dictlab.dictionary import Dictionary
from dictlab.dictionary.metadata import reads_and_writes
from dictlab.errors import DictlabError


class SitePair(NamedTuple):
    """The site that a dictionary reads, and the one that it writes; twice the same but for a transcoder."""

    reads: str
    writes: str


def site_of(dictionary: Dictionary) -> str:
    """The site that a dictionary reads, by its metadata.

    Raises:
        DictlabError: It names none.
    """
    if dictionary.metadata.site is None:
        raise DictlabError(f"{dictionary.name}: its file does not say at which site of the model it belongs.")
    return dictionary.metadata.site


def written_site_of(dictionary: Dictionary) -> str:
    """The site that a dictionary writes, by its metadata: what its output is compared with, and put in the place of.

    Raises:
        DictlabError: It is a transcoder and does not name it, or names no site at all.
    """
    if not dictionary.transcodes:
        return site_of(dictionary)
    if dictionary.metadata.writes is None:
        raise DictlabError(
            f"{dictionary.name}: it is a transcoder, and its file does not say which site of the model it writes; "
            "dictlab convert writes a file that does, given `writes=...`."
        )
    return dictionary.metadata.writes


def site_pair(dictionary: Dictionary) -> SitePair:
    """Both sites of a dictionary.

    Raises:
        DictlabError: It does not name them.
    """
    return SitePair(site_of(dictionary), written_site_of(dictionary))


def check_plain(dictionaries: Iterable[Dictionary], purpose: str) -> None:
    """Refuse transcoders and dictionaries with a skip, for what is only defined of sparse autoencoders without one.

    Args:
        dictionaries: Any.
        purpose: What they are given to, as the beginning of a sentence: "novelty", "a warm start".

    Raises:
        DictlabError: One is of these.
    """
    dictionaries = list(dictionaries)
    check_one_site(dictionaries, purpose)
    for dictionary in dictionaries:
        if dictionary.W_skip is not None:
            raise DictlabError(
                f"{purpose} takes dictionaries whose output is made by their latents alone; {dictionary.name} has a "
                "linear skip beside them."
            )


def check_one_site(dictionaries: Iterable[Dictionary], purpose: str) -> None:
    """Refuse transcoders alone: a dictionary with a skip still reconstructs what it reads. As `check_plain`."""
    for dictionary in dictionaries:
        if dictionary.transcodes:
            raise DictlabError(
                f"{purpose} takes dictionaries that write the site they read; {dictionary.name} is a transcoder "
                f"({reads_and_writes(dictionary.metadata)})."
            )
