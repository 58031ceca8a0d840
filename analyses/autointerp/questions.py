"""Many questions, several at once; and what can be read in the answers.

An answer that cannot be read is sent back with a reminder of the form, `ATTEMPTS` times in all. Every one of these
answers is kept, so that a run which is repeated takes the same way and sends nothing. What stays unreadable is counted;
where that is more than a share of `UNREADABLE`, the run ends: scores of the rest would be scores of a selection.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Lock
from typing import Any, NamedTuple

from tqdm import tqdm

from analyses.autointerp.answer_cache import Answer, ApiCost, Request
from analyses.autointerp.llm_client import Endpoint
from dictlab.errors import DictlabError

ATTEMPTS = 3
UNREADABLE = 0.2  # share of the questions that may stay without an answer
MESSAGE_LENGTH = 120  # characters of an answer in a message


class Question(NamedTuple):
    """What is asked, and what is expected.

    Attributes:
        model: Who is asked.
        task: What is to be done.
        given: What it is to be done with.
        answer_format: How to answer; said again where an answer cannot be read.
        max_tokens: Tokens of an answer, at most.
        read: From an answer's text to what it says; None where it cannot be read.
    """

    model: str
    task: str
    given: str
    answer_format: str
    max_tokens: int
    read: Callable[[str], Any]

    def request(self) -> Request:
        """The question as it is asked first."""
        messages = (_message("system", f"{self.task} {self.answer_format}"), _message("user", self.given))
        return Request(self.model, messages, self.max_tokens)


class Reading(NamedTuple):
    """What was read in the answers to a question.

    Attributes:
        value: What was read; None if nothing could be.
        attempts: Times it was asked.
        last: The last answer as it came.
    """

    value: Any
    attempts: int
    last: str


def read_answers(question: Question, ask: Callable[[Request], Answer | None]) -> Reading | None:
    """Ask until an answer can be read, `ATTEMPTS` times at most; None where `ask` has no answer."""
    request, text = question.request(), ""
    for attempt in range(1, ATTEMPTS + 1):
        answer = ask(request)
        if answer is None:
            return None
        text = answer.text
        value = question.read(text)
        if value is not None:
            return Reading(value, attempt, text)
        reminder = f"This cannot be read. {question.answer_format}"
        more = (_message("assistant", text or "(nothing)"), _message("user", reminder))
        request = request._replace(messages=(*request.messages, *more))
    return Reading(None, ATTEMPTS, text)


def outstanding(question: Question, endpoint: Endpoint) -> ApiCost:
    """What a question still costs, if the next answer can be read; nothing where the answers kept can be read."""
    missing: list[Request] = []

    def look_up(request: Request) -> Answer | None:
        answer = endpoint.known(request)
        if answer is None:
            missing.append(request)
        return answer

    read_answers(question, look_up)
    return sum(map(endpoint.cost, missing), ApiCost())


def ask_all(questions: Sequence[Question], endpoint: Endpoint, topic: str) -> list[Reading]:
    """What is read in the answers to all questions, in their order. The first failure stops all others.

    Args:
        questions: Asked `concurrency` at a time.
        endpoint: Who answers.
        topic: What the questions are about, for the progress bar and messages.

    Raises:
        DictlabError: The endpoint fails, or more than a share of `UNREADABLE` of the answers cannot be read.
    """
    failures: list[BaseException] = []
    n_unread, lock, pool = 0, Lock(), ThreadPoolExecutor(endpoint.interpreter.concurrency)

    def ask(question: Question) -> Reading:
        nonlocal n_unread
        try:
            reading = read_answers(question, endpoint.ask)
            assert reading is not None  # `ask` answers, or raises
            with lock:
                bar.update()
                n_unread += reading.value is None
                if reading.value is None and n_unread > UNREADABLE * len(questions):
                    raise _too_many(reading, n_unread, len(questions), endpoint, topic)
        except BaseException as error:
            failures.append(error)
            endpoint.stopped.set()
            raise
        return reading

    with tqdm(total=len(questions), desc=topic, unit="question", leave=False) as bar:
        try:
            futures = [pool.submit(ask, question) for question in questions]
            wait(futures, return_when=FIRST_EXCEPTION)
            if failures:
                raise failures[0]
            return [future.result() for future in futures]
        except KeyboardInterrupt:
            say(f"Stopping. Answers are kept in {endpoint.interpreter.answers}: the same command goes on from there.")
            raise
        finally:
            endpoint.stopped.set()  # nothing more is sent; what is under way is waited for, since it is paid for
            pool.shutdown(cancel_futures=True)
            endpoint.stopped.clear()


def _too_many(last: Reading, n_unread: int, n_questions: int, endpoint: Endpoint, topic: str) -> DictlabError:
    text = " ".join(last.last.split())
    return DictlabError(
        f"endpoint {endpoint.interpreter.endpoint}: {n_unread} of {n_questions} questions ({topic}) were asked "
        f"{ATTEMPTS} times without an answer that can be read; the last one was {text[:MESSAGE_LENGTH]!r}. "
        + ("" if text else "A model that thinks first needs more tokens: see `parameters=...`. ")
        + "Give a model that follows instructions with `explainer=...` or `scorer=...`."
    )


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def say(text: str) -> None:
    """Tell the user, above a progress bar."""
    tqdm.write(text, file=sys.stderr)
