"""Is a stitched dictionary a better start than its parents, trained on for the same tokens at the same L0?

Stitching trains nothing: encoders stay as they were, and latents of two dictionaries that mean the same take two places
of a token's k. The ordinary trainer can undo that. It goes on, at one k, from

    stitched     the result
    parent       the best parent: the control of what further training does by itself
    union        all latents of all parents: the control of the selection
    fresh        as many random latents as the union has: the control of the start

all on one stream of the same tokens (the fresh dictionary on the same stream once more), each in one TopK competition
of the result's L0 and with its decoder refitted before the first step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.common.neighbours import nearest
from analyses.composition.stitching.continuation_report import Continuation
from analyses.composition.stitching.stitching_data import StitchingData
from analyses.pool.dictionary_chain import DictionaryChain
from analyses.pool.one_competition import in_one_competition
from analyses.pool.ridge_refit import refit_decoder
from analyses.quality.measured_points import Point
from dictlab.data.activations import Activations, ModelActivations
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.evaluation.reconstruction import evaluate_activations
from dictlab.formats.native.native_file import save
from dictlab.training import TrainConfig, train

FRESH = "fresh, trained"
UNION = "union, continued"
CONTINUED = "stitched, continued"


def parent_and_novel(chain: DictionaryChain, parent: int, threshold: float) -> Bool[np.ndarray, " n_pool"]:
    """A parent whole, and of the others in turn the alive latents that point where none chosen so far does.

    Args:
        chain: The parents.
        parent: The number of the one that is kept whole.
        threshold: A latent is novel if its largest cosine with the chosen ones is below it.
    """
    chosen, signed = torch.from_numpy(chain.mask_of(parent)), chain.pool.signed
    for number in range(len(chain.dictionaries)):
        if number == parent:
            continue
        alive = (chain.pool.firing_rate > 0).cpu() if chain.pool.firing_rate is not None else chosen | True
        latents = (torch.from_numpy(chain.mask_of(number)) & alive).nonzero().squeeze(1)
        rows = chosen.nonzero().squeeze(1)
        near = nearest(
            chain.pool.W_dec[latents], chain.pool.W_dec[rows], signed_a=signed[latents], signed_b=signed[rows]
        )
        chosen[latents[near.cosine[:, 0].cpu() < threshold]] = True
    return chosen.numpy()


def check_can_train(activations: Activations, tokens: int) -> None:
    """Refuse what the trainer cannot go on with.

    Raises:
        DictlabError: There is no model behind the activations.
    """
    if tokens and not isinstance(activations, ModelActivations):
        raise DictlabError(
            "`finetune=...` trains on the activations of a model; `data=...` gives an array. Leave out one."
        )


def continued(
    starts: Mapping[str, Dictionary],
    fresh: int,
    k: int,
    tokens: int,
    train_on: Activations,
    batches: Sequence[Float[Tensor, "*tokens d_in"]],
    *,
    seed: int,
) -> dict[str, Dictionary]:
    """Dictionaries after further training, by the names of their starts, and a fresh one under `FRESH`.

    Args:
        starts: Where training begins; each is put into one TopK competition and refitted before.
        fresh: Latents of the fresh dictionary.
        k: Active latents a token, of all of them.
        tokens: To train on.
        train_on: The training split.
        batches: What decoders are refitted on before.
        seed: Of the order of tokens, and of the fresh dictionary.

    Raises:
        DictlabError: One of them diverged, or training was stopped.
    """
    assert isinstance(train_on, ModelActivations)
    site = {"model": train_on.model.name, "site": train_on.site, "text": train_on.text.name}
    shared = {"tokens": tokens, "context": train_on.context, "token_selection": str(train_on.selection)}
    common = site | shared | {"seed": (seed,), "batch": min(2048, tokens), "device": str(train_on.model.device)}
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, start in enumerate(starts.values()):
            ordinary = refit_decoder(in_one_competition(start, "topk", k, batches[0].reshape(-1, start.d_in)), batches)
            about = replace(ordinary.metadata, training={}, seed=None)
            paths.append(save(replace(ordinary, metadata=about), Path(folder) / f"start-{number}.safetensors"))
        configs = [
            TrainConfig(**common, start=tuple(map(str, paths))),  # type: ignore[arg-type]
            TrainConfig(**common, width=(fresh,), activation=("topk",), k=(k,)),  # type: ignore[arg-type]
        ]
        made: list[Dictionary] = []
        for number, config in enumerate(configs):
            run = train(config, out=Path(folder) / f"run-{number}", model=train_on.model, text=train_on.text)
            if run.interrupted or run.diverged:
                what = run.stopped or f"{', '.join(run.diverged)} diverged"
                raise DictlabError(f"finetune: training ended early ({what}), so there is nothing to compare.")
            made += run.dictionaries
    names = [*starts, FRESH]
    return {name: replace(dictionary, name=name, path=None) for name, dictionary in zip(names, made, strict=True)}


def continue_stitching(data: StitchingData, parent: int, stitched: Dictionary, k: int, tokens: int) -> Continuation:
    """A stitched dictionary and its controls after further training, measured held out.

    Args:
        data: The parents, the training split, the sample that decoders are refitted on before, the held-out split.
        parent: The number of the best parent.
        stitched: Where training begins.
        k: Active latents a token, of all of them.
        tokens: To train on.
    """
    chain, subsets = data.chain, data.subsets
    of_parent = f"{chain.dictionaries[parent].name}, continued"
    starts = {
        of_parent: subsets.subset(chain.mask_of(parent), "decoder", of_parent),
        UNION: subsets.subset(np.ones(chain.pool.n_latents, dtype=bool), "decoder", UNION),
        CONTINUED: stitched,
    }
    made = continued(starts, chain.pool.n_latents, k, tokens, data.train, data.batches, seed=data.seed)
    evaluations = evaluate_activations(list(made.values()), data.heldout, contexts=data.contexts, seed=data.seed)
    points = {name: Point(made[name], e) for name, e in zip(made, evaluations, strict=True)}
    controls = [points[name] for name in (of_parent, UNION, FRESH)]
    return Continuation(points[CONTINUED], points[of_parent], controls, tokens, k)
