"""Which strings of tokens, with gaps, is a latent active on? A trie of patterns, read from right to left.

A pattern ends at the token at which the latent is active. A wildcard stands for any one token, so gaps have a fixed
length. At token i the trie is walked from i leftwards; an exact token is preferred to a wildcard, there is no going
back, and the first value met on the way is the simulated activation; 0 where the walk ends without one.

Source: Neuron to Graph (Foote et al. 2023), in the form of Gao et al. 2024.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from analyses.common.firings import LatentFirings
from analyses.common.token_texts import token_text

ANY, BEGINNING = "∗", "^"
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

    def simulate(self, tokens: Int[ndarray, "sequences context"], first: int = 0) -> LatentFirings:
        """Every token of some contexts at which the simulated activation is not 0: `at` for all tokens together.

        Memory: a few numbers for each token of the contexts.
        """
        steps, every, length = _Steps.of(self), tokens.ravel(), tokens.shape[1]
        place = np.flatnonzero(np.arange(tokens.size) % length >= first)
        node, back, met = np.zeros_like(place), 0, [LatentFirings(place[:0], np.zeros(0))]
        while len(place):
            node = steps.onward(node, every[place - back])
            place, node = place[node >= 0], node[node >= 0]
            found = ~np.isnan(steps.value[node])
            met.append(LatentFirings(place[found], steps.value[node[found]]))
            place, node, back = place[~found], node[~found], back + 1
            ended = place % length - back < first
            met.append(LatentFirings(place[ended], steps.at_start[node[ended]]))
            place, node = place[~ended], node[~ended]
        places, values = (np.concatenate(part) for part in zip(*met, strict=True))
        active = ~np.isnan(values) & (values != 0)
        order = np.argsort(places[active])
        return LatentFirings(places[active][order], values[active][order])


class _Steps(NamedTuple):
    """A trie with numbered nodes, the root first, so that many tokens go down it at once.

    Attributes:
        keys: Sorted, `node << 32 | token` of each exact step.
        targets: The node that each leads to.
        any: The node behind the wildcard of each node, or -1.
        value: Of each node, or NaN.
        at_start: Of each node, or NaN.
    """

    keys: Int[ndarray, " steps"]
    targets: Int[ndarray, " steps"]
    any: Int[ndarray, " nodes"]
    value: Float[ndarray, " nodes"]
    at_start: Float[ndarray, " nodes"]

    @classmethod
    def of(cls, root: Trie) -> _Steps:
        nodes, steps, any_token = [root], {-1: -1}, [-1]  # a step that no token takes, so that there is one
        for number, node in enumerate(nodes):  # grows as it goes
            for token, child in node.children.items():
                if token == WILDCARD:
                    any_token[number] = len(nodes)
                else:
                    steps[number << 32 | token] = len(nodes)
                nodes.append(child)
                any_token.append(-1)
        keys = np.array(sorted(steps))
        targets = np.array([steps[key] for key in keys.tolist()])
        values = (np.array([np.nan if v is None else v for v in vs], dtype=np.float64) for vs in (
            [node.value for node in nodes], [node.at_start for node in nodes]
        ))  # fmt: skip
        return cls(keys, targets, np.array(any_token), *values)

    def onward(self, node: Int[ndarray, " n"], token: Int[ndarray, " n"]) -> Int[ndarray, " n"]:
        """The next node of each, an exact token before a wildcard; -1 where there is none."""
        wanted = node << 32 | token
        place = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        following: Int[ndarray, " n"] = np.where(self.keys[place] == wanted, self.targets[place], self.any[node])
        return following


def distinct_patterns(patterns: Sequence[Pattern]) -> list[Pattern]:
    """What the trie keeps: of patterns with the same path the last one."""
    return list({(pattern.path, pattern.at_start): pattern for pattern in patterns}.values())


def pattern_text(pattern: Pattern, tokenizer: Any) -> str:
    """A pattern as text."""
    return (BEGINNING if pattern.at_start else "") + "".join(pattern_pieces(pattern, tokenizer))


def pattern_pieces(pattern: Pattern, tokenizer: Any) -> list[str]:
    """The tokens of a pattern as they are shown, with ANY for a wildcard."""
    return [
        token_text(tokenizer, token) if kept else ANY for token, kept in zip(pattern.tokens, pattern.kept, strict=True)
    ]
