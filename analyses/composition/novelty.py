"""What does a larger dictionary know that a smaller one does not?

Each latent of LARGE is inserted into SMALL, alone, and called novel if the error falls (`insertion`; Bussmann, Leask
et al. 2024; Leask et al. 2025). The published stand-in for this test is the cosine rule: novel where the max decoder
cosine with SMALL is below a threshold (0.7 for GPT-2, 0.4 for Gemma). Both are computed, and how well the one foretells
the other (`prediction`). What another seed of SMALL would add is the floor (`seed_control`). What the most useful
latents are stands on cards (`portraits`); whether the model minds them is measured where it is asked for
(`behaviour`, `closeup`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from analyses.common.chance import max_cosine_levels
from analyses.common.inputs import (
    DataLike,
    DictionaryLike,
    ModelLike,
    TextLike,
    check_same_place,
    open_activations,
    open_dictionaries,
)
from analyses.composition.cosine_predictor import (
    PREDICTION,
    THRESHOLDS,
    groups,
    kinds_of,
    prediction_table,
    threshold_table,
)
from analyses.composition.insertion import (
    Effects,
    agreement,
    effects_caption,
    insertion_effects,
    latent_table,
    nearest_alive,
)
from analyses.composition.latent_cards import Scenery
from analyses.composition.latent_selection import Choose, Closeup, look_closely, looked_at
from analyses.composition.novelty_plots import effect_plot, prediction_plot
from analyses.composition.seed_control import (
    Inserted,
    control_warnings,
    controlled,
    excess,
    is_control,
    share_table,
    shares_caption,
)
from dictlab.data.activations import ModelActivations
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError, check_at_least
from dictlab.reports.report import Plot, Report, Table

SHRUNK = 1.02  # SMALL's reconstruction is too short from this factor on

__all__ = [
    "Effects",
    "agreement",
    "effect_plot",
    "effects_caption",
    "insertion_effects",
    "latent_table",
    "nearest_alive",
    "novelty",
]


def novelty(
    small: DictionaryLike,
    large: DictionaryLike,
    *,
    control: DictionaryLike | None = None,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    data: DataLike | None = None,
    tokens: int = 131_072,
    threshold: float = 0.7,
    cards: int = 12,
    behaviour: int = 0,
    choose: Choose = "useful",
    latents: Sequence[int] = (),
    contexts: int = 64,
    seed: int = 0,
    device: str = "cpu",
    token_selection: str | None = None,
) -> Report:
    """Which latents of LARGE bring something that SMALL lacks, and what are they?

    Args:
        small: The dictionary that is added to.
        large: A dictionary at the same site, whose latents are added one at a time.
        control: Another seed of SMALL (or of LARGE): what is novel between two seeds is the floor.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from: the training split, and the held-out split for CE and KL.
        data: Activations in place of model and text: an array, or a .npy or .safetensors file. No cards, no CE and KL.
        tokens: Tokens to measure on.
        threshold: Cosine below which the published rule calls a latent novel.
        cards: Latents to show what they are: contexts, tokens, nearest latents; 0 for none.
        behaviour: Latents to measure the change in CE and KL of; 0 for none.
        choose: Which latents for these two: the most useful novel ones, or random active ones.
        latents: Latents of LARGE to look at in place of chosen ones; their CE and KL are measured too.
        contexts: Held-out sequences to measure CE and KL on.
        seed: Of the samples of text, chance level and intervals.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.

    Example:
        dictlab report novelty small.safetensors large.safetensors --control small_other_seed.safetensors
        dictlab report novelty small.safetensors large.safetensors --behaviour 32 --threshold 0.5
        dictlab report novelty small.safetensors large.safetensors --latents 17 254
        dictlab report novelty small.safetensors large.safetensors --data activations.npy
    """
    check_at_least(0, seed=seed, cards=cards, behaviour=behaviour)
    check_at_least(1, contexts=contexts)
    several = [small, large] if control is None else [small, large, control]
    given = open_dictionaries(several, token_selection=token_selection)
    check_same_place(given)
    if data is not None and (behaviour or latents):
        raise DictlabError("behaviour and latents: what latents do to the output needs a model; data has none.")
    reading = open_activations(given, model=model, text=text, data=data, device=device)
    small, large, *others = reading.dictionaries
    of = [controlled(small, large, other) for other in others]
    source = reading.part("train")
    pair, *floor = (
        inserted(a, b, source.sample(tokens, seed=seed), threshold)
        for a, b in ((small, large), *zip(of, others, strict=True))
    )
    counts = (len(latents) if cards else 0, len(latents)) if latents else (cards, behaviour)
    closeup, held = Closeup({}, {}, {}, ""), None
    if not isinstance(source, ModelActivations):
        counts = (0, 0)
    else:
        chosen = looked_at(pair, latents, choose, max(counts), seed)
        held = source.as_split("heldout").sequences(contexts * source.context, seed) if counts[1] else None
        scenery = Scenery(source.model, source.sequences(tokens, seed), seed)
        closeup = look_closely(pair, chosen[: counts[0]], chosen[: counts[1]], scenery, held)
    foretold, curves = predicted(pair, threshold, seed)
    looked = {"cards": counts[0], "behaviour": counts[1], "contexts": 0 if held is None else len(held)}
    return Report(
        title=_title(pair),
        summary=" ".join(
            [_summary(pair, foretold, threshold), *(excess(pair, one, seed) for one in floor), closeup.said]
        ),
        tables={
            "latents": Table(pair.latents, effects_caption(pair.effects)),
            "shares": Table(share_table([pair, *floor], seed), shares_caption()),
            **closeup.tables,
            **foretold,
        },
        plots={
            name: effect_plot(one.latents, threshold, _level(one.small, seed), one.small, one.large)
            for name, one in zip(("effects", "control"), (pair, *floor), strict=False)
        }
        | curves
        | closeup.plots,
        cards=closeup.cards,
        settings={"tokens": pair.effects.tokens, "threshold": threshold, "seed": seed}
        | {"chosen": list(latents) or choose, **looked}
        | source.record(),
        inputs=(small, large, *others),
        warnings=(*_warnings(pair, floor), *reading.cautions),
    )


def inserted(
    small: Dictionary, large: Dictionary, batches: Iterable[Float[Tensor, "batch context d_in"]], threshold: float
) -> Inserted:
    """Each latent of LARGE inserted alone into SMALL, on some activations.

    Raises:
        DictlabError: No latent of LARGE is active on them, or none of SMALL is alive.
    """
    effects = insertion_effects(small, large, tqdm(batches, desc=f"inserting {large.name}", leave=False))
    if bool(effects.dead.all()):
        raise DictlabError(
            f"{large.name}: none of its {large.n_latents} latents adds anything on {effects.tokens} tokens: "
            "they are never active, or have no decoder direction."
        )
    return Inserted(small, large, effects, latent_table(effects, nearest_alive(large, small), threshold))


def predicted(pair: Inserted, threshold: float, seed: int) -> tuple[dict[str, Table], dict[str, Plot]]:
    """How well the cosine foretells the measured class: tables, and curves where there are two classes."""
    parts = groups(pair.latents, kinds_of(pair.large.activation, pair.large.n_latents))
    table, found = prediction_table(parts, seed), threshold_table(parts, threshold, seed)
    tables = {
        "prediction": Table(table, PREDICTION),
        "thresholds": Table(found, THRESHOLDS),
        "agreement": Table(
            agreement(pair.latents), f"Active latents by measured effect and by the cosine rule at {threshold:g}."
        ),
    }
    if found.empty:
        return tables, {}
    return tables, {"prediction": prediction_plot(pair.alive, table, found, pair.small.name, pair.large.name)}


def _level(small: Dictionary, seed: int) -> float:
    return max_cosine_levels(small.W_dec[small.alive], seed)["shaped"]


def _title(pair: Inserted) -> str:
    small, large = pair.small.name, pair.large.name
    if is_control(pair.small, pair.large):
        return f"How much is novel between two seeds? {large} and {small}"
    return f"What does {large} know that {small} does not?"


def _summary(pair: Inserted, foretold: dict[str, Table], threshold: float) -> str:
    by_cosine = float((pair.alive["class by cosine"] == "novel").mean())
    kind = (
        "This is the seed control: the two differ in their seed alone, so these shares are the floor. "
        if is_control(pair.small, pair.large)
        else ""
    )
    return (
        f"{kind}Inserted alone, {pair.novel.mean():.0%} of {len(pair.alive)} active latents of {pair.large.name} lower "
        f"the error of {pair.small.name} (novel); the cosine rule at {threshold:g} calls {by_cosine:.0%} novel. "
        + _predicts(foretold)
    )


def _predicts(foretold: dict[str, Table]) -> str:
    found = foretold["thresholds"].frame
    if "all" not in set(found["latents"]):
        return "All are of one class, so there is nothing for cosine to predict."
    row = foretold["prediction"].frame.iloc[0]
    given, best = found.iloc[0], found.iloc[1]
    return (
        "As a predictor of the measured effect, cosine has an area under the ROC curve of "
        f"{row['ROC AUC']:.2f} [{row['ROC AUC low']:.2f}, {row['ROC AUC high']:.2f}]; it is right for "
        f"{given['accuracy']:.0%} of latents at {given['threshold']:g} and for {best['accuracy']:.0%} at "
        f"{best['threshold']:.2f}, the best by Youden's J."
    )


def _warnings(pair: Inserted, floor: Sequence[Inserted]) -> tuple[str, ...]:
    """Equal weights, directions of length 0, and a control that is none."""
    small, large, effects = pair.small, pair.large, pair.effects
    said = []
    if small.W_dec.shape == large.W_dec.shape and torch.equal(small.W_dec, large.W_dec):
        said.append(
            f"{large.name} and {small.name} have the same decoder: this is a test of the measurement, not of novelty."
        )
    if effects.stretch > SHRUNK:
        said.append(
            f"{small.name} shrinks: its reconstruction would serve best {effects.stretch:.2f} times as long. A latent "
            "that only lengthens it lowers the error too, and counts as novel. Hold the share against --control."
        )
    empty = int((effects.dead & (effects.firing_rate > 0)).sum())
    if empty:
        said.append(
            f"{empty} latents of {large.name} are active but have a decoder direction of length 0: counted as dead."
        )
    return (*said, *(w for one in floor for w in control_warnings(one.small, one.large)))
