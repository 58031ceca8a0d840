"""Can a language model say when a latent is active, and does another one find it by what was said?

For each latent: an explanation from the contexts with its largest activations in training text, then two scores on
held-out text (`examples` chooses them, `prompts` words the questions):

    detection   is the latent active anywhere in this context?
    fuzzing     are the marked tokens of this context those at which it is active?
    score       (share of the right contexts that are taken for right + share of the wrong ones taken for wrong) / 2

A guess that does not look has 1/2. Contexts of a question whose answer could not be read are in no score, and counted.

Source: Paulo et al. 2024 for the scores; Braun et al. 2024 for comparing dictionaries by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from analyses.autointerp.answer_cache import ApiCost
from analyses.autointerp.examples import Grid, Trial, Window, detection_trials, fuzzing_trials, top_windows
from analyses.autointerp.llm_client import Endpoint
from analyses.autointerp.prompts import EXPLANATION_BYTES, KINDS, explanation_question, judgement_question
from analyses.autointerp.questions import Question, ask_all, outstanding, read_answers, say
from analyses.autointerp.settings import Interpreter
from analyses.common.firings import Firings
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.numerics import seeds

UNKNOWN_EXPLANATION = "x" * EXPLANATION_BYTES  # stands for one that is not there yet, as long as any can be


@dataclass(frozen=True, eq=False)
class InterpretedLatent:
    """One latent: what is asked about it, and what was answered.

    Attributes:
        latent: Its index.
        shown: Contexts that it is explained from.
        trials: Contexts that are judged, by score.
        explanation: In words; None before it is asked for, and where no answer could be read. Then nothing is judged.
        n_questions: Questions asked.
        n_unread: How many of them got no answer that could be read.
    """

    latent: int
    shown: list[Window]
    trials: Mapping[str, list[Trial]]
    explanation: str | None = None
    n_questions: int = 0
    n_unread: int = 0

    def score(self, kind: str) -> float:
        """Balanced accuracy of one kind of judgement; NaN where no right or no wrong context has an answer."""
        return balanced_accuracy(self.trials.get(kind, []))


@dataclass(frozen=True, eq=False)
class InterpretedDictionary:
    """A dictionary of which latents are interpreted.

    Attributes:
        dictionary: Which.
        latents: Those that are interpreted.
        left_out: Latents that are active in too few contexts, or silent in too few, to be judged.
    """

    dictionary: Dictionary
    latents: list[InterpretedLatent]
    left_out: list[int]

    @property
    def name(self) -> str:
        """The dictionary's name."""
        return self.dictionary.name


@dataclass(frozen=True, eq=False)
class Interpretation:
    """Dictionaries with the explanations and scores of their latents, and what these cost.

    Attributes:
        dictionaries: In the order given; without answers where only the cost was asked for.
        expected: What was still to be sent, by kind of question.
        sent: What was sent; None where only the cost was asked for.
        n_cached: Answers that were there already.
        n_uncounted: Requests of which the endpoint did not count the tokens.
    """

    dictionaries: Sequence[InterpretedDictionary]
    expected: Mapping[str, ApiCost]
    sent: ApiCost | None = None
    n_cached: int = 0
    n_uncounted: int = 0

    @property
    def total_expected(self) -> ApiCost:
        """What was still to be sent."""
        return sum(self.expected.values(), ApiCost())


def balanced_accuracy(trials: Sequence[Trial]) -> float:
    """Mean of the shares of right and of wrong contexts that were judged so; trials without answer are left out."""
    shares = []
    for truth in (True, False):
        correct = [bool(one.answer) == truth for one in trials if one.truth == truth and one.answer is not None]
        shares.append(float(np.mean(correct)) if correct else float("nan"))
    return float(np.mean(shares))


def choose_contexts(
    dictionary: Dictionary,
    latents: Sequence[int],
    splits: tuple[Firings, Firings],
    grids: tuple[Grid, Grid],
    interpreter: Interpreter,
    seed: int,
) -> InterpretedDictionary:
    """Choose the contexts from which each latent is explained, and those on which the explanation is judged.

    Args:
        dictionary: Which.
        latents: Those to interpret.
        splits: Where they are active in training text, and in held-out text.
        grids: These texts.
        interpreter: How many contexts, and of what length.
        seed: Of the choice.
    """
    interpreted, left_out, half = [], [], interpreter.judged // 2
    train, held = grids
    for number, latent in enumerate(latents):
        in_train, in_held = (split.latents[number] for split in splits)
        generator = seeds.generator(seed, f"contexts to judge: latent {latent} of {dictionary.name}")
        shown = top_windows(train, in_train, interpreter.shown)
        detection = detection_trials(held, in_held, half, generator)
        enough = np.count_nonzero(held.strengths(in_held)) >= interpreter.judged
        if len(shown) == interpreter.shown and detection and enough:
            trials = {"detection": detection, "fuzzing": fuzzing_trials(held, in_held, half, generator)}
            interpreted.append(InterpretedLatent(latent, shown, trials))
        else:
            left_out.append(latent)
    return InterpretedDictionary(dictionary, interpreted, left_out)


def grid(sequences: Int[Tensor, "sequences context"], tokenizer: Any, lead: int, interpreter: Interpreter) -> Grid:
    """A text cut into windows.

    Raises:
        DictlabError: A context is shorter than a window.
    """
    room = sequences.shape[1] - lead
    if interpreter.window > room:
        raise DictlabError(f"window is {interpreter.window}; expected at most {room}, the tokens of a context.")
    return Grid(sequences, tokenizer, interpreter.window, lead)


def interpret(dictionaries: Sequence[InterpretedDictionary], interpreter: Interpreter) -> Interpretation:
    """Say what it will cost, and then ask: first for all explanations, then for all judgements.

    Raises:
        DictlabError: There is nothing to ask, the cost is above the budget, or the endpoint fails (`llm_client`).
    """
    latents = [latent for one in dictionaries for latent in one.latents]
    if not latents:
        raise DictlabError(
            f"none of the {sum(len(one.left_out) for one in dictionaries)} latents can be interpreted: each needs "
            f"{interpreter.shown} training sequences in which it is active, and on held-out text "
            f"{interpreter.judged} windows in which it is and {interpreter.judged // 2} in which it is not. Give more "
            "`tokens=...`, or a smaller `judged=...`."
        )
    with closing(Endpoint(interpreter)) as endpoint:
        estimate = Interpretation(dictionaries, estimated_costs(latents, endpoint))
        _check_budget(estimate.total_expected, interpreter)
        if interpreter.estimate:
            return estimate
        for words in filter(None, (cost_in_words(estimate, interpreter), interpreter.exposed())):
            say(words)
        answered = iter(_interpreted(latents, endpoint))
        return Interpretation(
            [replace(one, latents=[next(answered) for _ in one.latents]) for one in dictionaries],
            estimate.expected, endpoint.sent, endpoint.n_cached, endpoint.n_uncounted,
        )  # fmt: skip


def estimated_costs(latents: Sequence[InterpretedLatent], endpoint: Endpoint) -> dict[str, ApiCost]:
    """What is still to be sent, by kind of question, if each answer can be read.

    An explanation that is not there yet is taken to be as long as one may be.
    """
    interpreter, costs = endpoint.interpreter, dict.fromkeys(("explanation", *KINDS), ApiCost())
    for latent in latents:
        question = explanation_question(latent.shown, interpreter.explainer)
        costs["explanation"] += outstanding(question, endpoint)
        known = read_answers(question, endpoint.known)
        explanation = UNKNOWN_EXPLANATION if known is None else known.value
        for kind, _, judgement in _judgement_questions(latent, explanation, interpreter):
            costs[kind] += outstanding(judgement, endpoint)
    return costs


def cost_in_words(estimate: Interpretation, interpreter: Interpreter) -> str:
    """The estimate in words."""
    cost, n_latents = estimate.total_expected, sum(len(one.latents) for one in estimate.dictionaries)
    money = cost.money(interpreter.price)
    return (
        f"{n_latents} latents at {interpreter.endpoint}: {cost.requests:,} requests to send, {cost.tokens_in:,} tokens "
        f"in and at most {cost.tokens_out:,} out"
        + ("" if money is None else f", at most {money:.4g} at the price given")
        + " (tokens reckoned as a third of the bytes; an answer that cannot be read is asked for again)."
    )


def _check_budget(cost: ApiCost, interpreter: Interpreter) -> None:
    money = cost.money(interpreter.price)
    if money is not None and interpreter.budget is not None and money > interpreter.budget:
        raise DictlabError(
            f"{cost.requests:,} requests may cost {money:.4g}, more than the budget of {interpreter.budget:g}; nothing "
            "was sent. Give a larger `budget=...`, or fewer `latents=...` or `judged=...`."
        )


def _judgement_questions(
    latent: InterpretedLatent, explanation: str | None, interpreter: Interpreter
) -> list[tuple[str, list[Trial], Question]]:
    """The questions whether an explanation fits, with what they are about; none without an explanation."""
    if explanation is None:
        return []
    return [
        (kind, group, judgement_question(kind, explanation, group, interpreter.scores_with))
        for kind, trials in latent.trials.items()
        for start in range(0, len(trials), interpreter.together)
        for group in [trials[start : start + interpreter.together]]
    ]


def _interpreted(latents: Sequence[InterpretedLatent], endpoint: Endpoint) -> list[InterpretedLatent]:
    """The latents with their explanations and judgements."""
    interpreter = endpoint.interpreter
    questions = [explanation_question(latent.shown, interpreter.explainer) for latent in latents]
    explanations = [reading.value for reading in ask_all(questions, endpoint, "explanations")]
    asked = [
        _judgement_questions(latent, explanation, interpreter)
        for latent, explanation in zip(latents, explanations, strict=True)
    ]
    answers = iter(ask_all([question for groups in asked for *_, question in groups], endpoint, "judgements"))
    interpreted = []
    for latent, explanation, groups in zip(latents, explanations, asked, strict=True):
        trials: dict[str, list[Trial]] = {kind: [] for kind in KINDS}
        n_unread = int(explanation is None)
        for kind, group, _ in groups:
            judgements = next(answers).value
            n_unread += judgements is None
            trials[kind] += [one._replace(answer=judgements[i] if judgements else None) for i, one in enumerate(group)]
        interpreted.append(
            replace(latent, trials=trials, explanation=explanation, n_questions=1 + len(groups), n_unread=n_unread)
        )
    return interpreted
