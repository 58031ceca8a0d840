"""Can strings of tokens say when a latent is active: tables with their captions, plots, cards and the summary."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from analyses.common import plotting
from analyses.common.max_activating import excerpt
from analyses.features.n2g_trie import ANY, BEGINNING, Pattern, distinct_patterns, pattern_pieces, pattern_text
from analyses.features.simulation import (
    LEVELS,
    MEASURES,
    ExplainedDictionary,
    ExplanationSample,
    Score,
    rates,
)
from dictlab import seeds
from dictlab.dictionary import Dictionary
from dictlab.evaluation.recorded_selection import all_tokens_warning
from dictlab.reports.cards import Card, Cards, Passage, Piece
from dictlab.reports.report import Plot, Report, Table
from dictlab.statistics import (
    Estimate,
    estimate_columns,
    interval,
    interval_words,
    mean_draws,
    mean_interval,
    ratio,
    ratio_draws,
)

INTERVAL = interval_words()
DIFFERENCES = (
    f"The dictionary less the one before it (against), and over it. {INTERVAL}: of precision, recall and F1 over "
    "latents, which have nothing to do with each other in two dictionaries; of the rest over sequences, paired."
)
CARDS = 8  # latents of a dictionary that get one
SHOWN = 6  # patterns on a card
EXCERPTS = 2  # of what was missed, and of what was wrong
WORDS = {
    "reconstruction": "reconstruction",
    "simulated": "explained latents simulated",
    "zeroed": "explained latents at 0",
    "bigram": "bigram model",
}
COLUMNS = ("dictionary", "against", "measure", "difference", "low", "high", "ratio", "ratio low", "ratio high", "unit")
RECOVERED, SIMULATED = "recovered", "CE increase, simulated"


def explanations_report(
    found: Sequence[ExplainedDictionary],
    opened: Sequence[Dictionary],
    sample: ExplanationSample,
    settings: dict[str, Any],
    asked: int,
) -> Report:
    """The report of explanations by patterns: every table with its caption, plots, cards, summary and warnings."""
    overview, rebuilt = overview_table(found), reconstruction_table(found)
    tokenizer = sample.model.tokenizer
    frame = latents_table(found, tokenizer)
    text = f"{settings['heldout_sequences']} held-out sequences ({settings['heldout_tokens']} tokens)"
    made = {
        "overview": Table(
            overview,
            f"Means over latents on {text}; {INTERVAL} over latents, a seeded sample. precision: share of simulated "
            "firings at which the latent is active, over the latents whose patterns were met (with precision); recall: "
            "share of its active tokens that are simulated; chance: share of tokens at which the latent is active, the "
            "precision of a guess. unreached: examples of whose activation the last "
            f"{settings['max_pattern_length']} tokens alone give less than half.",
        ),
        "reconstruction": Table(
            rebuilt,
            f"clean: cross-entropy of the next token, nats, on {text}; the others: its increase over clean. {INTERVAL} "
            "over sequences, paired. simulated: the explained "
            "latents replaced by their simulation; zeroed: by 0; recovered: (zeroed - simulated) / (zeroed - "
            "reconstruction); less bigram: simulated - bigram. "
            "share: share of the active latents of all tokens that are explained ones; the bigram "
            f"model (of {settings['bigram_tokens']} training tokens) compares with a share of 1 only.",
        ),
        "latents": Table(frame, f"One row a latent, on {text}; {INTERVAL} over sequences."),
        "patterns": Table(
            patterns_table(found, tokenizer),
            "Every pattern: ∗ stands for any token, ^ for the beginning of a context; importance: share of the "
            "activation lost when a token is replaced, from left to right.",
        ),
    }
    if len(found) > 1:
        made["differences"] = Table(differences_table(found), DIFFERENCES)
    drawn = {
        "scores": Plot(scores_plot(frame, overview), f"A point a latent, bars are means over latents; {text}."),
        "reconstruction": Plot(reconstruction_plot(rebuilt), f"{INTERVAL} over sequences; {text}."),
    }
    warnings = []
    if settings["heldout_sequences"] < asked:
        warnings.append(f"The held-out split holds {settings['heldout_sequences']} contexts, {asked} were asked for.")
    for one in found:
        if one.dictionary.activation.batchwise:
            warnings.append(
                f"{one.dictionary.name}: its latents compete with those of other tokens encoded together "
                f"({one.dictionary.activation.kind}), so a string alone makes other ones active. "
                "Its scores mean little; a file with a threshold does not have this."
            )
        if len(one.latents) < settings["latents"]:
            warnings.append(
                f"{one.dictionary.name}: only {len(one.latents)} latents are active in the training sample, "
                f"{settings['latents']} were asked for. More --tokens help."
            )
    return Report(
        title="Can strings of tokens say when a latent is active?",
        summary=_summary(found),
        tables=made,
        plots=drawn,
        cards={"patterns": pattern_cards(found, tokenizer, sample.held)},
        settings=settings,
        inputs=tuple(opened),
        warnings=(*warnings, *all_tokens_warning(opened)),
    )


def latents_table(found: Sequence[ExplainedDictionary], tokenizer: Any) -> pd.DataFrame:
    """One row a latent."""
    rows = []
    for one in found:
        for own in one.latents:
            row: dict[str, Any] = {"dictionary": one.dictionary.name, "latent": own.latent}
            for name, estimate in measures(own.score, one.seed).items():
                row |= estimate_columns(name, estimate)
            row |= {
                "active tokens": int(own.score.active.sum()),
                "simulated tokens": int(own.score.fired.sum()),
                "active training tokens": len(own.active_in_training.token),
                "examples": len(own.patterns),
                "patterns": len(distinct_patterns(own.patterns)),
                "factor": own.factor,
                "first pattern": pattern_text(distinct_patterns(own.patterns)[0], tokenizer) if own.patterns else None,
            }
            rows.append(row)
    return pd.DataFrame(rows)


def measures(score: Score, seed: int) -> dict[str, Estimate]:
    """Precision, recall and F1 with intervals over sequences; NaN where there was nothing to measure on."""
    fired, active, both = score
    return dict(
        zip(
            MEASURES,
            (ratio(both, fired, seed), ratio(both, active, seed), ratio(2 * both, fired + active, seed)),
            strict=True,
        )
    )


def mean_rates(one: ExplainedDictionary) -> dict[str, Estimate]:
    """Precision, recall and F1: means over the latents that have one, with intervals over latents."""
    values = zip(*(rates(latent.score) for latent in one.latents), strict=True)
    return {name: _mean(column, one.seed) for name, column in zip(MEASURES, values, strict=True)}


def chance(one: ExplainedDictionary) -> float:
    """Share of tokens at which a latent is active, mean over latents: the precision of a guess."""
    tokens = one.sums["predicted"].sum() + len(one.sums["predicted"])
    return float(np.mean([latent.score.active.sum() for latent in one.latents])) / float(tokens)


def recovered(one: ExplainedDictionary) -> Estimate:
    """Share of the cross-entropy that zeroing the explained latents costs, and their simulation gives back."""
    sums = one.sums
    return ratio(sums["zeroed"] - sums["simulated"], sums["zeroed"] - sums["reconstruction"], one.seed)


def overview_table(found: Sequence[ExplainedDictionary]) -> pd.DataFrame:
    """One row a dictionary: means over latents."""
    rows = []
    for one in found:
        row: dict[str, Any] = {"dictionary": one.dictionary.name, "latents": len(one.latents)}
        for name, mean in mean_rates(one).items():
            row |= estimate_columns(name, mean)
        every = [pattern for own in one.latents for pattern in own.patterns]
        row |= {
            "chance": chance(one),
            "with precision": int(sum(own.score.fired.sum() > 0 for own in one.latents)),
            "active": int(sum(own.score.active.sum() > 0 for own in one.latents)),
            "patterns a latent": float(np.mean([len(distinct_patterns(own.patterns)) for own in one.latents])),
            "tokens a pattern": _share([len(p.tokens) for p in every]),
            "wildcards": _share([not kept for p in every for kept in p.kept]),
            "at start": _share([p.at_start for p in every]),
            "unreached": _share([not p.reached for p in every]),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def reconstruction_table(found: Sequence[ExplainedDictionary]) -> pd.DataFrame:
    """One row a dictionary: the model's loss on what the explanations say."""
    rows = []
    for one in found:
        sums = one.sums
        row: dict[str, Any] = {"dictionary": one.dictionary.name, "latents": len(one.latents), "share": one.share}
        row |= estimate_columns("clean", ratio(sums["clean"], sums["predicted"], one.seed))
        for name in LEVELS:
            row |= estimate_columns(name, ratio(sums[name] - sums["clean"], sums["predicted"], one.seed))
        row |= estimate_columns("recovered", recovered(one))
        row |= estimate_columns("less bigram", ratio(sums["simulated"] - sums["bigram"], sums["predicted"], one.seed))
        rows.append(row)
    return pd.DataFrame(rows)


def patterns_table(found: Sequence[ExplainedDictionary], tokenizer: Any) -> pd.DataFrame:
    """One row a pattern."""
    names = ["dictionary", "latent", "pattern", "activation", "at start", "reached", "tokens", "importance"]
    rows = [
        (
            one.dictionary.name, own.latent, pattern_text(p, tokenizer), p.activation, p.at_start, p.reached,
            " ".join(map(str, p.path)), " ".join(f"{value:.2f}" for value in p.importance),
        )
        for one in found
        for own in one.latents
        for p in distinct_patterns(own.patterns)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=names)


def _summary(found: Sequence[ExplainedDictionary]) -> str:
    """The best and the worst explained dictionary, and what their simulation is worth."""
    order = sorted(found, key=lambda one: -np.nan_to_num(mean_rates(one)["F1"].value, nan=-1.0))
    sentences = []
    for one in dict.fromkeys([order[0], order[-1]]):
        means = mean_rates(one)
        sentences.append(
            f"{one.dictionary.name}: strings of tokens tell when a latent is active with a precision of "
            f"{_worded(means['precision'], '.2f')} and a recall of {_worded(means['recall'], '.2f')} "
            f"(chance {chance(one):.3f}; n = {len(one.latents)} latents); in their place the simulation recovers "
            f"{_worded(recovered(one), '.2f')} of the cross-entropy."
        )
    return " ".join(sentences)


def pattern_cards(
    found: Sequence[ExplainedDictionary], tokenizer: Any, held: Int[Tensor, "sequences context"]
) -> Cards:
    """The first latents of each dictionary: their patterns, and where these fail."""
    made = []
    for one in found:
        for own in one.latents[:CARDS]:
            fields = {name: _worded(estimate, ".2f") for name, estimate in measures(own.score, one.seed).items()} | {
                "active on": f"{own.score.active.sum() / held.numel():.2%} of held-out tokens".replace("%", " %")
            }
            for word, places in (
                ("missed at", np.setdiff1d(own.active.token, own.simulated.token)),
                ("wrong at", np.setdiff1d(own.simulated.token, own.active.token)),
            ):
                for i, place in enumerate(places[:: max(1, len(places) // EXCERPTS)][:EXCERPTS]):
                    row, position = divmod(int(place), held.shape[1])
                    fields[f"{word} ({i + 1})"] = excerpt(tokenizer, held[row], position)
            strongest = sorted(distinct_patterns(own.patterns), key=lambda p: -abs(p.activation))[:SHOWN]
            shown = tuple(_passage(pattern, tokenizer) for pattern in strongest)
            made.append(
                Card(f"Latent {own.latent} of {one.dictionary.name}", fields, {"Patterns": shown} if shown else {})
            )
    return Cards(
        tuple(made),
        f"Patterns with the largest activations: {ANY} is any token, {BEGINNING} the beginning of a context; shaded by "
        f"importance. Missed and wrong are held-out tokens, between « and ». First {CARDS} latents of each dictionary.",
    )


def _passage(pattern: Pattern, tokenizer: Any) -> Passage:
    weights = [min(1.0, max(0.0, value)) if value == value else 0.0 for value in pattern.importance]
    pieces = [Piece(text, round(w, 3)) for text, w in zip(pattern_pieces(pattern, tokenizer), weights, strict=True)]
    lead = [Piece(BEGINNING)] if pattern.at_start else []
    return Passage((*lead, *pieces, Piece(f"   {pattern.activation:.3g}")), len(lead) + len(pieces) - 1)


def _mean(values: Sequence[float], seed: int) -> Estimate:
    """Mean over the latents that have a value, with an interval over latents."""
    known = torch.tensor([value for value in values if value == value], dtype=torch.double)
    if not len(known):
        return Estimate(float("nan"), float("nan"), float("nan"))
    return Estimate(float(known.mean()), *mean_interval(known, seed))


def _share(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _worded(estimate: Estimate, style: str) -> str:
    if estimate.value != estimate.value:
        return "not measured: there was no such token"
    return f"{estimate.value:{style}} [{estimate.low:{style}}, {estimate.high:{style}}]"


@plotting.applied
def scores_plot(latents: pd.DataFrame, overview: pd.DataFrame) -> Figure:
    """One panel a measure, one row a dictionary: every latent, and the mean."""
    height = max(2.7, 0.5 * len(overview) + 1.2)
    figure, panels = plotting.axes(len(MEASURES), width=4.4, height=height)
    titles = ("Does it fire where it is said to?", "Is all of its firing said?", "Both together")
    places = np.arange(len(overview))[::-1]
    for ax, name, title in zip(panels, MEASURES, titles, strict=True):
        for place, (_, row) in zip(places, overview.iterrows(), strict=True):
            values = latents.loc[latents["dictionary"] == row["dictionary"], name].dropna()
            spread = np.linspace(-0.3, 0.3, len(values)) if len(values) > 1 else np.zeros(len(values))
            ax.plot(values.sort_values(), place + spread, ls="none", marker=".", ms=4, color="0.6")
        ax.errorbar(
            overview[name], places, xerr=plotting.bar_lengths(overview, name), ls="none", ms=6, elinewidth=2, zorder=3,
            color=plotting.colour(0), marker=plotting.marker(0), label="mean over latents",
        )  # fmt: skip
        ax.set(xlabel=f"{name} (share of tokens)", yticks=places, title=title, xlim=(-0.03, 1.03))
        ax.set_yticklabels(plotting.short(list(overview["dictionary"])) if ax is panels[0] else [])
    panels[0].plot(
        overview["chance"], places, ls="none", marker="|", ms=14, mew=2, color=plotting.colour(1), label="chance"
    )
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@plotting.applied
def reconstruction_plot(rebuilt: pd.DataFrame) -> Figure:
    """One row a dictionary: the model's loss with every replacement."""
    figure, (ax,) = plotting.axes(1, width=8.0, height=max(2.4, 0.5 * len(rebuilt) + 1.4))
    places = np.arange(len(rebuilt))[::-1]
    for number, name in enumerate(LEVELS):
        ax.errorbar(
            rebuilt[name], places, xerr=plotting.bar_lengths(rebuilt, name), ls="none", ms=6, elinewidth=1,
            color=plotting.colour(number), marker=plotting.marker(number), label=WORDS[name],
        )  # fmt: skip
    ax.set(xlabel="CE increase (nats a token)", yticks=places, title="Is what is said enough for the model?")
    ax.set_ylim(-0.6, len(rebuilt) - 0.4)
    ax.set_yticklabels(
        [f"{name}\n{share:.0%} of activity explained".replace("%", " %") for name, share in
         zip(plotting.short(list(rebuilt["dictionary"])), rebuilt["share"], strict=True)]
    )  # fmt: skip
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


class Resampled(NamedTuple):
    """A number, and the same in each bootstrap resample."""

    value: float
    draws: NDArray[np.float64]
    unit: str


def differences_table(found: Sequence[ExplainedDictionary]) -> pd.DataFrame:
    """One row a pair of dictionaries and measure: the later less the earlier, and over it.

    Latents of two dictionaries have nothing to do with each other, so each mean over latents (precision, recall, F1) is
    resampled by itself. Losses of the spliced model are paired: both dictionaries are measured on the same sequences,
    resampled together.
    """
    measured = [(one.dictionary.name, _resampled_measures(one)) for one in found]
    rows = [
        (name, other, measure, *_compared(mine[measure], theirs[measure]), mine[measure].unit)
        for (other, theirs), (name, mine) in combinations(measured, 2)
        for measure in mine
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _resampled_measures(one: ExplainedDictionary) -> dict[str, Resampled]:
    each = np.array([rates(own.score) for own in one.latents]).reshape(-1, len(MEASURES))
    means = {
        name: _resampled_mean(column, seeds.generator(one.seed, f"{name} of {one.dictionary.name}").initial_seed())
        for name, column in zip(MEASURES, each.T, strict=True)
    }
    sums = one.sums
    gained, possible = sums["zeroed"] - sums["simulated"], sums["zeroed"] - sums["reconstruction"]
    means[RECOVERED] = _resampled_ratio(gained, possible, one.seed, "share of the cross-entropy")
    means[SIMULATED] = _resampled_ratio(sums["simulated"] - sums["clean"], sums["predicted"], one.seed, "nats a token")
    return means


def _resampled_mean(column: NDArray[np.float64], seed: int) -> Resampled:
    """Over the latents that have a value."""
    known, unit = column[np.isfinite(column)], "share of tokens"
    if len(known) < 2:
        return Resampled(float(known.mean()) if len(known) else float("nan"), np.full(1, np.nan), unit)
    return Resampled(float(known.mean()), mean_draws(known, seed), unit)


def _resampled_ratio(over: NDArray[np.float64], under: NDArray[np.float64], seed: int, unit: str) -> Resampled:
    with np.errstate(divide="ignore", invalid="ignore"):
        return Resampled(float(over.sum() / under.sum()), ratio_draws(over, under, seed), unit)


def _compared(one: Resampled, other: Resampled) -> tuple[float, ...]:
    """Difference and ratio, with intervals each."""
    with np.errstate(divide="ignore", invalid="ignore"):
        difference, ratio = one.draws - other.draws, one.draws / other.draws
        quotient = float(np.divide(one.value, other.value))
    return (one.value - other.value, *interval(difference), quotient, *interval(ratio))
