"""What is to be trained, and how? One frozen dataclass, which is the library call, the command's flags and a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from dictlab.errors import DictlabError, check_at_least
from dictlab.sparsity import Activation, ReLU, TopK

ObjectiveName = Literal["local", "e2e", "e2e+ds"]
ActivationName = Literal["topk", "relu"]
LoggerName = Literal["wandb", "tensorboard"]


@dataclass(frozen=True)
class Objective:
    """Weights of the terms of a loss; sparsity comes on top (Braun et al. 2024, section 2).

    Attributes:
        reconstruction: Of the squared error at the site, mean over tokens and coordinates.
        kl: Of KL(original || spliced) of the model's output, mean over tokens.
        downstream: Of the squared error at the sites after, mean over tokens, coordinates and sites.
    """

    reconstruction: float = 0.0
    kl: float = 0.0
    downstream: float = 0.0

    @property
    def needs_model(self) -> bool:
        """Whether the reconstruction has to be spliced into the model."""
        return bool(self.kl or self.downstream)


OBJECTIVES: dict[str, Objective] = {
    "local": Objective(reconstruction=1.0),
    "e2e": Objective(kl=1.0),
    "e2e+ds": Objective(kl=0.5, downstream=2.5),
}


@dataclass(frozen=True)
class Member:
    """One dictionary of a family."""

    width: int
    activation: Activation
    l1: float
    objective: ObjectiveName
    seed: int
    site: str = ""
    place: str = ""  # where its name begins with its site: one of several

    @property
    def name(self) -> str:
        """Its file's name: site if there are several, objective, activation function with its sparsity, width, seed."""
        sparsity = f"topk{self.activation.k}" if isinstance(self.activation, TopK) else f"relu{self.l1:g}"
        return f"{self.place}{self.objective}-{sparsity}-{self.width}-s{self.seed}"


@dataclass(frozen=True)
class TrainConfig:
    """A training run: a family of dictionaries, every combination of the settings that take several values.

    Attributes:
        model: The language model: a folder or a name on the Hugging Face Hub. Not with `data` or `on`.
        site: Where in the model, such as blocks.3.hook_resid_pre; several give dictionaries at each.
        text: Where tokens come from: builtin, a file, a folder, or a dataset on the Hub.
        data: Activations instead of a model: a .npy or .safetensors file (FILE#TENSOR where it holds several), rows
            [n, d] or sequences [sequences, context, d].
        on: What of another dictionary to train on, and its file: decoder LARGE.safetensors takes the unit-norm decoder
            rows of its alive latents (a meta-dictionary).
        epochs: Passes over the data: of `data` and `on`, in place of `tokens`; of a text, at most so many.
        width: Latents; several give several dictionaries.
        activation: TopK with AuxK, or ReLU with an L1 penalty.
        k: Active latents a token (topk); several give several dictionaries.
        l1: Sparsity coefficient lambda of (lambda / d_in) |codes|_1 (relu); several give several dictionaries.
        objective: local (reconstruct the activation), e2e (keep the model's output), e2e+ds (and what lies between).
        seed: Of initialisation; several give several dictionaries. The first also orders the data.
        tokens: Tokens to train on.
        batch: Tokens a step.
        context: Tokens a context; the model's own by default, 1,024 at most.
        downstream: Weight of the later sites' error in e2e+ds.
        lr: Peak learning rate; by default 2e-4 / sqrt(width / 16384), the scaling law of Gao et al. 2024.
        warmup: Share of the steps in which the learning rate rises from 0.
        final_lr: What the cosine decay ends at, as a share of the peak.
        clip: Largest gradient norm.
        ema: Decay of an exponential moving average of the weights, which is then what is kept; none by default.
        aux_k: Dead latents that AuxK revives at once (topk); the power of two nearest d_in / 2 by default.
        dead_after: Tokens without firing after which a latent counts as dead; by default a twentieth of the run, but
            ten batches at least and 10 million at most.
        device: cpu, cuda, ...
        save_minutes: Minutes between saves of the state that `--resume` goes on from.
        log: Where metrics go besides the run's folder: wandb, tensorboard (each an extra to install).
        cache: Folder where activations of the model are kept for later runs; none by default.
        cache_gb: Size that the cache may grow to, in gigabytes (10^9 bytes).
    """

    model: str | None = None
    site: str | tuple[str, ...] = ()
    _: KW_ONLY
    text: str = "builtin"
    data: str | None = None
    on: tuple[Literal["decoder"], str] | None = None
    epochs: int | None = None
    width: tuple[int, ...] = (1024,)
    activation: ActivationName = "topk"
    k: tuple[int, ...] = (16,)
    l1: tuple[float, ...] = (1.0,)
    objective: tuple[ObjectiveName, ...] = ("local",)
    seed: tuple[int, ...] = (0,)
    tokens: int = 2_000_000
    batch: int = 2048
    context: int | None = None
    downstream: float = OBJECTIVES["e2e+ds"].downstream
    lr: float | None = None
    warmup: float = 0.05
    final_lr: float = 0.1
    clip: float = 10.0
    ema: float | None = None
    aux_k: int | None = None
    dead_after: int | None = None
    device: str = "cpu"
    save_minutes: float = 10.0
    log: tuple[LoggerName, ...] = ()
    cache: str | None = None
    cache_gb: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            DictlabError: A setting is out of its range.
        """
        if isinstance(self.site, tuple) and len(self.site) == 1:
            object.__setattr__(self, "site", self.site[0])  # one site, however it was given
        self._check_source()
        for name in ("width", "k", "l1", "objective", "seed"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise DictlabError(f"{name} is {list(values)}; expected one or more different values.")
        check_at_least(1, width=min(self.width), k=min(self.k), batch=self.batch, tokens=self.tokens)
        check_at_least(1, aux_k=self.aux_k, dead_after=self.dead_after)
        check_at_least(0, l1=min(self.l1), seed=min(self.seed), lr=self.lr, clip=self.clip, downstream=self.downstream)
        if self.activation == "topk" and max(self.k) > min(self.width):
            raise DictlabError(f"k {max(self.k)} exceeds width {min(self.width)}; keep k below the width.")
        if self.tokens < self.batch:
            raise DictlabError(f"tokens {self.tokens} is less than one batch of {self.batch}.")
        if not (0 <= self.warmup < 1 and 0 <= self.final_lr <= 1):
            raise DictlabError(f"warmup {self.warmup} and final_lr {self.final_lr} are shares between 0 and 1.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise DictlabError(f"ema is {self.ema}; expected a decay between 0 and 1, such as 0.999.")

    def _check_source(self) -> None:
        """One source of activations; spliced objectives need a model."""
        given = [name for name in ("model", "data", "on") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "nothing"
            raise DictlabError(
                f"train: {found} to train on; expected one of MODEL SITE, --data FILE, --on decoder FILE."
            )
        if self.model and not self.sites:
            raise DictlabError("train: no site is given; expected MODEL SITE, such as gpt2 blocks.6.hook_resid_pre.")
        if not self.model and self.sites:
            raise DictlabError(f"site {self.sites[0]}: plain activations have no sites; leave it out, or give a model.")
        if len(set(self.sites)) < len(self.sites):
            raise DictlabError(f"site is {list(self.sites)}; expected different sites.")
        spliced = [name for name in self.objective if name != "local"]
        if spliced and not self.model:
            raise DictlabError(f"objective {spliced[0]} needs a model to splice into; {given[0]} takes local alone.")
        if self.cache and not self.model:
            raise DictlabError("cache: only activations of a model are cached.")
        check_at_least(1, epochs=self.epochs)
        check_at_least(0, save_minutes=self.save_minutes, cache_gb=self.cache_gb)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites, whether one was given or several."""
        return ((self.site,) if self.site else ()) if isinstance(self.site, str) else tuple(self.site)

    @property
    def steps(self) -> int:
        """Training steps; a last, smaller batch is not taken."""
        return self.tokens // self.batch

    @property
    def dead_tokens(self) -> int:
        """`dead_after`, or its default."""
        return (
            self.dead_after if self.dead_after is not None else min(10_000_000, max(self.tokens // 20, 10 * self.batch))
        )

    def members(self) -> Iterator[Member]:
        """Every combination of site, width, sparsity, objective and seed."""
        sparsities: list[tuple[Activation, float]] = (
            [(TopK(k), 0.0) for k in self.k] if self.activation == "topk" else [(ReLU(), l1) for l1 in self.l1]
        )
        sites, several = self.sites or ("",), len(self.sites) > 1
        for site, objective, width, (activation, l1), seed in product(
            sites, self.objective, self.width, sparsities, self.seed
        ):
            place = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', site)}-" if several else ""
            yield Member(width, activation, l1, objective, seed, site, place)

    def weights(self, member: Member) -> Objective:
        """The weights of a member's loss."""
        if member.objective == "e2e+ds":
            return Objective(kl=OBJECTIVES["e2e+ds"].kl, downstream=self.downstream)
        return OBJECTIVES[member.objective]

    def default_out(self) -> Path:
        """Where the run goes when nobody says."""
        name = "meta-" if self.on else ""
        return Path("runs") / f"{name}{'-'.join(self.objective)}-{self.activation}-{'-'.join(map(str, self.width))}"
