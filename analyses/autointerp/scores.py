"""Can a language model say when a latent is active, and does another one find it by what was said?

For each latent: an explanation from the contexts with its largest activations in training text, then two scores on
held-out text (`interpretation_contexts` chooses, `interpretation_questions` asks):

    detection   is the latent active anywhere in this context?
    fuzzing     are the marked tokens of this context those at which it is active?
    score       (share of the right contexts that are taken for right + share of the wrong ones taken for wrong) / 2

A guess that does not look has 1/2. Contexts of a question whose answer could not be read are in no score, and counted.

Source: Paulo et al. 2024 for the scores; Braun et al. 2024 for comparing dictionaries by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from torch import Tensor

from analyses.autointerp import examples as contexts
from analyses.autointerp.conversation import Cost
from analyses.autointerp.examples import Grid, Trial, Window
from analyses.autointerp.llm_client import Endpoint
from analyses.autointerp.prompts import EXPLANATION_BYTES, KINDS, explanation_question, judgement_question
from analyses.autointerp.questions import Question, ask_all, outstanding, say, settled
from analyses.autointerp.settings import Interpreter
from analyses.common.firings import Firings
from dictlab import seeds
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError

STAND_IN = "x" * EXPLANATION_BYTES  # an explanation that is not there yet, as long as any can be


class Sheet(NamedTuple):
    """What is asked about one latent.

    Attributes:
        latent: Which.
        shown: Contexts that it is explained from.
        trials: Contexts that are judged, by score.
    """

    latent: int
    shown: list[Window]
    trials: Mapping[str, list[Trial]]


class Judged(NamedTuple):
    """A context, and what was said of it: 1, 0, or None where the answer could not be read."""

    trial: Trial
    answer: int | None


class Interpreted(NamedTuple):
    """What became of one latent.

    Attributes:
        latent: Which.
        shown: Contexts that it was explained from.
        explanation: What it is; None where no answer could be read. Then nothing was judged.
        judged: Contexts with their answers, by score.
        questions: How many were asked.
        unread: How many of them got no answer that could be read.
    """

    latent: int
    shown: list[Window]
    explanation: str | None
    judged: Mapping[str, list[Judged]]
    questions: int
    unread: int

    def score(self, kind: str) -> float:
        """Balanced accuracy of one kind of judgement; NaN where there is none of right or of wrong contexts."""
        return balanced_accuracy(self.judged.get(kind, []))


@dataclass(frozen=True, eq=False)
class Subject:
    """A dictionary of which latents are interpreted.

    Attributes:
        dictionary: Which.
        sheets: Its latents.
        left_out: Latents that are active in too few contexts, or silent in too few, to be judged.
    """

    dictionary: Dictionary
    sheets: list[Sheet]
    left_out: list[int]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of it all.

    Attributes:
        subjects: The dictionaries.
        latents: What became of the latents of each; None where only the cost was asked for.
        expected: What was still to be sent, by kind of question.
        sent: What was sent.
        found: Answers that were there already.
        reckoned: Requests of which the endpoint did not count the tokens.
    """

    subjects: Sequence[Subject]
    latents: Sequence[list[Interpreted]] | None
    expected: Mapping[str, Cost]
    sent: Cost
    found: int
    reckoned: int


def balanced_accuracy(judged: Sequence[Judged]) -> float:
    """Mean of the shares of right and of wrong contexts that were judged so."""
    shares = []
    for truth in (True, False):
        correct = [bool(one.answer) == truth for one in judged if one.trial.truth == truth and one.answer is not None]
        shares.append(float(np.mean(correct)) if correct else float("nan"))
    return float(np.mean(shares))


def subject(
    dictionary: Dictionary,
    latents: Sequence[int],
    splits: tuple[Firings, Firings],
    grids: tuple[Grid, Grid],
    interpreter: Interpreter,
    seed: int,
) -> Subject:
    """Choose the contexts of each latent.

    Args:
        dictionary: Which.
        latents: Those to interpret.
        splits: Where they are active in training text, and in held-out text.
        grids: These texts.
        interpreter: How many contexts, and of what length.
        seed: Of the choice.
    """
    sheets, left_out, half = [], [], interpreter.judged // 2
    for number, latent in enumerate(latents):
        before, after = (split.latents[number] for split in splits)
        generator = seeds.generator(seed, f"contexts to judge: latent {latent} of {dictionary.name}")
        shown = contexts.shown(grids[0], before, interpreter.shown)
        detection = contexts.detection(grids[1], after, half, generator)
        enough = np.count_nonzero(grids[1].strengths(after)) >= interpreter.judged
        if len(shown) == interpreter.shown and detection and enough:
            trials = {"detection": detection, "fuzzing": contexts.fuzzing(grids[1], after, half, generator)}
            sheets.append(Sheet(latent, shown, trials))
        else:
            left_out.append(latent)
    return Subject(dictionary, sheets, left_out)


def grid(sequences: Int[Tensor, "sequences context"], tokenizer: Any, lead: int, interpreter: Interpreter) -> Grid:
    """A text in windows.

    Raises:
        DictlabError: A context is shorter than a window.
    """
    room = sequences.shape[1] - lead
    if interpreter.window > room:
        raise DictlabError(f"window is {interpreter.window}; expected at most {room}, the tokens of a context.")
    return Grid(sequences, tokenizer, interpreter.window, lead)


def interpret(subjects: Sequence[Subject], interpreter: Interpreter) -> Outcome:
    """Say what it will cost, and then ask: first for all explanations, then for all judgements.

    Raises:
        DictlabError: There is nothing to ask, the cost is above the budget, or the endpoint fails (`endpoint`).
    """
    sheets = [sheet for one in subjects for sheet in one.sheets]
    if not sheets:
        raise DictlabError(
            f"none of the {sum(len(one.left_out) for one in subjects)} latents can be interpreted: each needs "
            f"{interpreter.shown} training sequences in which it is active, and on held-out text "
            f"{interpreter.judged} windows in which it is and {interpreter.judged // 2} in which it is not. Give more "
            "--tokens, or a smaller --judged."
        )
    with closing(Endpoint(interpreter)) as endpoint:
        expected = estimate(sheets, endpoint)
        _check_budget(sum(expected.values(), Cost()), interpreter)
        if interpreter.estimate:
            return Outcome(subjects, None, expected, Cost(), 0, 0)
        for words in filter(None, (said_cost(expected, len(sheets), interpreter), interpreter.exposed())):
            say(words)
        found = _interpreted(sheets, endpoint)
        latents = [[found[id(sheet)] for sheet in one.sheets] for one in subjects]
        return Outcome(subjects, latents, expected, endpoint.sent, endpoint.found, endpoint.reckoned)


def estimate(sheets: Sequence[Sheet], endpoint: Endpoint) -> dict[str, Cost]:
    """What is still to be sent, by kind of question, if each answer can be read.

    An explanation that is not there yet is taken to be as long as one may be.
    """
    interpreter, costs = endpoint.interpreter, dict.fromkeys(("explanation", *KINDS), Cost())
    for sheet in sheets:
        question = explanation_question(sheet.shown, interpreter.explainer)
        costs["explanation"] += outstanding(question, endpoint)
        known = settled(question, endpoint.known)
        explanation = STAND_IN if known is None else known.said
        for kind, _, judgement in _judgements(sheet, explanation, interpreter):
            costs[kind] += outstanding(judgement, endpoint)
    return costs


def said_cost(expected: Mapping[str, Cost], latents: int, interpreter: Interpreter) -> str:
    """The estimate in words."""
    cost = sum(expected.values(), Cost())
    money = cost.money(interpreter.price)
    return (
        f"{latents} latents at {interpreter.endpoint}: {cost.requests:,} requests to send, {cost.tokens_in:,} tokens "
        f"in and at most {cost.tokens_out:,} out"
        + ("" if money is None else f", at most {money:.4g} at the price given")
        + " (tokens reckoned as a third of the bytes; an answer that cannot be read is asked for again)."
    )


def _check_budget(cost: Cost, interpreter: Interpreter) -> None:
    money = cost.money(interpreter.price)
    if money is not None and interpreter.budget is not None and money > interpreter.budget:
        raise DictlabError(
            f"{cost.requests:,} requests may cost {money:.4g}, more than the budget of {interpreter.budget:g}; nothing "
            "was sent. Give a larger --budget, or fewer --latents or --judged."
        )


def _judgements(
    sheet: Sheet, explanation: str | None, interpreter: Interpreter
) -> list[tuple[str, list[Trial], Question]]:
    """The questions whether an explanation fits, with what they are about; none without an explanation."""
    if explanation is None:
        return []
    made = []
    for kind, trials in sheet.trials.items():
        for start in range(0, len(trials), interpreter.together):
            some = trials[start : start + interpreter.together]
            made.append((kind, some, judgement_question(kind, explanation, some, interpreter.scores_with)))
    return made


def _interpreted(sheets: Sequence[Sheet], endpoint: Endpoint) -> dict[int, Interpreted]:
    """What became of each sheet, by its identity."""
    interpreter = endpoint.interpreter
    questions = [explanation_question(sheet.shown, interpreter.explainer) for sheet in sheets]
    explanations = [one.said for one in ask_all(questions, endpoint, "explanations")]
    asked = [
        _judgements(sheet, explanation, interpreter) for sheet, explanation in zip(sheets, explanations, strict=True)
    ]
    answers = iter(ask_all([question for own in asked for *_, question in own], endpoint, "judgements"))
    found = {}
    for sheet, explanation, own in zip(sheets, explanations, asked, strict=True):
        judged: dict[str, list[Judged]] = {kind: [] for kind in KINDS}
        unread = int(explanation is None)
        for kind, trials, _ in own:
            said = next(answers).said
            unread += said is None
            judged[kind] += [Judged(trial, None if said is None else said[i]) for i, trial in enumerate(trials)]
        found[id(sheet)] = Interpreted(sheet.latent, sheet.shown, explanation, judged, 1 + len(own), unread)
    return found
