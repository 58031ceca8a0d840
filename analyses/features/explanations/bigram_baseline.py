"""How well does a model predict that knows no more than the token before?

    p(w | v) = (c(v, w) + kappa p(w)) / (c(v) + kappa),      p(w) = (c(w) + 1) / (n + V)

with counts c in training text, V the vocabulary, and kappa the one of `STRENGTHS` that does best on a tenth of the
training contexts that was left out of the counts. Memory: the distinct pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from dictlab.errors import DictlabError

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
LEFT_OUT = 10  # one context in so many chooses kappa


@dataclass(frozen=True, eq=False)
class Bigrams:
    """Counts of tokens and of pairs of them.

    Attributes:
        pairs: Sorted, as `before * V + after`.
        counts: Of each pair.
        before: Pairs that each token is the first of, `[vocabulary]`.
        tokens: How often each token comes, `[vocabulary]`.
        strength: kappa.
    """

    pairs: Int[ndarray, " pairs"]
    counts: Int[ndarray, " pairs"]
    before: Int[ndarray, " vocabulary"]
    tokens: Int[ndarray, " vocabulary"]
    strength: float = STRENGTHS[0]

    @classmethod
    def fitted(cls, contexts: Int[ndarray, "contexts length"], vocabulary: int) -> Bigrams:
        """The counts of some contexts, with the best kappa.

        Raises:
            DictlabError: They are fewer than two.
        """
        if len(contexts) < 2:
            raise DictlabError(f"the bigram baseline needs 2 training contexts or more; {len(contexts)} were found.")
        aside = np.arange(len(contexts)) % LEFT_OUT == LEFT_OUT - 1
        aside[-1] = True  # so that there is one
        counted = cls.counted(contexts[~aside], vocabulary)
        return min(
            (counted.at(strength) for strength in STRENGTHS), key=lambda own: float(own.losses(contexts[aside]).mean())
        )

    @classmethod
    def counted(cls, contexts: Int[ndarray, "contexts length"], vocabulary: int) -> Bigrams:
        """The counts alone."""
        contexts = contexts.astype(np.int64)
        pairs, counts = np.unique(contexts[:, :-1] * vocabulary + contexts[:, 1:], return_counts=True)
        before = np.bincount(contexts[:, :-1].ravel(), minlength=vocabulary)
        return cls(pairs, counts, before, np.bincount(contexts.ravel(), minlength=vocabulary))

    def at(self, strength: float) -> Bigrams:
        """The same counts with another kappa."""
        return Bigrams(self.pairs, self.counts, self.before, self.tokens, strength)

    def losses(self, contexts: Int[ndarray, "contexts length"]) -> Float[ndarray, "contexts length-1"]:
        """Cross-entropy, in nats, of every token but the first of each context."""
        vocabulary = len(self.tokens)
        v, w = contexts[:, :-1].astype(np.int64), contexts[:, 1:].astype(np.int64)
        wanted = v * vocabulary + w
        place = np.searchsorted(self.pairs, wanted).clip(max=len(self.pairs) - 1)
        count = np.where(self.pairs[place] == wanted, self.counts[place], 0)
        alone = (self.tokens[w] + 1) / (self.tokens.sum() + vocabulary)
        found: Float[ndarray, "contexts length-1"] = -np.log(
            (count + self.strength * alone) / (self.before[v] + self.strength)
        )
        return found
