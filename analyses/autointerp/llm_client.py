"""What does a language model behind an OpenAI-compatible endpoint answer?

One client for one run. Each request goes out no sooner than the rate allows, is repeated with backoff where the failure
may pass (by the `openai` package, Retry-After included), and is kept with its answer. What cannot be mended by waiting
is said in one sentence. What a server may do at most is in `http_safety`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from analyses.autointerp.answer_cache import Answer, AnswerCache, ApiCost, Request, cost_of, estimated_tokens
from analyses.autointerp.settings import KEY, OPENAI, OPENAI_KEY, Interpreter
from dictlab.errors import DictlabError

MESSAGE_LENGTH = 200  # characters of a server's words in a message
MOST_TOKENS = 10**9  # that an endpoint may say it counted


class RateLimit:
    """Lets no more than so many requests begin in a minute, evenly.

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
        """Return when the next request may begin."""
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
        n_cached: Answers that were in the file already.
        n_uncounted: Requests of this run whose tokens the endpoint did not count.
        stopped: While it is set, nothing is sent.

    Raises:
        DictlabError: The package `openai` is missing, the key cannot be one, or the file of answers cannot be used.
    """

    def __init__(self, interpreter: Interpreter) -> None:
        self._openai = _openai()
        from analyses.autointerp.http_safety import key_pattern  # its HTTP library comes with the package

        self.interpreter, self.sent, self.n_cached, self.n_uncounted = interpreter, ApiCost(), 0, 0
        self._key, self._rate = interpreter.key(), RateLimit(interpreter.per_minute)
        self._key_pattern = key_pattern(self._key) if self._key else None
        self._lock, self.stopped, self._reserved = threading.Lock(), threading.Event(), 0.0
        self._cache = AnswerCache(interpreter.answers)
        self._client = self._connected()

    def close(self) -> None:
        """Close the connection and the file of answers."""
        self._client.close()
        self._cache.close()

    def ask(self, request: Request) -> Answer:
        """The answer to a request: from the file, or else from the endpoint.

        Raises:
            DictlabError: There is none, or the budget does not allow it.
        """
        known = self.known(request)
        if known is not None:
            with self._lock:
                self.n_cached += 1
            return known
        if self.stopped.is_set():
            raise DictlabError("the run was stopped.")
        expected = self._money(self.cost(request))
        self._reserve(expected)
        try:
            answer = self._read(self._reply(request), request)
        finally:
            with self._lock:
                self._reserved -= expected
        self._cache.put(self._body(request), answer)
        with self._lock:
            self.sent += ApiCost(1, answer.tokens_in, answer.tokens_out)
            self.n_uncounted += not answer.counted
        return answer

    def cost(self, request: Request) -> ApiCost:
        """What a request may cost: answers may be as long as the user's parameters let them be, if they say so."""
        return cost_of(request._replace(max_tokens=self.interpreter.answer_tokens or request.max_tokens))

    def known(self, request: Request) -> Answer | None:
        """The answer to a request, if it is in the file."""
        return self._cache.get(self._body(request))

    def _body(self, request: Request) -> dict[str, Any]:
        """All that an answer depends on."""
        parameters = {"temperature": 0, "max_tokens": request.max_tokens, **self.interpreter.extra}
        return {
            "endpoint": self.interpreter.endpoint.rstrip("/"),
            "model": request.model,
            "messages": [dict(message) for message in request.messages],
            **{name: value for name, value in parameters.items() if value is not None},
        }

    def _reply(self, request: Request) -> str:
        """The body of the server's reply, as it is."""
        from analyses.autointerp.http_safety import REFUSED

        body = self._body(request)
        model, messages = body.pop("model"), body.pop("messages")
        del body["endpoint"]
        try:
            # Raw: the package takes any JSON, and even a page of HTML, for an answer.
            response = self._client.chat.completions.with_raw_response.create(
                model=model, messages=messages, extra_body=body
            ).http_response
        except self._openai.OpenAIError as error:
            # Not `from error`: what the package and the server say may hold the key.
            raise DictlabError(self._reason(error, model)) from None
        if REFUSED in response.extensions:
            raise DictlabError(f"endpoint {self.interpreter.endpoint}: {response.extensions[REFUSED]}; it is not read.")
        return str(response.text)

    def _read(self, reply: str, request: Request) -> Answer:
        """An answer out of the body of a reply."""
        try:
            content = json.loads(reply)
            text = content["choices"][0]["message"].get("content") or ""
            if not isinstance(text, str):
                raise TypeError
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise DictlabError(
                f"endpoint {self.interpreter.endpoint}: what it answers is no chat completion, but "
                f"{_one_line(self._without_key(reply))!r}. Is this the address of an OpenAI-compatible endpoint? It "
                "often ends in /v1."
            ) from None
        text = self._without_key(text).encode("utf-8", "replace").decode()
        usage = content.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        counts: list[Any] = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        if None in counts:
            return Answer(text, cost_of(request).tokens_in, estimated_tokens(text), False)
        for count in counts:
            if type(count) is not int or not 0 <= count <= MOST_TOKENS:
                raise DictlabError(
                    f"endpoint {self.interpreter.endpoint}: it says that an answer took "
                    f"{_one_line(self._without_key(repr(count)))} tokens; expected a whole number from 0 to "
                    f"{MOST_TOKENS:.0e}. Spending cannot be counted with this."
                )
        return Answer(text, counts[0], counts[1], True)

    def _money(self, cost: ApiCost) -> float:
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
                    "larger `budget=...` goes on from there."
                )
            self._reserved += expected

    def _connected(self) -> Any:
        """The package's client, whose every request, repeated ones too, keeps the rate."""
        from analyses.autointerp.http_safety import limited_client

        interpreter, openai = self.interpreter, self._openai
        local = interpreter.is_local  # no proxy between this machine and itself
        client = openai.OpenAI(
            base_url=interpreter.endpoint,
            api_key=self._key or "none",  # the package insists; a server without keys does not look
            timeout=interpreter.timeout,
            max_retries=interpreter.retries,
            http_client=limited_client(openai, interpreter.timeout, self._before_request, trust_env=not local),
        )
        if interpreter.host != OPENAI:
            client.organization = client.project = None  # the package reads them from the environment
        return client

    def _before_request(self) -> None:
        if self.stopped.is_set():
            raise self._openai.OpenAIError("the run was stopped")
        self._rate.wait()

    def _reason(self, error: Any, model: str) -> str:
        """What went wrong, and what to do."""
        from analyses.autointerp.http_safety import expired

        interpreter, openai = self.interpreter, self._openai
        place = f"endpoint {interpreter.endpoint}"
        tries = f"{interpreter.retries + 1} tries" if interpreter.retries else "1 try"
        kept = f"Answers so far are kept in {interpreter.answers}: the same command goes on from there."
        said = _one_line(self._without_key(_words(error)))
        unreachable = isinstance(error, openai.APIConnectionError)
        if isinstance(error, openai.APITimeoutError) or (unreachable and expired(error)):
            return (
                f"{place}: no answer within {interpreter.timeout:g} s, in {tries}. A longer `timeout=...` "
                f"may help. {kept}"
            )
        if unreachable:
            return (
                f"{place}: cannot be reached, in {tries} ({said}). Is the server running, and the address right? {kept}"
            )
        if not isinstance(error, openai.APIStatusError):
            return f"{place}: {said}. {kept}"
        status = error.status_code
        if 300 <= status < 400:
            target = _one_line(self._without_key(error.response.headers.get("location", "nowhere")))
            return (
                f"{place}: is a redirect ({status}) to {target}, which is not followed, since questions and key would "
                "go there. If that is the endpoint that you mean, give its address."
            )
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
                f"Fewer at once help: `per_minute=...`, `concurrency=...`. {kept}"
            )
        if status >= 500:
            return f"{place}: the server failed ({status}: {said}), in {tries}. {kept}"
        return (
            f"{place}: refuses the request to {model!r} ({status}: {said}). Parameters that it does not know can be "
            'changed with `parameters=...`, such as \'{"max_tokens": null, "max_completion_tokens": 2000}\'.'
        )

    def _without_key(self, text: str) -> str:
        """The text with the key struck out, in every encoding."""
        return text if self._key_pattern is None else self._key_pattern.sub("[key]", text)


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


def _one_line(text: str) -> str:
    """The beginning of a text, in one line of printable characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 100 * MESSAGE_LENGTH]).split())
    return line if len(line) <= MESSAGE_LENGTH else f"{line[:MESSAGE_LENGTH]}…"
