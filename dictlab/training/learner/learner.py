"""One dictionary while it is trained: its weights, its optimizer, and which of its latents are dead."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize
from torch.optim.lr_scheduler import LambdaLR

from dictlab.data.activations import Moments
from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import Elementwise
from dictlab.dictionary.codes import Codes, DenseCodes
from dictlab.dictionary.kernels import dense
from dictlab.dictionary.kernels.error import squared_error
from dictlab.dictionary.normalisation import Normalisation, Scale, unscaled
from dictlab.dictionary.union import emitting
from dictlab.numerics import seeds
from dictlab.training import objectives
from dictlab.training.config import TrainConfig
from dictlab.training.distributed.ranks import SINGLE_PROCESS, Ranks
from dictlab.training.learner import initialisation, optimizer_step, resampling
from dictlab.training.learner.firing_counts import FiringCounts, active_counts
from dictlab.training.member import Member
from dictlab.training.objectives import Batch, Splice
from dictlab.training.variants import ForwardPass, Term
from dictlab.training.variants.async_scalar import AsyncScalar

PENALTIES = ("l1", "l0")  # terms that a factor for fine-tuning applies to


class Learner:
    """One dictionary of a family in training.

    Weights are in units in which the activations' coordinates have variance 1, whatever the model; `finished` folds the
    scale away. Losses are computed in the model's units, as the papers write them.

    Args:
        member: The dictionary to train: width, variant, objective, seed, warm start.
        config: The run's settings.
        statistics: Mean and variance of a sample of the activations.
        centre: Geometric median of the same sample, the first value of the bias, in the model's units.
        ranks: The processes that share each batch, and the latents: weights and counters are of this one's latents.

    Raises:
        DictlabError: The dictionary to start from reads activations of another width.
    """

    def __init__(
        self,
        member: Member,
        config: TrainConfig,
        statistics: Moments,
        centre: Float[Tensor, " d_in"],
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:
        self.member, self.config, self.variant, self.ranks = member, config, member.variant, ranks
        self.recipe = config.optimisation
        self.d_in, device = len(centre), centre.device
        self.variance = statistics.variance / self.d_in
        self.unit = math.sqrt(self.variance)
        self.normalisation: Normalisation = Scale(1 / self.unit)
        latents = ranks.latent_slice(member.width)
        initial = self.variant.tensors(member.width, self.d_in)
        self.initial = {name: t[latents].to(device) for name, t in initial.items()}
        self.counters = {name: t.to(device) for name, t in self.variant.counters().items()}
        if member.start is None:
            weights = initialisation.fresh(member, centre, self.unit, self.initial, ranks)
        else:
            weights, self.normalisation = initialisation.warm_start(member, centre, self.unit, self.initial, latents)
        self.weights = {name: t.clone().requires_grad_() for name, t in weights.items()}
        self.common = [name == "bias" for name in self.weights]
        lengths = self.decoder.detach().norm(dim=1, keepdim=True)
        self.lengths = None if member.start is None or member.start.activation.elementwise else lengths
        self.emits = emitting(self.variant.choose(self.weights), len(self.decoder)).to(device)
        self.dtype = torch.bfloat16 if config.precision == "bfloat16" else None
        self.resampling_steps = frozenset() if self.variant.revived else resampling.resampling_steps(config)
        self.since_fired = torch.zeros(len(self.decoder), dtype=torch.long, device=device)  # tokens
        self.firing_counts = FiringCounts(len(self.decoder), config.batch, device)
        self.average = [p.detach().clone().zero_() for p in self.parameters] if self.recipe.ema else None
        self.steps = self.averaged = 0
        self.begin(finetune=False)

    @property
    def parameters(self) -> list[Tensor]:
        """The trained tensors, in the order of `weights`."""
        return list(self.weights.values())

    @property
    def encoder(self) -> Float[Tensor, "n_latents d_in"]:
        """The encoder with a row for each latent (the transpose of `W_enc`), so that sparse gradients are cheap."""
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
        """A view of the weights as they are forward."""
        return self._dictionary(self.weights)

    @property
    def lr(self) -> float:
        """The peak learning rate."""
        activation = self.variant.record()["activation"]
        return self.config.peak_lr(self.member.width, activation, started=self.member.start is not None)

    def step(self, batch: Batch, splice: Splice | None, *, logged: bool = True) -> dict[str, Tensor]:
        """Take one training step.

        Args:
            batch: Activations of this step, with the clean forward where the objective needs it.
            splice: Where the reconstruction is spliced into the model, if the objective asks for it.
            logged: Whether L0, explained variance and the dead share are wanted: they cost passes over the batch.

        Returns:
            The loss, its terms before their weights, and the logged statistics, as scalars on the device.
        """
        if self.config.finetune and self.steps == self.config.steps - self.config.finetune_steps:
            self.begin(finetune=True)
        self.optimizer.zero_grad()
        forward = self._forward(batch)
        terms = self._terms(forward, batch, splice)
        loss = sum(term.weight * term.value for term in terms.values())
        assert isinstance(loss, Tensor)
        statistics = self._statistics(forward) if logged else {}
        errors = resampling.squared_errors(forward) if self.steps + 1 in self.resampling_steps else None
        forward = forward._replace(x_hat=forward.x_hat.new_empty(0, self.d_in))
        loss.backward()
        self.ranks.average_gradients_([p.grad for p in self.parameters], self.common)
        self._update()
        with torch.no_grad():
            self.variant.observe(forward, self.counters)
            counts = active_counts(forward.codes)
            counts = self.ranks.all_reduce_sum(torch.cat([counts, counts.new_full((1,), forward.codes.n_tokens)]))
            counts, tokens = counts[:-1], counts[-1]
            self.firing_counts.add(counts, tokens)
            self.since_fired = torch.where(counts > 0, 0, self.since_fired + tokens)
            if errors is not None:
                self._resample(forward, errors)
        log = {"loss": loss.detach()} | {name: term.value.detach() for name, term in terms.items()}
        with torch.no_grad():
            dead = {"dead": self.ranks.sum_over_latents(self.dead.float().sum()) / self.member.width} if logged else {}
        return dict(self.ranks.average_metrics(log | statistics | dead))

    def finished(self) -> Dictionary:
        """The trained dictionary in the activations' units: averaged weights if asked for, exact decoder norms.

        Where latents are shared out over processes, this process's part of it. Firing rates are those of
        `firing_counts`.
        """
        self.optimizer.zero_grad()  # the copies take the memory of the gradients
        values = self.average if self.average is not None and self.averaged else self.parameters
        weights = {name: value.detach().clone() for name, value in zip(self.weights, values, strict=True)}
        weights["decoder"] = self._with_lengths(weights["decoder"])
        finished = self.variant.finished(self._dictionary(weights), weights, self.counters).in_input_units()
        return replace(finished, firing_rate=self.firing_counts.rates)

    @property
    def finite(self) -> bool:
        """Whether all weights are finite, in every process."""
        return not self.ranks.any_rank(not all(bool(p.isfinite().all()) for p in self.parameters))

    def _forward(self, batch: Batch) -> ForwardPass:
        x, dead = batch.x.flatten(0, -2), self.dead & self.emits
        n_dead = AsyncScalar(dead.sum())  # before the forward, which then keeps the device busy
        dictionary = replace(self.dictionary, b_out=self.ranks.share_gradient(self.bias))
        entries, codes, x_hat = self._reconstruct(x, dictionary)
        return ForwardPass(
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
    ) -> tuple[Codes | DenseCodes, Codes | DenseCodes, Tensor]:
        """Entries, codes and reconstruction: by a full matrix of codes where they may be one and that is faster."""
        h, factor, undo = unscaled(self.normalisation, x)
        W_enc, activation = dictionary.W_enc, dictionary.activation
        if self.variant.plain and isinstance(activation, Elementwise):
            encoder = (h, W_enc, self.b_enc, activation, self.bias, factor)
            if dense.pays(*encoder):
                matrix, y = dense.reconstruct(*encoder, self.decoder)
                return matrix, matrix, undo(self.ranks.sum_over_latents(y) + dictionary.b_out)
        entries = self.ranks.encode(h, W_enc, self.b_enc, activation, self.bias, factor, self.dtype)
        codes = self.variant.emit(entries, self.weights)
        return entries, codes, self.ranks.reconstruct(codes, self.decoder, dictionary.b_out, undo)

    def _terms(self, forward: ForwardPass, batch: Batch, splice: Splice | None) -> dict[str, Term]:
        """Terms of the objective, then those of the variant, whose coefficients fine-tuning may change."""
        weights = self.objective
        terms = {}
        if weights.reconstruction:
            normaliser = self.variance if self.variant.normalised else 1.0
            terms["reconstruction"] = Term(squared_error(forward.x_hat, forward.x), weights.reconstruction / normaliser)
        if weights.needs_model:
            assert splice is not None
            found = objectives.model_terms(weights, forward.x_hat.view(batch.x.shape), batch, splice)
            terms |= {name: Term(value, getattr(weights, name)) for name, value in found.items()}
        for name, term in self.variant.terms(forward).items():
            terms[name] = term._replace(weight=term.weight * self.penalty) if name in PENALTIES else term
        return terms

    @torch.no_grad()
    def _statistics(self, forward: ForwardPass) -> dict[str, Tensor]:
        """L0 (latents a token) and explained variance of this batch."""
        mean = self.ranks.all_reduce_mean(forward.x.mean(dim=0)).expand_as(forward.x)
        left, varied = self.ranks.all_reduce_mean(
            torch.stack([squared_error(own, forward.x) for own in (forward.x_hat, mean)])
        )
        active = self.ranks.sum_over_latents(forward.codes.l0().float().mean())
        explained = torch.where(varied > 0, 1 - left / varied, torch.nan)  # a batch of one token has no variance
        return {"l0": active, "explained_variance": explained}

    @torch.no_grad()
    def _resample(self, forward: ForwardPass, errors: Float[Tensor, " batch"]) -> None:
        """Replace dead latents (see `resampling.resampled_rows`) and reset their moments, averages and counts."""
        generator = seeds.generator(self.member.seed, f"resampling after step {self.steps}")
        rows = resampling.resampled_rows(forward, errors, self.dead, generator)
        if rows is None:
            return
        dead = rows.latents
        new = {"decoder": rows.decoder, "encoder": rows.encoder, "b_enc": self.b_enc.new_zeros(len(dead))}
        new |= {name: initial[dead] for name, initial in self.initial.items()}
        for name, values in new.items():
            weight = self.weights[name]
            weight[dead] = values
            for moment in self.optimizer.state.get(weight, {}).values():
                if moment.shape == weight.shape:
                    moment[dead] = 0
        if self.average is not None:
            for average, weight, common in zip(self.average, self.parameters, self.common, strict=True):
                if not common:
                    average[dead] = weight[dead]
        self.since_fired[dead] = 0
        self.firing_counts.forget(dead)

    @torch.no_grad()
    def _update(self) -> None:
        """Project the decoder's gradient, clip, take Adam's step, restore the lengths of decoder rows, average; see
        `optimizer_step`.
        """
        if self.decoder.grad is not None:
            optimizer_step.project(
                self.decoder.grad, self.decoder if self.lengths is None else normalize(self.decoder, dim=1)
            )
        optimizer_step.clipped_step(self.optimizer, self.parameters, self.recipe.clip, self.ranks, self.common)
        self.schedule.step()
        optimizer_step.renormalise(self.decoder)
        if self.lengths is not None:
            self.decoder.mul_(self.lengths)
        self.steps += 1
        if self.average is not None and self.recipe.ema is not None:
            self.averaged += 1
            optimizer_step.average(self.average, self.parameters, self.recipe.ema, self.averaged)

    def continue_from(self, steps: int) -> None:
        """Take up the objective, the schedule and the counts of a learner that has taken so many steps."""
        first = self.config.steps - self.config.finetune_steps
        in_part = steps if steps <= first else steps - first
        if steps > first:
            self.begin(finetune=True)
        self.steps = self.firing_counts.steps = steps
        self.averaged = in_part if self.average is not None else 0
        self.schedule.last_epoch = in_part
        for group, base_lr, factor in zip(
            self.optimizer.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True
        ):
            group["lr"] = base_lr * factor(in_part)

    def begin(self, *, finetune: bool) -> None:
        """Begin a part of the run, with Adam and a schedule of its own: gradients of objectives differ in size."""
        config, recipe, first = self.config, self.recipe, self.config.steps - self.config.finetune_steps
        name = self.member.finetune if finetune else self.member.objective
        assert name is not None
        self.objective = config.weights(name)
        self.penalty = config.finetune_penalty if finetune else 1.0
        self.averaged = 0  # an average over two objectives is neither's
        steps, lr = (config.finetune_steps, self.lr * recipe.finetune_lr) if finetune else (first, self.lr)
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr, eps=recipe.eps, fused=True)
        self.schedule = LambdaLR(self.optimizer, lambda step: recipe.share_of_peak(step, steps))

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
