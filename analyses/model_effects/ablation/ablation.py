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

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from analyses.common.inputs import ModelInputs, open_inputs
from analyses.common.opening import DictionaryLike, ModelLike, TextLike
from analyses.common.patching import clean_runs, counted_mask
from analyses.common.token_texts import token_text
from analyses.model_effects.ablation.estimates import estimate_ablations
from analyses.model_effects.ablation.logit_sparsity import (
    CHANNEL,
    LATENT,
    RANDOM,
    AblationEffect,
    LogitEffects,
    ablation_effects,
)
from analyses.model_effects.ablation.report import ablation_report
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.sites import site_of
from dictlab.numerics import seeds
from dictlab.reports.report import Report
from dictlab.runtime.interruption import Completion
from dictlab.runtime.progress import track


class Ablations(NamedTuple):
    """What is subtracted from the activation at one token.

    Attributes:
        dictionary: Its name; "" for channels.
        kind: LATENT, RANDOM or CHANNEL.
        which: The latent, or the channel; for a random direction the latent whose length it has.
        activation: Of the latent, as the length of what it adds, with its sign; or of the channel.
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
    contexts: int = 64,
    latents_per_token: int = 16,
    positions: int = 16,
    seed: int = 0,
    device: str = "cpu",
    token_selection: str | None = None,
) -> Report:
    """How many logits does a latent move when it is taken away?

    Args:
        dictionaries: One or more, at one site or at several.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from. Its held-out split is used.
        contexts: Held-out sequences to measure on. Latents are ablated at one token of each.
        latents_per_token: Active latents to ablate at a token, drawn where there are more; and as many channels.
        positions: Positions at which logits are compared, the token's own the first.
        seed: Seed of everything that is drawn at random.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.

    Returns:
        A report with these tables; in brackets what is there only where there is such a thing.

        overview: features; L0; ablated; sparsity; sparsity low; sparsity high; random; random low; random high; over
            random; over random low; over random high; logits; effect; rare; rare low; rare high; own position; own
            position low; own position high; random own position; random own position low; random own position high;
            width; family
        effects: dictionary; site; kind; sequence; position; token; active; which; rate; activation; sparsity; effect;
            own position

    Example:
        dictlab report ablation topk8.safetensors topk64.safetensors --contexts 128
    """
    check_at_least(0, seed=seed)
    check_at_least(1, latents_per_token=latents_per_token, positions=positions)
    check_at_least(2, contexts=contexts)
    inputs = open_inputs(
        dictionaries,
        analysis="ablation",
        model=model,
        text=text,
        device=device,
        resumable=True,
        token_selection=token_selection,
    )
    if positions >= inputs.context:
        raise DictlabError(
            f"positions is {positions}; in contexts of {inputs.context} tokens, 1 to {inputs.context - 1} have a "
            "token before."
        )
    sample = inputs.sample(contexts, seed=seed)
    counted = counted_mask(inputs.model, sample.tokens, inputs.sites, inputs.selection)
    places = draw_places(counted, positions, seed)
    if len(places) < 2:
        raise DictlabError(
            f"token selection {inputs.selection}: {len(places)} of {len(counted)} sequences have a token to ablate at, "
            f"with {positions - 1} behind it and one before; 2 are needed. Give more text, or fewer `positions=...`."
        )
    effects, completion = _measure(inputs, sample.tokens, counted, places, latents_per_token, positions, seed)
    estimates = estimate_ablations(effects, inputs.dictionaries, [s for s, _ in places[: completion.done]], seed)
    notes = [*sample.warnings, *completion.warnings]
    if len(places) < len(counted):
        notes.append(
            f"{len(counted) - len(places)} of {len(counted)} sequences have no token that counts to ablate at."
        )
    settings = inputs.record() | {
        "contexts": completion.done, "latents_per_token": latents_per_token, "positions": positions,
        "vocabulary": inputs.model.vocabulary, "seed": seed,
    }  # fmt: skip
    return ablation_report(effects, estimates, inputs.dictionaries, settings, (*notes, *inputs.warnings))


def draw_places(counted: Bool[Tensor, "contexts context"], n_positions: int, seed: int) -> list[tuple[int, int]]:
    """For each sequence the position to ablate at, uniform among the tokens that count with one before and
    `n_positions - 1` behind them; sequences without such a token are left out.

    A position is drawn among all; where that token does not count, another is drawn among those that do.
    """
    generator = seeds.generator(seed, "tokens to ablate at")
    last = counted.shape[1] - n_positions
    drawn = torch.randint(1, last + 1, (len(counted),), generator=generator).tolist()
    places = []
    for sequence, (position, row) in enumerate(zip(drawn, counted, strict=True)):
        possible = row[1 : last + 1].nonzero().squeeze(1) + 1
        if len(possible) and not row[position]:
            position = int(possible[torch.randint(len(possible), (1,), generator=generator)])
        if len(possible):
            places.append((sequence, position))
    return places


@torch.no_grad()
def _measure(
    inputs: ModelInputs,
    tokens: Int[Tensor, "contexts context"],
    counted: Bool[Tensor, "contexts context"],
    places: Sequence[tuple[int, int]],
    latents: int,
    n_positions: int,
    seed: int,
) -> tuple[list[AblationEffect], Completion]:
    """Every ablation at the chosen token of every sequence, and how many of these tokens are complete."""
    effects: list[AblationEffect] = []
    with Completion(len(places), "tokens") as completion:
        for sequence, position in track(places, "ablation", unit="tokens"):
            until = position + n_positions
            at_token = list[AblationEffect]()
            for site, run in clean_runs(inputs.model, tokens[sequence : sequence + 1, :until], inputs.sites).items():
                at_site = [
                    (own.name, adapted)
                    for own, adapted in zip(inputs.dictionaries, inputs.adapted, strict=True)
                    if site_of(adapted) == site
                ]
                sets = _sets(at_site, run.x[0].float(), counted[sequence, :until], position, latents, seed, sequence)
                outcome = ablation_effects(run.tail(position, n_positions), torch.cat([one.steps for one in sets]))
                word = token_text(inputs.model.tokenizer, int(tokens[sequence, position]))
                at_token += _joined(sets, outcome, (site, sequence, position, word))
            effects += at_token
            completion.add()
    return effects, completion


def _joined(
    sets: Sequence[Ablations], outcome: LogitEffects, place: tuple[str, int, int, str]
) -> Iterator[AblationEffect]:
    """Each ablation with its outcome. `place`: site, sequence, position, the token as text."""
    rows = zip(*(part.tolist() for part in outcome), strict=True)
    site, sequence, position, word = place
    for ablated in sets:
        parts = zip(*(part.tolist() for part in (ablated.which, ablated.rate, ablated.activation)), strict=True)
        for which, rate, activation in parts:
            about = (ablated.dictionary, site, ablated.kind, sequence, position, word, ablated.active)
            yield AblationEffect(*about, which, rate, activation, *next(rows))


def _sets(
    dictionaries: Sequence[tuple[str, Dictionary]],
    x: Float[Tensor, "context d_in"],
    counted: Bool[Tensor, " context"],
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
        latents = _latents(name, dictionary, x, counted, position, most, generator)
        sets += [latents, _random(latents, generator)]
    return [*sets, _channels(x[position], most, seeds.generator(seed, f"channels to ablate at token {token}"))]


def _latents(
    name: str,
    dictionary: Dictionary,
    x: Float[Tensor, "context d_in"],
    counted: Bool[Tensor, " context"],
    position: int,
    most: int,
    generator: torch.Generator,
) -> Ablations:
    """What each active latent contributes at a token, for some of them if there are many.

    Where codes depend on the tokens beside it, these are the tokens that count.
    """
    if dictionary.activation.batchwise:
        x, row = x[counted.to(x.device)], int(counted[:position].sum())
    else:
        x, row = x[position : position + 1], 0
    codes = dictionary.encode(x)
    entries = slice(int(codes.offsets[row]), int(codes.offsets[row + 1]))
    active = (codes.values[entries] != 0).nonzero().squeeze(1)
    drawn = active[torch.rand(len(active), generator=generator).argsort()[:most].to(active.device)]
    which, values = codes.indices[entries][drawn], dictionary.contributions(codes, x).values[entries][drawn]
    steps = values[:, None] * dictionary.directions[which]
    rate = torch.full_like(values, torch.nan) if dictionary.firing_rate is None else dictionary.firing_rate[which]
    return Ablations(name, LATENT, which, values, steps, rate, len(active))


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
