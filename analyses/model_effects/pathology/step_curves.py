"""How does the damage grow along a direction, and which directions does a dictionary offer?

Steps x + l v of unit directions v and lengths l: the error's, decoder directions of latents that are active at the
token, of latents that are alive but not active there, of dead ones; beside them isotropic and covariance-shaped ones.
Effective length: the multiple m of epsilon at which x + m epsilon v does as much damage as the reconstruction; the
KL is interpolated linearly in logarithms between the lengths measured (it grows like l² where l is small).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from analyses.common.patching import CleanRun
from analyses.model_effects.pathology.replacements import COVARIANCE, ISOTROPIC, STEPS, ErrorSample, covariance_noise
from dictlab.dictionary import Dictionary
from dictlab.dictionary.codes import Codes
from dictlab.dictionary.union import emitting

MULTIPLES = (0.25, 0.5, 0.7071, 1.0, 1.4142, 2.0, 2.8284, 4.0, 8.0)  # of epsilon
SCALES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)  # of the spread of the activations
REFERENCES = (ISOTROPIC, COVARIANCE)
CLASSES = ("error", "active", "alive, not active", "dead")
TRIES = 20


def reach(clean_run: CleanRun, sample: ErrorSample) -> Float[Tensor, "batch baselines multiples"]:
    """Mean KL of each sequence where each baseline direction is followed to each multiple of epsilon."""
    epsilon = sample.error.norm(dim=-1, keepdim=True)
    directions = (normalize(make(sample)[0], dim=-1) for make in STEPS.values())
    steps = (torch.stack([sample.x + m * epsilon * v for m in MULTIPLES]) for v in directions)
    kl = torch.where(clean_run.predicting, clean_run.outputs(steps).kl, torch.nan)[..., :-1].nanmean(dim=-1)
    by_sequence: Tensor = kl.unflatten(0, (len(STEPS), len(MULTIPLES))).permute(2, 0, 1).cpu()
    return by_sequence


def references(clean_run: CleanRun, sample: ErrorSample) -> Float[Tensor, "batch references scales"]:
    """Mean KL of each sequence along directions that belong to no dictionary."""
    return along(clean_run, [sample.normal()[0], covariance_noise(sample)[0]], sample.site_statistics.spread)


def sensitivity(
    clean_run: CleanRun, sample: ErrorSample, dictionary: Dictionary, codes: Codes, alive: Bool[Tensor, " n_latents"]
) -> Float[Tensor, "batch classes scales"]:
    """Mean KL of each sequence along the directions of CLASSES; NaN where a class has none.

    Args:
        clean_run: The sequences.
        sample: Their activations and reconstructions.
        dictionary: Along whose decoder directions.
        codes: Of the tokens that count.
        alive: Latents known to be active on some token.
    """
    chosen = []
    for directions in decoder_directions(dictionary, codes, alive, sample.generator):
        everywhere = torch.full_like(sample.x, torch.nan)
        everywhere[clean_run.counted] = directions.to(sample.x)
        chosen.append(everywhere)
    return along(clean_run, [sample.error, *chosen], sample.site_statistics.spread)


def along(clean_run: CleanRun, directions: list[Tensor], scale: float) -> Float[Tensor, "batch directions scales"]:
    """Mean KL of each sequence along each direction at each of SCALES, over the tokens that count.

    Tokens whose direction is NaN are left out.
    """
    curves = []
    for direction in directions:
        known = direction.isfinite().all(dim=-1) & clean_run.predicting
        if not known.any():
            curves.append(torch.full((len(clean_run.x), len(SCALES)), torch.nan))
            continue
        v = normalize(direction.nan_to_num(0), dim=-1)
        kl = clean_run.outputs([torch.stack([clean_run.x + s * scale * v for s in SCALES])]).kl
        kl = torch.where(known, kl, torch.nan)[..., :-1]
        curves.append(kl.nanmean(dim=-1).T.cpu())
    return torch.stack(curves, dim=1)


def decoder_directions(
    dictionary: Dictionary, codes: Codes, alive: Bool[Tensor, " n_latents"], generator: torch.Generator
) -> tuple[Float[Tensor, "tokens d_in"], ...]:
    """For each token the decoder direction of a random latent that is active, alive but not active, dead; else NaN.

    Args:
        dictionary: Whose.
        codes: Of the tokens.
        alive: Latents known to be active on some token; those of these tokens are so as well.
        generator: Of what is drawn.
    """
    device, n = dictionary.W_dec.device, dictionary.n_latents
    on = codes.values != 0
    rows, indices, counts = codes.rows[on], codes.indices[on], codes.l0()
    share = torch.rand(codes.n_tokens, generator=generator).to(device)
    at = counts.cumsum(0) - counts + (share * counts).long()
    active = torch.full_like(counts, -1)
    active[counts > 0] = indices[at[counts > 0]]
    emits = emitting(dictionary.activation, n).to(device) & (dictionary.W_dec != 0).any(dim=1)
    alive = alive.to(device).clone()
    alive[indices] = True
    living, unused = ((emits & mask).nonzero().squeeze(1) for mask in (alive, ~alive))
    taken = rows * n + indices
    silent = torch.full_like(counts, -1)
    for _ in range(TRIES if len(living) else 0):
        free = silent < 0
        drawn = living[torch.randint(len(living), (int(free.sum()),), generator=generator).to(device)]
        used = torch.isin(free.nonzero().squeeze(1) * n + drawn, taken)
        silent[free] = torch.where(used, -1, drawn)
    dead = torch.full_like(counts, -1)
    if len(unused):
        dead = unused[torch.randint(len(unused), (codes.n_tokens,), generator=generator).to(device)]
    return tuple(_rows(dictionary.directions, chosen) for chosen in (active, silent, dead))


def _rows(directions: Tensor, chosen: Tensor) -> Tensor:
    """Rows of a matrix; NaN where the index is negative."""
    return torch.where(chosen[:, None] >= 0, directions[chosen.clamp_min(0)], torch.nan)


def effective_length(curve: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The multiple of epsilon at which a curve over MULTIPLES reaches a value; 0 or infinity outside of them.

    Args:
        curve: KL at each of MULTIPLES, `[..., multiples]`. Made monotone: its running maximum counts.
        target: The KL to reach, `[...]`.
    """
    rising = np.maximum.accumulate(curve, axis=-1)
    out = np.empty(np.shape(target))
    for where in np.ndindex(out.shape):
        kl, wanted = rising[where], target[where]
        if not np.isfinite(wanted) or wanted <= 0 or not np.isfinite(kl).all():
            out[where] = np.nan
        elif wanted < kl[0]:
            out[where] = 0.0
        elif wanted > kl[-1]:
            out[where] = np.inf
        else:
            out[where] = np.exp(np.interp(np.log(wanted), np.log(np.maximum(kl, 1e-30)), np.log(MULTIPLES)))
    return out
