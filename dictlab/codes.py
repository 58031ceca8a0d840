"""Sparse codes: which latents are active for which token, and how strongly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Codes(NamedTuple):
    """Sparse codes of a batch of tokens, in compressed rows: token t owns `offsets[t]:offsets[t + 1]`.

    An entry may hold the value 0 (a latent that TopK chose and ReLU then silenced); a latent is *active* where its
    value is not 0. Latents absent from a row have the activation 0.
    """

    values: Float[Tensor, " nnz"]
    indices: Int[Tensor, " nnz"]
    offsets: Int[Tensor, " tokens+1"]
    n_latents: int

    @property
    def n_tokens(self) -> int:
        return len(self.offsets) - 1

    @property
    def rows(self) -> Int[Tensor, " nnz"]:
        """The token of each entry."""
        return torch.repeat_interleave(
            torch.arange(self.n_tokens, device=self.offsets.device), self.offsets.diff(), output_size=len(self.values)
        )

    def dense(self) -> Float[Tensor, "tokens n_latents"]:
        """The same codes as a full matrix."""
        matrix = self.values.new_zeros(self.n_tokens, self.n_latents)
        return matrix.index_put((self.rows, self.indices), self.values)

    def l0(self) -> Int[Tensor, " tokens"]:
        """Active latents of each token."""
        return torch.zeros_like(self.offsets[1:]).index_add_(0, self.rows, (self.values != 0).long())

    def firings(self) -> Int[Tensor, " n_latents"]:
        """Tokens at which each latent is active."""
        return torch.bincount(self.indices[self.values != 0], minlength=self.n_latents)


def concatenate(parts: list[Codes]) -> Codes:
    """Codes of several groups of tokens, one after the other."""
    counts = torch.cat([part.offsets.diff() for part in parts])
    return Codes(
        torch.cat([p.values for p in parts]),
        torch.cat([p.indices for p in parts]),
        offsets_of(counts),
        parts[0].n_latents,
    )


def offsets_of(counts: Int[Tensor, " tokens"]) -> Int[Tensor, " tokens+1"]:
    """Where each token's entries begin and end, from how many it has."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
