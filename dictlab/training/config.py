"""What is to be trained, and how? One frozen dataclass, which is the library call, the command's flags and a file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError, check_at_least
from dictlab.model.model_options import ModelDtype
from dictlab.token_selection import AUTO, TokenSelection
from dictlab.training.learner.warm_start import variants_for
from dictlab.training.member import Member
from dictlab.training.objectives import OBJECTIVES, Objective, ObjectiveName
from dictlab.training.recipes import RECIPES, Recipe, RecipeName
from dictlab.training.schedules import ScheduleName
from dictlab.training.variants import BY_NAME, ActivationName, Variant

LoggerName = Literal["wandb", "tensorboard"]
Precision = Literal["float32", "bfloat16"]
DEFAULTS: dict[str, tuple[Any, ...]] = {"width": (1024,), "activation": ("topk",), "k": (16,)}  # without start
SEVERAL = ("width", "activation", "k", "l1", "l0", "objective", "later", "start", "seed", "prefixes")
OPTIMISATION = ("schedule", "warmup", "decay", "final_lr", "clip", "ema", "dead_after", "finetune_lr")  # by recipe
WEIGHTS = ("reconstruction", "kl", "ce", "downstream")  # of the objective weighted


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
        width: Latents; several give several dictionaries. 1024 by default.
        activation: Activation function; several give several dictionaries. topk by default.
        k: Active latents a token (topk, multitopk; on average for batchtopk); several give several dictionaries. 16 by
            default.
        l1: Sparsity coefficient lambda of (lambda / d_in) |codes|_1 (relu, gated, prolu); several give several.
        l0: Sparsity coefficient lambda of lambda |codes|_0 (jumprelu), in explained variance a latent; several give
            several.
        objective: local (reconstruct the activation), e2e (keep the model's output), e2e+ds (and what lies between),
            or weighted (a sum of terms with the weights given below).
        reconstruction: Weight of the squared error at the site (weighted).
        kl: Weight of KL(original || spliced) of the model's output (weighted).
        ce: Weight of the spliced model's cross-entropy of the next token (weighted).
        downstream: Weight of the later sites' error (e2e+ds, where it is 2.5 by default, and weighted).
        later: The later sites; by default the residual stream entering each block after the site.
        finetune: Objective for the last part of the run, such as e2e after local; none by default.
        finetune_tokens: How many of the tokens that part has; a tenth by default.
        finetune_lr: Its peak learning rate, as a share of lr; by default the recipe's.
        finetune_penalty: What its sparsity coefficients are multiplied by: a lambda for one objective is none for
            another.
        start: Dictionaries to go on from, of any library, in place of fresh ones: their width, activation function, k
            and seed are kept.
        seed: Of initialisation; several give several dictionaries. The first also orders the data.
        tokens: Tokens to train on.
        batch: Tokens a step, drawn at random from a shuffle buffer of 131,072 tokens, or all of a shorter run. Beside
            the model and the dictionaries, training takes at most three times that buffer (d_in numbers a token, in the
            precision of the model) and 1 GB.
        context: Tokens a context; the model's own by default, 1,024 at most.
        token_selection: Which tokens count: all; or without-first, without-special, without-bos, without-outliers
            (positions whose norm exceeds 10 times the median of their context), positions=A:B, joined by commas. By
            default (auto) all, or, where the model has attention sinks, without-outliers.
        recipe: Where settings of the optimizer that are not given come from: dictlab (the best of a search), gao2024 or
            braun2024 (those of the papers), or dictlab-0.1 (the defaults of earlier runs).
        lr: Peak learning rate; by default the recipe's for the width and the number of steps.
        schedule: The learning rate after the warm-up: linear (constant, then a linear decay) or cosine.
        warmup: Share of the steps in which the learning rate rises from 0.
        decay: Share of the steps, the last ones, in which a linear schedule falls.
        final_lr: What the learning rate ends at, as a share of the peak.
        clip: Largest gradient norm of a dictionary, in the units of the loss; 0 scales every gradient to norm 1, so
            that every step counts alike.
        ema: Decay of an exponential moving average of the weights, which is then what is kept.
        aux_k: Dead latents that AuxK revives at once (topk, multitopk, batchtopk and matryoshka); the power of two
            nearest d_in / 2 by default.
        dead_after: Tokens without firing after which a latent counts as dead; by default the recipe's, or a twentieth
            of the run, but ten batches at least and 10 million at most.
        resample: How often dead latents of functions without AuxK begin anew, in the first half of the run; never by
            default.
        sparsity_warmup: Share of the steps in which sparsity coefficients rise from 0.
        p_norm: The norm of the codes that l1 weighs.
        bandwidth: Width of the kernel that thresholds are learnt through, and where they start (jumprelu), as a share
            of the typical norm of an activation about its mean.
        prefixes: Shares of the latents that must reconstruct by themselves (matryoshka).
        device: cpu, cuda, ...
        precision: Of the product that chooses which latents are active: float32, or bfloat16, which is faster where the
            processor knows it. What they emit, and every gradient, is computed in float32 in any case. bfloat16 by
            default on a GPU that knows it, else float32.
        shards: Parts that the latents of each dictionary are cut into, one for each of so many processes of torchrun;
            where there are more processes, groups of so many share out the tokens.
        save_minutes: Minutes between saves of the state that `--resume` goes on from.
        log: Where metrics go besides the run's folder: wandb, tensorboard (each an extra to install).
        model_dtype: Precision of the model's weights: auto, float32, bfloat16 or float16; auto is float32 on a CPU, and
            on a GPU what the model is kept in. Dictionaries are trained in float32 in any case.
        model_revision: Branch, tag or commit of a model on the Hub.
        trust_remote_code: Run code that comes with the model. No file of settings can ask for it: give it again with
            `--resume`.
        allow_other_weights: Let `start` name dictionaries of a model with other weights, such as the one that this one
            was fine-tuned from.
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
    width: tuple[int, ...] = ()
    activation: tuple[ActivationName, ...] = ()
    k: tuple[int, ...] = ()
    l1: tuple[float, ...] = (1.0,)
    l0: tuple[float, ...] = (0.003,)
    objective: tuple[ObjectiveName, ...] = ("local",)
    reconstruction: float | None = None
    kl: float | None = None
    ce: float | None = None
    downstream: float | None = None
    later: tuple[str, ...] = ()
    finetune: ObjectiveName | None = None
    finetune_tokens: int | None = None
    finetune_lr: float | None = None
    finetune_penalty: float = 1.0
    start: tuple[str, ...] = ()
    seed: tuple[int, ...] = (0,)
    tokens: int = 2_000_000
    batch: int = 2048
    context: int | None = None
    token_selection: str = AUTO
    recipe: RecipeName = "dictlab"
    lr: float | None = None
    schedule: ScheduleName | None = None
    warmup: float | None = None
    decay: float | None = None
    final_lr: float | None = None
    clip: float | None = None
    ema: float | None = None
    aux_k: int | None = None
    dead_after: int | None = None
    resample: int = 0
    sparsity_warmup: float = 0.0
    p_norm: float = 1.0
    bandwidth: float = 0.1
    prefixes: tuple[float, ...] = (0.0625, 0.125, 0.25, 0.5)
    device: str = "cpu"
    precision: Precision | None = None
    shards: int = 1
    save_minutes: float = 10.0
    log: tuple[LoggerName, ...] = ()
    model_dtype: ModelDtype = "auto"
    model_revision: str | None = None
    trust_remote_code: bool = False
    allow_other_weights: bool = False
    cache: str | None = None
    cache_gb: float = 10.0

    def __post_init__(self) -> None:
        """Fill in defaults, and refuse what cannot be trained.

        Raises:
            DictlabError: A setting is out of its range.
        """
        for name in SEVERAL:  # one value is a family of one
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list | tuple) else (value,))
        if not isinstance(self.site, str):  # one site, however it was given, is the same setting
            object.__setattr__(self, "site", self.site[0] if len(self.site) == 1 else tuple(self.site))
        self._check_start()
        self._check_source()
        for name in ("width", "activation", "k", "l1", "l0", "objective", "seed"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or not (values or (self.start and name in DEFAULTS)):
                raise DictlabError(f"{name} is {list(values)}; expected one or more different values.")
        if self.precision not in (None, *get_args(Precision)):
            raise DictlabError(f"precision is {self.precision!r}; expected {' or '.join(get_args(Precision))}.")
        self._check_numbers()
        self._check_weights()
        if self.token_selection != AUTO:
            object.__setattr__(self, "token_selection", str(TokenSelection.parse(self.token_selection)))
        for width, variant in product(self.width, self._variants()):
            variant.check(width)

    def _check_source(self) -> None:
        """One source of activations; what needs a model has one."""
        given = [name for name in ("model", "data", "on") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "nothing"
            raise DictlabError(f"train: {found} to train on; give one of model and site, `data=...`, `on=...`.")
        if self.model and not self.sites:
            raise DictlabError("train: no site is given; expected MODEL SITE, such as gpt2 blocks.6.hook_resid_pre.")
        if len(set(self.sites)) < len(self.sites):
            raise DictlabError(f"site is {list(self.sites)}; expected different sites.")
        if self.start and len(self.sites) > 1:
            raise DictlabError(f"site is {list(self.sites)}; start goes on at one site: give that.")
        if not self.model:
            self._check_without_model(given[0])
        check_at_least(1, epochs=self.epochs)
        check_at_least(0, save_minutes=self.save_minutes, cache_gb=self.cache_gb)

    def _check_without_model(self, source: str) -> None:
        if self.sites:
            raise DictlabError(f"site {self.sites[0]}: plain activations have no sites; leave it out, or give a model.")
        goals = [*self.objective, *([self.finetune] if self.finetune else [])]
        spliced = [name for name in goals if self.weights(name).needs_model]
        if spliced:
            raise DictlabError(f"objective {spliced[0]} needs a model to splice into; {source} takes local alone.")
        if self.token_selection not in (AUTO, "all"):
            raise DictlabError(
                f"token_selection {self.token_selection}: all rows of {source} are trained on; take out first those "
                "that are not to count."
            )
        if self.cache:
            raise DictlabError(f"cache: for activations of a model; {source} has none.")

    def _check_start(self) -> None:
        """What a started dictionary brings along is not given; for a fresh one it has defaults."""
        for name, default in DEFAULTS.items():
            given = getattr(self, name)
            if self.start and given:
                raise DictlabError(f"{name} is {list(given)}, and start brings its own; give one of the two.")
            if not self.start and not given:
                object.__setattr__(self, name, default)
        unknown = [name for name in self.activation if name not in BY_NAME]
        if unknown:
            raise DictlabError(f"activation {unknown[0]!r} is unknown; known are {', '.join(BY_NAME)}.")
        if self.start and len(self.seed) > 1:
            raise DictlabError(f"seed is {list(self.seed)}; with start it orders the data and nothing else: give one.")

    def _check_numbers(self) -> None:
        check_at_least(1, width=min(self.width, default=1), k=min(self.k, default=1), batch=self.batch)
        check_at_least(1, shards=self.shards, tokens=self.tokens, aux_k=self.aux_k, dead_after=self.dead_after)
        check_at_least(0, l1=min(self.l1), l0=min(self.l0), seed=min(self.seed), lr=self.lr)
        check_at_least(0, finetune_penalty=self.finetune_penalty, resample=self.resample)
        if self.lr is not None and self.lr > 1:
            raise DictlabError(
                f"lr is {self.lr:g}; expected 1 at most: a step of Adam moves a weight by about as much, and "
                "decoder rows have length 1. Usual are 1e-4 to 1e-2."
            )
        if self.tokens < self.batch:
            raise DictlabError(f"tokens {self.tokens} is less than one batch of {self.batch}.")
        if self.recipe not in RECIPES:
            raise DictlabError(f"recipe {self.recipe!r} is unknown; known are {', '.join(RECIPES)}.")
        self.optimisation.check()
        if not (self.p_norm > 0 and self.bandwidth > 0 and 0 <= self.sparsity_warmup <= 1):
            raise DictlabError(
                f"p_norm {self.p_norm} and bandwidth {self.bandwidth} must be above 0, "
                f"sparsity_warmup {self.sparsity_warmup} a share between 0 and 1."
            )
        if list(self.prefixes) != sorted(set(self.prefixes)) or not all(0 < share < 1 for share in self.prefixes):
            raise DictlabError(f"prefixes is {list(self.prefixes)}; expected rising shares between 0 and 1.")
        if self.finetune is not None and self.steps < 2:
            raise DictlabError(
                f"finetune: tokens {self.tokens} is a single batch of {self.batch}; expected two or more."
            )
        if self.finetune_tokens is not None and not self.batch <= self.finetune_tokens <= self.tokens - self.batch:
            raise DictlabError(
                f"finetune_tokens is {self.finetune_tokens}; expected a batch ({self.batch}) at least, "
                f"and a batch less than tokens ({self.tokens}) at most."
            )

    def _check_weights(self) -> None:
        """A weight that nothing uses is a mistake."""
        goals = {*self.objective, self.finetune}
        given = {name: getattr(self, name) for name in WEIGHTS if getattr(self, name) is not None}
        check_at_least(0, **given)
        unused = [name for name in given if name != "downstream" and "weighted" not in goals]
        if unused:
            raise DictlabError(f"{unused[0]} is a weight of the objective weighted; add `objective='weighted'`.")
        if "weighted" in goals and not any(given.values()):
            raise DictlabError(f"objective weighted: give one of the weights {', '.join(WEIGHTS)}.")
        if self.finetune_tokens is not None and self.finetune is None:
            raise DictlabError("finetune_tokens is given, and finetune is not: which objective?")

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites, whether one was given or several."""
        return ((self.site,) if self.site else ()) if isinstance(self.site, str) else self.site

    @property
    def steps(self) -> int:
        """Training steps; a last, smaller batch is not taken."""
        return self.tokens // self.batch

    @property
    def finetune_steps(self) -> int:
        """The last of them, that have another objective."""
        if self.finetune is None:
            return 0
        return max(1, (self.finetune_tokens or self.tokens // 10) // self.batch)

    @property
    def dead_tokens(self) -> int:
        """`dead_after`, or its default."""
        given = self.optimisation.dead_after
        return given if given is not None else min(10_000_000, max(self.tokens // 20, 10 * self.batch))

    @property
    def optimisation(self) -> Recipe:
        """The recipe, with the settings that are given in place of its own."""
        settings = {name: getattr(self, name) for name in OPTIMISATION}
        return replace(RECIPES[self.recipe], **{name: v for name, v in settings.items() if v is not None})

    def spelt_out(self) -> TrainConfig:
        """The same run with the recipe's settings written out, so that it means the same whatever recipes become."""
        optimisation = self.optimisation
        return replace(self, **{name: getattr(optimisation, name) for name in OPTIMISATION})

    def peak_lr(self, width: int, activation: str = "topk", *, started: bool = False) -> float:
        """Peak learning rate of a dictionary of so many latents.

        Args:
            width: Latents.
            activation: Its activation function, as `activation` names it.
            started: Whether it goes on from a trained one, which wants smaller steps.
        """
        if self.lr is not None:
            return self.lr
        recipe = self.optimisation
        return recipe.lr(width, self.steps, activation) * (recipe.start_lr if started else 1.0)

    def members(self, starts: Sequence[Dictionary] = ()) -> Iterator[Member]:
        """Every combination of site, objective, width, activation function with its sparsity, and seed.

        Args:
            starts: What `start` names, opened; each is combined with objectives and sparsity coefficients.
        """
        sites, several = self.sites or ("",), len(self.sites) > 1
        for site, objective, width, variant, seed in product(
            sites, self.objective, self.width, self._variants(), self.seed
        ):
            place = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', site)}-" if several else ""
            yield Member(width, variant, objective, seed, self.finetune, site=site, place=place)
        for objective, start in product(self.objective, starts):
            seed = self.seed[0] if start.metadata.seed is None else start.metadata.seed
            for variant in variants_for(start, self):
                yield Member(start.n_latents, variant, objective, seed, self.finetune, start, site=sites[0])

    def weights(self, name: ObjectiveName) -> Objective:
        """The weights of an objective's terms."""
        if name == "weighted":
            return Objective(**{weight: getattr(self, weight) or 0.0 for weight in WEIGHTS})
        if name == "e2e+ds" and self.downstream is not None:
            return replace(OBJECTIVES[name], downstream=self.downstream)
        return OBJECTIVES[name]

    def default_out(self) -> Path:
        """Where the run goes when nobody says."""
        meta = ["meta"] if self.on else []
        made = [Path(start).stem for start in self.start] or ["-".join(self.activation), *map(str, self.width)]
        then = ["then", self.finetune] if self.finetune else []
        return Path("runs") / "-".join([*meta, *self.objective, *then, *made])

    def _variants(self) -> list[Variant]:
        return [variant for name in self.activation for variant in BY_NAME[name](self, self.k)]
