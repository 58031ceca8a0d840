"""What does one latent of LARGE do to SMALL's error when it is inserted alone?

Nothing is refitted (Bussmann, Leask et al. 2024; Leask et al. 2025):

    x_hat' = x_hat_small + f_i d_i

A latent is *novel* if the mean squared error falls, a *reconstruction* latent if not: then SMALL already has what it
adds. With r = x - x_hat_small the change follows from two running sums, for all latents in one pass:

    change_i = ( E[f_i^2] |d_i|^2 - 2 E[f_i (d_i . r)] ) / d_in

The scale that would serve best is beta_i = E[f_i (d_i . r)] / (E[f_i^2] |d_i|^2); the change is negative where
beta_i > 1/2. A latent that was never active, or that has no decoder direction, inserts nothing; it is *dead*.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.pool.dictionary_chain import DictionaryChain
from analyses.pool.quadratic_error import token_blocks
from dictlab.dictionary import Dictionary
from dictlab.dictionary.codes import Codes
from dictlab.dictionary.kernels.sparse import decode, products_at
from dictlab.errors import DictlabError
from dictlab.evaluation.evaluate import check_finite

BLOCK = 4096  # tokens of a pool's sample that are decoded at once, about


class InsertionEffects(NamedTuple):
    """What inserting each latent of LARGE alone does to SMALL's error, `[n_large]` each.

    Attributes:
        change: Change in MSE (mean over tokens and coordinates), in the activations' units squared.
        error: Standard error of `change` over sequences; NaN for a single sequence.
        scale: The factor that would serve best; NaN for a dead latent.
        firing_rate: Share of tokens at which the latent was active.
        small_firing_rate: Share of tokens at which each latent of SMALL was active, `[n_small]`.
        strength: Mean activation where it was active, in the activations' units; NaN where it never was.
        dead: Never active on these tokens, or without a decoder direction.
        tokens: Tokens measured.
        sequences: Sequences measured.
        mse: SMALL's own MSE on them.
        stretch: The factor by which SMALL's reconstruction, less its bias, would serve best; above 1 it is too short.
    """

    change: Float[Tensor, " n_large"]
    error: Float[Tensor, " n_large"]
    scale: Float[Tensor, " n_large"]
    firing_rate: Float[Tensor, " n_large"]
    small_firing_rate: Float[Tensor, " n_small"]
    strength: Float[Tensor, " n_large"]
    dead: Bool[Tensor, " n_large"]
    tokens: int
    sequences: int
    mse: float
    stretch: float

    @property
    def novel(self) -> Bool[Tensor, " n_large"]:
        """Latents that lower the error; dead ones do not."""
        return (self.change < 0) & ~self.dead

    def dead_latents(self, small: str, large: str) -> dict[str, int]:
        """Latents of each of the two, by name, that were never active on the sample."""
        return {small: int((self.small_firing_rate == 0).sum()), large: int((self.firing_rate == 0).sum())}

    def of_mse(self, change: float) -> float:
        """A change as a share of SMALL's MSE; NaN where that is 0."""
        return change / self.mse if self.mse > 0 else float("nan")


@torch.no_grad()
def insertion_effects(
    small: Dictionary, large: Dictionary, batches: Iterable[Float[Tensor, "batch context d_in"]]
) -> InsertionEffects:
    """The effect of inserting each latent of LARGE alone into SMALL, for all of them in one pass over activations.

    Exact: equal to one forward a latent, to float rounding. The output bias stays SMALL's. Cost: encoding, and
    (active latents) x d_in a token. Memory: (sequences a batch) x n_large.

    Args:
        small: The dictionary that is added to.
        large: The dictionary whose latents are added.
        batches: Activations, sequence by sequence; sequences of equal length.

    Raises:
        DictlabError: What a dictionary makes of the activations is not all finite.
    """
    sums, small_counts = EffectSums(large.W_dec), torch.zeros(small.n_latents, dtype=torch.long)
    for batch in batches:
        x = batch.flatten(0, 1)
        small_codes, x_hat = small(x)
        check_finite(small, x_hat)
        small_counts += small_codes.active_counts().cpu()
        codes, undo = large.encode(x), small.normalisation(x)[1]
        bias = small.b_out * undo.scale + undo.shift
        values = large.codes_in_input_units(codes, x).values
        sums.add(codes, values, x - x_hat, (x_hat - bias).double(), batch.shape[1])
    return sums.effects(large.name, small_counts / sums.tokens)


@torch.no_grad()
def effects_in_pool(chain: DictionaryChain, into: Bool[np.ndarray, " n_pool"], number: int) -> InsertionEffects:
    """`insertion_effects` from the codes of a chain: latents of one dictionary inserted into some of the pool's.

    Nothing is encoded again. The output bias is that of the chain's first dictionary.

    Args:
        chain: Encoded on a sample.
        into: Latents that make SMALL.
        number: The dictionary of the chain whose latents are inserted, each alone.

    Raises:
        DictlabError: Codes or reconstructions are not all finite.
    """
    latents, sample = chain.latents_of(number), chain.sample
    directions = chain.pool.W_dec.detach().float().cpu()
    kept = torch.where(torch.from_numpy(into)[:, None], directions, 0.0)
    bias, large = torch.from_numpy(chain.biases[0]).float(), directions[latents]
    sums = EffectSums(large)
    for codes, rows in token_blocks(sample, max(1, BLOCK // chain.context) * chain.context):
        explained = decode(codes, kept)
        target = torch.from_numpy(sample.target[rows]) - torch.from_numpy(sample.scale[rows, None]).float() * bias
        residual = target - explained
        check_finite(chain.dictionaries[0], residual)
        inserted = _columns(codes, latents)
        sums.add(inserted, inserted.values, residual, explained.double(), chain.context)
    return sums.effects(chain.dictionaries[number].name, torch.from_numpy(sample.firing_rate[into]))


_SUMS = {  # of EffectSums, and what they are kept in
    **dict.fromkeys(("energy", "overlap", "squares", "emitted", "lengths", "squared_error"), torch.double),
    **dict.fromkeys(("firings", "tokens", "sequences"), torch.long),
}


class EffectSums:
    """Running sums over tokens, and sequences, that the effects follow from."""

    def __init__(self, directions: Float[Tensor, "n_large d_in"]) -> None:
        n = len(directions)
        self.directions = directions
        self.norm = directions.square().sum(dim=1).double().cpu()
        self.energy, self.overlap, self.squares, self.emitted = (torch.zeros(n, dtype=torch.double) for _ in range(4))
        self.firings = torch.zeros(n, dtype=torch.long)
        self.lengths = torch.zeros(2, dtype=torch.double)  # sums of y . y_hat and of |y_hat|^2
        self.tokens, self.sequences, self.squared_error = 0, 0, 0.0

    def add(
        self,
        codes: Codes,
        values: Float[Tensor, " nnz"],
        residual: Float[Tensor, "tokens d_in"],
        explained: Float[Tensor, "tokens d_in"],
        context: int,
    ) -> None:
        """Add whole sequences.

        Args:
            codes: Of LARGE.
            values: What they add to a reconstruction, in multiples of the directions.
            residual: What SMALL leaves.
            explained: What SMALL's latents add up to, without its bias, in float64.
            context: Tokens a sequence.
        """
        n, d_in = self.directions.shape
        sequences = len(residual) // context
        f, along = values.double().cpu(), products_at(codes, residual, self.directions).double().cpu()
        cell = codes.rows.cpu() // context * n + codes.indices.cpu()

        def by_sequence(terms: Tensor) -> Tensor:
            return torch.bincount(cell, weights=terms, minlength=sequences * n).view(sequences, n)

        energy, overlap = by_sequence(f.square()), by_sequence(f * along)
        self.energy += energy.sum(dim=0)
        self.overlap += overlap.sum(dim=0)
        self.squares += ((energy * self.norm - 2 * overlap) / (context * d_in)).square().sum(dim=0)
        self.emitted += by_sequence(f).sum(dim=0)
        self.firings += codes.active_counts().cpu()
        square = explained.square().sum()
        self.lengths += torch.stack([(residual.double() * explained).sum() + square, square]).cpu()
        self.squared_error += float(residual.double().square().sum())
        self.tokens += len(residual)
        self.sequences += sequences

    def state(self) -> dict[str, Tensor]:
        """All sums so far, exactly; `restore` takes them up again."""
        return {name: torch.as_tensor(getattr(self, name), dtype=dtype).clone() for name, dtype in _SUMS.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from the sums that `state` gave."""
        for name in _SUMS:
            value = state[name].clone()
            setattr(self, name, value if isinstance(getattr(self, name), Tensor) else value.item())

    def effects(self, large: str, small_firing_rate: Float[Tensor, " n_small"]) -> InsertionEffects:
        """The effects of all latents of LARGE, which is named in errors."""
        d_in, n_sequences = self.directions.shape[1], self.sequences
        change = (self.energy * self.norm - 2 * self.overlap) / (self.tokens * d_in)
        if not bool(change.isfinite().all()):
            raise DictlabError(f"{large}: its codes are not all finite on the text; are its weights damaged?")
        variance = (self.squares / n_sequences - change.square()).clamp_min(0)
        error = (variance / (n_sequences - 1)).sqrt() if n_sequences > 1 else torch.full_like(change, torch.nan)
        return InsertionEffects(
            change=change,
            error=error,
            scale=self.overlap / (self.energy * self.norm),
            firing_rate=self.firings / self.tokens,
            small_firing_rate=small_firing_rate,
            strength=self.emitted / self.firings,
            dead=(self.firings == 0) | (self.norm == 0),
            tokens=self.tokens,
            sequences=n_sequences,
            mse=self.squared_error / (self.tokens * d_in),
            stretch=float(self.lengths[0] / self.lengths[1]) if self.lengths[1] > 0 else float("nan"),
        )


def _columns(codes: Codes, latents: slice) -> Codes:
    """The codes of a range of latents, counted from its first one."""
    mask = (codes.indices >= latents.start) & (codes.indices < latents.stop)
    counts = torch.bincount(codes.rows[mask], minlength=codes.n_tokens)
    offsets: Int[Tensor, " tokens+1"] = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Codes(codes.values[mask], codes.indices[mask] - latents.start, offsets, latents.stop - latents.start)
