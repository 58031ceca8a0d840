"""How is a language model asked what a latent is, and whether a description fits a context?

Every context is one line: line ends and tabs are shown as signs, active or marked tokens stand between « and », and
where a text has these two itself, single ones are shown. Answers to judgements are lists of 0 and 1.

Source: the tasks are those of Paulo et al. 2024; the words are this package's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import groupby

import numpy as np

from analyses.autointerp.answer_cache import BYTES_A_TOKEN
from analyses.autointerp.examples import Trial, Window
from analyses.autointerp.questions import Question

EXPLANATION_TOKENS = 160
EXPLANATION_BYTES = BYTES_A_TOKEN * EXPLANATION_TOKENS  # what is longer is cut, so that questions with it have a bound

UNIT = "A unit inside a language model reads text token by token. At some tokens it is active, at all others silent."
EXPLAIN = (
    f"{UNIT} You are shown excerpts of text in which it is most active. The tokens at which it is active stand between "
    "« and ». How active it is, from 1 to 10, is listed below each excerpt. Find what these tokens, or the text that "
    "leads to them, have in common. Be as specific as the excerpts allow. Do not mention marks, numbers or excerpts."
)
EXPLAIN_FORM = "Answer with one sentence of at most 30 words that says when the unit is active, and nothing else."
TASKS = {
    "detection": (
        f"{UNIT} You are given a description of when it is active, and numbered excerpts of text. Judge for each of "
        "them whether the unit is active anywhere in it. It may be so in all of them, in some, or in none."
    ),
    "fuzzing": (
        f"{UNIT} You are given a description of when it is active, and numbered excerpts of text with tokens marked by "
        "« and ». The unit is active somewhere in each excerpt. Judge for each whether the marked tokens are those at "
        "which it is active. It may be so in all of them, in some, or in none."
    ),
}
KINDS = tuple(TASKS)
LIST = re.compile(r"\[\s*[01](?:\s*,\s*[01])*\s*(?:,\s*)?\]")
END_OF_THOUGHT = "</think>"


def explanation_question(windows: Sequence[Window], model: str) -> Question:
    """What is this latent?"""
    strongest = max(float(window.strength.max()) for window in windows)
    blocks = []
    for number, window in enumerate(windows, 1):
        active = np.flatnonzero(window.strength)
        pieces = window.pieces
        listed = ", ".join(f"“{pieces[i]}” {max(1, round(10 * window.strength[i] / strongest))}" for i in active)
        blocks.append(f"Excerpt {number}: {marked(pieces, active.tolist())}\nActive: {listed}")
    return Question(model, EXPLAIN, "\n\n".join(blocks), EXPLAIN_FORM, EXPLANATION_TOKENS, read_explanation)


def judgement_question(kind: str, explanation: str, trials: Sequence[Trial], model: str) -> Question:
    """Does the explanation fit these contexts?"""
    count = len(trials)
    excerpts = [f"{number}. {marked(trial.window.pieces, trial.marks)}" for number, trial in enumerate(trials, 1)]
    given = "\n".join([f"Description: {explanation}", "", *excerpts])
    form = (
        f"Answer with a JSON list of {count} numbers and nothing else: for each excerpt in its order, 1 for yes or 0 "
        "for no."
    )
    return Question(model, TASKS[kind], given, form, 64 + 4 * count, lambda text: read_judgements(text, count))


def read_explanation(text: str) -> str | None:
    """The explanation in an answer: in one line, without what a model said to itself before. None where it is empty."""
    answer = text.rpartition(END_OF_THOUGHT)[2]
    line = " ".join("".join(c if c.isprintable() else " " for c in answer).split())
    return line.encode()[:EXPLANATION_BYTES].decode(errors="ignore").strip() or None


def read_judgements(text: str, count: int) -> tuple[int, ...] | None:
    """The last list of 0 and 1 in an answer; None where there is none, or it has another length."""
    lists = LIST.findall(text.rpartition(END_OF_THOUGHT)[2])
    judgements = tuple(int(digit) for digit in re.findall("[01]", lists[-1])) if lists else ()
    return judgements if len(judgements) == count else None


def marked(pieces: Sequence[str], marks: Collection[int]) -> str:
    """The text, with each run of marked tokens between « and »."""
    runs = groupby(range(len(pieces)), lambda i: i in marks)
    texts = ((is_marked, "".join(pieces[i] for i in run)) for is_marked, run in runs)
    return "".join(f"«{text}»" if is_marked else text for is_marked, text in texts)
