"""Does the model mind when one latent of LARGE is inserted into SMALL?

x_hat is SMALL's reconstruction, f_i and d_i the activation and decoder direction of latent i of LARGE. The model runs
with x_hat at the site, and again with x_hat + f_i d_i:

    change in CE = CE(x_hat + f_i d_i) - CE(x_hat)          next-token cross-entropy, nats a token
    change in KL = KL(clean || x_hat + f_i d_i) - KL(clean || x_hat)

both paired, over the tokens of the sample that count (where the latent is silent, nothing changes); the others keep
their activations. One clean forward of a batch serves all latents; only the sequences where a latent fires are run with
it, and only from the site on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.common.patching import FORWARD_TOKENS, PARTS, CleanRun, check_some_count, clean_runs
from dictlab.dictionary import Dictionary
from dictlab.evaluation.evaluate import reconstruct_selected
from dictlab.evaluation.sites import site_of
from dictlab.model.language_model import LanguageModel
from dictlab.numerics.statistics import Array, BySequence, Formula
from dictlab.runtime.progress import track
from dictlab.token_selection import ALL, TokenSelection

CHANGES = {"MSE": ("squared error", "coordinates"), "CE": ("CE", "predicted"), "KL": ("KL", "tokens")}


class Changes(NamedTuple):
    """What each of some latents changes, `[latents]`, with paired 95 % bootstrap intervals over sequences."""

    value: Array
    low: Array
    high: Array


@torch.no_grad()
def insertion_behaviour(
    small: Dictionary,
    large: Dictionary,
    latents: Sequence[int],
    model: LanguageModel,
    sequences: Int[Tensor, "sequences context"],
    *,
    selection: TokenSelection = ALL,
    seed: int = 0,
) -> BySequence:
    """What some latents of LARGE, each inserted alone into SMALL, change in squared error, CE and KL.

    Args:
        small: The dictionary that is added to; on the model's device, and reading its activations.
        large: The dictionary whose latents are added, likewise.
        latents: Which.
        model: The language model.
        sequences: Token ids.
        selection: Tokens that count.
        seed: Of the resampling.

    Returns:
        Sums over the tokens of each sequence that count: the changes as `[sequences, latents]` under "squared error",
        "CE" and "KL", SMALL's own "CE" and "KL" beyond the clean run as `[sequences, 1]` under "CE of SMALL" and "KL of
        SMALL", "firings" `[sequences, latents]`, and the numbers that means are taken over.

    Raises:
        DictlabError: A reconstruction is not finite, or no token counts.
    """
    site = site_of(small)
    rows: list[dict[str, Array]] = []
    size = max(1, FORWARD_TOKENS // sequences.shape[1])
    for tokens in track(sequences.split(size), "behaviour", unit="batches"):
        clean_run = clean_runs(model, tokens, [site], selection)[site]
        x = clean_run.x.float()
        x_hat = reconstruct_selected(small, x, clean_run.counted)[1]
        added = _activations(large, latents, x, clean_run.counted)
        rows += [
            _sequence(_one(clean_run, i), x_hat[i], added[i], large.W_dec[list(latents)].to(x)) for i in range(len(x))
        ]
    sums = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    check_some_count(int(sums["tokens"].sum()), selection)
    return BySequence(sums, seed)


def change(what: str) -> Formula:
    """The mean change a token (a coordinate, of MSE) in one of CHANGES."""
    sums, number = CHANGES[what]
    return lambda s: s[sums] / s[number]


def of_small(what: str) -> Formula:
    """SMALL's own "CE" or "KL" beyond the clean run, mean a token."""
    number = CHANGES[what][1]
    return lambda s: s[f"{what} of SMALL"] / s[number]


def changes(found: BySequence, what: str) -> Changes:
    """The change of each latent in one of CHANGES, with its interval."""
    return Changes(found.value(change(what)), *found.interval(change(what)))


def _activations(
    large: Dictionary,
    latents: Sequence[int],
    x: Float[Tensor, "batch context d_in"],
    counted: Bool[Tensor, "batch context"],
) -> Float[Tensor, "batch context latents"]:
    """What the latents emit at the tokens that count, in the units of x; 0 at the others."""
    rows = x[counted]
    codes = large.encode(rows)
    values = large.codes_in_input_units(codes, rows).values
    place = torch.full((large.n_latents,), -1, device=x.device)
    place[list(latents)] = torch.arange(len(latents), device=x.device)
    wanted = place[codes.indices] >= 0
    emitted: Tensor = x.new_zeros(codes.n_tokens, len(latents))
    emitted[codes.rows[wanted], place[codes.indices[wanted]]] = values[wanted].to(x)
    out = x.new_zeros(*x.shape[:-1], len(latents))
    out[counted] = emitted
    return out


def _one(clean_run: CleanRun, number: int) -> CleanRun:
    """One sequence of a clean_run."""
    here = slice(number, number + 1)
    return replace(clean_run, **{name: getattr(clean_run, name)[here] for name in PARTS})


def _sequence(
    clean_run: CleanRun,
    x_hat: Float[Tensor, "context d_in"],
    added: Float[Tensor, "context latents"],
    directions: Float[Tensor, "latents d_in"],
) -> dict[str, Array]:
    """The sums of one sequence."""
    firing = (added != 0).any(dim=0).nonzero().squeeze(1)
    context, width = x_hat.shape

    def versions() -> Iterator[Float[Tensor, "versions 1 context d_in"]]:
        yield x_hat[None, None]
        for some in firing.split(max(1, FORWARD_TOKENS // context)) if len(firing) else ():
            yield (x_hat + added.T[some, :, None] * directions[some, None])[:, None]

    out = clean_run.outputs(versions())
    counted, predicting = clean_run.counted[0], clean_run.predicting[0]
    ce, kl = (out.ce[:, 0, predicting].double().sum(dim=1).cpu(), out.kl[:, 0, counted].double().sum(dim=1).cpu())
    # |r - f d|^2 - |r|^2 = f^2 |d|^2 - 2 f (d . r)
    residual = (clean_run.x[0].float() - x_hat).double()
    overlap = ((residual @ directions.double().T) * added).sum(dim=0)
    squared = added.double().square().sum(dim=0) * directions.double().square().sum(dim=1) - 2 * overlap
    changes = {name: np.zeros(added.shape[1]) for name in ("CE", "KL")}
    for name, values in (("CE", ce), ("KL", kl)):
        changes[name][firing.cpu().numpy()] = (values[1:] - values[0]).numpy()
    return changes | {
        "squared error": squared.cpu().numpy(),
        "firings": (added != 0).sum(dim=0).double().cpu().numpy(),
        "CE of SMALL": (ce[:1] - out.ce_clean[0, predicting].double().sum().cpu()).numpy(),
        "KL of SMALL": kl[:1].numpy(),
        "tokens": np.array([float(counted.sum())]),
        "predicted": np.array([float(predicting.sum())]),
        "coordinates": np.array([float(counted.sum() * width)]),
    }
