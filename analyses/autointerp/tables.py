"""The tables and cards of explanations by a language model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from analyses.autointerp.conversation import Cost
from analyses.autointerp.examples import Window
from analyses.autointerp.prompts import KINDS, marked
from analyses.autointerp.scores import Interpreted, Judged, Outcome
from analyses.autointerp.settings import Interpreter
from dictlab.reports.cards import Card, Cards, Passage, Piece
from dictlab.statistics import Estimate, difference_of_means, estimate_columns, mean_interval

CARDS = 8  # latents of a dictionary that get one
MISTAKES = 3  # of each score, on a card
CHANCE = 0.5


def overview(outcome: Outcome, seed: int) -> pd.DataFrame:
    """One row a dictionary: mean scores over latents."""
    rows = []
    for name, found in _by_dictionary(outcome):
        row: dict[str, Any] = {"dictionary": name, "latents": len(found)}
        for kind in KINDS:
            values = scores(found, kind)
            mean = Estimate(float(values.mean()), *mean_interval(values, seed)) if len(values) else _NONE
            row |= estimate_columns(kind, mean)
            row[f"{kind} latents"] = len(values)
        row["chance"] = CHANCE
        row["unexplained"] = sum(one.explanation is None for one in found)
        row["questions"] = sum(one.questions for one in found)
        row["unread questions"] = sum(one.unread for one in found)
        rows.append(row)
    frame = pd.DataFrame(rows)
    return frame.assign(**{"left out": [len(subject.left_out) for subject in outcome.subjects]})


def differences(outcome: Outcome, seed: int) -> pd.DataFrame:
    """One row a pair of dictionaries and score."""
    rows = []
    for (first, a), (second, b) in combinations(_by_dictionary(outcome), 2):
        for kind in KINDS:
            x, y = scores(a, kind), scores(b, kind)
            difference = difference_of_means(x, y, seed)
            row = {"first": first, "second": second, "score": kind, "first latents": len(x), "second latents": len(y)}
            rows.append(row | estimate_columns("difference", Estimate(*difference[:3])) | {"p": difference.p})
    names = ["first", "second", "score", "first latents", "second latents", *estimate_columns("difference", _NONE), "p"]
    return pd.DataFrame(rows, columns=names)


def latents(outcome: Outcome) -> pd.DataFrame:
    """One row a latent."""
    rows = []
    for name, found in _by_dictionary(outcome):
        for one in found:
            row: dict[str, Any] = {"dictionary": name, "latent": one.latent, "explanation": one.explanation}
            for kind in KINDS:
                row[kind] = one.score(kind)
            for kind in KINDS:
                for truth, word in ((True, "right"), (False, "wrong")):
                    known = [j.answer for j in one.judged[kind] if j.trial.truth == truth and j.answer is not None]
                    row[f"{kind} {word} contexts"] = len(known)
                    row[f"{kind} {word} taken for right"] = int(sum(known))
            rows.append(row | {"unread questions": one.unread})
    return pd.DataFrame(rows)


def judgements(outcome: Outcome) -> pd.DataFrame:
    """One row a context that was judged."""
    names = ["dictionary", "latent", "score", "context", "truth", "answer"]
    rows = [
        (name, one.latent, kind, _text(judged), int(judged.trial.truth), judged.answer)
        for name, found in _by_dictionary(outcome)
        for one in found
        for kind in KINDS
        for judged in one.judged[kind]
    ]
    return pd.DataFrame(rows, columns=names).astype({"answer": "Int64"})


def cost(outcome: Outcome, interpreter: Interpreter) -> pd.DataFrame:
    """What was expected, by kind of question, and what was sent."""
    rows: list[tuple[str, Cost]] = [*outcome.expected.items(), ("expected", sum(outcome.expected.values(), Cost()))]
    if outcome.latents is not None:
        rows.append(("sent", outcome.sent))
    return pd.DataFrame(
        [(what, one.requests, one.tokens_in, one.tokens_out, one.money(interpreter.price)) for what, one in rows],
        columns=["what", "requests", "tokens in", "tokens out", "money"],
    ).astype({"money": float})


def summary(overview: pd.DataFrame, interpreter: Interpreter) -> str:
    """The best and the worst explained dictionary."""
    order = overview["detection"].sort_values(ascending=False).index
    said = []
    for i in dict.fromkeys([order[0], order[-1]]):
        row = overview.loc[i]
        parts = [f"{kind} {row[kind]:.2f} [{row[f'{kind} low']:.2f}, {row[f'{kind} high']:.2f}]" for kind in KINDS]
        said.append(
            f"{row['dictionary']}: what {interpreter.explainer} says of a latent reaches {' and '.join(parts)} "
            f"(chance {CHANCE}; n = {row['latents']} latents; judged by {interpreter.scores_with})."
        )
    return " ".join(said)


def cards(outcome: Outcome) -> Cards:
    """The first latents of each dictionary: contexts, explanation, scores, mistakes."""
    made = []
    for name, found in _by_dictionary(outcome):
        for one in found[:CARDS]:
            fields = {"explanation": one.explanation or "none: no answer could be read"}
            fields |= {kind: _worded(one, kind) for kind in KINDS}
            for kind in KINDS:
                wrong = [j for j in one.judged[kind] if j.answer is not None and bool(j.answer) != j.trial.truth]
                for i, judged in enumerate(wrong[:MISTAKES], 1):
                    word = "missed" if judged.trial.truth else "taken for right"
                    fields[f"{kind}, {word} ({i})"] = _text(judged)
            shown = tuple(_passage(window) for window in one.shown)
            made.append(Card(f"Latent {one.latent} of {name}", fields, {"Explained from": shown}))
    return Cards(
        tuple(made),
        "Explanations are a language model's words. Contexts that a latent is explained from are shaded by activation. "
        "Those under missed and taken for right were judged wrongly, with the marked tokens between « and ». First "
        f"{CARDS} latents of each dictionary.",
    )


def scores(found: Sequence[Interpreted], kind: str) -> np.ndarray:
    """The scores of the latents that have one."""
    values = np.array([one.score(kind) for one in found], dtype=float)
    known: np.ndarray = values[~np.isnan(values)]
    return known


_NONE = Estimate(float("nan"), float("nan"), float("nan"))


def _by_dictionary(outcome: Outcome) -> list[tuple[str, list[Interpreted]]]:
    pairs = zip(outcome.subjects, outcome.latents or [], strict=True)
    return [(subject.dictionary.name, found) for subject, found in pairs]


def _worded(one: Interpreted, kind: str) -> str:
    known = sum(judged.answer is not None for judged in one.judged[kind])
    return f"{one.score(kind):.2f} on {known} contexts" if known else "not measured: no context, or no answer"


def _text(judged: Judged) -> str:
    return marked(judged.trial.window.pieces, judged.trial.marks)


def _passage(window: Window) -> Passage:
    weights = window.strength / window.strength.max()
    pieces = (Piece(text, round(float(w), 3)) for text, w in zip(window.pieces, weights, strict=True))
    return Passage(tuple(pieces), int(window.strength.argmax()))
