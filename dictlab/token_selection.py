"""Which tokens count: for training, for evaluation, for every analysis?

The first position of a context, and a few special tokens, are attention sinks in most language models: their
activations are tens to hundreds of times as long as others, hold most of the variance, and say nothing of the text.
Libraries leave them out by position (SAELens: `seqpos_slice`; dictionary_learning: `remove_bos`, the first position
whatever stands there), by token (SAELens: `exclude_special_tokens`), or by norm (dictionary_learning:
`max_activation_norm_multiple`, 10 by default). A `TokenSelection` says which of these rules hold. Padding never counts.

Written as one option, `all` or parts joined by commas:

    without-first=N      the first N positions of each context do not count (1 by default)
    positions=A:B        positions from A up to, not including, B count; either may be left out
    without-bos          beginning-of-text tokens do not count
    without-special      special tokens of the tokenizer do not count
    without-ids=1/2/3    tokens of these ids do not count
    without-outliers=M   positions whose norm exceeds M times (10 by default) the median norm of their context do not
                         count
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictlab.errors import DictlabError

NORM_MULTIPLE = 10.0  # of the median norm, above which a position is an outlier, as dictionary_learning has it
RECORD = "token_selection"  # where a dictionary's metadata keeps it, in the record of the training; absent means all
AUTO = "auto"  # in training: `all`, or `without-outliers` where the model has attention sinks
PARTS = "without-first=N, positions=A:B, without-bos, without-special, without-ids=1/2/3, without-outliers=M"


@dataclass(frozen=True)
class TokenSelection:
    """Which tokens of a context count. A token counts if every rule lets it.

    Attributes:
        first: The first position that counts.
        stop: The position up to which they count, not included; None for the end of the context, below 0 from it.
        without_bos: Beginning-of-text tokens do not count.
        without_special: Special tokens of the tokenizer do not count.
        without_ids: Ids of tokens that do not count.
        norm_multiple: Positions whose norm exceeds so many times the median norm of their context do not count; None
            for no such rule.
    """

    first: int = 0
    stop: int | None = None
    without_bos: bool = False
    without_special: bool = False
    without_ids: tuple[int, ...] = ()
    norm_multiple: float | None = None

    def __post_init__(self) -> None:
        """Refuse rules that cannot be followed.

        Raises:
            DictlabError: No position would count, or a number is out of its range.
        """
        if self.first < 0 or (self.stop is not None and 0 <= self.stop <= self.first):
            raise DictlabError(f"token selection: there is no position in {self.first}:{self.stop}.")
        if self.norm_multiple is not None and not 1 < self.norm_multiple < math.inf:
            raise DictlabError(
                f"token selection: without-outliers={self.norm_multiple:g}; expected a multiple of the median above 1."
            )

    @classmethod
    def parse(cls, spec: str | TokenSelection | None) -> TokenSelection:
        """A selection as it is written in an option or a file; None, which files before it have, is all tokens.

        Raises:
            DictlabError: It is not written as the module says.
        """
        if isinstance(spec, TokenSelection):
            return spec
        if spec is None or (isinstance(spec, str) and spec.strip() in ("", "all")):
            return ALL
        if not isinstance(spec, str):
            raise DictlabError(f"token selection: {spec!r} is no text; expected all, or some of {PARTS}.")
        selection = ALL
        for part in spec.split(","):
            name, _, value = part.strip().partition("=")
            try:
                selection = replace(selection, **_rule(name, value))
            except ValueError as error:
                raise DictlabError(
                    f"token selection: {part.strip()!r} is not understood; expected all, or some of {PARTS}."
                ) from error
        return selection

    @classmethod
    def of_library(
        cls,
        *,
        prepend_bos: bool | None = None,
        seqpos_slice: Sequence[int | None] | None = None,
        exclude_special_tokens: bool | Sequence[int] | None = None,
        remove_bos: bool | None = None,
        max_activation_norm_multiple: float | None = None,
        ignore_tokens: Iterable[int] | None = None,
    ) -> TokenSelection:
        """The selection that settings of another library mean; None is a setting that it does not have.

        Args:
            prepend_bos: SAELens and TransformerLens: false where contexts were run without a beginning-of-text token,
                so that a dictionary has never seen one.
            seqpos_slice: SAELens: start, stop and step of the positions.
            exclude_special_tokens: SAELens: those of the tokenizer, or ids.
            remove_bos: dictionary_learning, whose buffer takes the first position of each context away.
            max_activation_norm_multiple: dictionary_learning: outliers above so many times the median.
            ignore_tokens: Ids.

        Raises:
            DictlabError: The slice has a step, or counts its start from the end.
        """
        start, stop, step = (*(seqpos_slice or ()), None, None, None)[:3]
        if step not in (None, 1) or (start or 0) < 0:
            raise DictlabError(f"seqpos_slice {seqpos_slice}: a step, or a start from the end, is not supported.")
        listed = (
            () if exclude_special_tokens is None or isinstance(exclude_special_tokens, bool) else exclude_special_tokens
        )
        return cls(
            first=max(start or 0, int(bool(remove_bos))),
            stop=stop,
            without_bos=prepend_bos is False,
            without_special=exclude_special_tokens is True,
            without_ids=tuple(sorted({*listed, *(ignore_tokens or ())})),
            norm_multiple=max_activation_norm_multiple,
        )

    def __str__(self) -> str:
        """As `parse` reads it."""
        parts = []
        if self.first and self.stop is None:
            parts.append(f"without-first={self.first}")
        elif self.stop is not None:
            parts.append(f"positions={self.first or ''}:{self.stop}")
        parts += ["without-bos"] * self.without_bos + ["without-special"] * self.without_special
        if self.without_ids:
            parts.append("without-ids=" + "/".join(map(str, self.without_ids)))
        if self.norm_multiple is not None:
            parts.append(f"without-outliers={self.norm_multiple:g}")
        return ",".join(parts) or "all"

    @property
    def by_tokens(self) -> bool:
        """Whether it asks what the tokens are, so that activations alone do not do."""
        return self.without_bos or self.without_special or bool(self.without_ids)

    def mask(
        self,
        activations: Iterable[Float[Tensor, "batch context d_in"]],
        tokens: Int[Tensor, "batch context"] | None = None,
        tokenizer: Any = None,
    ) -> Bool[Tensor, "batch context"]:
        """Which positions count, at all of the sites alike: where one of them has an outlier, none counts it.

        Args:
            activations: At each site.
            tokens: Ids of the tokens; without them padding is not known.
            tokenizer: Whose special tokens are meant.

        Raises:
            DictlabError: It asks what the tokens are, and there are none.
        """
        sites = list(activations)
        batch, context = sites[0].shape[:2]
        counted = torch.zeros(batch, context, dtype=torch.bool, device=sites[0].device)
        counted[:, slice(self.first, self.stop)] = True
        if self.by_tokens and tokens is None:
            raise DictlabError(
                f"token selection {self}: activations that are an array do not say which tokens they are of; select by "
                "positions or outliers, or give a model and a text."
            )
        if tokens is not None and (ids := self._ids(tokenizer)):
            counted &= ~torch.isin(tokens.to(counted.device), torch.tensor(ids, device=counted.device))
        if self.norm_multiple is not None:
            for x in sites:
                counted &= ~outliers(x, self.norm_multiple)
        return counted

    def _ids(self, tokenizer: Any) -> list[int]:
        """Ids of tokens that do not count."""
        ids = {*self.without_ids, *padding_ids(tokenizer)}
        if self.without_special:
            ids |= set(tokenizer.all_special_ids)
        if self.without_bos and tokenizer.bos_token_id is not None:
            ids.add(tokenizer.bos_token_id)
        return sorted(ids)


ALL = TokenSelection()


def outliers(x: Float[Tensor, "batch context d_in"], multiple: float = NORM_MULTIPLE) -> Bool[Tensor, "batch context"]:
    """Positions whose norm exceeds `multiple` times the median norm of their context.

    The median of the context, not of a batch as in dictionary_learning: what counts does not depend on the batch.
    """
    norm = torch.linalg.vector_norm(x.float(), dim=-1)
    above: Tensor = norm > multiple * norm.median(dim=-1, keepdim=True).values
    return above


def padding_ids(tokenizer: Any) -> list[int]:
    """The padding token, where it stands for nothing else."""
    names = ("eos_token_id", "bos_token_id", "unk_token_id")
    pad = getattr(tokenizer, "pad_token_id", None)
    return [] if pad is None or pad in [getattr(tokenizer, name, None) for name in names] else [pad]


def rectangles(
    x: Float[Tensor, "batch context d_in"], counted: Bool[Tensor, "batch context"]
) -> Iterator[Float[Tensor, "sequences counted d_in"]]:
    """The positions that count, sequence by sequence: sequences with equally many of them stand together.

    Sequences without a single one are left out.
    """
    if bool(counted.all()):
        yield x
        return
    numbers = counted.sum(dim=1)
    for number in numbers.unique().tolist():
        if number:
            alike = numbers == number
            yield x[alike][counted[alike]].view(int(alike.sum()), number, x.shape[-1])


def _rule(name: str, value: str) -> dict[str, Any]:
    """The fields that one part of an option sets."""
    if name == "without-first":
        return {"first": int(value or 1)}
    if name == "positions":
        start, colon, stop = value.partition(":")
        if not colon:
            raise ValueError(value)
        return {"first": int(start or 0), "stop": int(stop) if stop else None}
    if name == "without-ids":
        return {"without_ids": tuple(sorted({int(number) for number in value.split("/")}))}
    if name == "without-outliers":
        return {"norm_multiple": float(value or NORM_MULTIPLE)}
    if name in ("without-bos", "without-special") and not value:
        return {name.replace("-", "_"): True}
    raise ValueError(name)
