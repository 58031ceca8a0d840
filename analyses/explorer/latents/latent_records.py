"""What the page shows of one latent: its examples with activations, histogram, tokens, nearest latents and twins.

Activations are written as whole numbers, in units of a thousandth of the latent's largest one. Of every example
they stand for the tokens up to `REACH` before and after it; a twin's stand for the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from analyses.common.neighbours import Neighbours
from analyses.composition.insertion.insertion_effects import InsertionEffects
from analyses.explorer.code_store import Column, StoredCodes
from analyses.explorer.latents.examples import BANDS, ExampleCounts, select_examples
from analyses.explorer.latents.histograms import activation_histogram
from analyses.explorer.latents.promoted_tokens import LogitTokens
from analyses.explorer.latents.twins import Twins

REACH = 64  # tokens before and after an example whose activations are kept
STEPS = 1000  # of an activation, up to the latent's largest
FIRES_ON = 8  # tokens that a latent is active on, by how often
SEEDS_APART = 4  # seeds that one latent may use


class RecordInputs(NamedTuple):
    """What records of a dictionary are made from.

    Attributes:
        number: Of the dictionary.
        codes: Of all dictionaries.
        ids: Token ids of the sample, one after the other.
        context: Tokens a sequence.
        twins: For each other dictionary, by number, its latents that are like those of this one.
        own: The nearest latents in the dictionary itself.
        logits: Tokens promoted and suppressed; None where there are none.
        effects: By dictionary that latents are inserted into.
        counts: Examples of each latent.
        seed: Of the examples.
    """

    number: int
    codes: Sequence[StoredCodes]
    ids: Int[NDArray[np.int64], " tokens"]
    context: int
    twins: dict[int, Twins]
    own: Neighbours
    logits: LogitTokens | None
    effects: Mapping[int, InsertionEffects]
    counts: ExampleCounts
    seed: int


def latent_record(inputs: RecordInputs, latent: int) -> dict[str, Any]:
    """The record of one latent.

    Keys: `examples` [group, sequence, position] each; `acts` of each example [position, activation, ...]; `unit` of
    these; `hist` and `width` of a bin; `quantiles` of activations; `on` [token id, count] that it is active on;
    `up` and `down` [token id, logit];
    `errors`, standard errors of the effects, by dictionary; `own` [latent, cosine]; `twins` by dictionary.
    """
    codes = inputs.codes[inputs.number]
    column = codes.column(latent)
    examples = select_examples(column, inputs.context, inputs.counts, latent * SEEDS_APART + inputs.seed)
    sequence, position = examples.token // inputs.context, examples.token % inputs.context
    histogram = activation_histogram(column.activations)
    record: dict[str, Any] = {
        "examples": np.stack([examples.group, sequence, position], axis=1).tolist(),
        "hist": histogram.counts.tolist(),
        "width": rounded(histogram.width),
        "quantiles": [rounded(q) for q in _band_edges(column)],
        "on": _fires_on(column, inputs.ids),
        "own": [
            [j, rounded(c)]
            for j, c in zip(inputs.own.rows[latent].tolist(), inputs.own.cosine[latent].tolist(), strict=True)
        ],
        "errors": {str(small): rounded(float(effects.error[latent])) for small, effects in inputs.effects.items()},
        **_activations(column, examples.token, inputs.context),
    }
    if inputs.logits is not None:
        record["up"] = _paired(inputs.logits.promoted[latent], inputs.logits.promoted_by[latent])
        record["down"] = _paired(inputs.logits.suppressed[latent], inputs.logits.suppressed_by[latent])
    record["twins"] = {
        str(other): [_twin(inputs, other, pairs, k, examples.token) for k in range(len(pairs.a))]
        for other, pairs in ((other, twins.of(latent)) for other, twins in inputs.twins.items())
    }
    return record


def rounded(value: float) -> float | None:
    """To five significant digits; None where it is no number, which JSON has none of."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


def _twin(inputs: RecordInputs, other: int, pairs: Twins, k: int, tokens: NDArray[np.int64]) -> dict[str, Any]:
    j = int(pairs.b[k])
    column = inputs.codes[other].column(j)
    return {
        "latent": j,
        "cosine": rounded(pairs.cosine[k]),
        "correlation": rounded(pairs.correlation[k]),
        "both": int(pairs.both[k]),
        "active": len(column.tokens),
        **_activations(column, tokens, inputs.context),
    }


def _activations(column: Column, tokens: NDArray[np.int64], context: int) -> dict[str, Any]:
    """Activations around some tokens, and the unit they are in: [position, activation, ...] by token."""
    unit = float(np.abs(column.activations).max(initial=0.0)) / STEPS
    start = tokens // context * context
    low, high = np.maximum(start, tokens - REACH), np.minimum(start + context, tokens + REACH + 1)
    first, last = np.searchsorted(column.tokens, low), np.searchsorted(column.tokens, high)
    rows = []
    for i, (a, b) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        row = np.empty(2 * (b - a), dtype=np.int64)
        row[0::2], row[1::2] = column.tokens[a:b] - start[i], np.rint(column.activations[a:b] / (unit or 1.0))
        rows.append(row.tolist())
    return {"acts": rows, "unit": rounded(unit)}


def _band_edges(column: Column) -> NDArray[np.float64]:
    """The smallest activation of each quantile band, from weakest to strongest, and the largest of all, by size."""
    if not len(column.activations):
        return np.zeros(0)
    strength: NDArray[np.float64] = np.sort(np.abs(column.activations)).astype(np.float64)
    sizes = [len(band) for band in np.array_split(strength, BANDS)]  # as `select_examples` cuts them
    starts = np.minimum(np.cumsum([0, *sizes]), len(strength) - 1)
    return np.asarray(strength[starts], dtype=np.float64)


def _fires_on(column: Column, ids: NDArray[np.int64]) -> list[list[int]]:
    """The tokens that it is active on most often, and how often."""
    found, counts = np.unique(ids[column.tokens], return_counts=True)
    order = np.lexsort((found, -counts))[:FIRES_ON]
    return np.stack([found[order], counts[order]], axis=1).tolist()  # type: ignore[no-any-return]


def _paired(tokens: NDArray[np.int64], values: NDArray[np.float32]) -> list[list[float | None]]:
    return [[token, rounded(value)] for token, value in zip(tokens.tolist(), values.tolist(), strict=True)]
