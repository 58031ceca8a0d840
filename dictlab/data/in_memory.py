"""Text that is there already: documents as a list of strings, or sequences of token ids.

One document (or sequence) in ten is held out, the last of every ten; of fewer than ten the last.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from dictlab.data.hf_datasets import Split
from dictlab.data.packing import Contexts, Position
from dictlab.data.text import HELD_OUT_SHARE, Text
from dictlab.errors import DictlabError
from dictlab.numerics import seeds


def text_of_documents(documents: Sequence[str], split: Split = "train") -> Text:
    """A text whose documents are strings in memory.

    Raises:
        DictlabError: There are fewer than two, or one of them is no string.
    """
    strange = next((one for one in documents if not isinstance(one, str)), None)
    if strange is not None:
        raise DictlabError(f"text: a list of documents holds {type(strange).__name__}; expected strings.")
    digest = hashlib.sha256("\0".join(documents).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    numbers = _part(len(documents), split, "documents")

    def source(seed: int | None) -> Iterator[tuple[str, str]]:
        order = numbers if seed is None else random.Random(seed).sample(numbers, len(numbers))
        return ((str(i), documents[i]) for i in order)

    name = f"{len(documents)} documents in memory ({digest})"
    return Text(name, split, source, partial(text_of_documents, documents), True)


@dataclass(frozen=True)
class TokenIds(Text):
    """Sequences of token ids in place of a text; no tokenizer is asked. Make one with `TokenIds.of`.

    Attributes:
        ids: Those of this split.
    """

    ids: Int[Tensor, "sequences context"] = field(default_factory=lambda: torch.empty(0, 0).long(), repr=False)

    @classmethod
    def of(cls, ids: Int[Tensor, "sequences context"], split: Split = "train") -> TokenIds:
        """Token ids, one sequence a row.

        Raises:
            DictlabError: They are no whole numbers of that shape, or fewer than two sequences.
        """
        if ids.ndim != 2 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise DictlabError(
                f"text: a tensor of {str(ids.dtype).removeprefix('torch.')}, shape {list(ids.shape)}; expected token "
                "ids, whole numbers of shape [sequences, context]."
            )
        whole = ids.detach().cpu().long()
        digest = hashlib.sha256(whole.numpy().tobytes()).hexdigest()[:16]
        own = whole[_part(len(whole), split, "sequences of token ids")]
        name = f"{len(ids)} x {ids.shape[1]} token ids in memory ({digest})"
        return cls(name, split, _no_documents, partial(cls.of, ids), True, own)

    @property
    def longest(self) -> int:
        """Tokens of a sequence."""
        return self.ids.shape[1]

    def notes(self, tokenizer: Any) -> tuple[str, ...]:
        """Nothing: no documents become tokens."""
        return ()

    def contexts(
        self,
        tokenizer: Any,
        length: int,
        *,
        seed: int | None = None,
        repeat: bool | int = False,
        start: Position | None = None,
    ) -> Contexts:
        """The sequences, cut into contexts of `length` tokens; what is left over of each is dropped.

        Raises:
            DictlabError: Sequences are shorter than that, or it is asked to go on from somewhere.
        """
        if length > self.longest:
            raise DictlabError(f"text {self.name}: contexts of {length} tokens were asked for, and these are shorter.")
        if start is not None or repeat is True or repeat > 1:
            raise DictlabError(f"text {self.name}: is read once, from its beginning; train on a text.")
        pieces = self.ids[:, : self.longest // length * length].reshape(-1, length)
        if seed is not None:
            pieces = pieces[torch.randperm(len(pieces), generator=seeds.generator(seed, "order of token ids"))]
        return _Given(pieces)


class _Given(Contexts):
    """Contexts that are there already."""

    def __init__(self, contexts: Int[Tensor, "contexts length"]) -> None:
        self.position = Position()
        self._iterator = iter(contexts)


def _no_documents(seed: int | None) -> Iterator[tuple[str, str]]:
    raise DictlabError("text: token ids were given, and this needs documents; give a list of strings, or a text.")


def _part(n: int, split: Split, unit: str) -> list[int]:
    """Numbers of one split: the last of every ten is held out, or of fewer the last.

    Raises:
        DictlabError: There are fewer than two, one for each split.
    """
    if n < 2:
        raise DictlabError(f"text: {n} {unit}; expected two or more, for one in ten is held out.")
    held = set(range(HELD_OUT_SHARE - 1, n, HELD_OUT_SHARE)) or {n - 1}
    return [i for i in range(n) if (i in held) == (split == "heldout")]
