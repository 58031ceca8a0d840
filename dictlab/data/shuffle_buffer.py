"""Batches in random order that can be taken up again where they were left.

Activations of a model are shuffled in a window of two blocks of forwards. Each block is permuted by a generator of its
own number; one half of it goes out with what was kept of the block before, the other half waits for the block after:

    chunk i = mixed(late half of block i - 1, early half of block i)

So the state is a number and a position in the text, whatever the buffer: to go on, at most the two blocks of one chunk
are computed again, and all text before them is skipped without the model. Storing the buffer instead would write
`buffer * d_in` numbers at every save, and saves are frequent where resumptions are rare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictlab.data.packing import Contexts, Position
from dictlab.errors import DictlabError
from dictlab.numerics import seeds

BUFFER_TOKENS = 1 << 17  # vectors that a stream is shuffled in
FORWARD_TOKENS = 8192  # tokens given to the model at once
FORWARDS_WITHOUT_TOKENS = (
    4  # times the forwards of a block, after which a selection that lets no token count is refused
)

BEGINNING = {"chunk": 0, "earlier": 0, "carried": 0, "batches": 0, "text": Position().record()}

Sites = Mapping[str, Float[Tensor, "tokens d_in"]]


class Stream(Protocol):
    """An iterator over batches that says where it is: a stream that starts from its position goes on alike."""

    def __iter__(self) -> Iterator[Any]:
        """Batches."""
        ...

    def position(self) -> dict[str, Any]:
        """What it takes to go on behind the last batch that was handed out, as JSON knows it."""
        ...


@dataclass(frozen=True)
class _Block:
    """Activations of some forwards in random order, and where in the text they begin."""

    begins: Position
    vectors: Sites
    complete: bool = True

    @property
    def tokens(self) -> int:
        return len(next(iter(self.vectors.values()))) if self.vectors else 0


class ShuffledStream:
    """Activation vectors of one or more sites, the same tokens at each, in random order.

    Args:
        capture: From a batch of contexts to the activations at each site, `[batch, context, d_in]`, or those of the
            tokens that count, `[tokens, d_in]`, the same tokens at every site.
        contexts: From a position to the contexts that follow it.
        context: Tokens a context.
        batch: Vectors a batch; at the end of the text, what does not fill one is dropped.
        buffer: Vectors the window holds; memory is bounded by three times `buffer * d_in` numbers, and one forward.
        seed: Decides the order.
        total: Vectors that will be asked for, whole batches of them: the last block is as long as they need. More than
            these, and there are none.
        start: `position()` of an earlier stream of the same settings.
    """

    def __init__(
        self,
        capture: Callable[[Int[Tensor, "batch context"]], Mapping[str, Float[Tensor, "*tokens d_in"]]],
        contexts: Callable[[Position | None], Contexts],
        *,
        context: int,
        batch: int,
        buffer: int,
        seed: int,
        total: int | None = None,
        start: Mapping[str, Any] | None = None,
    ) -> None:
        self._capture, self._open, self._batch, self._seed, self._total = capture, contexts, batch, seed, total
        self._context, self._per_forward = context, max(1, FORWARD_TOKENS // context)
        forward = self._per_forward * context
        forwards = max(1, buffer // (2 * forward), -(-2 * batch // forward))  # half a block fills a batch
        self._block_tokens, self._tried = forwards * forward, FORWARDS_WITHOUT_TOKENS * forwards
        self._at: dict[str, Any] = dict(start or BEGINNING)

    @property
    def block_tokens(self) -> int:
        """Tokens that are captured at once, before the batches that they are part of go out."""
        return self._block_tokens

    def position(self) -> dict[str, Any]:
        """The chunk, batches handed out earlier and of it, what was kept for it, and where in the text that began."""
        return dict(self._at)

    def __iter__(self) -> Iterator[Sites]:
        """Batches, by site."""
        chunk, earlier, carried, done = (self._at[key] for key in ("chunk", "earlier", "carried", "batches"))
        contexts = self._open(Position.of(self._at["text"]))
        before = self._block(contexts, chunk - 1) if chunk else _Block(contexts.position, {})
        complete = True
        while complete:
            missing = None if self._total is None else self._total - earlier * self._batch - carried
            block = self._block(contexts, chunk, missing)
            complete = block.complete
            early = self._early(carried, block)
            late = {site: x[len(x) - carried :] for site, x in before.vectors.items()}
            mixed = self._mixed(chunk, late, {site: x[:early] for site, x in block.vectors.items()})
            at = {"chunk": chunk, "earlier": earlier, "carried": carried, "text": before.begins.record()}
            batches = list(_whole_batches(mixed, self._batch))
            for number, batch in enumerate(batches[done:], done):
                self._at = at | {"batches": number + 1}
                yield batch
            earlier, before, carried = earlier + len(batches), block, block.tokens - early
            done, chunk = 0, chunk + 1

    def _block(self, contexts: Contexts, number: int, missing: int | None = None) -> _Block:
        """The next forwards of the text, permuted. The last block ends with the vectors that are `missing`."""
        begins = contexts.position
        parts: list[Mapping[str, Tensor]] = []
        last = missing is not None and missing <= self._block_tokens
        wanted = missing if last and missing is not None else self._block_tokens
        complete, tokens = True, 0
        while complete and tokens < wanted:
            size = min(self._per_forward, -(-(wanted - tokens) // self._context)) if last else self._per_forward
            group = list(islice(contexts, size))
            complete = len(group) == size
            if group:
                parts.append({site: x.flatten(0, -2) for site, x in self._capture(torch.stack(group)).items()})
                tokens += len(next(iter(parts[-1].values())))
            if len(parts) > self._tried and tokens < len(parts):
                raise DictlabError(
                    f"token selection: {tokens} tokens count in {len(parts) * self._per_forward} contexts; let more of "
                    "them count."
                )
        if not parts:
            return _Block(begins, {}, complete=False)
        joined = {site: torch.cat([part[site] for part in parts]) for site in parts[0]}
        return _Block(begins, self._permuted(joined, f"block {number} of activations"), complete and not last)

    def _early(self, carried: int, block: _Block) -> int:
        """How much of a block goes out at once: half of it, so that whole batches go out; at the end all of it."""
        half = block.tokens // 2
        return half - (carried + half) % self._batch if block.complete else block.tokens

    def _mixed(self, chunk: int, late: Sites, early: Sites) -> Sites:
        sites = early or late
        joined = {site: torch.cat([x[site] for x in (late, early) if x]) for site in sites}
        return self._permuted(joined, f"chunk {chunk} of activations")

    def _permuted(self, vectors: Sites, purpose: str) -> Sites:
        if not vectors:
            return vectors
        n = len(next(iter(vectors.values())))
        order = torch.randperm(n, generator=seeds.generator(self._seed, purpose))
        return {site: x[order.to(x.device)] for site, x in vectors.items()}


class ContextStream:
    """Batches of whole contexts of token ids, in the order of the text.

    Args:
        contexts: From a position to the contexts that follow it.
        size: Contexts a batch.
        start: `position()` of an earlier stream of the same settings.
    """

    def __init__(
        self, contexts: Callable[[Position | None], Contexts], *, size: int, start: Mapping[str, Any] | None = None
    ) -> None:
        self._contexts, self._size = contexts(None if start is None else Position.of(dict(start["text"]))), size

    def position(self) -> dict[str, Any]:
        """Where in the text it is."""
        return {"text": self._contexts.position.record()}

    def __iter__(self) -> Iterator[Int[Tensor, "batch context"]]:
        """Batches; the last one, where the text ends, is dropped if it is smaller."""
        while len(group := list(islice(self._contexts, self._size))) == self._size:
            yield torch.stack(group)


def _whole_batches(vectors: Sites, size: int) -> Iterator[Sites]:
    n = len(next(iter(vectors.values()))) if vectors else 0
    for at in range(0, n - size + 1, size):
        yield {site: x[at : at + size] for site, x in vectors.items()}
