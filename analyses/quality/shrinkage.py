"""Are activations too small, and what if the number of active latents is changed after training?

Gao et al. 2024. Refinement (activation shrinkage): with the support and the decoder as they are, the activations are
solved for under positivity; if they come out larger, training shrank them. Progressive recovery: after training the
activation function is replaced by TopK(k') or by one threshold, and L0 moved along; k' = k is where it was trained.

    normalised MSE = sum |x - x_hat|^2 / sum |x - mu|^2,   mu the mean activation of the held-out sample
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from analyses.common.inputs import (
    DataLike,
    DictionaryLike,
    ModelLike,
    TextLike,
    check_same_place,
    context_of,
    in_model,
    open_activations,
    open_dictionaries,
    open_model,
    open_text,
    sites_of,
)
from analyses.common.patching import CleanRun, clean_runs
from analyses.quality import shrinkage_plots as plots
from analyses.quality import shrinkage_tables as tables
from analyses.quality.refinement import PLAIN, refined, thresholds, with_k, with_threshold
from analyses.quality.shrinkage_tables import AS_TRAINED, REFINED, THRESHOLD, TOPK, Measured, Version
from dictlab.data.activations import moments, unit_of
from dictlab.dictionary import Dictionary
from dictlab.dictionary.codes import Codes
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.evaluate import BATCH_TOKENS, check_finite, site_of
from dictlab.evaluation.recorded_selection import all_tokens_warning
from dictlab.reports.report import Plot, Report, Table
from dictlab.statistics import interval_words

INTERVAL = interval_words("sequences")
LEVELS = tuple(2**i for i in range(9))  # values of k'


class Rule(NamedTuple):
    """A version of a dictionary, and the dictionary that computes it."""

    version: Version
    dictionary: Dictionary


class Place(NamedTuple):
    """Where dictionaries are measured.

    Attributes:
        dictionaries: As they read what is there.
        keys: Which activations each of them reads: its site, or of an array the empty word.
        before: What thresholds are chosen on, by key.
        held: What is measured on, a few sequences at a time, by key; clean_runs where there is a model.
        means: The mean of these.
        record: What settings say of it.
        size: How much is measured, in words.
        sequences: How many.
        chosen_on: What thresholds are chosen on, in words.
        cautions: What a report must say of it.
    """

    dictionaries: Sequence[Dictionary]
    keys: Sequence[str]
    before: Mapping[str, Tensor]
    held: Iterable[Mapping[str, CleanRun | Tensor]]
    means: Mapping[str, Tensor]
    record: dict[str, Any]
    size: str
    sequences: int
    chosen_on: str
    cautions: tuple[str, ...] = ()


def shrinkage(
    dictionaries: Sequence[DictionaryLike],
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    data: DataLike | None = None,
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
        data: Activations in place of model and text: an array, or a .npy or .safetensors file. No CE.
        contexts: Held-out sequences to measure on.
        levels: Active latents a token to try after training, by the largest k and by a threshold.
        seed: Of the sample of text and the bootstrap.
        device: Where to run: cpu, cuda, ...

    Example:
        dictlab report shrinkage relu.safetensors topk.safetensors --contexts 64 --levels 4 --levels 16 --levels 64
        dictlab report shrinkage relu.safetensors topk.safetensors --data activations.npy
    """
    check_at_least(0, seed=seed)
    check_at_least(1, levels=min(levels, default=None))
    check_at_least(2, contexts=contexts)
    opened = open_dictionaries(dictionaries)
    if data is None:
        place = _in_model(opened, model, text, contexts, seed, device)
    else:
        place = _on_array(opened, model, data, contexts, seed, device)
    wanted = sorted(set(levels))
    rules = [_rules(d, place.before[key], wanted) for d, key in zip(place.dictionaries, place.keys, strict=True)]
    found, done = _measured(place, rules, seed)
    if done < place.sequences:
        partial = f"PARTIAL: interrupted after {done} of {place.sequences} sequences."
        place = place._replace(
            size=f"{done} of {place.size}",
            record=place.record | {"contexts": done},
            cautions=(*place.cautions, partial),
        )
    return _report(found, opened, rules, place, {"levels": list(levels), "seed": seed}, contexts)


def _in_model(
    opened: Sequence[Dictionary], model: ModelLike | None, text: TextLike, contexts: int, seed: int, device: str
) -> Place:
    keys = [site_of(dictionary) for dictionary in opened]
    lm, source = open_model(model, opened, device), open_text(text)
    sites = sites_of(opened, lm)
    for site in sites:
        lm.block_input(site)
    length = context_of(opened, lm, source)
    tokens = source.as_split("heldout").sample(lm.tokenizer, length, contexts, seed=seed)
    elsewhere = source.as_split("train").sample(lm.tokenizer, length, max(1, BATCH_TOKENS // length), seed=seed)
    batches = tokens.split(max(1, BATCH_TOKENS // length))
    return Place(
        in_model(opened, lm),
        keys,
        {site: x.flatten(0, 1).float() for site, x in lm.capture(elsewhere, sites).items()},
        (clean_runs(lm, some, sites) for some in batches),
        {site: moments(lm.capture(some, site)[site] for some in batches).mean for site in sites},
        {"text": source.name, "model": lm.name, "context": length, "contexts": len(tokens), "tokens": tokens.numel()},
        f"{len(tokens)} held-out sequences ({tokens.numel()} tokens)",
        len(tokens),
        "training text",
        all_tokens_warning(opened),
    )


def _on_array(
    opened: Sequence[Dictionary], model: ModelLike | None, data: DataLike, contexts: int, seed: int, device: str
) -> Place:
    check_same_place(opened)
    reading = open_activations(opened, model=model, data=data, device=device)
    train, held = reading.part("train"), reading.part("heldout")
    rows = contexts * held.context
    sequences = sum(len(x) for x in held.sample(rows, seed=seed))
    return Place(
        reading.dictionaries,
        [""] * len(opened),
        {"": torch.cat([x.flatten(0, 1) for x in train.sample(BATCH_TOKENS, seed=seed)])},
        ({"": x} for x in held.sample(rows, seed=seed)),
        {"": moments(held.sample(rows, seed=seed)).mean},
        held.record() | {"contexts": sequences, "tokens": sequences * held.context},
        f"{sequences} {unit_of(held)} ({sequences * held.context} {held.counted})",
        sequences,
        "training rows" if train.split == "train" else "rows of the same array",
        reading.cautions,
    )


def _rules(dictionary: Dictionary, x: Tensor, levels: Sequence[int]) -> list[Rule]:
    """As trained; and, where latents emit their pre-activations, other numbers of active latents."""
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
def _measured(place: Place, rules: Sequence[Sequence[Rule]], seed: int) -> tuple[list[Measured], int]:
    """Every rule of every dictionary, and the refinement of the rule of training; of how many sequences.

    Interrupted by Ctrl-C, it returns what is complete, if that is two sequences or more.
    """
    rows: list[list[tuple[dict[str, NDArray[np.float64]], Tensor]]] = []
    done = 0
    try:
        for around in tqdm(place.held, desc="shrinkage", unit="batch", leave=False):
            batch = [
                _batch(dictionary, own, around[key], place.means[key])
                for dictionary, key, own in zip(place.dictionaries, place.keys, rules, strict=True)
            ]
            rows.append(batch)
            done += len(next(iter(batch[0][0].values())))
    except KeyboardInterrupt:
        if done < 2:
            raise
    found = []
    for dictionary, own, parts in zip(place.dictionaries, rules, zip(*rows, strict=True), strict=True):
        sums = {key: np.concatenate([part[key] for part, _ in parts]) for key in parts[0][0]}
        versions = [own[0].version, Version(REFINED), *(rule.version for rule in own[1:])]
        ratios = torch.cat([ratio for _, ratio in parts]).numpy()
        found.append(Measured(dictionary, tuple(versions), sums, ratios, seed))
    return found, done


def _batch(
    dictionary: Dictionary, rules: Sequence[Rule], there: CleanRun | Tensor, mean: Tensor
) -> tuple[dict[str, NDArray[np.float64]], Tensor]:
    """Sums over the tokens of each sequence for each version, `[sequences, versions]`; refined over plain values."""
    clean_run = there if isinstance(there, CleanRun) else None
    given = there.x if isinstance(there, CleanRun) else there
    x, shape = given.float().flatten(0, 1), given.shape[:2]
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
            yield x_hat.view(1, *given.shape)

    tokens = torch.full((shape[0], 1), float(shape[1]), dtype=torch.double)
    found: dict[str, Tensor] = {}
    if clean_run is None:
        deque(versions(), maxlen=0)  # for what it writes down
    else:
        out = clean_run.outputs(versions())
        found = {"ce": (out.ce - out.ce_clean)[..., :-1].double().sum(dim=-1).T, "predicted": tokens - 1}
    found |= {
        "l0": torch.stack(l0, dim=1),
        "strength": torch.stack(strength, dim=1),
        "squared_error": torch.stack(squares, dim=1),
        "variance": (given - mean.to(given)).double().square().sum(dim=(1, 2))[:, None],
        "tokens": tokens,
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
    place: Place,
    settings: dict[str, Any],
    contexts: int,
) -> Report:
    n = f"n = {place.size}; {INTERVAL}"
    model = " CE increase in nats a token." if "CE increase" in tables.formulas(found[0]) else ""
    frame, recovery = tables.overview(found), tables.recovery(found)
    made = {
        "overview": Table(
            frame,
            f"{n}. size: the sum of refined activations over that of the plain ones; grown: share of active latents "
            "whose activation grows; silenced: share that becomes 0. normalised MSE: over the error of predicting the "
            f"mean activation of this sample.{model} Changes are refined less plain, paired.",
        ),
        "recovery": Table(
            recovery,
            f"{n}. rule: the k' largest of each token, or all above a threshold (setting) with so many on average "
            f"on {place.chosen_on}; trained: the number of active latents is that of training.",
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
    if place.sequences < contexts and "text" in place.record:
        warnings.append(f"The text holds {place.sequences} contexts, {contexts} were asked for.")
    return Report(
        title="Are activations too small, and is the number of active latents the best?",
        summary=tables.summary(frame, recovery),
        tables=made,
        plots=drawn,
        settings=place.record | settings,
        inputs=tuple(opened),
        warnings=(*warnings, *place.cautions),
    )
