"""Which latents are most active on each token of the sample? For finding latents by a string, and from a context.

Kept of each token: the `KEPT` latents whose activation is largest beside their own largest one in the sample, so that a
latent with small activations has its turn. A file for each file of texts: an array [tokens, KEPT] of latents, -1 where
there are fewer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from analyses.explorer.code_store import StoredCodes
from analyses.explorer.data_files import packed, write_data

KEPT = 4


def write_token_firings(folder: Path, number: int, codes: StoredCodes, largest: NDArray[np.float64], size: int) -> None:
    """Write the files firings-NUMBER-0, firings-NUMBER-1, ...

    Args:
        folder: Of the data files.
        number: Of the dictionary.
        codes: Of the dictionary.
        largest: Largest activation of each latent, by size.
        size: Tokens a file: those of a file of texts.
    """
    for part, start in enumerate(range(0, codes.n_tokens, size)):
        rows = strongest_latents(codes, largest, start, min(start + size, codes.n_tokens))
        write_data(folder, f"firings-{number}-{part}", packed(rows))


def strongest_latents(
    codes: StoredCodes, largest: NDArray[np.float64], first: int, last: int
) -> Int[NDArray[np.int32], "tokens kept"]:
    """The latents most active on some tokens, strongest first, by activation over each latent's largest."""
    entries = slice(int(codes.offsets[first]), int(codes.offsets[last]))
    latents, activations = np.asarray(codes.latents[entries]), np.asarray(codes.activations[entries])
    token = np.repeat(np.arange(last - first), np.diff(codes.offsets[first : last + 1]))
    share = np.abs(activations) / largest[latents]
    order = np.lexsort((latents, -share, token))
    rank = np.arange(len(order)) - (codes.offsets[first:last] - codes.offsets[first])[token]
    found = np.full((last - first, KEPT), -1, dtype=np.int32)
    kept = rank < KEPT
    found[token[kept], rank[kept]] = latents[order[kept]]
    return found
