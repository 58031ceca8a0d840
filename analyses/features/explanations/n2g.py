"""What does a latent need to see? The shortest strings that keep it active, and which of their tokens matter.

For a document that ends at an active token, with activation a there:

    suffix       the shortest one that gives a' >= a / 2 when the model sees nothing else
    at start     with one padding token in front of the suffix, the activation falls under a / 2
    importance   of a token: 1 - (activation with padding in its place) / a';  under 1/2 it becomes a wildcard

All examples grow together, and a string that several of them ask about goes through the model once, so that latents
which are active at the same tokens share their cost. A suffix is tried up to `longest` tokens. What needs more becomes
the pattern of its last `longest` tokens, none of them a wildcard.

Source: Gao et al. 2024, N2G, as its released code builds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.features.explanations.n2g_trie import Pattern
from dictlab.data.activations import FORWARD_TOKENS
from dictlab.dictionary import Dictionary
from dictlab.dictionary.codes import Codes
from dictlab.errors import DictlabError
from dictlab.evaluation.sites import site_of
from dictlab.model.language_model import LanguageModel
from dictlab.runtime.progress import Phase
from dictlab.token_selection import ALL, TokenSelection

HALF = 0.5  # the share of an activation that counts as keeping it
ROWS = 1024  # strings encoded at once, which bounds pre-activations to this many rows
TOGETHER = 8192  # examples that grow together
VERSIONS = 1 << 22  # numbers in strings with each of their tokens replaced, held at once
PADDING = (" _", "_", " ", "a", "e")  # the first two that are one token each; the first is the paper's for GPT-2

Activate = Callable[[Int[Tensor, "strings length"], Int[Tensor, " strings"]], Float[Tensor, " strings"]]


class Example(NamedTuple):
    """A document up to a token at which a latent is active.

    Attributes:
        latent: Which.
        tokens: The last `longest` tokens of it at most.
        activation: In the whole context.
    """

    latent: int
    tokens: tuple[int, ...]
    activation: float


class Padding(NamedTuple):
    """What stands in place of a token, and what stands in place of that very token."""

    token: int
    other: int


class _Suffix(NamedTuple):
    tokens: tuple[int, ...]
    activation: float
    reached: bool


def padding_of(tokenizer: Any) -> Padding:
    """The padding for a tokenizer.

    Raises:
        DictlabError: Too few of the candidates are a single token.
    """
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in PADDING]
    single = [i[0] for i in ids if len(i) == 1 and i[0] != tokenizer.unk_token_id]
    distinct = list(dict.fromkeys(single))
    if len(distinct) < 2:
        raise DictlabError(
            f"the tokenizer has {len(distinct)} of {', '.join(map(repr, PADDING))} as one token; two are needed to "
            "stand in place of other tokens. Explanations by n-grams need a model with such a tokenizer."
        )
    return Padding(distinct[0], distinct[1])


def last_activations(
    model: LanguageModel,
    dictionary: Dictionary,
    lead: Sequence[int],
    selection: TokenSelection = ALL,
    longest_norm: float = math.inf,
) -> Activate:
    """The activation of one latent each at the last token of some strings, which the model sees behind `lead` only, as
    the length of what it adds to the reconstruction (`Dictionary.contributions`).

    It is 0 where that token does not count: the dictionary was not trained on such.

    Args:
        model: The language model.
        dictionary: On its device, and reading its activations.
        lead: Tokens in front of every string.
        selection: Tokens that count. Positions are those in the string with its lead.
        longest_norm: Above it a token is an outlier as well: a string is too short for a median of its own.
    """
    site, front = site_of(dictionary), torch.tensor(lead, dtype=torch.long)

    @torch.no_grad()
    def activate(strings: Tensor, latents: Tensor) -> Tensor:
        distinct, which = torch.unique(strings, dim=0, return_inverse=True)
        rows = max(1, min(ROWS, FORWARD_TOKENS // (strings.shape[1] + len(front))))
        order = torch.argsort(which, stable=True)
        asked = torch.bincount(which).split(rows)
        parts = []
        for some, own in zip(distinct.split(rows), order.split([int(n.sum()) for n in asked]), strict=True):
            tokens, number = torch.cat([front.expand(len(some), -1), some], dim=1), which[own] - which[own[0]]
            x = model.capture(tokens, site)[site]
            last = x[:, -1].float()
            counted = selection.mask([x], tokens, model.tokenizer)[:, -1] & (last.norm(dim=1) <= longest_norm)
            codes = dictionary.contributions(dictionary.encode(last), last)
            parts.append(_at(codes, number, latents[own]) * counted.cpu()[number])
        return torch.cat(parts)[torch.argsort(order)]

    return activate


def patterns(examples: Sequence[Example], activate: Activate, padding: Padding, longest: int) -> list[Pattern]:
    """The pattern of each example.

    Args:
        examples: Of any latents.
        activate: The activation at the last token of strings.
        padding: What stands in place of tokens.
        longest: Tokens of a suffix, at most.
    """
    order = sorted(range(len(examples)), key=lambda i: examples[i].tokens[::-1])  # what shares strings, side by side
    found: dict[int, Pattern] = {}
    with Phase("patterns", 2 * len(examples), unit="strings") as phase:
        for start in range(0, len(examples), TOGETHER):
            own = order[start : start + TOGETHER]
            made = _patterns([examples[i] for i in own], activate, padding, longest, phase)
            found |= dict(zip(own, made, strict=True))
    return [found[i] for i in range(len(examples))]


def _patterns(
    examples: Sequence[Example], activate: Activate, padding: Padding, longest: int, phase: Phase
) -> list[Pattern]:
    suffixes = _suffixes(examples, activate, longest, phase)
    found: dict[int, Pattern] = {
        i: Pattern(s.tokens, (True,) * len(s.tokens), (float("nan"),) * len(s.tokens), s.activation, reached=False)
        for i, s in enumerate(suffixes)
        if not s.reached
    }
    by_length: dict[int, list[int]] = {}
    for i, suffix in enumerate(suffixes):
        if suffix.reached:
            by_length.setdefault(len(suffix.tokens), []).append(i)
    phase.advance(2 * len(found))
    for own in _split(by_length):
        tokens = torch.tensor([suffixes[i].tokens for i in own])
        latents = torch.tensor([examples[i].latent for i in own])
        whole, strength = (torch.tensor([of[i].activation for i in own]) for of in (examples, suffixes))
        at_start = activate(_behind(tokens, padding), latents) / whole < HALF
        importance = 1 - _replaced(tokens, latents, activate, padding) / strength[:, None]
        for i, row, start in zip(own, importance, at_start.tolist(), strict=True):
            kept = tuple((row >= HALF).tolist())
            found[i] = Pattern(suffixes[i].tokens, kept, tuple(row.tolist()), suffixes[i].activation, start)
        phase.advance(len(own))
    return [found[i] for i in range(len(examples))]


def _split(by_length: dict[int, list[int]]) -> Iterator[list[int]]:
    """Examples of like length, so few at a time that all versions of their strings can be held."""
    for length, own in by_length.items():
        size = max(1, VERSIONS // length**2)
        yield from (own[start : start + size] for start in range(0, len(own), size))


def _suffixes(examples: Sequence[Example], activate: Activate, longest: int, phase: Phase) -> list[_Suffix]:
    """The shortest suffix of each example that keeps half of its activation."""
    found = {i: _Suffix(e.tokens[-longest:], e.activation, False) for i, e in enumerate(examples)}
    waiting = list(range(len(examples)))
    for length in range(1, longest + 1):
        waiting = [i for i in waiting if len(examples[i].tokens) >= length]
        if not waiting:
            break
        strings = torch.tensor([examples[i].tokens[-length:] for i in waiting])
        values = activate(strings, torch.tensor([examples[i].latent for i in waiting])).tolist()
        for i, value in zip(waiting, values, strict=True):
            if value / examples[i].activation >= HALF:
                found[i] = _Suffix(examples[i].tokens[-length:], value, True)
        left = [i for i in waiting if not found[i].reached]
        phase.advance(len(waiting) - len(left))
        waiting = left
    return [found[i] for i in range(len(examples))]


def _behind(tokens: Tensor, padding: Padding) -> Tensor:
    """The strings with one padding token in front."""
    return torch.cat([torch.full_like(tokens[:, :1], padding.token), tokens], dim=1)


def _replaced(
    tokens: Int[Tensor, "strings length"], latents: Tensor, activate: Activate, padding: Padding
) -> Float[Tensor, "strings length"]:
    """The activation with each token replaced in turn."""
    strings, length = tokens.shape
    instead = torch.where(tokens == padding.token, padding.other, padding.token)
    versions = tokens[:, None, :].repeat(1, length, 1)
    versions[:, range(length), range(length)] = instead
    return activate(versions.flatten(0, 1), latents.repeat_interleave(length)).view(strings, length)


def _at(codes: Codes, rows: Int[Tensor, " asked"], latents: Int[Tensor, " asked"]) -> Float[Tensor, " asked"]:
    """The activations of some latents at some tokens, on the CPU."""
    wanted, which = torch.unique(rows * codes.n_latents + latents, return_inverse=True)
    entries = (codes.rows * codes.n_latents + codes.indices).cpu()
    place = torch.searchsorted(wanted, entries).clamp(max=len(wanted) - 1)
    own = wanted[place] == entries
    return codes.values.new_zeros(len(wanted), device="cpu").index_put((place[own],), codes.values.cpu()[own])[which]
