"""Can I have the best of both?

SMALL keeps all its latents; the latents of LARGE that are novel are added (Bussmann, Leask et al. 2024). Three things
decide whether the result is any good, and each is measured on held-out text:

* Which latents: by their measured effect (see `novelty`), or by the published cosine rule.
* How they are chosen at run time: every latent by its own dictionary's rule. A latent from a TopK dictionary fires
  where it beats its old rivals, so rivals that are not taken along still compete, but emit nothing.
* The decoder: effects of single insertions do not add up, and a set can overshoot badly. With the encoders frozen,
  the best decoder D and bias b are a ridge regression, pulled towards the directions that the latents came with:

      min  sum_t |x_t - b - f_t D|^2 + lambda |D - D_0|^2

A refit helps any dictionary, so SMALL with its own decoder refitted stands beside the result as a control.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from analyses import style
from analyses.inputs import (
    DictionaryLike,
    ModelLike,
    TextLike,
    check_same_place,
    context_of,
    in_model,
    open_dictionaries,
    open_model,
    open_text,
)
from analyses.matching import chance
from analyses.novelty import agreement, effect_plot, effects_caption, insertion_effects, latent_table, nearest_alive
from analyses.pool import joinable, part_of, pooled
from analyses.refit import Refit, refitted
from dictlab import activations
from dictlab.dictionary import Dictionary
from dictlab.errors import check_at_least
from dictlab.evaluate import METRICS, Evaluation, bounds, evaluate, firing_rates, site_of
from dictlab.normalisation import Centred
from dictlab.report import Plot, Report, Table
from dictlab.sparsity import emitting

Select = Literal["effect", "cosine"]


def join(small: Dictionary, large: Dictionary, chosen: Bool[Tensor, " n_large"], name: str = "stitched") -> Dictionary:
    """SMALL with the chosen latents of LARGE added; weights as they were, output bias SMALL's.

    Pre-biases are folded into the encoders first, so that no latent changes when it moves. Codes of the result are
    SMALL's codes and, beside them, LARGE's codes at the chosen latents.

    Args:
        small: Keeps all its latents, first in the result.
        large: Its chosen latents follow in their order.
        chosen: Which latents of LARGE.
        name: Of the result.

    Raises:
        DictlabError: The two normalise their inputs in different ways, so that no one encoder can serve both.
    """
    everything = torch.cat([torch.ones(small.n_latents, dtype=torch.bool), chosen.cpu()])
    return part_of(pooled([small, large]), everything, name=name)


def _as_parent(dictionary: Dictionary) -> Dictionary:
    """The same under a name that no row of the report's own has: the parent may itself be a stitched dictionary."""
    taken = dictionary.name == "stitched" or dictionary.name.startswith(("inserted by ", "by "))
    return replace(dictionary, name=f"{dictionary.name} (parent)") if taken else dictionary


def stitching(
    small: DictionaryLike,
    large: DictionaryLike,
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    select: Select = "effect",
    threshold: float = 0.7,
    refit: Refit = "decoder",
    tokens: int = 131_072,
    contexts: int = 64,
    seed: int = 0,
    device: str = "cpu",
) -> Report:
    """Add to SMALL what LARGE knows and SMALL lacks, and measure whether the result is better.

    Args:
        small: The dictionary that is added to.
        large: A dictionary at the same site, whose novel latents are added.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from: the training split to choose and refit on, the held-out split to measure on.
        select: Novel latents by their measured effect, or by the published cosine rule.
        threshold: Cosine below which the cosine rule calls a latent novel.
        refit: What is refitted in closed form, encoders frozen: decoder and bias, bias alone, or nothing.
        tokens: Training tokens to choose and refit on.
        contexts: Held-out sequences to measure on.
        seed: Of the samples of text, chance level and bootstrap.
        device: Where to run: cpu, cuda, ...

    Example:
        dictlab stitch small.safetensors large.safetensors --out out/stitched
    """
    check_at_least(0, seed=seed)
    small, large = (_as_parent(parent) for parent in open_dictionaries([small, large]))
    check_same_place([small, large])
    model, text = open_model(model, [small, large], device), open_text(text)
    small, large = in_model([small, large], model)
    joinable([small, large])
    length, site = context_of([small, large], model), site_of(small)
    fit = list(activations.sample(model, text.as_split("train"), site, context=length, tokens=tokens, seed=seed))
    effects = insertion_effects(small, large, fit)
    latents = latent_table(effects, nearest_alive(large, small), threshold)
    chosen = {"effect": _novel(latents, "class"), "cosine": _novel(latents, "class by cosine")}
    candidates = _candidates(small, large, chosen, select, refit, fit)
    evaluations = evaluate(
        list(candidates.values()), model, text.as_split("heldout"), contexts=contexts, context=length, seed=seed
    )
    found = {evaluation.name: evaluation for evaluation in evaluations}
    result, inserted = found["stitched"], int(chosen[select].sum())
    rates, _ = firing_rates([candidates["stitched"]], fit)
    stitched = replace(candidates["stitched"], firing_rate=rates[0].to(model.device))
    given = {"text": text.name, "model": model.name, "context": length, "seed": seed}
    how = {"select": select, "threshold": threshold, "refit": refit, "tokens": effects.tokens}
    level = chance(small.W_dec[small.alive], shaped=True, seed=seed)
    return Report(
        title=f"{small.name} stitched with what {large.name} adds",
        summary=_summary(found, small, large, inserted, select, refit),
        tables={
            "quality": Table(_quality(found, candidates), _quality_caption(result)),
            "differences": Table(_against(found, small.name), _differences_caption(small.name)),
            "latents": Table(latents, f"Each latent of {large.name}, inserted alone. {effects_caption(effects)}"),
            "agreement": Table(
                agreement(latents), f"Active latents by effect and by the cosine rule at {threshold:g}."
            ),
            "metrics": Table(
                pd.concat([e.table() for e in evaluations], ignore_index=True), "Every metric, 95 % interval."
            ),
        },
        plots={"quality": _quality_plot(found), "effects": effect_plot(latents, threshold, level, small, large)},
        dictionaries={"stitched": _described(stitched, result, how | {"inserted": inserted})},
        settings=stitched.metadata.training | how | given | result.sample,
        inputs=(small, large),
        warnings=(*_warnings(found, small.name, large.name), *_mean_lost(small, large)),
    )


def _mean_lost(small: Dictionary, large: Dictionary) -> tuple[str, ...]:
    if small.normalisation.kind != Centred.kind or large.normalisation.kind == Centred.kind:
        return ()
    return (
        f"{small.name} gives each token the mean that it takes away; {large.name} does not, and neither does the "
        "result: a layer norm after the site takes it away all the same, but the squared error counts it.",
    )


def _novel(latents: pd.DataFrame, column: str) -> Bool[Tensor, " n_large"]:
    """Which latents of LARGE a column of the latent table calls novel."""
    novel = latents.sort_values("latent")[column] == "novel"
    return torch.from_numpy(novel.to_numpy().copy())


def _candidates(
    small: Dictionary, large: Dictionary, chosen: Mapping[str, Tensor], select: Select, refit: Refit, fit: list[Tensor]
) -> dict[str, Dictionary]:
    """The parents, what each rule inserts, the same refitted (the selected rule's is the result), and a control."""
    raw = {rule: join(small, large, latents, f"inserted by {rule}") for rule, latents in chosen.items()}
    made = [small, large, *raw.values()]
    if refit != "none":
        made.append(replace(refitted(small, fit, refit), name=f"{small.name}, refitted"))
        made += [replace(refitted(d, fit, refit), name=_refitted(rule)) for rule, d in raw.items() if rule != select]
    made.append(replace(refitted(raw[select], fit, refit), name="stitched"))
    return {dictionary.name: dictionary for dictionary in made}


def _refitted(rule: str) -> str:
    return f"by {rule}, refitted"


def _described(stitched: Dictionary, found: Evaluation, how: dict[str, Any]) -> Dictionary:
    """The stitched dictionary with how it was made, and what was measured, in its metadata."""
    dead = int((emitting(stitched.activation, stitched.n_latents) & ~stitched.alive.cpu()).sum())
    metrics = found.record() | {"dead": dead, "firing_tokens": how["tokens"]}
    training = stitched.metadata.training | how
    return replace(stitched, metadata=replace(stitched.metadata, training=training, metrics=metrics))


def _quality(found: Mapping[str, Evaluation], candidates: Mapping[str, Dictionary]) -> pd.DataFrame:
    """One row a dictionary; latents that only compete are not counted."""
    keys = ("l0", "mse", "explained_variance", "ce_increase")
    return pd.DataFrame(
        [
            {
                "dictionary": name,
                "latents": int(emitting(candidates[name].activation, candidates[name].n_latents).sum()),
                **{METRICS[key].label: e.value(key) for key in keys},
            }
            for name, e in found.items()
        ]
    )


def _against(found: Mapping[str, Evaluation], small: str) -> pd.DataFrame:
    """Paired differences from SMALL, with 95 % bootstrap intervals."""
    rows = []
    for name, evaluation in found.items():
        if name == small:
            continue
        for key in ("mse", "ce_increase", "l0"):
            low, high = bounds(evaluation.draws(key) - found[small].draws(key))
            difference = evaluation.value(key) - found[small].value(key)
            rows.append((name, METRICS[key].label, difference, low, high, METRICS[key].unit))
    return pd.DataFrame(rows, columns=["dictionary", "metric", "difference", "low", "high", "unit"])


def _differences_caption(small: str) -> str:
    return f"Each less {small}, with paired 95 % bootstrap intervals over sequences."


def _quality_caption(evaluation: Evaluation) -> str:
    return (
        f"Measured on {evaluation.n_sequences} held-out sequences ({evaluation.n_tokens} tokens). MSE in activation², "
        "CE in nats a token. “Inserted” is without any refit. L0 differs between rows: this is no comparison at equal "
        "sparsity."
    )


def _summary(
    found: Mapping[str, Evaluation], small: Dictionary, large: Dictionary, inserted: int, select: Select, refit: Refit
) -> str:
    result, low_high = found["stitched"], found["stitched"].interval("mse")
    how = {"decoder": "and the decoder refitted", "bias": "and the bias refitted", "none": "and nothing refitted"}[
        refit
    ]
    parents = ", ".join(
        f"{d.name} {found[d.name].value('mse'):.4g} (L0 {found[d.name].value('l0'):.1f})" for d in (small, large)
    )
    return (
        f"With {inserted} of {large.n_latents} latents inserted by {select} {how}, the held-out MSE is "
        f"{result.value('mse'):.4g} [{low_high[0]:.4g}, {low_high[1]:.4g}] at L0 {result.value('l0'):.1f}, "
        f"CE increase {result.value('ce_increase'):.3g}; before: {parents}."
    )


def _warnings(found: Mapping[str, Evaluation], small: str, large: str) -> tuple[str, ...]:
    """What is said when a parent is better, and which other choice is better than both, if one was measured."""
    result, said = found["stitched"], []
    for parent in (small, large):
        difference = result.value("mse") - found[parent].value("mse")
        if difference > 0:
            low, high = bounds(result.draws("mse") - found[parent].draws("mse"))
            certain = "" if low > 0 else ", within the noise"
            span = f"{difference:+.4g} [{low:+.4g}, {high:+.4g}]"
            said.append(f"The stitched dictionary is WORSE than {parent}: MSE {span}{certain}.")
    best = min(found, key=lambda name: found[name].value("mse"))
    if said and best not in ("stitched", small, large):
        error, l0 = found[best].value("mse"), found[best].value("l0")
        said.append(
            f"The best that was measured is “{best}”: MSE {error:.4g} at L0 {l0:.1f}; see --select and --refit."
        )
    return tuple(said)


@style.applied
def _quality_plot(found: Mapping[str, Evaluation]) -> Plot:
    figure, (left, right) = style.axes(2, width=5.2, height=3.6)
    names = list(found)
    for ax, key, label in (
        (left, "explained_variance", "unexplained variance (share)"),
        (right, "ce_increase", "CE increase (nats/token)"),
    ):
        values = np.array([found[n].value(key) for n in names])
        spans = np.array([found[n].interval(key) for n in names]).T
        if key == "explained_variance":
            values, spans = 1 - values, 1 - spans[::-1]
        height = np.arange(len(names))[::-1]
        error = np.clip(np.abs(spans - values), 0, None)
        ax.barh(
            height, values, xerr=error, color=[style.colour(i) for i in range(len(names))], height=0.6, ecolor="black"
        )
        ax.set(yticks=height, yticklabels=style.short(names) if ax is left else [], xlabel=label)
        for y, value, name in zip(height, values, names, strict=True):
            note = f" {value:.3g}" + (f"  (L0 {found[name].value('l0'):.0f})" if ax is left else "")
            ax.annotate(
                note,
                (value, y),
                va="center",
                ha="left",
                fontsize=8,
                xytext=(4, 7),
                textcoords="offset points",
            )
    left.set_title("How much is left unexplained?")
    right.set_title("How much does the model suffer?")
    n = next(iter(found.values()))
    return Plot(
        figure,
        f"Held-out text, {n.n_sequences} sequences, {n.n_tokens} tokens; bars: 95 % bootstrap interval over sequences.",
    )
