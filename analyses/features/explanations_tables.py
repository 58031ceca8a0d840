"""The tables and cards of explanations by strings of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from analyses.common.firings import LatentFirings
from analyses.common.max_activating import excerpt
from analyses.common.token_texts import token_text
from analyses.features.n2g_trie import Pattern
from analyses.features.simulation import Score, Sums
from dictlab.dictionary import Dictionary
from dictlab.reports.cards import Card, Cards, Passage, Piece
from dictlab.statistics import Estimate, estimate_columns, mean_interval, ratio

ANY, BEGINNING = "∗", "^"
CARDS = 8  # latents of a dictionary that get one
SHOWN = 6  # patterns on a card
EXCERPTS = 2  # of what was missed, and of what was wrong
MEASURES = ("precision", "recall", "F1")
LEVELS = ("reconstruction", "simulated", "zeroed", "bigram")


class Latent(NamedTuple):
    """One latent, its explanation, and what came of it on held-out text."""

    latent: int
    patterns: list[Pattern]
    score: Score
    simulated: LatentFirings
    active: LatentFirings
    active_in_training: LatentFirings
    factor: float


@dataclass(frozen=True, eq=False)
class Explained:
    """What was measured of one dictionary.

    Attributes:
        dictionary: Which.
        latents: The explained ones.
        share: Share of the active latents of all tokens that are explained ones.
        sums: Cross-entropies by sequence (`simulation.spliced`).
        seed: Of the resampling.
    """

    dictionary: Dictionary
    latents: list[Latent]
    share: float
    sums: Sums
    seed: int


def latents(found: Sequence[Explained], tokenizer: Any) -> pd.DataFrame:
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
                "patterns": len(distinct(own.patterns)),
                "factor": own.factor,
                "first pattern": written(distinct(own.patterns)[0], tokenizer) if own.patterns else None,
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


def rates(score: Score) -> tuple[float, float, float]:
    """Precision, recall and F1 over all sequences; NaN where there was nothing to measure on."""
    fired, active, both = (float(part.sum()) for part in score)
    return _over(both, fired), _over(both, active), _over(2 * both, fired + active)


def overview(found: Sequence[Explained]) -> pd.DataFrame:
    """One row a dictionary: means over latents."""
    rows = []
    for one in found:
        row: dict[str, Any] = {"dictionary": one.dictionary.name, "latents": len(one.latents)}
        values = [rates(own.score) for own in one.latents]
        for i, name in enumerate(MEASURES):
            row |= estimate_columns(name, _mean([value[i] for value in values], one.seed))
        tokens = one.sums["predicted"].sum() + len(one.sums["predicted"])
        every = [pattern for own in one.latents for pattern in own.patterns]
        row |= {
            "chance": float(np.mean([own.score.active.sum() for own in one.latents])) / tokens,
            "with precision": int(sum(own.score.fired.sum() > 0 for own in one.latents)),
            "active": int(sum(own.score.active.sum() > 0 for own in one.latents)),
            "patterns a latent": float(np.mean([len(distinct(own.patterns)) for own in one.latents])),
            "tokens a pattern": _share([len(p.tokens) for p in every]),
            "wildcards": _share([not kept for p in every for kept in p.kept]),
            "at start": _share([p.at_start for p in every]),
            "unreached": _share([not p.reached for p in every]),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def reconstruction(found: Sequence[Explained]) -> pd.DataFrame:
    """One row a dictionary: the model's loss on what the explanations say."""
    rows = []
    for one in found:
        sums = one.sums
        row: dict[str, Any] = {"dictionary": one.dictionary.name, "latents": len(one.latents), "share": one.share}
        row |= estimate_columns("clean", ratio(sums["clean"], sums["predicted"], one.seed))
        for name in LEVELS:
            row |= estimate_columns(name, ratio(sums[name] - sums["clean"], sums["predicted"], one.seed))
        gained, possible = sums["zeroed"] - sums["simulated"], sums["zeroed"] - sums["reconstruction"]
        row |= estimate_columns("recovered", ratio(gained, possible, one.seed))
        row |= estimate_columns("less bigram", ratio(sums["simulated"] - sums["bigram"], sums["predicted"], one.seed))
        rows.append(row)
    return pd.DataFrame(rows)


def patterns(found: Sequence[Explained], tokenizer: Any) -> pd.DataFrame:
    """One row a pattern."""
    names = ["dictionary", "latent", "pattern", "activation", "at start", "reached", "tokens", "importance"]
    rows = [
        (
            one.dictionary.name, own.latent, written(p, tokenizer), p.activation, p.at_start, p.reached,
            " ".join(map(str, p.path)), " ".join(f"{value:.2f}" for value in p.importance),
        )
        for one in found
        for own in one.latents
        for p in distinct(own.patterns)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=names)


def summary(overview: pd.DataFrame, rebuilt: pd.DataFrame) -> str:
    """The best and the worst explained dictionary, and what their simulation is worth."""
    order = overview["F1"].sort_values(ascending=False).index
    said = []
    for i in dict.fromkeys([order[0], order[-1]]):
        row, other = overview.loc[i], rebuilt.loc[i]
        said.append(
            f"{row['dictionary']}: strings of tokens tell when a latent is active with a precision of "
            f"{_interval(row, 'precision')} and a recall of {_interval(row, 'recall')} (chance {row['chance']:.3f}; "
            f"n = {row['latents']} latents); in their place the simulation recovers {_interval(other, 'recovered')} "
            "of the cross-entropy."
        )
    return " ".join(said)


def cards(found: Sequence[Explained], tokenizer: Any, held: Int[Tensor, "sequences context"]) -> Cards:
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
            strongest = sorted(distinct(own.patterns), key=lambda p: -abs(p.activation))[:SHOWN]
            shown = tuple(_passage(pattern, tokenizer) for pattern in strongest)
            made.append(
                Card(f"Latent {own.latent} of {one.dictionary.name}", fields, {"Patterns": shown} if shown else {})
            )
    return Cards(
        tuple(made),
        f"Patterns with the largest activations: {ANY} is any token, {BEGINNING} the beginning of a context; shaded by "
        f"importance. Missed and wrong are held-out tokens, between « and ». First {CARDS} latents of each dictionary.",
    )


def distinct(patterns: Sequence[Pattern]) -> list[Pattern]:
    """What the trie keeps: of patterns with the same path the last one."""
    return list({(pattern.path, pattern.at_start): pattern for pattern in patterns}.values())


def written(pattern: Pattern, tokenizer: Any) -> str:
    """A pattern as text."""
    return (BEGINNING if pattern.at_start else "") + "".join(_pieces(pattern, tokenizer))


def _pieces(pattern: Pattern, tokenizer: Any) -> list[str]:
    return [
        token_text(tokenizer, token) if kept else ANY for token, kept in zip(pattern.tokens, pattern.kept, strict=True)
    ]


def _passage(pattern: Pattern, tokenizer: Any) -> Passage:
    weights = [min(1.0, max(0.0, value)) if value == value else 0.0 for value in pattern.importance]
    pieces = [Piece(text, round(w, 3)) for text, w in zip(_pieces(pattern, tokenizer), weights, strict=True)]
    lead = [Piece(BEGINNING)] if pattern.at_start else []
    return Passage((*lead, *pieces, Piece(f"   {pattern.activation:.3g}")), len(lead) + len(pieces) - 1)


def _over(above: float, below: float) -> float:
    return above / below if below else float("nan")


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


def _interval(row: pd.Series, name: str) -> str:
    return _worded(Estimate(row[name], row[f"{name} low"], row[f"{name} high"]), ".2f")
