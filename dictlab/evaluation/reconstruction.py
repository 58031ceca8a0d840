"""How well does a dictionary reconstruct, where there are activations and no model?

L0, MSE and explained variance as `evaluate` measures them, sequence by sequence, with the same intervals; what needs a
model (CE, KL) is left out. `evaluate_activations` measures what there is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dictlab.data.activations import Activations, ModelActivations, moments, unit_of
from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import emitting
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.evaluate import check_finite, evaluate
from dictlab.evaluation.metrics import Evaluation


def evaluate_activations(
    dictionaries: Sequence[Dictionary],
    activations: Activations,
    *,
    contexts: int,
    seed: int = 0,
    partial: bool = False,
) -> list[Evaluation]:
    """Measure dictionaries by all metrics where a model is behind the activations, else by those of reconstruction.

    Args:
        dictionaries: At the place of the activations; of a model, each at the site in its metadata.
        activations: Where from; the held-out split, if it is to mean anything.
        contexts: Sequences to measure; fewer where there are no more.
        seed: Of the sample and the bootstrap.
        partial: With a model: on Ctrl-C, return what is complete, if that is two sequences or more.

    Raises:
        DictlabError: As `evaluate` and `reconstruction` do.
    """
    check_at_least(1, contexts=contexts)
    if isinstance(activations, ModelActivations):
        text, length = activations.text, activations.context
        return evaluate(
            dictionaries, activations.model, text, contexts=contexts, context=length, seed=seed, partial=partial
        )
    return evaluate_reconstruction(dictionaries, activations, tokens=contexts * activations.context, seed=seed)


@torch.no_grad()
def evaluate_reconstruction(
    dictionaries: Sequence[Dictionary], activations: Activations, *, tokens: int, seed: int = 0
) -> list[Evaluation]:
    """Measure dictionaries on a sample of activations, in two passes: the mean, then the errors about it.

    Args:
        dictionaries: All of the width of the activations.
        activations: Where from; the held-out split, if it is to mean anything.
        tokens: Activations to measure on.
        seed: Of the sample and the bootstrap.

    Raises:
        DictlabError: A dictionary has another width, a reconstruction is not finite, or the activations do not vary.
    """
    sample_moments = moments(activations.sample(tokens, seed=seed))
    if not sample_moments.variance > 0:
        raise DictlabError(
            f"data {activations.name}: what is measured on ({sample_moments.n} {activations.counted}) does not vary, "
            "so there is nothing to explain. Give more rows."
        )
    mean = sample_moments.mean
    rows: list[list[dict[str, Tensor]]] = [[] for _ in dictionaries]
    fired: list[list[Tensor]] = [[] for _ in dictionaries]
    digest = hashlib.sha256()
    sequences = 0
    for x in activations.sample(tokens, seed=seed):
        digest.update(x.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        sequences += len(x)
        for own, active, dictionary in zip(rows, fired, dictionaries, strict=True):
            row, on = _measured(dictionary, x, mean.to(x))
            own.append(row)
            active.append(on)
    return [
        Evaluation(
            dictionary.name,
            {key: torch.cat([row[key] for row in own]).double().cpu().numpy() for key in own[0]},
            torch.cat(active)[:, emitting(dictionary.activation, dictionary.n_latents)],
            seed,
            digest.hexdigest()[:16],
            sequences,
            unit_of(activations),
            activations.counted,
        )
        for dictionary, own, active in zip(dictionaries, rows, fired, strict=True)
    ]


def _measured(dictionary: Dictionary, x: Tensor, mean: Tensor) -> tuple[dict[str, Tensor], Any]:
    """Sums over the tokens of each sequence, and which latents were active in it."""
    batch, length, d_in = x.shape
    codes, x_hat = dictionary(x)
    check_finite(dictionary, x_hat)
    row = {
        "tokens": torch.full((batch,), float(length)),
        "coordinates": torch.full((batch,), float(length * d_in)),
        "l0": codes.l0().reshape(batch, length).sum(dim=1),
        "squared_error": (x - x_hat).double().square().sum(dim=(1, 2)),
        "variance": (x - mean).double().square().sum(dim=(1, 2)),
    }
    active = torch.zeros(batch, dictionary.n_latents)
    on = codes.values != 0
    active[(codes.rows[on] // length).cpu(), codes.indices[on].cpu()] = 1.0
    return row, active
