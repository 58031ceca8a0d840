"""Frames of what an explorer's page shows: pairs of latents, and contexts of one."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analyses.explorer.data_files import read_data, unpacked
from analyses.explorer.folder_reader import ExplorerReader
from dictlab.errors import DictlabError


def measured_pairs(reader: ExplorerReader, dictionary: str, other: str) -> pd.DataFrame:
    """The pairs of latents of two dictionaries that were measured: each one's nearest and most correlated, either way.

    Columns: latent, other latent, cosine, correlation, Jaccard; tokens at which either (active, other active) or both
    are active; absorbed, those at which both are and the latent's nearest in the other dictionary is silent.

    Raises:
        DictlabError: There is no dictionary of this name, or one is compared with itself.
    """
    d, e = _number(reader, dictionary), _number(reader, other)
    if d == e:
        raise DictlabError(f"{dictionary!r} is not compared with itself; give two dictionaries.")
    stored = {k: unpacked(v) for k, v in read_data(reader.data, f"pairs-{min(d, e)}-{max(d, e)}").items()}
    latents, others = (stored["a"], stored["b"]) if d < e else (stored["b"], stored["a"])
    active, other_active = (
        np.rint(reader.index(number)["rate"][rows] * reader.meta["counted"]).astype(int)
        for number, rows in ((d, latents), (e, others))
    )
    either = active + other_active - stored["both"]
    frame = pd.DataFrame(
        {
            "latent": latents,
            "other latent": others,
            "cosine": stored["cosine"],
            "correlation": stored["correlation"],
            "Jaccard": np.where(either > 0, stored["both"] / np.maximum(either, 1), np.nan),
            "active": active,
            "other active": other_active,
            "both": stored["both"],
            "absorbed": stored["absorbed" if d < e else "absorbed_back"],
        }
    )
    return frame.sort_values(["latent", "other latent"], ignore_index=True)


def latent_contexts(reader: ExplorerReader, dictionary: str, latent: int) -> pd.DataFrame:
    """The contexts that are shown of a latent: group, sequence, position, activation, and text with the token in « ».

    Raises:
        DictlabError: There is no such latent.
    """
    d = _number(reader, dictionary)
    n, size = reader.meta["dictionaries"][d]["latents"], reader.meta["latents_a_file"]
    if not 0 <= latent < n:
        raise DictlabError(f"{dictionary} has latents 0 to {n - 1}, and no {latent}.")
    record = read_data(reader.data, f"latents-{d}-{latent // size}")[latent % size]
    bands = reader.meta["bands"]
    rows = []
    for (group, sequence, position), one in zip(record["examples"], reader.examples(record), strict=True):
        name = "top" if group == 0 else "random" if group > bands else f"band {group} of {bands}"
        before, after = "".join(one.tokens[: one.peak]), "".join(one.tokens[one.peak + 1 :])
        text = f"{before}«{one.tokens[one.peak]}»{after}"
        rows.append((name, sequence, position, one.values[one.peak], text))
    return pd.DataFrame(rows, columns=["group", "sequence", "position", "activation", "text"])


def _number(reader: ExplorerReader, name: str) -> int:
    names = [about["name"] for about in reader.meta["dictionaries"]]
    if name not in names:
        raise DictlabError(f"there is no dictionary {name!r} here; there are {', '.join(names)}.")
    return names.index(name)
