"""Which activations of the chosen latents reconstruct best? And what do other rules of choosing latents give?

Refinement: the support that the encoder chose and the decoder stay, the values are solved for under positivity,

    min over f_S >= 0 of  | N(x) - b_out - sum over j in S of f_j d_j |^2

(of a latent with a negative activation, under negativity). Test-time rules: the k largest pre-activations of each
token, or all above one threshold, in place of the rule of training.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.quality.shrinkage.nnls import nnls
from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import BatchTopK, JumpReLU, ReLU, TopK
from dictlab.dictionary.codes import Codes

HELD = 1 << 24  # numbers of gathered directions, or of Gram matrices, held at once
CUTS = 1 << 22  # pre-activations that are sorted at once for thresholds
PLAIN = (
    ReLU,
    TopK,
    BatchTopK,
    JumpReLU,
)  # what these emit is the pre-activation; others have rules of their own


@torch.no_grad()
def refined(dictionary: Dictionary, codes: Codes, x: Float[Tensor, "tokens d_in"]) -> Codes:
    """The same latents with the values that reconstruct x best."""
    undo = dictionary.normalisation(x)[1]
    y = ((x - undo.shift) / undo.scale - dictionary.b_out).double()
    counts = codes.offsets.diff()
    values = codes.values.clone()
    widest = max(1, int(counts.max()) if len(counts) else 1)
    tokens = max(1, HELD // (widest * max(widest, dictionary.d_in)))
    for begin in range(0, codes.n_tokens, tokens):
        some = slice(begin, min(begin + tokens, codes.n_tokens))
        own = slice(int(codes.offsets[some.start]), int(codes.offsets[some.stop]))
        values[own] = _values(dictionary, codes.indices[own], codes.values[own], counts[some], y[some]).to(values)
    return codes._replace(values=values)


def _values(dictionary: Dictionary, indices: Tensor, values: Tensor, counts: Tensor, y: Tensor) -> Tensor:
    """Refined values of the entries of some tokens."""
    k = max(1, int(counts.max()))
    there = torch.arange(k, device=y.device) < counts[:, None]
    place = there.nonzero(as_tuple=True)
    latent = torch.zeros(there.shape, dtype=torch.long, device=y.device)
    sign = torch.zeros(there.shape, dtype=torch.double, device=y.device)
    latent[place], sign[place] = indices, values.sign().double()
    directions = dictionary.W_dec[latent].double() * sign[..., None]
    gram = directions @ directions.mT
    start = torch.zeros_like(sign)
    start[place] = values.abs().double()
    found = nnls(gram, (directions @ y[..., None])[..., 0], there & (sign != 0), start)
    return (found * sign)[place]


def with_k(dictionary: Dictionary, k: int) -> Dictionary:
    """The k largest pre-activations of each token, those above 0."""
    return replace(dictionary, activation=TopK(k))


def with_threshold(dictionary: Dictionary, threshold: float) -> Dictionary:
    """Every pre-activation above one threshold."""
    everywhere = torch.full((dictionary.n_latents,), threshold, device=dictionary.W_enc.device)
    return replace(dictionary, activation=JumpReLU(everywhere))


@torch.no_grad()
def thresholds(dictionary: Dictionary, x: Float[Tensor, "tokens d_in"], wanted: list[int]) -> list[float]:
    """The thresholds above which so many latents a token are active on average; 0 where there are not so many."""
    most = max(wanted) * len(x) + 1
    best = x.new_zeros(0)
    for some in x.split(max(1, CUTS // dictionary.n_latents)):
        z = dictionary.pre_activations(some).flatten()
        best = torch.cat([best, z[z > 0]])
        best = best.topk(min(most, len(best))).values
    best = torch.cat([best, best.new_zeros(most - len(best))])
    return [float(best[k * len(x)]) for k in wanted]
