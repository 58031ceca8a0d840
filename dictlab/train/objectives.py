"""What is a good dictionary, as a number to be made small?

With d the width of the activation, c the codes, x the activation, x_hat its reconstruction, means over tokens t:

    reconstruction   mean_t |x - x_hat|^2 / d                        divided by the data's own for TopK
    kl               mean_t KL(original || spliced)
    downstream       mean over later sites of mean_t |a - a_spliced|^2 / d
    sparsity         (lambda / d) mean_t |c|_1                       (Braun et al. 2024, section 2)
    aux              |e - e_hat|^2 / |e - mean e|^2, e = x - x_hat   (AuxK: Gao et al. 2024, appendix A.2)

where e_hat decodes the k_aux strongest dead latents, without bias. Each term is logged by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import mse_loss

from dictlab import outputs
from dictlab.codes import Codes
from dictlab.dictionary import Dictionary
from dictlab.lm import LanguageModel
from dictlab.train.config import Objective

AUX_WEIGHT = 1 / 32


class Batch(NamedTuple):
    """One batch of the stream: activations, and the clean forward they come from where an objective needs it.

    Attributes:
        x: At the site.
        clean: Activations at the sites of the splice, of the same tokens.
    """

    x: Float[Tensor, "*tokens d_in"]
    clean: Mapping[str, Float[Tensor, "batch context d"]] | None = None


class Splice(NamedTuple):
    """Where reconstructions go, and what they are held against."""

    model: LanguageModel
    site: str
    start: str  # the residual stream entering the site's block
    later: Sequence[str]

    @property
    def sites(self) -> list[str]:
        """What is kept of the clean forward; logits come out of its last site, block by block."""
        return list(dict.fromkeys([self.site, self.start, *self.later, self.model.last_site]))


def model_terms(objective: Objective, x_hat: Tensor, batch: Batch, splice: Splice) -> dict[str, Tensor]:
    """KL and downstream error of the model with the reconstruction in place of the activation."""
    clean, last = batch.clean, splice.model.last_site
    assert clean is not None
    later = splice.later if objective.downstream else ()
    wanted = [*later, last] if objective.kl else later
    x_hat = x_hat.to(clean[splice.start].dtype)
    spliced = splice.model.carried(x_hat, splice.site, wanted, residual=clean[splice.start])
    terms: dict[str, Tensor] = {}
    if objective.kl:
        kl = outputs.losses(splice.model, spliced[last].flatten(0, 1), clean=clean[last].flatten(0, 1)).kl
        assert kl is not None
        terms["kl"] = kl
    if objective.downstream:
        terms["downstream"] = torch.stack([mse_loss(spliced[site], clean[site]) for site in later]).mean()
    return terms


def l1(codes: Codes, d_in: int) -> Float[Tensor, ""]:
    """mean over tokens of |c|_1 / d, to be weighted by lambda."""
    return codes.values.sum() / (codes.n_tokens * d_in)


def aux_k(
    dictionary: Dictionary,
    x: Float[Tensor, "tokens d_in"],
    x_hat: Float[Tensor, "tokens d_in"],
    dead: Bool[Tensor, " n_latents"],
    k: int,
) -> Float[Tensor, ""]:
    """How badly the k strongest dead latents explain the error, as a share of the error's variance; 0 if none is dead.

    The error is detached, the decode has no bias, and only dead latents compete. (OpenAI's code multiplies
    pre-activations by the mask instead, so that a dead latent with a negative one loses to zeros and learns nothing.)
    """
    latents = dead.nonzero().squeeze(1)
    if len(latents) == 0:
        return x.new_zeros(())
    error = ((x - x_hat) / dictionary.normalisation(x)[1].scale).detach()
    z = dictionary.pre_activations(x, latents)
    values, chosen = z.topk(min(k, len(latents)), dim=1)
    strongest = torch.zeros_like(z).scatter(1, chosen, values.relu())
    e_hat = strongest @ dictionary.W_dec[latents]
    share = mse_loss(e_hat, error) / (error - error.mean(dim=0)).square().mean()
    return torch.nan_to_num(share, posinf=0.0)  # where nothing is left to explain
