"""Can strings of tokens say when a latent is active: tables with their captions, plots, and the summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analyses.common import plotting
from analyses.features.explanations.estimates import (
    ExplanationEstimates,
    estimate_explanations,
    explanation_differences,
    measures,
)
from analyses.features.explanations.n2g_trie import distinct_patterns, pattern_text
from analyses.features.explanations.pattern_cards import in_words, pattern_cards
from analyses.features.explanations.simulation import LEVELS, MEASURES, ExplainedDictionary, ExplanationSample, rates
from dictlab.dictionary import Dictionary
from dictlab.numerics.statistics import NAN, Estimate, estimate_columns, interval_words
from dictlab.reports.report import Plot, Report, Table

INTERVAL = interval_words()
DIFFERENCES = (
    f"The dictionary less the one before it (against), and over it. {INTERVAL}: of precision, recall and F1 over "
    "latents, which have nothing to do with each other in two dictionaries; of the rest over sequences, paired."
)
WORDS = {
    "reconstruction": "reconstruction",
    "simulated": "explained latents simulated",
    "zeroed": "explained latents at 0",
    "bigram": "bigram model",
}
TITLES = ("Does it fire where it is said to?", "Is all of its firing said?", "Both together")


def explanations_report(
    explained: Sequence[ExplainedDictionary],
    dictionaries: Sequence[Dictionary],
    sample: ExplanationSample,
    settings: dict[str, Any],
    warnings: Sequence[str],
) -> Report:
    """The report of explanations by patterns: every table with its caption, plots, cards, summary and warnings."""
    estimates = [estimate_explanations(one) for one in explained]
    tokens = int(explained[0].sums["tokens"].sum())
    text = f"{settings['heldout_sequences']} held-out sequences ({tokens} tokens)"
    plots = {
        "scores": Plot(scores_plot(estimates), f"A point a latent, bars are means over latents; {text}."),
        "reconstruction": Plot(reconstruction_plot(estimates), f"{INTERVAL} over sequences; {text}."),
    }
    return Report(
        title="Can strings of tokens say when a latent is active?",
        summary=_summary(estimates),
        tables=_tables(explained, estimates, sample.model.tokenizer, text, settings),
        plots=plots,
        cards={"patterns": pattern_cards(explained, sample.model.tokenizer, sample.held)},
        settings=settings,
        inputs=tuple(dictionaries),
        warnings=(*_cautions(explained, settings["latents"]), *_unclear(estimates), *warnings),
    )


def _tables(
    explained: Sequence[ExplainedDictionary],
    estimates: Sequence[ExplanationEstimates],
    tokenizer: Any,
    text: str,
    settings: dict[str, Any],
) -> dict[str, Table]:
    tables = {
        "overview": Table(
            overview_table(estimates),
            f"Means over latents on {text}; {INTERVAL} over latents, a seeded sample. precision: share of simulated "
            "firings at which the latent is active, over the latents whose patterns were met (with precision); recall: "
            "share of its active tokens that are simulated; chance: share of tokens at which the latent is active, the "
            "precision of a guess. unreached: examples of whose activation the last "
            f"{settings['max_pattern_length']} tokens alone give less than half.",
        ),
        "reconstruction": Table(
            reconstruction_table(estimates),
            f"clean: cross-entropy of the next token, nats, on {text}; the others: its increase over clean. {INTERVAL} "
            "over sequences, paired. simulated: the explained "
            "latents replaced by their simulation; zeroed: by 0; recovered: (zeroed - simulated) / (zeroed - "
            "reconstruction); less bigram: simulated - bigram. "
            "share: share of the active latents of all tokens that are explained ones; the bigram "
            f"model (of {settings['bigram_tokens']} training tokens) compares with a share of 1 only.",
        ),
        "latents": Table(
            latents_table(explained, tokenizer),
            f"One row a latent, on {text}; {INTERVAL} over sequences.",
            named_in={"latent": "dictionary"},
        ),
        "patterns": Table(
            patterns_table(explained, tokenizer),
            "Every pattern: ∗ stands for any token, ^ for the beginning of a context; importance: share of the "
            "activation lost when a token is replaced, from left to right.",
            named_in={"latent": "dictionary"},
        ),
    }
    if len(explained) > 1:
        tables["differences"] = Table(differences_table(explained), DIFFERENCES)
    return tables


def _cautions(explained: Sequence[ExplainedDictionary], asked: int) -> list[str]:
    """What is missing of a dictionary, and scores that mean little."""
    cautions = []
    for one in explained:
        if one.dictionary.activation.batchwise:
            cautions.append(
                f"{one.dictionary.name}: its latents compete with those of other tokens encoded together "
                f"({one.dictionary.activation.kind}), so a string alone makes other ones active. "
                "Its scores mean little; a file with a threshold does not have this."
            )
        if len(one.latents) < asked:
            cautions.append(
                f"{one.dictionary.name}: only {len(one.latents)} latents are active in the training sample, "
                f"{asked} were asked for. More `tokens=...` help."
            )
    return cautions


def _unclear(estimates: Sequence[ExplanationEstimates]) -> list[str]:
    """Dictionaries of which a share is recovered of a cost that is not clear of 0."""
    return [
        f"{one.name}: what is recovered is a share of next to nothing: the explained latents at 0 raise the "
        f"cross-entropy by {one.zeroing_cost.words('.4f')} nats a token, not clear of 0."
        for one in estimates
        if not one.zeroing_cost.low > 0
    ]


def latents_table(explained: Sequence[ExplainedDictionary], tokenizer: Any) -> pd.DataFrame:
    """One row a latent."""
    rows = []
    for one in explained:
        for latent in one.latents:
            row: dict[str, Any] = {"dictionary": one.dictionary.name, "latent": latent.latent}
            for name, estimate in measures(latent.score, one.seed).items():
                row |= estimate_columns(name, estimate)
            distinct = distinct_patterns(latent.patterns)
            row |= {
                "active tokens": int(latent.score.active.sum()),
                "simulated tokens": int(latent.score.fired.sum()),
                "active training tokens": len(latent.active_in_training.token),
                "examples": len(latent.patterns),
                "patterns": len(distinct),
                "factor": latent.factor,
                "first pattern": pattern_text(distinct[0], tokenizer) if distinct else None,
            }
            rows.append(row)
    return pd.DataFrame(rows)


def overview_table(estimates: Sequence[ExplanationEstimates]) -> pd.DataFrame:
    """One row a dictionary: means over latents."""
    rows = []
    for one in estimates:
        latents = one.explained.latents
        row: dict[str, Any] = {"dictionary": one.name, "latents": len(latents)}
        for name, mean in one.rates.items():
            row |= estimate_columns(name, mean)
        row |= {
            "chance": one.chance,
            "with precision": int(sum(latent.score.fired.sum() > 0 for latent in latents)),
            "active": int(sum(latent.score.active.sum() > 0 for latent in latents)),
            "patterns a latent": one.patterns.a_latent,
            "tokens a pattern": one.patterns.tokens,
            "wildcards": one.patterns.wildcards,
            "at start": one.patterns.at_start,
            "unreached": one.patterns.unreached,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def reconstruction_table(estimates: Sequence[ExplanationEstimates]) -> pd.DataFrame:
    """One row a dictionary: the model's loss on what the explanations say."""
    rows = []
    for one in estimates:
        explained = one.explained
        row: dict[str, Any] = {"dictionary": one.name, "latents": len(explained.latents), "share": explained.share}
        for name, estimate in {"clean": one.clean, **one.losses}.items():
            row |= estimate_columns(name, estimate)
        row |= estimate_columns("recovered", one.recovered) | estimate_columns("less bigram", one.less_bigram)
        rows.append(row)
    return pd.DataFrame(rows)


def patterns_table(explained: Sequence[ExplainedDictionary], tokenizer: Any) -> pd.DataFrame:
    """One row a pattern."""
    names = ["dictionary", "latent", "pattern", "activation", "at start", "reached", "tokens", "importance"]
    rows = [
        (
            one.dictionary.name, latent.latent, pattern_text(p, tokenizer), p.activation, p.at_start, p.reached,
            " ".join(map(str, p.path)), " ".join(f"{value:.2f}" for value in p.importance),
        )
        for one in explained
        for latent in one.latents
        for p in distinct_patterns(latent.patterns)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=names)


def differences_table(explained: Sequence[ExplainedDictionary]) -> pd.DataFrame:
    """One row a pair of dictionaries and measure: the later less the earlier, and over it."""
    rows = [(*d[:3], *d.difference, *d.ratio, d.unit) for d in explanation_differences(explained)]
    numbers = [*("difference", "low", "high"), *estimate_columns("ratio", Estimate(NAN))]
    return pd.DataFrame(rows, columns=["dictionary", "against", "measure", *numbers, "unit"])


def _summary(estimates: Sequence[ExplanationEstimates]) -> str:
    """The best and the worst explained dictionary, and what their simulation is worth."""
    order = sorted(range(len(estimates)), key=lambda i: -np.nan_to_num(estimates[i].rates["F1"].value, nan=-1.0))
    sentences = []
    for one in (estimates[i] for i in dict.fromkeys([order[0], order[-1]])):
        sentences.append(
            f"{one.name}: strings of tokens tell when a latent is active with a precision of "
            f"{in_words(one.rates['precision'])} and a recall of {in_words(one.rates['recall'])} "
            f"(chance {one.chance:.3f}; n = {len(one.explained.latents)} latents); in their place the simulation "
            f"recovers {in_words(one.recovered)} of the cross-entropy."
        )
    return " ".join(sentences)


@plotting.applied
def scores_plot(estimates: Sequence[ExplanationEstimates]) -> Figure:
    """One panel a measure, one row a dictionary: every latent, and the mean."""
    figure, panels = plotting.axes(len(MEASURES), width=4.4, height=max(2.7, 0.5 * len(estimates) + 1.2))
    places = np.arange(len(estimates))[::-1]
    for index, (ax, name, title) in enumerate(zip(panels, MEASURES, TITLES, strict=True)):
        for place, one in zip(places, estimates, strict=True):
            each = (rates(latent.score)[index] for latent in one.explained.latents)
            values = sorted(value for value in each if value == value)
            spread = np.linspace(-0.3, 0.3, len(values)) if len(values) > 1 else np.zeros(len(values))
            ax.plot(values, place + spread, ls="none", marker=".", ms=4, color="0.6")
        means = [one.rates[name] for one in estimates]
        plotting.estimates(ax, means, places, 0, along="y", ms=6, elinewidth=2, zorder=3, label="mean over latents")
        ax.set(xlabel=f"{name} (share of tokens)", title=title, xlim=(-0.03, 1.03))
        plotting.named_rows(ax, places, [one.name if ax is panels[0] else "" for one in estimates])
    look: Any = {"ls": "none", "marker": "|", "ms": 14, "mew": 2, "color": plotting.colour(1), "label": "chance"}
    panels[0].plot([one.chance for one in estimates], places, **look)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@plotting.applied
def reconstruction_plot(estimates: Sequence[ExplanationEstimates]) -> Figure:
    """One row a dictionary: the model's loss with every replacement."""
    figure, (ax,) = plotting.axes(1, width=8.0, height=max(2.4, 0.5 * len(estimates) + 1.4))
    places = np.arange(len(estimates))[::-1]
    for number, name in enumerate(LEVELS):
        losses = [one.losses[name] for one in estimates]
        plotting.estimates(ax, losses, places, number, along="y", ms=6, label=WORDS[name])
    ax.set(xlabel="CE increase (nats a token)", yticks=places, title="Is what is said enough for the model?")
    ax.set_ylim(-0.6, len(estimates) - 0.4)
    names = plotting.short([one.name for one in estimates])
    shares = (Estimate(one.explained.share).words(".0%") for one in estimates)
    ax.set_yticklabels([f"{name}\n{share} of activity explained" for name, share in zip(names, shares, strict=True)])
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
