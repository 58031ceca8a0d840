"""Which of the tokens on which a latent is active are shown?

    top        the sequences in which its largest activation is largest, each at that token
    quantile   its active tokens ordered by activation and cut into equal bands; some of each band, drawn at random
    random     some of its active tokens, each as likely as any other

Activations count by size. What is drawn depends on the seed, the latent and the token alone, not on the order of work:
every token has a random key, and those with the smallest keys are taken.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from analyses.explorer.code_store import Column

BANDS = 5  # quantile bands
TOP, QUANTILE, RANDOM = "top", "quantile", "random"


class ExampleCounts(NamedTuple):
    """How many examples of a latent there are at most.

    Attributes:
        top: Sequences in which it is most active.
        band: Tokens of each quantile band.
        random: Tokens drawn from all.
    """

    top: int = 10
    band: int = 2
    random: int = 5


class Examples(NamedTuple):
    """Tokens at which a latent is shown.

    Attributes:
        group: 0 for top, 1 to `BANDS` for the quantile bands from weakest to strongest, `BANDS` + 1 for random.
        token: The index of the token among all of the sample.
    """

    group: Int[NDArray[np.int64], " examples"]
    token: Int[NDArray[np.int64], " examples"]


def select_examples(column: Column, context: int, counts: ExampleCounts, seed: int) -> Examples:
    """Choose the tokens at which a latent is shown.

    Args:
        column: Where it is active.
        context: Tokens a sequence.
        counts: How many.
        seed: Of what is drawn, other for each latent.
    """
    strength = np.abs(column.activations)
    order = np.lexsort((column.tokens, -strength))  # strongest first, the earlier one of two that are equal
    _, first = np.unique(column.tokens[order] // context, return_index=True)
    top = order[np.sort(first)[: counts.top]]
    keys = random_keys(column.tokens, seed)
    bands = [band[np.argsort(keys[band])[: counts.band]] for band in np.array_split(order[::-1], BANDS)]
    drawn = np.argsort(random_keys(column.tokens, seed + 1))[: counts.random]
    parts = [top, *bands, drawn]
    group = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return Examples(group, column.tokens[np.concatenate(parts)].astype(np.int64))


def random_keys(tokens: Int[NDArray[np.int32], " n"], seed: int) -> NDArray[np.uint64]:
    """A random number for each token, the same wherever it is asked for (SplitMix64; Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        x = tokens.astype(np.uint64) + np.uint64(seed % 2**64) * np.uint64(0xD1342543DE82EF95)
        x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
