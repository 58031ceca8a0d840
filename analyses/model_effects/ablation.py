"""How many logits does a latent move when it is taken away?

Sparsity of downstream effects (Gao et al. 2024). At one token a single active latent is set to 0, and the logits at
that token and those after it, T positions together, are compared with the clean ones:

    v = difference of logits, less its median over the vocabulary at each position          [T, V]
    sparsity = (|v|_1 / |v|_2)^2 / (V T),    in (0, 1]

1 / (V T) if a single logit moves, 2 / pi expected of independent normal numbers. The latent's part of the
reconstruction, f_j d_j, is subtracted from the activation itself, so that the error of the dictionary plays no part.
Beside it a random direction of the same length at the same token, and a channel of the activation set to 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from analyses.common.inputs import (
    DictionaryLike,
    ModelLike,
    TextLike,
    context_of,
    in_model,
    open_dictionaries,
    open_model,
    open_text,
    sites_of,
)
from analyses.common.patching import clean_runs
from analyses.common.token_texts import token_text
from analyses.model_effects.ablation_report import ablation_report
from analyses.model_effects.logit_sparsity import CHANNEL, LATENT, RANDOM, AblationEffect, effects
from dictlab import seeds
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.evaluate import site_of
from dictlab.model.language_model import LanguageModel
from dictlab.reports.report import Report


class Ablations(NamedTuple):
    """What is subtracted from the activation at one token.

    Attributes:
        dictionary: Its name; "" for channels.
        kind: LATENT, RANDOM or CHANNEL.
        which: The latent, or the channel; for a random direction the latent whose length it has.
        activation: Of the latent, or the channel.
        steps: What is subtracted.
        rate: Share of tokens at which each latent is active; NaN of channels, and where the file does not say.
        active: Latents that are active at this token, ablated or not; of channels all.
    """

    dictionary: str
    kind: str
    which: Int[Tensor, " ablations"]
    activation: Float[Tensor, " ablations"]
    steps: Float[Tensor, "ablations d_in"]
    rate: Float[Tensor, " ablations"]
    active: int


def ablation(
    dictionaries: Sequence[DictionaryLike],
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    tokens: int = 64,
    latents: int = 16,
    n_positions: int = 16,
    seed: int = 0,
    device: str = "cpu",
) -> Report:
    """How many logits does a latent move when it is taken away?

    Args:
        dictionaries: Any number, at one site or at several.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from; its held-out split is used.
        tokens: Tokens at which latents are ablated, each in a sequence of its own.
        latents: Active latents at each of them, drawn where there are more; and as many channels.
        n_positions: Positions at which logits are compared, the token's own the first.
        seed: Of the sample of text, tokens and latents, and the bootstrap.
        device: Where to run: cpu, cuda, ...

    Example:
        dictlab report ablation topk8.safetensors topk64.safetensors --tokens 128
    """
    check_at_least(0, seed=seed)
    check_at_least(1, latents=latents, n_positions=n_positions)
    check_at_least(2, tokens=tokens)
    opened = open_dictionaries(dictionaries)
    model, source = open_model(model, opened, device), open_text(text)
    sites = sites_of(opened, model)
    for site in sites:
        model.block_input(site)
    length = context_of(opened, model, source)
    if n_positions >= length:
        raise DictlabError(
            f"n_positions is {n_positions}; in contexts of {length} tokens, 1 to {length - 1} have a token before."
        )
    sample = source.as_split("heldout").sample(model.tokenizer, length, tokens, seed=seed)
    found, done = _measured(opened, in_model(opened, model), model, sample, latents, n_positions, seed)
    notes = [] if len(sample) == tokens else [f"The text holds {len(sample)} contexts, {tokens} were asked for."]
    if done < len(sample):
        notes.append(f"PARTIAL: interrupted after {done} of {len(sample)} tokens.")
    return ablation_report(found, opened, {
        "text": source.name, "model": model.name, "context": length, "tokens": done, "latents": latents,
        "n_positions": n_positions, "vocabulary": model.vocabulary, "seed": seed,
    }, notes)  # fmt: skip


@torch.no_grad()
def _measured(
    opened: Sequence[Dictionary],
    placed: Sequence[Dictionary],
    model: LanguageModel,
    sample: Int[Tensor, "tokens context"],
    latents: int,
    n_positions: int,
    seed: int,
) -> tuple[list[AblationEffect], int]:
    """Every ablation at the chosen token of every sequence, and how many of these were done.

    Interrupted by Ctrl-C, it returns what is complete, if that is two tokens or more.
    """
    generator = seeds.generator(seed, "tokens to ablate at")
    positions = torch.randint(1, sample.shape[1] - n_positions + 1, (len(sample),), generator=generator).tolist()
    sites = list(dict.fromkeys(site_of(d) for d in placed))
    found: list[AblationEffect] = []
    done = 0
    try:
        for position in tqdm(positions, desc="ablation", unit="token", leave=False):
            word = token_text(model.tokenizer, int(sample[done, position]))
            own: list[AblationEffect] = []
            for site, clean_run in clean_runs(model, sample[done : done + 1, : position + n_positions], sites).items():
                here = [(d.name, p) for d, p in zip(opened, placed, strict=True) if site_of(p) == site]
                sets = _sets(here, clean_run.x[0].float(), position, latents, seed, done)
                outcome = effects(clean_run.tail(position, n_positions), torch.cat([some.steps for some in sets]))
                rows = zip(*(part.tolist() for part in outcome), strict=True)
                for some in sets:
                    which = zip(*(part.tolist() for part in (some.which, some.rate, some.activation)), strict=True)
                    common = some.dictionary, site, some.kind, done, position, word, some.active
                    own += [AblationEffect(*common, *one, *next(rows)) for one in which]
            found += own
            done += 1
    except KeyboardInterrupt:
        if done < 2:
            raise
    return found, done


def _sets(
    dictionaries: Sequence[tuple[str, Dictionary]],
    x: Float[Tensor, "context d_in"],
    position: int,
    most: int,
    seed: int,
    token: int,
) -> list[Ablations]:
    """All that is ablated at one token of a site: latents and random directions by dictionary, and channels.

    The same random numbers serve each dictionary: their differences are paired, and none depends on its company.
    """
    sets = []
    for name, dictionary in dictionaries:
        generator = seeds.generator(seed, f"latents and directions to ablate at token {token}")
        made = _latents(name, dictionary, x, position, most, generator)
        sets += [made, _random(made, generator)]
    return [*sets, _channels(x[position], most, seeds.generator(seed, f"channels to ablate at token {token}"))]


def _latents(
    name: str,
    dictionary: Dictionary,
    x: Float[Tensor, "context d_in"],
    position: int,
    most: int,
    generator: torch.Generator,
) -> Ablations:
    """What each active latent contributes at a token, for some of them if there are many."""
    if not dictionary.activation.batchwise:  # else its codes depend on the tokens beside it
        x, position = x[position : position + 1], 0
    codes = dictionary.encode(x)
    own = slice(int(codes.offsets[position]), int(codes.offsets[position + 1]))
    active = (codes.values[own] != 0).nonzero().squeeze(1)
    drawn = active[torch.rand(len(active), generator=generator).argsort()[:most].to(active.device)]
    which, values = codes.indices[own][drawn], codes.values[own][drawn]
    scale = torch.as_tensor(dictionary.normalisation(x)[1].scale, device=x.device)
    scale = scale.expand(len(x), 1)[position] if scale.ndim else scale
    rate = torch.full_like(values, torch.nan) if dictionary.firing_rate is None else dictionary.firing_rate[which]
    return Ablations(name, LATENT, which, values, values[:, None] * dictionary.W_dec[which] * scale, rate, len(active))


def _random(like: Ablations, generator: torch.Generator) -> Ablations:
    """A random direction as long as each step."""
    drawn = torch.randn(like.steps.shape, generator=generator).to(like.steps)
    length = like.steps.norm(dim=1, keepdim=True)
    return like._replace(kind=RANDOM, steps=length * normalize(drawn, dim=1))


def _channels(x: Float[Tensor, " d_in"], most: int, generator: torch.Generator) -> Ablations:
    """Some coordinates of the activation."""
    which = torch.randperm(len(x), generator=generator)[:most].to(x.device)
    steps = torch.zeros(len(which), len(x), device=x.device)
    steps[torch.arange(len(which)), which] = x[which]
    return Ablations("", CHANNEL, which, x[which], steps, torch.full_like(x[which], torch.nan), len(x))
