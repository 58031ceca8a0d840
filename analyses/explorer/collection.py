"""One pass over a sample of text: the codes of every dictionary, and what each latent would do in the others.

The model runs once a batch for all dictionaries. Codes go to disk (`code_store`); the effect of inserting each latent
alone into another dictionary follows from running sums (`insertion_effects`). Memory: one batch, and the sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.common.inputs import ModelInputs
from analyses.composition.insertion.insertion_effects import EffectSums, InsertionEffects
from analyses.explorer.code_store import CodeWriter, StoredCodes
from analyses.explorer.collection_state import RunningVariance, resumed, save_state
from dictlab.data.activations import FORWARD_TOKENS
from dictlab.dictionary import Dictionary
from dictlab.evaluation.evaluate import check_finite
from dictlab.evaluation.sites import site_of
from dictlab.runtime.progress import Phase

SAVED_EVERY = 20.0  # seconds between two states


class Fidelity(NamedTuple):
    """How well a dictionary does on the sample, to be compared with what its file says.

    Attributes:
        l0: Mean number of active latents a token.
        mse: Mean squared error over tokens and coordinates, in activation².
        unexplained: Fraction of variance unexplained: squared error over squared distance from the mean activation.
    """

    l0: float
    mse: float
    unexplained: float


@dataclass(frozen=True, eq=False)
class Collected:
    """What the pass over the sample gave.

    Attributes:
        sequences: Token ids.
        n_counted: Tokens that count.
        codes: Of each dictionary.
        effects: Of inserting each latent of dictionary `large` alone into dictionary `small`, by (small, large); for
            every two of which SMALL has no more latents.
        fidelity: Of each dictionary.
    """

    sequences: Int[Tensor, "sequences context"]
    n_counted: int
    codes: list[StoredCodes]
    effects: dict[tuple[int, int], InsertionEffects]
    fidelity: list[Fidelity]


class _Group(NamedTuple):
    """Sequences of a batch with equally many tokens that count.

    Attributes:
        token: Of each counted token its index among all tokens of the batch.
        context: Counted tokens a sequence.
        x: The activations, by site.
    """

    token: Int[Tensor, " rows"]
    context: int
    x: dict[str, Float[Tensor, "rows d_in"]]


@torch.no_grad()
def collect(inputs: ModelInputs, sequences: Int[Tensor, "sequences context"], folder: Path) -> Collected:
    """Run a sample through the model and all dictionaries.

    Args:
        inputs: Dictionaries, the model, and which tokens count.
        sequences: Token ids.
        folder: For the codes, which stay there as long as they are needed. Where an earlier call on the same inputs and
            sequences was stopped, this one goes on from its last state, with the same result bit by bit.

    Raises:
        DictlabError: The codes of a dictionary are not all finite.
    """
    dictionaries = [d.to(dtype=torch.float32) for d in inputs.adapted]
    sums = {pair: EffectSums(dictionaries[pair[1]].W_dec) for pair in comparable_pairs(dictionaries)}
    variance = RunningVariance()
    writers = resumed(folder, [d.n_latents for d in dictionaries], sums, variance)
    size = max(1, FORWARD_TOKENS // sequences.shape[1])
    with Phase("Running the sample", sequences.numel(), unit="tokens") as phase:
        phase.advance(writers[0].tokens)
        saved = monotonic()
        left = sequences[writers[0].tokens // sequences.shape[1] :]
        for tokens in left.split(size) if len(left) else ():
            groups = list(_groups(inputs, tokens))
            _add(dictionaries, groups, tokens.numel(), writers, sums, variance)
            phase.advance(tokens.numel())
            if monotonic() - saved >= SAVED_EVERY:
                save_state(folder, writers, sums, variance)
                saved = monotonic()
    save_state(folder, writers, sums, variance)
    codes = []
    with Phase("Sorting activations by latent", len(writers), unit="dictionaries") as phase:
        for writer in writers:
            codes.append(writer.close())
            phase.advance()
    fidelity = [Fidelity(len(c.latents) / max(1, variance.tokens), *variance.errors(i)) for i, c in enumerate(codes)]
    small_rates = [torch.from_numpy(c.active) / max(1, variance.tokens) for c in codes]
    effects = {(a, b): one.effects(dictionaries[b].name, small_rates[a]) for (a, b), one in sums.items()}
    return Collected(sequences, variance.tokens, codes, effects, fidelity)


def comparable_pairs(dictionaries: Sequence[Dictionary]) -> list[tuple[int, int]]:
    """Every (SMALL, LARGE) of which SMALL has no more latents; both orders of two of one size."""
    n = range(len(dictionaries))
    return [(a, b) for a in n for b in n if a != b and dictionaries[a].n_latents <= dictionaries[b].n_latents]


def _groups(inputs: ModelInputs, tokens: Int[Tensor, "batch context"]) -> Iterator[_Group]:
    captured = inputs.model.capture(tokens, inputs.sites)
    counted = inputs.selection.mask(captured.values(), tokens, inputs.model.tokenizer)
    index = torch.arange(tokens.numel(), device=counted.device).view(tokens.shape)
    numbers = counted.sum(dim=1)
    for number in numbers.unique().tolist():
        if number:
            of_group: Bool[Tensor, "batch context"] = counted & (numbers == number)[:, None]
            yield _Group(index[of_group], number, {site: x[of_group].float() for site, x in captured.items()})


def _add(
    dictionaries: Sequence[Dictionary],
    groups: Sequence[_Group],
    n_tokens: int,
    writers: Sequence[CodeWriter],
    sums: dict[tuple[int, int], EffectSums],
    variance: RunningVariance,
) -> None:
    """Add the sequences of a batch to codes and sums."""
    parts: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in dictionaries]
    for group in groups:
        errors, explained, entries = [], [], []
        for i, dictionary in enumerate(dictionaries):
            x = group.x[site_of(dictionary)]
            codes, x_hat = dictionary(x)
            check_finite(dictionary, codes.values[:, None])
            check_finite(dictionary, x_hat)
            undo = dictionary.normalisation(x)[1]
            errors.append(x - x_hat)
            explained.append((x_hat - (dictionary.b_out * undo.scale + undo.shift)).double())
            entries.append((codes, dictionary.codes_in_input_units(codes, x).values))
            parts[i].append((group.token[codes.rows], codes.indices, codes.values))
        variance.add(group.x[site_of(dictionaries[0])], errors)
        for (small, large), one in sums.items():
            one.add(*entries[large], errors[small], explained[small], group.context)
    for writer, found in zip(writers, parts, strict=True):
        if found:
            token, latent, activation = (torch.cat(part) for part in zip(*found, strict=True))
            writer.append(token, latent, activation, n_tokens)
        else:
            writer.skip(n_tokens)
