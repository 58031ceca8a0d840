"""Are activations too small, and what if the number of active latents is changed after training?

Gao et al. 2024. Refinement (activation shrinkage): with the support and the decoder as they are, the activations are
solved for under positivity; if they come out larger, training shrank them. Progressive recovery: after training the
activation function is replaced by TopK(k') or by one threshold, and L0 moved along; k' = k is where it was trained.

    normalised MSE = sum |x - x_hat|^2 / sum |x - mu|^2,   mu the mean activation of the held-out sample
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from analyses import shrinkage_plots as plots
from analyses import shrinkage_tables as tables
from analyses.damage import Scene, scenes
from analyses.inputs import (
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
from analyses.refinement import PLAIN, refined, thresholds, with_k, with_threshold
from analyses.shrinkage_tables import AS_TRAINED, REFINED, THRESHOLD, TOPK, Measured, Version
from dictlab.activations import statistics
from dictlab.codes import Codes
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluate import BATCH_TOKENS, COVERAGE, check_finite, site_of
from dictlab.lm import LanguageModel
from dictlab.report import Plot, Report, Table

INTERVAL = f"{COVERAGE:.0%} bootstrap intervals over sequences".replace("%", " %")
LEVELS = tuple(2**i for i in range(9))  # values of k'


class Rule(NamedTuple):
    """A version of a dictionary, and the dictionary that computes it."""

    version: Version
    dictionary: Dictionary


def shrinkage(
    dictionaries: Sequence[DictionaryLike],
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    contexts: int = 32,
    levels: tuple[int, ...] = LEVELS,
    seed: int = 0,
    device: str = "cpu",
) -> Report:
    """Are activations too small, and what do other numbers of active latents give after training?

    Args:
        dictionaries: Any number, at one site or at several.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from; its held-out split is used, and the training split for thresholds.
        contexts: Held-out sequences to measure on.
        levels: Active latents a token to try after training, by the largest k and by a threshold.
        seed: Of the sample of text and the bootstrap.
        device: Where to run: cpu, cuda, ...

    Example:
        dictlab report shrinkage relu.safetensors topk.safetensors --contexts 64 --levels 4 --levels 16 --levels 64
    """
    check_at_least(0, seed=seed)
    check_at_least(1, levels=min(levels, default=None))
    check_at_least(2, contexts=contexts)
    opened = open_dictionaries(dictionaries)
    model, source = open_model(model, opened, device), open_text(text)
    sites = sites_of(opened, model)
    for site in sites:
        model.start_of(site)
    length = context_of(opened, model)
    tokens = source.as_split("heldout").sample(model.tokenizer, length, contexts, seed=seed)
    elsewhere = source.as_split("train").sample(model.tokenizer, length, max(1, BATCH_TOKENS // length), seed=seed)
    placed = in_model(opened, model)
    before = model.capture(elsewhere, sites)
    rules = [_rules(d, before[site_of(d)].flatten(0, 1).float(), sorted(set(levels))) for d in placed]
    found, done = _measured(placed, rules, model, tokens, seed)
    notes = [] if len(tokens) == contexts else [f"The text holds {len(tokens)} contexts, {contexts} were asked for."]
    if done < len(tokens):
        notes.append(f"PARTIAL: interrupted after {done} of {len(tokens)} sequences.")
    return _report(found, opened, rules, {
        "text": source.name, "model": model.name, "context": length, "contexts": done, "tokens": done * length,
        "levels": list(levels), "seed": seed,
    }, notes)  # fmt: skip


def _rules(dictionary: Dictionary, x: Tensor, levels: Sequence[int]) -> list[Rule]:
    """As trained; and, where latents emit their pre-activations, other numbers of active latents.

    Raises:
        DictlabError: No level is as small as the dictionary.
    """
    rules = [Rule(Version(AS_TRAINED), dictionary)]
    if not isinstance(dictionary.activation, PLAIN):
        return rules
    possible = [k for k in levels if k <= dictionary.n_latents]
    if not possible:
        raise DictlabError(
            f"levels are {', '.join(map(str, levels))}; {dictionary.name} has {dictionary.n_latents} latents. Give one "
            "of at most that."
        )
    rules += [Rule(Version(TOPK, k), with_k(dictionary, k)) for k in possible]
    cuts = thresholds(dictionary, x, possible)
    # a threshold of 0 is all there is; more latents than that cannot be had
    last = next((i + 1 for i, cut in enumerate(cuts) if cut == 0), len(cuts))
    return rules + [Rule(Version(THRESHOLD, cut), with_threshold(dictionary, cut)) for cut in cuts[:last]]


@torch.no_grad()
def _measured(
    dictionaries: Sequence[Dictionary],
    rules: Sequence[Sequence[Rule]],
    model: LanguageModel,
    tokens: Tensor,
    seed: int,
) -> tuple[list[Measured], int]:
    """Every rule of every dictionary, and the refinement of the rule of training; of how many sequences.

    Interrupted by Ctrl-C, it returns what is complete, if that is two sequences or more.
    """
    sites = list(dict.fromkeys(site_of(d) for d in dictionaries))
    batches = tokens.split(max(1, BATCH_TOKENS // tokens.shape[1]))
    means = {site: statistics(model.capture(some, site)[site] for some in batches).mean for site in sites}
    rows: list[list[tuple[dict[str, NDArray[np.float64]], Tensor]]] = []
    done = 0
    try:
        for some in tqdm(batches, desc="shrinkage", unit="batch", leave=False):
            around = scenes(model, some, sites)
            rows.append(
                [
                    _batch(dictionary, own, around[site_of(dictionary)], means[site_of(dictionary)])
                    for dictionary, own in zip(dictionaries, rules, strict=True)
                ]
            )
            done += len(some)
    except KeyboardInterrupt:
        if done < 2:
            raise
    found = []
    for dictionary, own, parts in zip(dictionaries, rules, zip(*rows, strict=True), strict=True):
        sums = {key: np.concatenate([part[key] for part, _ in parts]) for key in parts[0][0]}
        versions = [own[0].version, Version(REFINED), *(rule.version for rule in own[1:])]
        ratios = torch.cat([ratio for _, ratio in parts]).numpy()
        found.append(Measured(dictionary, tuple(versions), sums, ratios, seed))
    return found, done


def _batch(
    dictionary: Dictionary, rules: Sequence[Rule], scene: Scene, mean: Tensor
) -> tuple[dict[str, NDArray[np.float64]], Tensor]:
    """Sums over the tokens of each sequence for each version, `[sequences, versions]`; refined over plain values."""
    x = scene.x.float().flatten(0, 1)
    shape = scene.x.shape[:2]
    l0: list[Tensor] = []
    squares: list[Tensor] = []
    strength: list[Tensor] = []
    ratio: list[Tensor] = []

    def versions() -> Iterator[Tensor]:
        plain = dictionary.encode(x)
        better = refined(dictionary, plain, x)
        on = plain.values != 0
        ratio.append((better.values[on] / plain.values[on]).cpu())
        for codes in (plain, better, *(rule.dictionary.encode(x) for rule in rules[1:])):
            x_hat = dictionary.decode(codes, x)
            check_finite(dictionary, x_hat)
            l0.append(codes.l0().view(shape).sum(dim=1).double())
            strength.append(_strength(codes).view(shape).sum(dim=1))
            squares.append((x - x_hat).double().square().sum(dim=1).view(shape).sum(dim=1))
            yield x_hat.view(1, *scene.x.shape)

    out = scene.outputs(versions())
    ce = (out.ce - out.ce_clean)[..., :-1].double().sum(dim=-1)
    variance = (scene.x - mean.to(scene.x)).double().square().sum(dim=(1, 2))
    tokens = torch.full((shape[0],), float(shape[1]), dtype=torch.double)
    found = {
        "l0": torch.stack(l0, dim=1),
        "strength": torch.stack(strength, dim=1),
        "squared_error": torch.stack(squares, dim=1),
        "ce": ce.T,
        "variance": variance[:, None],
        "tokens": tokens[:, None],
        "predicted": tokens[:, None] - 1,
    }
    return {key: value.cpu().numpy() for key, value in found.items()}, ratio[0]


def _strength(codes: Codes) -> Tensor:
    """The sum of the sizes of each token's activations."""
    return torch.zeros(codes.n_tokens, dtype=torch.double, device=codes.values.device).index_add_(
        0, codes.rows, codes.values.abs().double()
    )


def _report(
    found: Sequence[Measured],
    opened: Sequence[Dictionary],
    rules: Sequence[Sequence[Rule]],
    settings: dict[str, Any],
    notes: list[str],
) -> Report:
    n = f"n = {settings['contexts']} held-out sequences ({settings['tokens']} tokens); {INTERVAL}"
    frame, recovery = tables.overview(found), tables.recovery(found)
    made = {
        "overview": Table(
            frame,
            f"{n}. size: the sum of refined activations over that of the plain ones; grown: share of active latents "
            "whose activation grows; silenced: share that becomes 0. normalised MSE: over the error of predicting the "
            "mean activation of this sample. CE increase in nats a token. Changes are refined less plain, paired.",
        ),
        "recovery": Table(
            recovery,
            f"{n}. rule: the k' largest of each token, or all above a threshold (setting) with so many on average "
            "on training text; trained: the number of active latents is that of training.",
        ),
    }
    drawn = {
        "refinement": Plot(
            plots.refinement(found, frame),
            f"Each active latent's refined over plain activation, the last bin with all above; {n}.",
        ),
        "recovery": Plot(plots.recovery(found, recovery), f"{n}. A ring marks the dictionary as it was trained."),
    }
    warnings = [
        f"{own[0].dictionary.name}: its activation function ({own[0].dictionary.activation.kind}) does more than cut "
        "pre-activations off, so no other rules were tried."
        for own in rules
        if len(own) == 1
    ]
    warnings += notes
    return Report(
        title="Are activations too small, and is the number of active latents the best?",
        summary=tables.summary(frame, recovery),
        tables=made,
        plots=drawn,
        settings=settings,
        inputs=tuple(opened),
        warnings=tuple(warnings),
    )
