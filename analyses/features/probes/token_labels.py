"""Which tokens of a language model does a labelled span of text touch?

A token has a label where its characters overlap a span that has it, by the offsets of the tokenizer:

    token [s, e) overlaps span [a, b)   where   max(s, a) < min(e, b)

so a token that covers a space and the word after it has the labels of the word.

The built-in tasks are known exactly of every character of a Python source: `tokenize` answers for words, `ast` for
syntax. Nothing is estimated, so a latent that answers a task does so with a known precision and recall.
"""

from __future__ import annotations

import ast
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from analyses.features.probes import python_lexical, python_syntax
from analyses.features.probes.python_lexical import Places, Span, Spans
from dictlab.data.packing import leading_tokens
from dictlab.data.text import SPREAD, Text
from dictlab.errors import DictlabError
from dictlab.numerics import seeds
from dictlab.runtime.progress import Phase

PYTHON_TASKS = (*python_lexical.TASKS, *python_syntax.TASKS)


@dataclass(frozen=True, eq=False)
class LabelledTokens:
    """Sequences of tokens, some of which are labelled.

    Attributes:
        tasks: Names of the binary tasks.
        tokens: Token ids; what fills a short sequence up is not known.
        known: Where there are labels: not at end-of-text tokens, and in a table of whole texts at the last token only.
        labels: What is true of each known token, in the order of `known.nonzero()`.
        pooled: Whether a label is of a whole sequence, whose latents are averaged over `known`; then a row of
            `labels` is a sequence.
        lengths: Tokens of each sequence; what follows fills it up. None where nothing does.
    """

    tasks: tuple[str, ...]
    tokens: Int[Tensor, "sequences context"]
    known: Bool[Tensor, "sequences context"]
    labels: Bool[Tensor, "rows tasks"]
    pooled: bool = False
    lengths: Int[Tensor, " sequences"] | None = None

    @property
    def sequence(self) -> Int[Tensor, " rows"]:
        """The sequence of each row of labels."""
        return torch.arange(len(self.tokens)) if self.pooled else self.known.nonzero()[:, 0]

    def some(self, tasks: Bool[Tensor, " tasks"]) -> LabelledTokens:
        """The same with fewer tasks."""
        names = tuple(name for name, kept in zip(self.tasks, tasks.tolist(), strict=True) if kept)
        return replace(self, tasks=names, labels=self.labels[:, tasks])

    def counting(self, counted: Bool[Tensor, "sequences context"]) -> LabelledTokens:
        """The labelled tokens that count; of labelled texts those that have such a token, by these alone."""
        known = self.known & counted
        if not self.pooled:
            return replace(self, known=known, labels=self.labels[counted[self.known]])
        kept = known.any(dim=1)
        lengths = None if self.lengths is None else self.lengths[kept]
        return replace(self, tokens=self.tokens[kept], known=known[kept], labels=self.labels[kept], lengths=lengths)


class ProbeSample(NamedTuple):
    """What is fitted on and what is measured on, the tasks left out with the reason, and what the user should know."""

    train: LabelledTokens
    held: LabelledTokens
    left_out: dict[str, str]
    notes: list[str]


def touched(offsets: Int[NDArray[np.int64], "tokens 2"], marked: Iterable[Span]) -> NDArray[np.bool_]:
    """Which tokens overlap one of the spans, `[tokens]`; tokens are in the order of the text."""
    out = np.zeros(len(offsets) + 1, dtype=np.int64)
    begins = np.maximum.accumulate(offsets[:, 0])
    ends = np.maximum.accumulate(offsets[:, 1])
    some = np.array([span for span in marked if span[0] < span[1]], dtype=np.int64).reshape(-1, 2)
    first = np.searchsorted(ends, some[:, 0], side="right")  # the first token that ends after the span's beginning
    last = np.searchsorted(begins, some[:, 1], side="left")  # the first that begins at its end or after
    kept = first < last
    np.add.at(out, first[kept], 1)
    np.add.at(out, last[kept], -1)
    found: NDArray[np.bool_] = (out.cumsum()[:-1] > 0) & (offsets[:, 0] < offsets[:, 1])
    return found


def encoded(tokenizer: Any, text: str) -> tuple[list[int], NDArray[np.int64]]:
    """Token ids of a text, and the characters of each, `[tokens, 2]`.

    Raises:
        DictlabError: The tokenizer cannot tell.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DictlabError(
            f"tokenizer {type(tokenizer).__name__} does not say which characters a token covers, so labels cannot be "
            "aligned with tokens. Use a model with a fast tokenizer (tokenizer.json)."
        )
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return found["input_ids"], np.array(found["offset_mapping"], dtype=np.int64).reshape(-1, 2)


def python_tokens(text: Text, tokenizer: Any, length: int, contexts: int, *, seed: int = 0) -> LabelledTokens:
    """Contexts drawn from all over a text of Python sources, packed as `Text.contexts` packs them, with exact labels.

    Args:
        text: Python sources; documents that are none are passed over.
        tokenizer: Of the language model.
        length: Tokens a context.
        contexts: How many; fewer where the text ends before.
        seed: Seed of the order of documents and of the draw.

    Raises:
        DictlabError: Not one context of Python is in the text, or the tokenizer is not a fast one.
    """
    start = leading_tokens(tokenizer)
    body = length - len(start)
    ids: list[NDArray[np.int64]] = []
    flags: list[NDArray[np.bool_]] = []
    held = 0
    with Phase(f"label {text.split}", SPREAD * contexts, unit="contexts") as phase:
        for one, labels in _documents(text, tokenizer, seed):
            ids.append(one)
            flags.append(labels)
            held += len(one)
            phase.advance(min(held // body, SPREAD * contexts) - phase.done)
            if held >= SPREAD * contexts * body:
                break
    pool = min(held // body, SPREAD * contexts)
    if pool == 0:
        raise DictlabError(
            f"text {text.name}: its {text.split} split holds less than one context of {length} tokens of Python, which "
            "the built-in tasks are about. Give Python sources with `text=...`, or tasks of your own with `table=...`."
        )
    drawn = torch.randperm(pool, generator=seeds.generator(seed, "sample of contexts"))[:contexts].numpy()
    every, truth = np.concatenate(ids), np.concatenate(flags)
    at = drawn[:, None] * body + np.arange(body)
    front = torch.tensor(start, dtype=torch.long).expand(len(drawn), -1)
    known = np.concatenate([np.zeros((len(drawn), len(start)), bool), truth[at, -1]], axis=1)
    tokens = torch.cat([front, torch.from_numpy(every[at])], dim=1)
    made = torch.from_numpy(truth[at][truth[at, -1]][:, :-1])
    return LabelledTokens(PYTHON_TASKS, tokens, torch.from_numpy(known), made)


def _documents(text: Text, tokenizer: Any, seed: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Each document's token ids, with an end-of-text token; its labels, and in a last column whether they are known."""
    for document in text.documents(seed):
        marked = python_spans(document)
        if marked is None:
            continue
        ids, offsets = encoded(tokenizer, document)
        labels = np.stack([*(touched(offsets, marked[task]) for task in PYTHON_TASKS), np.ones(len(ids), bool)], axis=1)
        if tokenizer.eos_token_id is not None:
            ids = [*ids, tokenizer.eos_token_id]
            labels = np.concatenate([labels, np.zeros((1, labels.shape[1]), bool)])
        yield np.array(ids, dtype=np.int64), labels


def python_spans(source: str) -> Spans | None:
    """Where in a source each of PYTHON_TASKS holds, as spans of characters; None if it is no Python."""
    source = source.replace("\f", " ")  # white space to Python, but a line's end to some of its string methods
    places = Places(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old sources are no business of the reader's
            tree = ast.parse(source)
        words = python_lexical.words(source, places)
    except (SyntaxError, ValueError, RecursionError, tokenize.TokenError):
        return None
    return python_lexical.spans(words) | python_syntax.spans(tree, places)
