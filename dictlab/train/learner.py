"""One dictionary while it is being trained: its weights, its optimizer, and which of its latents are dead."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from dictlab import seeds
from dictlab.activations import Statistics
from dictlab.codes import Codes
from dictlab.dictionary import Dictionary
from dictlab.normalisation import Scale
from dictlab.sparsity import TopK
from dictlab.train import objectives, update
from dictlab.train.config import Member, TrainConfig
from dictlab.train.objectives import Batch, Splice

ADAM_EPS = 6.25e-10  # Gao et al. 2024, their code


class Learner:
    """A member of a family in training.

    It is trained in units in which the activations' coordinates have variance 1, whatever the model; the scale is
    folded away in the end. Losses are computed in the model's own units, as the papers write them.

    Args:
        member: What it is to become.
        config: The run's settings.
        statistics: Of a sample of the activations.
        centre: Geometric median of the same sample, where the bias starts.
    """

    def __init__(
        self, member: Member, config: TrainConfig, statistics: Statistics, centre: Float[Tensor, " d_in"]
    ) -> None:
        self.member, self.config = member, config
        self.objective = config.weights(member)
        self.d_in, device = len(centre), centre.device
        self.variance = statistics.variance / self.d_in
        self.normalisation = Scale(1 / math.sqrt(self.variance))
        generator = seeds.generator(member.seed, f"initial directions, width {member.width}")
        decoder = normalize(torch.randn(member.width, self.d_in, generator=generator), dim=1).to(device)
        self.decoder = decoder.clone().requires_grad_()
        self.encoder = decoder.clone().requires_grad_()  # tied at the start; rows, so that sparse gradients are cheap
        self.b_enc = torch.zeros(member.width, device=device, requires_grad=True)
        self.bias = (centre * self.normalisation.factor).clone().requires_grad_()  # pre-bias and output bias
        self._scale_encoder(generator)
        lr = config.lr if config.lr is not None else 2e-4 / math.sqrt(member.width / 16384)
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr, eps=ADAM_EPS, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: schedule(step, config))
        self.since_fired = torch.zeros(member.width, dtype=torch.long, device=device)  # tokens
        self.average = [p.detach().clone().zero_() for p in self.parameters] if config.ema else None
        self.steps = 0

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [self.encoder, self.b_enc, self.decoder, self.bias]

    @property
    def dead(self) -> Bool[Tensor, " n_latents"]:
        """Latents that have not fired for `dead_tokens` tokens."""
        return self.since_fired >= self.config.dead_tokens

    @property
    def dictionary(self) -> Dictionary:
        """A view of the weights as they are now."""
        return self._dictionary(*self.parameters)

    def step(self, batch: Batch, splice: Splice | None, *, logged: bool = True) -> dict[str, Tensor]:
        """One training step; returns the terms of its loss, and what the log tells, as tensors on the device.

        Args:
            batch: What to learn from.
            splice: Where to splice, if the objective asks for it.
            logged: Whether L0, explained variance and the dead share are wanted: they cost passes over the batch.
        """
        self.optimizer.zero_grad()
        dictionary = self.dictionary
        codes, x_hat = dictionary(batch.x)
        terms = self._terms(batch, splice, dictionary, codes, x_hat)
        loss = sum(self._coefficients()[name] * term for name, term in terms.items())
        assert isinstance(loss, Tensor)
        loss.backward()
        self._update()
        with torch.no_grad():
            self.since_fired = torch.where(codes.firings() > 0, 0, self.since_fired + codes.n_tokens)
            log = {"loss": loss.detach()} | {name: value.detach() for name, value in terms.items()}
            return log | self._statistics(batch.x, x_hat, codes) if logged else log

    def finished(self) -> Dictionary:
        """The dictionary as it is kept: averaged if asked for, unit-norm rows, in the units of the activations."""
        weights = self.average if self.average is not None and self.steps else self.parameters
        encoder, b_enc, decoder, bias = (p.detach().clone() for p in weights)
        return self._dictionary(encoder, b_enc, normalize(decoder, dim=1), bias).in_input_units()

    def _terms(
        self, batch: Batch, splice: Splice | None, dictionary: Dictionary, codes: Codes, x_hat: Tensor
    ) -> dict[str, Tensor]:
        terms = {}
        if self.objective.reconstruction:
            terms["reconstruction"] = mse_loss(x_hat, batch.x)
        if self.objective.needs_model:
            assert splice is not None
            terms |= objectives.model_terms(self.objective, x_hat, batch, splice)
        if isinstance(self.member.activation, TopK):
            k = self.config.aux_k or nearest_power_of_two(self.d_in / 2)
            flat, flat_hat = batch.x.flatten(0, -2), x_hat.flatten(0, -2)
            terms["aux"] = objectives.aux_k(dictionary, flat, flat_hat, self.dead, k)
        else:
            terms["l1"] = objectives.l1(codes, self.d_in) / self.normalisation.factor  # codes in the model's units
        return terms

    def _statistics(self, x: Tensor, x_hat: Tensor, codes: Codes) -> dict[str, Tensor]:
        """L0, explained variance of this batch, share of dead latents."""
        flat = x.flatten(0, -2)
        left = (flat - x_hat.flatten(0, -2)).square().sum() / (flat - flat.mean(dim=0)).square().sum()
        return {"l0": codes.l0().float().mean(), "explained_variance": 1 - left, "dead": self.dead.float().mean()}

    def _coefficients(self) -> dict[str, float]:
        normaliser = self.variance if isinstance(self.member.activation, TopK) else 1.0
        return {
            "reconstruction": self.objective.reconstruction / normaliser,
            "kl": self.objective.kl,
            "downstream": self.objective.downstream,
            "aux": objectives.AUX_WEIGHT,
            "l1": self.member.l1,
        }

    @torch.no_grad()
    def _update(self) -> None:
        """Project the decoder's gradient, clip, step, renormalise the decoder, average; see `update`."""
        if self.decoder.grad is not None:
            update.project(self.decoder.grad, self.decoder)
        update.clipped_step(self.optimizer, self.parameters, self.config.clip)
        self.schedule.step()
        update.renormalise(self.decoder)
        self.steps += 1
        if self.average is not None and self.config.ema is not None:
            update.average(self.average, self.parameters, self.config.ema, self.steps)

    @torch.no_grad()
    def _scale_encoder(self, generator: torch.Generator) -> None:
        """One factor for the encoder, so that reconstructions start at about the norm of their inputs."""
        unit = normalize(torch.randn(256, self.d_in, generator=generator), dim=1).to(self.bias.device)
        plain = replace(self.dictionary, normalisation=Scale(1.0))
        out = plain.reconstruct(unit + self.bias) - self.bias
        self.encoder /= out.norm(dim=1).mean()

    def _dictionary(self, encoder: Tensor, b_enc: Tensor, decoder: Tensor, bias: Tensor) -> Dictionary:
        return Dictionary(
            encoder.T, b_enc, decoder, bias, bias, self.member.activation, self.normalisation, name=self.member.name
        )


def schedule(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine down to `final_lr`, as a share of the peak (Braun et al. 2024, appendix D)."""
    warmup = round(config.warmup * config.steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def nearest_power_of_two(x: float) -> int:
    """The power of two nearest in ratio, 1 at least."""
    return 1 << max(0, round(math.log2(max(x, 1.0))))


def geometric_median(
    x: Float[Tensor, "sample d_in"], rounds: int = 100, tolerance: float = 1e-6
) -> Float[Tensor, " d_in"]:
    """The point with the smallest sum of distances to the sample (Weiszfeld's iteration)."""
    centre = x.mean(dim=0)
    for _ in range(rounds):
        weight = 1 / (x - centre).norm(dim=1).clamp_min(1e-12)
        new = (weight[:, None] * x).sum(dim=0) / weight.sum()
        moved = (new - centre).norm()
        centre = new
        if moved <= tolerance * (1 + centre.norm()):
            break
    return centre
