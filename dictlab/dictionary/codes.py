"""Sparse codes: which latents are active for which token, and how strongly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Columns(NamedTuple):
    """Entries sorted by latent, and by token within one: latent j owns `starts[j]:starts[j + 1]`.

    Attributes:
        order: Position of each entry in the codes, before sorting.
        rows: The token of each.
        starts: Where each latent's entries begin and end.
    """

    order: Int[Tensor, " nnz"]
    rows: Int[Tensor, " nnz"]
    starts: Int[Tensor, " n_latents+1"]


class CachedColumns:
    """`Columns` of some codes, sorted at first need: the gradients of encoder and decoder both sum over them."""

    def __init__(self) -> None:
        self._columns: Columns | None = None

    def __call__(self, indices: Int[Tensor, " nnz"], offsets: Int[Tensor, " tokens+1"], n_latents: int) -> Columns:
        """The columns of codes with these indices and offsets, sorted once."""
        if self._columns is None:
            latents, order = torch.sort(indices.int(), stable=True)
            starts = torch.searchsorted(latents, torch.arange(n_latents + 1, device=indices.device, dtype=torch.int32))
            self._columns = Columns(order, rows_of(offsets, len(indices))[order], starts)
        return self._columns


class Codes(NamedTuple):
    """Sparse codes of a batch of tokens, in compressed rows: token t owns `offsets[t]:offsets[t + 1]`.

    An entry may hold the value 0 (a latent that TopK selected and ReLU then set to 0); a latent is *active* where its
    value is not 0. Latents absent from a row have the activation 0.
    """

    values: Float[Tensor, " nnz"]
    indices: Int[Tensor, " nnz"]
    offsets: Int[Tensor, " tokens+1"]
    n_latents: int
    by_latent: CachedColumns | None = None  # shared by whatever needs the entries in that order

    def __repr__(self) -> str:
        """One line: how many tokens and latents, and the mean L0."""
        l0 = f", mean L0 {self.l0().double().mean().item():.4g}" if self.n_tokens else ""
        return f"<Codes of {self.n_tokens} tokens x {self.n_latents} latents{l0}>"

    def __getitem__(self, tokens: int | slice) -> Codes:  # type: ignore[override]
        """The codes of one token, or of a slice of tokens (without a step)."""
        every = range(self.n_tokens)
        rows = range(every[tokens], every[tokens] + 1) if isinstance(tokens, int) else every[tokens]
        if rows.step != 1:
            raise ValueError(f"codes are sliced in steps of 1, not {rows.step}.")
        offsets = self.offsets[rows.start : max(rows.start, rows.stop) + 1]
        entries = slice(int(offsets[0]), int(offsets[-1]))
        return Codes(self.values[entries], self.indices[entries], offsets - offsets[0], self.n_latents)

    @property
    def n_tokens(self) -> int:
        return len(self.offsets) - 1

    @property
    def rows(self) -> Int[Tensor, " nnz"]:
        """The token of each entry."""
        return rows_of(self.offsets, len(self.values))

    @property
    def columns(self) -> Columns:
        """The entries sorted by latent."""
        return (self.by_latent or CachedColumns())(self.indices, self.offsets, self.n_latents)

    def dense(self) -> Float[Tensor, "tokens n_latents"]:
        """The activations of all latents as a matrix, zeros included."""
        matrix = self.values.new_zeros(self.n_tokens, self.n_latents)
        return matrix.index_put((self.rows, self.indices), self.values)

    def l0(self) -> Int[Tensor, " tokens"]:
        """Number of active latents of each token."""
        return torch.zeros_like(self.offsets[1:]).index_add_(0, self.rows, (self.values != 0).long())

    def active_counts(self) -> Int[Tensor, " n_latents"]:
        """Number of tokens on which each latent is active."""
        counts = torch.zeros(self.n_latents, dtype=torch.long, device=self.indices.device)
        return counts.index_add_(0, self.indices, (self.values != 0).long())

    def active_latents(self) -> Bool[Tensor, " n_latents"]:
        """Whether each latent is active on any of these tokens."""
        return self.active_counts() > 0

    def sum_by_token(self, terms: Float[Tensor, " nnz"]) -> Float[Tensor, " tokens"]:
        """Sums of `terms`, one number an entry, over the entries of each token."""
        return terms.new_zeros(self.n_tokens).index_add(0, self.rows, terms)

    def to_sparse(self) -> Codes:
        """These codes, which are sparse already."""
        return self


class DenseCodes(NamedTuple):
    """Codes as a full matrix: smaller than entries, and quicker to multiply, where many latents are active.

    Only of activation functions that treat each latent by itself and are nowhere negative (`Elementwise`).
    """

    values: Float[Tensor, "tokens n_latents"]

    @property
    def n_tokens(self) -> int:
        return self.values.shape[0]

    @property
    def n_latents(self) -> int:
        return self.values.shape[1]

    def dense(self) -> Float[Tensor, "tokens n_latents"]:
        """The activations of all latents as a matrix, zeros included."""
        return self.values

    def l0(self) -> Int[Tensor, " tokens"]:
        """Number of active latents of each token."""
        return self.values.count_nonzero(dim=1)

    def active_counts(self) -> Int[Tensor, " n_latents"]:
        """Number of tokens on which each latent is active."""
        return self.values.count_nonzero(dim=0)

    def active_latents(self) -> Bool[Tensor, " n_latents"]:
        """Whether each latent is active on any of these tokens."""
        return self.values.sum(dim=0) > 0  # 14 times faster than counting

    def sum_by_token(self, terms: Float[Tensor, "tokens n_latents"]) -> Float[Tensor, " tokens"]:
        """Sums of `terms`, one number an entry, over the entries of each token."""
        return terms.sum(dim=1)

    def to_sparse(self) -> Codes:
        """The active latents as entries of compressed rows."""
        rows, indices = self.values.nonzero(as_tuple=True)
        return Codes(self.values[rows, indices], indices, offsets_of(self.values.count_nonzero(dim=1)), self.n_latents)


def concatenate(parts: list[Codes]) -> Codes:
    """Codes of several groups of tokens, one after the other."""
    if len(parts) == 1:
        return parts[0]
    counts = torch.cat([part.offsets.diff() for part in parts])
    return Codes(
        torch.cat([p.values for p in parts]),
        torch.cat([p.indices for p in parts]),
        offsets_of(counts),
        parts[0].n_latents,
    )


def rows_of(offsets: Int[Tensor, " tokens+1"], entries: int) -> Int[Tensor, " nnz"]:
    """The token of each entry, from where each token's entries begin."""
    tokens = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(tokens, offsets.diff(), output_size=entries)


def offsets_of(counts: Int[Tensor, " tokens"]) -> Int[Tensor, " tokens+1"]:
    """Where each token's entries begin and end, from how many it has."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
