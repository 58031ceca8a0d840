"""What is a good dictionary, as a number to be made small?

With d the width of the activation, x the activation, x_hat its reconstruction, means over tokens t:

    reconstruction   mean_t |x - x_hat|^2 / d            divided by the data's own where the variant says so
    kl               mean_t KL(original || spliced)
    ce               mean_t -log spliced(next token)
    downstream       mean over later sites of mean_t |a - a_spliced|^2 / d

(Braun et al. 2024, section 2.) Sparsity, and what else an activation function needs, comes on top: see `variants`. Each
term is logged by itself, before its weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import mse_loss

from dictlab.model import output_divergence
from dictlab.model.language_model import LanguageModel

ObjectiveName = Literal["local", "e2e", "e2e+ds", "weighted"]


@dataclass(frozen=True)
class Objective:
    """Weights of the terms of a loss.

    Attributes:
        reconstruction: Of the squared error at the site, mean over tokens and coordinates.
        kl: Of KL(original || spliced) of the model's output, mean over tokens.
        ce: Of the spliced model's cross-entropy of the next token, mean over tokens that have one.
        downstream: Of the squared error at later sites, mean over tokens, coordinates and sites.
    """

    reconstruction: float = 0.0
    kl: float = 0.0
    ce: float = 0.0
    downstream: float = 0.0

    @property
    def needs_model(self) -> bool:
        """Whether the reconstruction has to be spliced into the model."""
        return bool(self.kl or self.ce or self.downstream)


OBJECTIVES: dict[str, Objective] = {
    "local": Objective(reconstruction=1.0),
    "e2e": Objective(kl=1.0),
    "e2e+ds": Objective(kl=0.5, downstream=2.5),
}


class Batch(NamedTuple):
    """One batch of the stream: activations, and the clean forward they come from where an objective needs it.

    Attributes:
        x: At the site.
        clean: Activations at the sites of the splice, of the same tokens.
        tokens: What they are.
        counted: Which of them count, where not all do; `x` is then theirs alone, `[counted, d_in]`.
    """

    x: Float[Tensor, "*tokens d_in"]
    clean: Mapping[str, Float[Tensor, "batch context d"]] | None = None
    tokens: Int[Tensor, "batch context"] | None = None
    counted: Bool[Tensor, "batch context"] | None = None

    def select(self, activations: Float[Tensor, "batch context d"]) -> Float[Tensor, "tokens d"]:
        """Those of the tokens that count, one after the other."""
        return activations.flatten(0, 1) if self.counted is None else activations[self.counted]


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
    """KL, cross-entropy and downstream error of the model with the reconstruction in place of the activation.

    Tokens that do not count keep their activation, and no term is of them.
    """
    clean, last = batch.clean, splice.model.last_site
    assert clean is not None
    later = splice.later if objective.downstream else ()
    wanted = [*later, last] if objective.kl or objective.ce else later
    x_hat = x_hat.to(clean[splice.start].dtype)
    if batch.counted is not None:
        x_hat = clean[splice.site].index_put(batch.counted.nonzero(as_tuple=True), x_hat)
    spliced = splice.model.resume_to(x_hat, splice.site, wanted, residual=clean[splice.start], tokens=batch.tokens)
    terms = _output_terms(objective, spliced[last], clean[last], batch, splice.model) if last in wanted else {}
    if objective.downstream:
        terms["downstream"] = torch.stack(
            [mse_loss(batch.select(spliced[site]), batch.select(clean[site])) for site in later]
        ).mean()
    return terms


def _output_terms(
    objective: Objective, altered: Tensor, clean: Tensor, batch: Batch, model: LanguageModel
) -> dict[str, Tensor]:
    targets = None
    if objective.ce:
        assert batch.tokens is not None
        targets = batch.select(output_divergence.next_tokens(batch.tokens)[..., None]).squeeze(-1)
    reference = batch.select(clean) if objective.kl else None
    found = output_divergence.kl_and_ce_losses(model, batch.select(altered), clean=reference, targets=targets)
    return {name: value for name, value in found._asdict().items() if value is not None}
