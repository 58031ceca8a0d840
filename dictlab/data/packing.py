"""Documents packed into contexts of one length, in an order that can be taken up again where it was left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import count, islice
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from dictlab.errors import DictlabError

GROUP = 64  # documents tokenized at once, at most
NOTED_DOCUMENTS, NOTED = 16, 1 << 14  # documents, and characters of each, that notes are made of
GROUP_SIZE = 1 << 16  # characters or token ids of them, after which no more are taken


@dataclass(frozen=True)
class Position:
    """How far a text was read.

    Attributes:
        turn: Times it was gone round.
        documents: Documents of this turn that are used up, but for what is pending.
        pending: Tokens of them that did not fill a context.
        contexts: Contexts already taken out of `pending` and the documents that follow.
    """

    turn: int = 0
    documents: int = 0
    pending: tuple[int, ...] = ()
    contexts: int = 0

    def record(self) -> dict[str, Any]:
        """As JSON knows it."""
        return asdict(self) | {"pending": list(self.pending)}

    @classmethod
    def of(cls, record: dict[str, Any]) -> Position:
        """What `record` wrote."""
        return cls(**(record | {"pending": tuple(record["pending"])}))


class Contexts:
    """An iterator over contexts that says where it is. Starting again from there costs no tokenizing of what is past.

    Args:
        documents: From the number of the turn to its documents.
        tokenizer: A Hugging Face tokenizer.
        length: Tokens a context.
        turns: Times to go round; None for ever.
        start: Where to begin.
        label: What errors call the text.
        separate: No context reaches from one document into the next; what does not fill one is dropped.
    """

    def __init__(
        self,
        documents: Callable[[int], Iterator[str | list[int]]],
        tokenizer: Any,
        length: int,
        *,
        turns: int | None = 1,
        start: Position | None = None,
        label: str = "text",
        separate: bool = False,
    ) -> None:
        self.position = start or Position()
        self._documents, self._tokenizer, self._turns = documents, tokenizer, turns
        self._length, self._label, self._separate = length, label, separate
        self._iterator = self._contexts()

    def __iter__(self) -> Iterator[Int[Tensor, " length"]]:
        """The contexts from the position on."""
        return self

    def __next__(self) -> Int[Tensor, " length"]:
        """The next context."""
        return next(self._iterator)

    def _contexts(self) -> Iterator[Int[Tensor, " length"]]:
        lead = leading_tokens(self._tokenizer)
        if self._length <= len(lead):
            raise DictlabError(
                f"{self._label}: a context of {self._length} tokens has no room for text; make it longer."
            )
        produced = self.position != Position()
        for turn in count(self.position.turn):
            if self._turns is not None and turn >= self._turns:
                return
            if turn != self.position.turn:
                self.position = Position(turn)
            for body in self._turn(self._length - len(lead)):
                produced = True
                yield torch.tensor(lead + body)
            if not produced:
                raise DictlabError(
                    f"{self._label} holds less than one context of {self._length} tokens. "
                    "One document in ten is held out: give more documents, or a shorter context."
                )

    def _turn(self, body: int) -> Iterator[list[int]]:
        """The rest of one turn, from the position on."""
        turn = self.position.turn
        documents = islice(self._documents(turn), self.position.documents, None)
        while group := _group(documents):
            at = self.position
            tokens = [*at.pending, *self._tokens(group, body)]
            whole = len(tokens) // body
            for number in range(at.contexts, whole):
                self.position = Position(turn, at.documents, at.pending, number + 1)
                yield tokens[number * body : (number + 1) * body]
            taken_before = max(0, at.contexts - whole)  # of the documents that follow, which stood in a larger group
            self.position = Position(turn, at.documents + len(group), tuple(tokens[whole * body :]), taken_before)

    def _tokens(self, documents: list[str | list[int]], body: int) -> Iterator[int]:
        """The tokens of documents, an end-of-text token after each that is text."""
        end = self._tokenizer.eos_token_id
        texts = [document for document in documents if isinstance(document, str)]
        ids_of_texts = iter(
            self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        )
        for document in documents:
            ids = document if isinstance(document, list) else list(next(ids_of_texts))
            if end is not None and isinstance(document, str):
                ids.append(end)
            yield from ids[: len(ids) // body * body] if self._separate else ids


def _group(documents: Iterator[str | list[int]]) -> list[str | list[int]]:
    """The next documents, so many or of so much text that they are tokenized at once."""
    group: list[str | list[int]] = []
    size = 0
    while len(group) < GROUP and size < GROUP_SIZE and (document := next(documents, None)) is not None:
        group.append(document)
        size += len(document)
    return group


def packing_notes(documents: Iterable[str | list[int]], tokenizer: Any) -> tuple[str, ...]:
    """What must be said of how documents become tokens, by a look at a few of them."""
    notes = []
    if tokenizer.eos_token_id is None:
        notes.append("documents are joined with nothing between them: the tokenizer has no end-of-text token.")
    special = set(getattr(tokenizer, "all_special_ids", ())) - {getattr(tokenizer, "unk_token_id", None)}
    texts = [document[:NOTED] for document in islice(documents, NOTED_DOCUMENTS) if isinstance(document, str)]
    tokenized = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    written = sorted({token for ids in tokenized for token in ids} & special)
    if written:
        names = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(written)))
        notes.append(f"documents have special tokens written in them ({names}), which the model reads as such.")
    return tuple(notes)


def leading_tokens(tokenizer: Any) -> list[int]:
    """The tokens that this tokenizer's own rule puts before every text: [BOS], or nothing."""
    ids = tokenizer("")["input_ids"]
    return [tokenizer.bos_token_id] if ids and ids[0] == tokenizer.bos_token_id else []
