"""Does the model mind when one latent of LARGE is inserted into SMALL?

x_hat is SMALL's reconstruction, f_i and d_i the activation and decoder direction of latent i of LARGE. The model runs
with x_hat at the site, and again with x_hat + f_i d_i:

    change in CE = CE(x_hat + f_i d_i) - CE(x_hat)          next-token cross-entropy, nats a token
    change in KL = KL(clean || x_hat + f_i d_i) - KL(clean || x_hat)

both paired, over all tokens of the sample (where the latent is silent, nothing changes). One clean forward of a batch
serves all latents; only the sequences where a latent fires are run with it, and only from the site on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from analyses.common.patching import FORWARD_TOKENS, PARTS, CleanRun, clean_runs
from dictlab.dictionary import Dictionary
from dictlab.evaluation.evaluate import check_finite, site_of
from dictlab.model.language_model import LanguageModel
from dictlab.statistics import Array, BySequence, Formula

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
    seed: int = 0,
) -> BySequence:
    """What some latents of LARGE, each inserted alone into SMALL, change in squared error, CE and KL.

    Args:
        small: The dictionary that is added to; on the model's device, and reading its activations.
        large: The dictionary whose latents are added, likewise.
        latents: Which.
        model: The language model.
        sequences: Token ids.
        seed: Of the resampling.

    Returns:
        Sums over the tokens of each sequence: the changes as `[sequences, latents]` under "squared error", "CE" and
        "KL", SMALL's own "CE" and "KL" beyond the clean run as `[sequences, 1]` under "CE of SMALL" and "KL of SMALL",
        "firings" `[sequences, latents]`, and the numbers that means are taken over.
    """
    site = site_of(small)
    rows: list[dict[str, Array]] = []
    size = max(1, FORWARD_TOKENS // sequences.shape[1])
    for tokens in tqdm(sequences.split(size), desc="behaviour", leave=False):
        clean_run = clean_runs(model, tokens, [site])[site]
        x = clean_run.x.float()
        x_hat = small.reconstruct(x)
        check_finite(small, x_hat)
        added = _activations(large, latents, x)
        rows += [
            _sequence(_one(clean_run, i), x_hat[i], added[i], large.W_dec[list(latents)].to(x)) for i in range(len(x))
        ]
    return BySequence({name: np.stack([row[name] for row in rows]) for name in rows[0]}, seed)


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


def _activations(large: Dictionary, latents: Sequence[int], x: Tensor) -> Float[Tensor, "batch context latents"]:
    """What the latents emit, in the units of x."""
    codes = large.encode(x)
    values = large.codes_in_input_units(codes, x).values
    place = torch.full((large.n_latents,), -1, device=x.device)
    place[list(latents)] = torch.arange(len(latents), device=x.device)
    wanted = place[codes.indices] >= 0
    out: Tensor = x.new_zeros(codes.n_tokens, len(latents))
    out[codes.rows[wanted], place[codes.indices[wanted]]] = values[wanted].to(x)
    return out.view(*x.shape[:-1], len(latents))


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
    ce, kl = out.ce[:, 0, :-1].double().sum(dim=1).cpu(), out.kl[:, 0].double().sum(dim=1).cpu()
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
        "CE of SMALL": (ce[:1] - out.ce_clean[0, :-1].double().sum().cpu()).numpy(),
        "KL of SMALL": kl[:1].numpy(),
        "tokens": np.array([float(context)]),
        "predicted": np.array([context - 1.0]),
        "coordinates": np.array([float(context * width)]),
    }
