"""How well does a dictionary reconstruct, where there are activations and no model?

L0, MSE and explained variance as `evaluate` measures them, sequence by sequence, with the same intervals; what needs a
model (CE, KL) is left out. `evaluate_activations` measures what there is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from dictlab.data.activations import Activations, ModelActivations, moments, unit_of
from dictlab.dictionary import Dictionary
from dictlab.dictionary.union import emitting
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.evaluate import active_by_sequence, evaluate, reconstruct_selected, sums_by_sequence
from dictlab.evaluation.metrics import Evaluation
from dictlab.evaluation.sites import check_one_site


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
            dictionaries,
            activations.model,
            text,
            contexts=contexts,
            context=length,
            seed=seed,
            partial=partial,
            selection=activations.selection,
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
        DictlabError: A dictionary is a transcoder or has another width, a reconstruction is not finite, or the
            activations do not vary.
    """
    check_one_site(dictionaries, "measuring on an array of activations")
    sample_moments = moments(activations.sample(tokens, seed=seed))
    if not sample_moments.variance > 0:
        raise DictlabError(
            f"data {activations.name}: what is measured on ({sample_moments.n} {activations.counted}) does not vary, "
            "so there is nothing to explain. Give more rows."
        )
    mean = sample_moments.mean
    rows: list[list[dict[str, Tensor]]] = [[] for _ in dictionaries]
    active: list[list[Tensor]] = [[] for _ in dictionaries]
    digest = hashlib.sha256()
    sequences = 0
    for x in activations.sample(tokens, seed=seed):
        digest.update(x.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        sequences += len(x)
        counted = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        for row, fired, dictionary in zip(rows, active, dictionaries, strict=True):
            codes, x_hat = reconstruct_selected(dictionary, x, counted)
            row.append(sums_by_sequence(x, x_hat, codes, counted, mean))
            fired.append(active_by_sequence(codes, counted))
    return [
        Evaluation(
            dictionary.name,
            {key: torch.cat([row[key] for row in measured]).double().cpu().numpy() for key in measured[0]},
            torch.cat(fired)[:, emitting(dictionary.activation, dictionary.n_latents)],
            seed,
            digest.hexdigest()[:16],
            sequences,
            unit_of(activations),
            activations.counted,
            activations.selection,
        )
        for dictionary, measured, fired in zip(dictionaries, rows, active, strict=True)
    ]
