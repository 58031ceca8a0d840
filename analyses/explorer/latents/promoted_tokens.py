"""Which tokens does each latent make likelier, and which less likely? By the direct effect of its direction.

As `direct_logits` has it, for all latents of a dictionary: the direction, at the latent's mean activation, is added to
streams that leave the last block. The more latents and the larger the vocabulary, the fewer streams the mean is over.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from analyses.composition.insertion.direct_logits import STREAMS, leaving, writes_to_stream
from dictlab.dictionary import Dictionary
from dictlab.evaluation.sites import site_of
from dictlab.model.language_model import LanguageModel
from dictlab.runtime.atomic_files import new_file, save_tensors
from dictlab.runtime.progress import Phase

PRODUCTS = 4e12  # multiplications that the unembedding of one dictionary may take, about: minutes of a few cores
LOGITS = 1 << 24  # logits that are held at once
TOKENS = 8  # promoted, and suppressed


class LogitTokens(NamedTuple):
    """Tokens whose logits each latent of a dictionary changes most.

    Attributes:
        promoted: Ids of tokens, strongest first.
        promoted_by: By how much: logits less their mean over the vocabulary, in nats.
        suppressed: Ids of tokens, strongest first.
        suppressed_by: By how much; negative.
        streams: Residual streams that are averaged over.
    """

    promoted: Int[NDArray[np.int64], "n_latents tokens"]
    promoted_by: Float[NDArray[np.float32], "n_latents tokens"]
    suppressed: Int[NDArray[np.int64], "n_latents tokens"]
    suppressed_by: Float[NDArray[np.float32], "n_latents tokens"]
    streams: int


def stored_logit_tokens(
    path: Path,
    dictionary: Dictionary,
    model: LanguageModel,
    strength: Float[Tensor, " n_latents"],
    sequences: Int[Tensor, "sequences context"],
    seed: int,
) -> LogitTokens | None:
    """`logit_tokens`, or what an earlier call with the same arguments has left in a file."""
    if path.exists():
        stored = load_file(path)
        streams = int(stored.pop("streams"))
        return LogitTokens(**stored, streams=streams)
    found = logit_tokens(dictionary, model, strength, sequences, seed)
    if found is not None:
        tensors = {name: torch.as_tensor(value) for name, value in found._asdict().items()}
        with new_file(path, alone=True) as partial:
            save_tensors(tensors, partial)
    return found


@torch.no_grad()
def logit_tokens(
    dictionary: Dictionary,
    model: LanguageModel,
    strength: Float[Tensor, " n_latents"],
    sequences: Int[Tensor, "sequences context"],
    seed: int,
) -> LogitTokens | None:
    """The tokens that each latent promotes and suppresses; None where the site is not of the residual stream.

    Args:
        dictionary: On the model's device, and reading its activations.
        model: The language model.
        strength: Mean activation of each latent where it is active, in multiples of its direction; 0 of dead ones.
        sequences: Token ids that streams are of.
        seed: Of the streams.
    """
    if not writes_to_stream(model, site_of(dictionary)):
        return None
    n, known = dictionary.n_latents, min(model.vocabulary, len(model.tokenizer))
    cost = n * model.vocabulary * dictionary.d_in
    streams = leaving(model, sequences, streams=int(min(STREAMS, max(1, PRODUCTS // cost))), seed=seed)
    before, top = model.unembed(streams).float()[:, :known], min(TOKENS, known)
    steps = (dictionary.W_dec * strength[:, None].to(dictionary.W_dec)).to(streams)
    parts: list[list[Tensor]] = [[], [], [], []]
    with Phase(f"Tokens promoted by {dictionary.name}", n, unit="latents") as phase:
        for some in steps.split(max(1, LOGITS // (len(streams) * model.vocabulary))):
            moved = model.unembed((streams + some[:, None]).flatten(0, 1)).float()[:, :known]
            effect = (moved.view(len(some), len(streams), known) - before).mean(dim=1)
            effect -= effect.mean(dim=1, keepdim=True)
            for k, found in enumerate((effect.topk(top), (-effect).topk(top))):
                parts[2 * k].append(found.indices.cpu())
                parts[2 * k + 1].append((found.values if k == 0 else -found.values).cpu())
            phase.advance(len(some))
    promoted, by, suppressed, less = (torch.cat(part).numpy() for part in parts)
    return LogitTokens(promoted, by, suppressed, less, len(streams))
