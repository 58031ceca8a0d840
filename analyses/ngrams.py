"""Which strings of tokens, with gaps, is a latent active on? A trie of patterns, read from right to left.

A pattern ends at the token at which the latent is active. A wildcard stands for any one token, so gaps have a fixed
length. At token i the trie is walked from i leftwards; an exact token is preferred to a wildcard, there is no going
back, and the first value met on the way is the simulated activation; 0 where the walk ends without one.

Source: Neuron to Graph (Foote et al. 2023), in the form of Gao et al. 2024.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

WILDCARD = -1  # no token has this id


class Pattern(NamedTuple):
    """One string of tokens that a latent is active on.

    Attributes:
        tokens: From left to right; the latent is active at the last one.
        kept: Whether each must be there; False for a wildcard.
        importance: Share of the activation that is lost when it is replaced; NaN where that was not measured.
        activation: What is emitted on it.
        at_start: Whether it counts only at the beginning of a context.
        reached: Whether so few tokens are enough for half of the activation in the whole context.
    """

    tokens: tuple[int, ...]
    kept: tuple[bool, ...]
    importance: tuple[float, ...]
    activation: float
    at_start: bool = False
    reached: bool = True

    @property
    def path(self) -> tuple[int, ...]:
        """The tokens with wildcards among them."""
        return tuple(t if kept else WILDCARD for t, kept in zip(self.tokens, self.kept, strict=True))


class Simulated(NamedTuple):
    """Where a trie says that its latent is active, as a place among all tokens, and how strongly."""

    place: Int[ndarray, " found"]
    value: Float[ndarray, " found"]


@dataclass
class Trie:
    """A node, and all that lies to the left of it.

    Attributes:
        children: By token, or WILDCARD.
        value: The activation, if a pattern ends here.
        at_start: The activation, if a pattern ends here that counts only at the beginning of a context.
    """

    children: dict[int, Trie] = field(default_factory=dict)
    value: float | None = None
    at_start: float | None = None

    @classmethod
    def of(cls, patterns: Iterable[Pattern]) -> Trie:
        """The trie of some patterns; of two with the same path the later one counts."""
        root = cls()
        for pattern in patterns:
            node = root
            for token in reversed(pattern.path):
                node = node.children.setdefault(token, cls())
            if pattern.at_start:
                node.at_start = pattern.activation
            else:
                node.value = pattern.activation
        return root

    def at(self, tokens: Sequence[int], position: int, first: int = 0) -> float:
        """The simulated activation at one token.

        Args:
            tokens: A context.
            position: Which token of it.
            first: Where the text begins: after the tokens that lead every context.
        """
        node = self
        for place in range(position, first - 1, -1):
            child = node.children.get(tokens[place]) or node.children.get(WILDCARD)
            if child is None:
                return 0.0
            node = child
            if node.value is not None:
                return node.value
        return 0.0 if node.at_start is None or position < first else node.at_start

    def simulate(self, tokens: Int[ndarray, "sequences context"], first: int = 0) -> Simulated:
        """Every token of some contexts at which the simulated activation is not 0."""
        length = tokens.shape[1]
        might = np.ones(tokens.shape, dtype=bool)
        if WILDCARD not in self.children:
            might = np.isin(tokens, np.fromiter(self.children, dtype=np.int64, count=len(self.children)))
        might[:, :first] = False
        place = np.flatnonzero(might)
        rows = {int(row): tokens[row].tolist() for row in np.unique(place // length)}
        value = np.array([self.at(rows[p // length], p % length, first) for p in place.tolist()], dtype=np.float64)
        return Simulated(place[value != 0], value[value != 0])
