"""One dictionary while it is being trained: its weights, its optimizer, and which of its latents are dead."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from dictlab.data.activations import Statistics
from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import Elementwise, emitting
from dictlab.dictionary.codes import Codes, Full
from dictlab.dictionary.kernels import full
from dictlab.dictionary.kernels.error import squared_error
from dictlab.dictionary.normalisation import Normalisation, Scale, unscaled
from dictlab.training import initialisation, objectives, resampling, update
from dictlab.training.async_scalar import Told
from dictlab.training.config import TrainConfig
from dictlab.training.distributed.ranks import ALONE, Ranks
from dictlab.training.member import Member
from dictlab.training.objectives import Batch, Splice
from dictlab.training.variants import Pass, Term

ADAM_EPS = 6.25e-10  # Gao et al. 2024, their code
PENALTIES = ("l1", "l0")  # terms that a factor for fine-tuning applies to


class Learner:
    """A member of a family in training.

    It is trained in units in which the activations' coordinates have variance 1, whatever the model; the scale is
    folded away in the end. Losses are computed in the model's own units, as the papers write them.

    Args:
        member: What it is to become.
        config: The run's settings.
        statistics: Of a sample of the activations.
        centre: Geometric median of the same sample, where the bias starts.
        ranks: The processes that share each batch, and the latents: weights and counters are of this one's latents.

    Raises:
        DictlabError: The dictionary it is to go on from reads activations of another width.
    """

    def __init__(
        self,
        member: Member,
        config: TrainConfig,
        statistics: Statistics,
        centre: Float[Tensor, " d_in"],
        ranks: Ranks = ALONE,
    ) -> None:
        self.member, self.config, self.variant, self.ranks = member, config, member.variant, ranks
        self.d_in, device = len(centre), centre.device
        self.variance = statistics.variance / self.d_in
        self.unit = math.sqrt(self.variance)
        self.normalisation: Normalisation = Scale(1 / self.unit)
        own = ranks.latents(member.width)
        begins = self.variant.tensors(member.width, self.d_in)
        self.initial = {name: t[own].to(device) for name, t in begins.items()}
        self.counters = {name: t.to(device) for name, t in self.variant.counters().items()}
        if member.start is None:
            weights = initialisation.fresh(member, centre, self.unit, self.initial, ranks)
        else:
            weights, self.normalisation = initialisation.going_on(member, centre, self.unit, self.initial, own)
        self.weights = {name: t.clone().requires_grad_() for name, t in weights.items()}
        self.common = [name == "bias" for name in self.weights]
        lengths = self.decoder.detach().norm(dim=1, keepdim=True)
        self.lengths = None if member.start is None or member.start.activation.elementwise else lengths
        self.emits = emitting(self.variant.choose(self.weights), len(self.decoder)).to(device)
        self.dtype = torch.bfloat16 if config.precision == "bfloat16" else None
        self.revivals = frozenset() if self.variant.revived else resampling.steps(config)
        self.since_fired = torch.zeros(len(self.decoder), dtype=torch.long, device=device)  # tokens
        self.average = [p.detach().clone().zero_() for p in self.parameters] if config.ema else None
        self.steps = self.averaged = 0
        self.begin(finetune=False)

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return list(self.weights.values())

    @property
    def encoder(self) -> Float[Tensor, "n_latents d_in"]:
        """Rows, so that sparse gradients are cheap."""
        return self.weights["encoder"]

    @property
    def b_enc(self) -> Float[Tensor, " n_latents"]:
        """The encoder's bias."""
        return self.weights["b_enc"]

    @property
    def decoder(self) -> Float[Tensor, "n_latents d_in"]:
        """Decoder directions."""
        return self.weights["decoder"]

    @property
    def bias(self) -> Float[Tensor, " d_in"]:
        """Pre-bias and output bias."""
        return self.weights["bias"]

    @property
    def dead(self) -> Bool[Tensor, " n_latents"]:
        """Latents that have not fired for `dead_tokens` tokens."""
        return self.since_fired >= self.config.dead_tokens

    @property
    def dictionary(self) -> Dictionary:
        """A view of the weights as they are now."""
        return self._dictionary(self.weights)

    @property
    def lr(self) -> float:
        """The peak learning rate."""
        given = self.config.lr
        return given if given is not None else 2e-4 / math.sqrt(self.member.width / 16384)

    def step(self, batch: Batch, splice: Splice | None, *, logged: bool = True) -> dict[str, Tensor]:
        """One training step; returns the terms of its loss, and what the log tells, as tensors on the device.

        Args:
            batch: What to learn from.
            splice: Where to splice, if the objective asks for it.
            logged: Whether L0, explained variance and the dead share are wanted: they cost passes over the batch.
        """
        if self.config.finetune and self.steps == self.config.steps - self.config.finetune_steps:
            self.begin(finetune=True)
        self.optimizer.zero_grad()
        now = self._forward(batch)
        terms = self._terms(now, batch, splice)
        loss = sum(term.weight * term.value for term in terms.values())
        assert isinstance(loss, Tensor)
        statistics = self._statistics(now) if logged else {}
        lost = resampling.lost(now) if self.steps + 1 in self.revivals else None
        now = now._replace(x_hat=now.x_hat.new_empty(0, self.d_in))
        loss.backward()
        self.ranks.average_([p.grad for p in self.parameters], self.common)
        self._update()
        with torch.no_grad():
            self.variant.observe(now, self.counters)
            fired = self.ranks.most(now.codes.fired().byte()) > 0
            self.since_fired = torch.where(fired, 0, self.since_fired + now.codes.n_tokens * self.ranks.count)
            if lost is not None:
                resampling.revive(self, now, lost)
        log = {"loss": loss.detach()} | {name: term.value.detach() for name, term in terms.items()}
        with torch.no_grad():
            dead = {"dead": self.ranks.summed(self.dead.float().sum()) / self.member.width} if logged else {}
        return dict(self.ranks.averaged(log | statistics | dead))

    def finished(self) -> Dictionary:
        """The dictionary as it is kept: averaged if asked for, rows of exact length, in the activations' units.

        Of latents in several processes, those of this one.
        """
        self.optimizer.zero_grad()  # their memory serves the copies
        values = self.average if self.average is not None and self.averaged else self.parameters
        weights = {name: value.detach().clone() for name, value in zip(self.weights, values, strict=True)}
        weights["decoder"] = self._with_lengths(weights["decoder"])
        return self.variant.finished(self._dictionary(weights), weights, self.counters).in_input_units()

    @property
    def finite(self) -> bool:
        """Whether all weights are numbers, of the latents of every process."""
        return not self.ranks.some(not all(bool(p.isfinite().all()) for p in self.parameters))

    def _forward(self, batch: Batch) -> Pass:
        x, dead = batch.x.flatten(0, -2), self.dead & self.emits
        n_dead = Told(dead.sum())  # before the forward, which then keeps the device busy
        dictionary = replace(self.dictionary, b_out=self.ranks.portion(self.bias))
        entries, codes, x_hat = self._reconstruct(x, dictionary)
        return Pass(
            dictionary=dictionary,
            weights=self.weights,
            x=x,
            x_hat=x_hat,
            entries=entries,
            codes=codes,
            dead=dead,
            n_dead=n_dead,
            variance=self.variance,
            unit=self.unit,
            progress=self.steps / self.config.steps,
            dtype=self.dtype,
            ranks=self.ranks,
            width=self.member.width,
        )

    def _reconstruct(
        self, x: Float[Tensor, "tokens d_in"], dictionary: Dictionary
    ) -> tuple[Codes | Full, Codes | Full, Tensor]:
        """Entries, codes and reconstruction: by a full matrix of codes where they may be one and that is faster."""
        h, factor, undo = unscaled(self.normalisation, x)
        W_enc, activation = dictionary.W_enc, dictionary.activation
        if self.variant.plain and isinstance(activation, Elementwise):
            encoder = (h, W_enc, self.b_enc, activation, self.bias, factor)
            if full.pays(*encoder):
                matrix, y = full.reconstruct(*encoder, self.decoder)
                return matrix, matrix, undo(self.ranks.summed(y) + dictionary.b_out)
        entries = self.ranks.encode(h, W_enc, self.b_enc, activation, self.bias, factor, self.dtype)
        codes = self.variant.emit(entries, self.weights)
        return entries, codes, self.ranks.reconstruct(codes, self.decoder, dictionary.b_out, undo)

    def _terms(self, now: Pass, batch: Batch, splice: Splice | None) -> dict[str, Term]:
        """Terms of the objective, then those of the variant, whose coefficients fine-tuning may change."""
        weights = self.objective
        terms = {}
        if weights.reconstruction:
            normaliser = self.variance if self.variant.normalised else 1.0
            terms["reconstruction"] = Term(squared_error(now.x_hat, now.x), weights.reconstruction / normaliser)
        if weights.needs_model:
            assert splice is not None
            found = objectives.model_terms(weights, now.x_hat.view(batch.x.shape), batch, splice)
            terms |= {name: Term(value, getattr(weights, name)) for name, value in found.items()}
        for name, term in self.variant.terms(now).items():
            terms[name] = term._replace(weight=term.weight * self.penalty) if name in PENALTIES else term
        return terms

    @torch.no_grad()
    def _statistics(self, now: Pass) -> dict[str, Tensor]:
        """L0, explained variance of this batch."""
        mean = self.ranks.average(now.x.mean(dim=0)).expand_as(now.x)
        left, varied = self.ranks.average(torch.stack([squared_error(own, now.x) for own in (now.x_hat, mean)]))
        active = self.ranks.summed(now.codes.l0().float().mean())
        return {"l0": active, "explained_variance": 1 - left / varied}

    @torch.no_grad()
    def _update(self) -> None:
        """Project the decoder's gradient, clip, step, give the decoder's rows their lengths, average; see `update`."""
        if self.decoder.grad is not None:
            update.project(self.decoder.grad, self.decoder if self.lengths is None else normalize(self.decoder, dim=1))
        update.clipped_step(self.optimizer, self.parameters, self.config.clip, self.ranks, self.common)
        self.schedule.step()
        update.renormalise(self.decoder)
        if self.lengths is not None:
            self.decoder.mul_(self.lengths)
        self.steps += 1
        if self.average is not None and self.config.ema is not None:
            self.averaged += 1
            update.average(self.average, self.parameters, self.config.ema, self.averaged)

    def begin(self, *, finetune: bool) -> None:
        """Turn to an objective: an optimizer and a schedule of its own, since gradients differ in size."""
        config, first = self.config, self.config.steps - self.config.finetune_steps
        name = self.member.finetune if finetune else self.member.objective
        assert name is not None
        self.objective = config.weights(name)
        self.penalty = config.finetune_penalty if finetune else 1.0
        self.averaged = 0  # an average over two objectives is neither's
        steps, lr = (config.finetune_steps, self.lr * config.finetune_lr) if finetune else (first, self.lr)
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr, eps=ADAM_EPS, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: schedule(step, config, steps))

    def _with_lengths(self, decoder: Tensor) -> Tensor:
        unit = normalize(decoder, dim=1)
        return unit if self.lengths is None else unit * self.lengths

    def _dictionary(self, weights: dict[str, Tensor]) -> Dictionary:
        bias = weights["bias"]
        return Dictionary(
            weights["encoder"].T,
            weights["b_enc"],
            weights["decoder"],
            bias,
            bias,
            self.variant.choose(weights),
            self.normalisation,
            name=self.member.name,
        )


def schedule(step: int, config: TrainConfig, steps: int | None = None) -> float:
    """Linear warm-up, then a cosine down to `final_lr`, as a share of the peak (Braun et al. 2024, appendix D)."""
    steps = config.steps if steps is None else steps
    warmup = round(config.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


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
