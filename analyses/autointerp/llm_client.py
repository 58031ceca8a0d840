"""What does a language model behind an OpenAI-compatible endpoint answer?

One client for one run. Each request goes out no sooner than the rate allows, is repeated with backoff where the failure
may pass (the `openai` package's doing, Retry-After included), and is kept with its answer. What cannot be mended by
waiting is said in one sentence. A server may repeat the key in what it says: it is struck out of all that comes in.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from analyses.autointerp.answer_cache import Answer, Answers
from analyses.autointerp.conversation import Cost, Request, cost_of, reckoned
from analyses.autointerp.settings import KEY, OPENAI, OPENAI_KEY, Interpreter
from dictlab.errors import DictlabError

SAID = 200  # characters of a server's words in a message


class Pace:
    """Lets no more than so many begin in a minute, evenly.

    Args:
        per_minute: How many; None for any number.
        clock: The time in seconds.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._clock, self._sleep, self._lock, self._next = clock, sleep, threading.Lock(), float("-inf")

    def wait(self) -> None:
        """Return when the next may begin."""
        with self._lock:
            now = self._clock()
            due = max(now, self._next)
            self._next = due + self._gap
        if due > now:
            self._sleep(due - now)


class Endpoint:
    """A language model to ask, by several threads if need be. It is to be closed in the end.

    Attributes:
        interpreter: Where it is, and on what terms.
        sent: What this run has cost so far.
        found: Answers that were there already.
        stopped: While it is set, nothing is sent.
        reckoned: Requests of this run whose tokens the endpoint did not count.

    Raises:
        DictlabError: The package `openai` is missing, the key cannot be one, or the file of answers cannot be used.
    """

    def __init__(self, interpreter: Interpreter) -> None:
        self._openai = _openai()
        self.interpreter, self.sent, self.found, self.reckoned = interpreter, Cost(), 0, 0
        self._key, self._pace = interpreter.key(), Pace(interpreter.per_minute)
        self._lock, self.stopped, self._reserved = threading.Lock(), threading.Event(), 0.0
        self._answers = Answers(interpreter.answers)
        self._client = self._connected()

    def close(self) -> None:
        """Let go of the connection and of the file of answers."""
        self._client.close()
        self._answers.close()

    def ask(self, request: Request) -> Answer:
        """The answer to a request: from the file, or else from the endpoint.

        Raises:
            DictlabError: There is none, or the budget does not allow it.
        """
        known = self.known(request)
        if known is not None:
            with self._lock:
                self.found += 1
            return known
        if self.stopped.is_set():
            raise DictlabError("the run was stopped.")
        expected = self._money(self.cost(request))
        self._reserve(expected)
        try:
            answer = self._read(self._said(request), request)
        finally:
            with self._lock:
                self._reserved -= expected
        self._answers.put(self._body(request), answer)
        with self._lock:
            self.sent += Cost(1, answer.tokens_in, answer.tokens_out)
            self.reckoned += not answer.counted
        return answer

    def cost(self, request: Request) -> Cost:
        """What a request may cost: answers may be as long as the user's parameters let them be, if they say so."""
        return cost_of(request._replace(tokens=self.interpreter.answer_tokens or request.tokens))

    def known(self, request: Request) -> Answer | None:
        """The answer to a request, if it is in the file."""
        return self._answers.get(self._body(request))

    def _body(self, request: Request) -> dict[str, Any]:
        """All that an answer depends on."""
        parameters = {"temperature": 0, "max_tokens": request.tokens, **self.interpreter.extra}
        return {
            "endpoint": self.interpreter.endpoint.rstrip("/"),
            "model": request.model,
            "messages": [message._asdict() for message in request.messages],
            **{name: value for name, value in parameters.items() if value is not None},
        }

    def _said(self, request: Request) -> str:
        """The server's words, as they are."""
        body = self._body(request)
        model, messages = body.pop("model"), body.pop("messages")
        del body["endpoint"]
        try:
            # Raw: the package takes any JSON, and even a page of HTML, for an answer.
            found: str = self._client.chat.completions.with_raw_response.create(
                model=model, messages=messages, extra_body=body
            ).http_response.text
        except self._openai.OpenAIError as error:
            # Not `from error`: what the package and the server say may hold the key.
            raise DictlabError(self._reason(error, model)) from None
        return found

    def _read(self, said: str, request: Request) -> Answer:
        """An answer out of the server's words."""
        try:
            content = json.loads(said)
            message = content["choices"][0]["message"]
            text = message.get("content") or ""
            if not isinstance(text, str):
                raise TypeError
        except (ValueError, LookupError, TypeError, AttributeError):
            raise DictlabError(
                f"endpoint {self.interpreter.endpoint}: what it answers is no chat completion, but "
                f"{_short(self._struck(said))!r}. Is this the address of an OpenAI-compatible endpoint? It often ends "
                "in /v1."
            ) from None
        text = self._struck(text).encode("utf-8", "replace").decode()
        usage = content.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        into, out = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if isinstance(into, int) and isinstance(out, int):
            return Answer(text, into, out, True)
        return Answer(text, cost_of(request).tokens_in, reckoned(text), False)

    def _money(self, cost: Cost) -> float:
        return cost.money(self.interpreter.price) or 0.0

    def _reserve(self, expected: float) -> None:
        """Put money aside for a request, if there is any left beside what others under way may cost."""
        budget = self.interpreter.budget
        with self._lock:
            spent = self._money(self.sent)
            if budget is not None and spent + self._reserved + expected > budget:
                raise DictlabError(
                    f"the budget of {budget:g} is used up: {spent:.4g} are spent, and the next request may cost "
                    f"{expected:.2g}. All answers are kept in {self.interpreter.answers}; the same command with a "
                    "larger --budget goes on from there."
                )
            self._reserved += expected

    def _connected(self) -> Any:
        """The package's client, whose every request, repeated ones too, keeps the pace."""
        interpreter, openai = self.interpreter, self._openai
        client = openai.OpenAI(
            base_url=interpreter.endpoint,
            api_key=self._key or "none",  # the package insists; a server without keys does not look
            timeout=interpreter.timeout,
            max_retries=interpreter.retries,
            http_client=openai.DefaultHttpxClient(
                event_hooks={"request": [self._before]},
                trust_env=not interpreter.is_local,  # no proxy between this machine and itself
            ),
        )
        if interpreter.host != OPENAI:
            client.organization = client.project = None  # the package reads them from the environment
        return client

    def _before(self, request: object) -> None:
        if self.stopped.is_set():
            raise self._openai.OpenAIError("the run was stopped")
        self._pace.wait()

    def _reason(self, error: Any, model: str) -> str:
        """What went wrong, and what to do."""
        interpreter, openai = self.interpreter, self._openai
        place = f"endpoint {interpreter.endpoint}"
        tries = f"{interpreter.retries + 1} tries" if interpreter.retries else "1 try"
        kept = f"Answers so far are kept in {interpreter.answers}: the same command goes on from there."
        said = _short(self._struck(_words(error)))
        if isinstance(error, openai.APITimeoutError):
            return (
                f"{place}: no answer within {interpreter.timeout:g} s, in {tries}. A longer --timeout may help. {kept}"
            )
        if isinstance(error, openai.APIConnectionError):
            return (
                f"{place}: cannot be reached, in {tries} ({said}). Is the server running, and the address right? {kept}"
            )
        if not isinstance(error, openai.APIStatusError):
            return f"{place}: {said}. {kept}"
        status = error.status_code
        if status in (401, 403):
            had = "the key that it was given is refused" if self._key else "it wants a key, and none is set"
            name = OPENAI_KEY if interpreter.host == OPENAI else KEY
            return f"{place}: {had} ({status}: {said}). Put the right one into the environment variable {name}."
        if status == 404:
            return (
                f"{place}: has no model {model!r}, or nothing at this address (404: {said}). Model names are listed at "
                f"{interpreter.endpoint.rstrip('/')}/models; the address often ends in /v1."
            )
        if status == 429:
            return (
                f"{place}: too many requests, or nothing left to spend (429: {said}), in {tries}. "
                f"Fewer at once help: --per-minute, --concurrency. {kept}"
            )
        if status >= 500:
            return f"{place}: the server failed ({status}: {said}), in {tries}. {kept}"
        return (
            f"{place}: refuses the request to {model!r} ({status}: {said}). Parameters that it does not know can be "
            'changed with --parameters, such as \'{"max_tokens": null, "max_completion_tokens": 2000}\'.'
        )

    def _struck(self, text: str) -> str:
        """Without the key."""
        return text.replace(self._key, "[key]") if self._key else text


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise DictlabError(
            "an endpoint needs the package openai, which is not installed: pip install 'dictlab[endpoint]'."
        ) from error
    return openai


def _words(error: Any) -> str:
    """What an error says: the server's own message, where there is one."""
    body, response = getattr(error, "body", None), getattr(error, "response", None)
    if isinstance(body, Mapping) and isinstance(body.get("message"), str):
        return str(body["message"])
    if response is not None:
        return str(response.text) or "without a word"
    return str(error.__cause__ or error)


def _short(text: str) -> str:
    """In one line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= SAID else f"{line[:SAID]}…"
