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

from analyses.autointerp.answer_cache import Answer
from analyses.autointerp.conversation import Cost, Message, Request
from analyses.autointerp.llm_client import Endpoint
from dictlab.errors import DictlabError

ATTEMPTS = 3
UNREADABLE = 0.2  # share of the questions that may stay without an answer
SAID = 120  # characters of an answer in a message


class Question(NamedTuple):
    """What is asked, and what is expected.

    Attributes:
        model: Who is asked.
        task: What is to be done.
        given: What it is to be done with.
        form: How to answer; said again where an answer cannot be read.
        tokens: Of an answer, at most.
        read: What an answer says; None where it cannot be read.
    """

    model: str
    task: str
    given: str
    form: str
    tokens: int
    read: Callable[[str], Any]

    def request(self) -> Request:
        """The question as it is asked first."""
        said = (Message("system", f"{self.task} {self.form}"), Message("user", self.given))
        return Request(self.model, said, self.tokens)


class Settled(NamedTuple):
    """What became of a question.

    Attributes:
        said: What was read; None if nothing could be.
        attempts: Times it was asked.
        last: The last answer as it came.
    """

    said: Any
    attempts: int
    last: str


def settled(question: Question, ask: Callable[[Request], Answer | None]) -> Settled | None:
    """Ask until an answer can be read, `ATTEMPTS` times at most; None where `ask` has no answer."""
    request, text = question.request(), ""
    for attempt in range(1, ATTEMPTS + 1):
        answer = ask(request)
        if answer is None:
            return None
        text = answer.text
        said = question.read(text)
        if said is not None:
            return Settled(said, attempt, text)
        reminder = f"This cannot be read. {question.form}"
        more = (Message("assistant", text or "(nothing)"), Message("user", reminder))
        request = request._replace(messages=(*request.messages, *more))
    return Settled(None, ATTEMPTS, text)


def outstanding(question: Question, endpoint: Endpoint) -> Cost:
    """What a question still costs, if the next answer can be read; nothing where it is settled by answers kept."""
    wanted: list[Request] = []

    def look(request: Request) -> Answer | None:
        found = endpoint.known(request)
        if found is None:
            wanted.append(request)
        return found

    settled(question, look)
    return sum(map(endpoint.cost, wanted), Cost())


def ask_all(questions: Sequence[Question], endpoint: Endpoint, what: str) -> list[Settled]:
    """The answers to all questions, in their order.

    Args:
        questions: Asked `concurrency` at a time.
        endpoint: Who answers.
        what: What the questions are about, for the progress bar and messages.

    Raises:
        DictlabError: The endpoint fails, or more than a share of `UNREADABLE` of the answers cannot be read.
    """
    watch, pool = _Watch(endpoint, len(questions), what), ThreadPoolExecutor(endpoint.interpreter.concurrency)
    with tqdm(total=len(questions), desc=what, unit="question", leave=False) as bar:
        try:
            futures = [pool.submit(watch.settled, question, bar) for question in questions]
            wait(futures, return_when=FIRST_EXCEPTION)
            if watch.failure is not None:
                raise watch.failure
            return [future.result() for future in futures]
        except KeyboardInterrupt:
            say(f"Stopping. Answers are kept in {endpoint.interpreter.answers}: the same command goes on from there.")
            raise
        finally:
            endpoint.stopped.set()  # nothing more is sent; what is under way is waited for, since it is paid for
            pool.shutdown(cancel_futures=True)
            endpoint.stopped.clear()


class _Watch:
    """Settles questions in several threads, and keeps the first reason to end."""

    def __init__(self, endpoint: Endpoint, questions: int, what: str) -> None:
        self.endpoint, self.questions, self.what = endpoint, questions, what
        self.failure: BaseException | None = None
        self._unread, self._lock = 0, Lock()

    def settled(self, question: Question, bar: Any) -> Settled:
        """What became of a question. What fails here stops all others."""
        try:
            found = settled(question, self.endpoint.ask)
            assert found is not None  # `ask` answers, or raises
            with self._lock:
                bar.update()
                self._unread += found.said is None
            if found.said is None and self._unread > UNREADABLE * self.questions:
                raise self._too_many(found)
        except BaseException as error:
            with self._lock:
                self.failure = self.failure or error
            self.endpoint.stopped.set()
            raise
        return found

    def _too_many(self, one: Settled) -> DictlabError:
        last = " ".join(one.last.split())
        return DictlabError(
            f"endpoint {self.endpoint.interpreter.endpoint}: {self._unread} of {self.questions} questions "
            f"({self.what}) were asked {ATTEMPTS} times without an answer that can be read; the last one was "
            f"{last[:SAID]!r}. "
            + ("" if last else "A model that thinks first needs more tokens: see --parameters. ")
            + "Give a model that follows instructions with --explainer or --scorer."
        )


def say(text: str) -> None:
    """Tell the user, above a progress bar."""
    tqdm.write(text, file=sys.stderr)
