"""What does a latent need to see? The shortest strings that keep it active, and which of their tokens matter.

For a document that ends at an active token, with activation a there:

    suffix       the shortest one that gives a' >= a / 2 when the model sees nothing else
    at start     with one padding token in front of the suffix, the activation falls under a' / 2
    importance   of a token: 1 - (activation with padding in its place) / a';  under 1/2 it becomes a wildcard

All examples grow together, so a forward serves many of them; a suffix is tried up to `longest` tokens. What needs more
becomes the pattern of its last `longest` tokens, none of them a wildcard.

Source: Gao et al. 2024, N2G, as its released code builds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from analyses.ngrams import Pattern
from dictlab.activations import FORWARD_TOKENS
from dictlab.codes import Codes
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.evaluate import site_of
from dictlab.lm import LanguageModel

HALF = 0.5  # the share of an activation that counts as keeping it
ROWS = 1024  # strings encoded at once, which bounds pre-activations to this many rows
TOGETHER = 512  # examples that grow together
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


def last_activations(model: LanguageModel, dictionary: Dictionary, lead: Sequence[int]) -> Activate:
    """The activation of one latent each at the last token of some strings, which the model sees behind `lead` only."""
    site, front = site_of(dictionary), torch.tensor(lead, dtype=torch.long)

    @torch.no_grad()
    def activate(strings: Tensor, latents: Tensor) -> Tensor:
        rows = max(1, min(ROWS, FORWARD_TOKENS // (strings.shape[1] + len(front))))
        parts = []
        for some, own in zip(strings.split(rows), latents.split(rows), strict=True):
            x = model.capture(torch.cat([front.expand(len(some), -1), some], dim=1), site)[site][:, -1]
            parts.append(_of_one(dictionary.encode(x.float()), own).cpu())
        return torch.cat(parts)

    return activate


def patterns(examples: Sequence[Example], activate: Activate, padding: Padding, longest: int) -> list[Pattern]:
    """The pattern of each example.

    Args:
        examples: Of any latents.
        activate: The activation at the last token of strings.
        padding: What stands in place of tokens.
        longest: Tokens of a suffix, at most.
    """
    found: list[Pattern] = []
    with tqdm(total=len(examples), desc="patterns", unit="example", leave=False) as bar:
        for start in range(0, len(examples), TOGETHER):
            some = examples[start : start + TOGETHER]
            found += _patterns(some, activate, padding, longest)
            bar.update(len(some))
    return found


def _patterns(examples: Sequence[Example], activate: Activate, padding: Padding, longest: int) -> list[Pattern]:
    suffixes = _suffixes(examples, activate, longest)
    found: dict[int, Pattern] = {
        i: Pattern(s.tokens, (True,) * len(s.tokens), (float("nan"),) * len(s.tokens), s.activation, reached=False)
        for i, s in enumerate(suffixes)
        if not s.reached
    }
    by_length: dict[int, list[int]] = {}
    for i, suffix in enumerate(suffixes):
        if suffix.reached:
            by_length.setdefault(len(suffix.tokens), []).append(i)
    for own in by_length.values():
        tokens = torch.tensor([suffixes[i].tokens for i in own])
        latents = torch.tensor([examples[i].latent for i in own])
        strength = torch.tensor([suffixes[i].activation for i in own])
        at_start = activate(_behind(tokens, padding), latents) / strength < HALF
        importance = 1 - _replaced(tokens, latents, activate, padding) / strength[:, None]
        for i, row, start in zip(own, importance, at_start.tolist(), strict=True):
            kept = tuple((row >= HALF).tolist())
            found[i] = Pattern(suffixes[i].tokens, kept, tuple(row.tolist()), suffixes[i].activation, start)
    return [found[i] for i in range(len(examples))]


def _suffixes(examples: Sequence[Example], activate: Activate, longest: int) -> list[_Suffix]:
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
        waiting = [i for i in waiting if not found[i].reached]
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


def _of_one(codes: Codes, latents: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    """The activation of one latent at each token."""
    rows, latents = codes.rows, latents.to(codes.indices.device)
    own = codes.indices == latents[rows]
    return codes.values.new_zeros(codes.n_tokens).index_put((rows[own],), codes.values[own])
