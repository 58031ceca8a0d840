"""Which language model interprets latents, where it is asked, and on what terms."""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dictlab.errors import DictlabError, check_at_least

KEY, OPENAI_KEY = "DICTLAB_API_KEY", "OPENAI_API_KEY"
OPENAI = "api.openai.com"
LENGTHS = ("max_completion_tokens", "max_tokens")
RESERVED = ("model", "messages", "n", "stream")  # parameters of a request that are not the user's to set


@dataclass(frozen=True)
class Interpreter:
    """A language model behind an OpenAI-compatible endpoint, and how latents are interpreted with it.

    The key is read from the environment when it is needed: DICTLAB_API_KEY, or OPENAI_API_KEY, which goes to
    api.openai.com only. A server that wants none needs none.

    Attributes:
        endpoint: Address of an OpenAI-compatible endpoint that explains latents and scores the explanations, such as
            http://127.0.0.1:8080/v1. The key is read from DICTLAB_API_KEY.
        explainer: The endpoint's model that explains.
        scorer: The endpoint's model that scores; by default the one that explains.
        shown: Contexts that a latent is explained from, those with its largest activations.
        judged: Contexts of each score, half of them right. A latent that is active in fewer windows of held-out text
            is not interpreted.
        together: Contexts that are judged in one request.
        window: Tokens of a context that is shown or judged.
        per_minute: Requests a minute, at most; by default as many as the endpoint takes.
        concurrency: Requests under way at once.
        timeout: Seconds to wait for an answer, to its last byte.
        retries: Times that a request is repeated which failed for a while (429, 5xx, no answer), ever later.
        price: Money for a million tokens in, and out.
        budget: Money to spend, at most; needs a price. More than that is refused before, and stops a run.
        parameters: Parameters of the requests as JSON, beside temperature 0 and max_tokens; null leaves one out.
        answers: File that keeps every answer: an interrupted run goes on from it.
        estimate: Only say what it would cost, and send nothing.
    """

    endpoint: str
    explainer: str
    scorer: str | None = None
    shown: int = 5
    judged: int = 20
    together: int = 5
    window: int = 32
    per_minute: float | None = None
    concurrency: int = 4
    timeout: float = 60.0
    retries: int = 5
    price: tuple[float, float] | None = None
    budget: float | None = None
    parameters: str = "{}"
    answers: Path = Path("out/answers.sqlite")
    estimate: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            DictlabError: An option makes no sense; it is named.
        """
        check_at_least(1, shown=self.shown, together=self.together, concurrency=self.concurrency)
        check_at_least(0, retries=self.retries, budget=self.budget)
        check_at_least(2, judged=self.judged, window=self.window)
        if self.judged % 2:
            raise DictlabError(f"judged is {self.judged}; expected an even number, half of them right.")
        for name, value in (("timeout", self.timeout), ("per_minute", self.per_minute)):
            if value is not None and not value > 0:
                raise DictlabError(f"{name} is {value}; expected more than 0.")
        if self.price is not None and not min(self.price) >= 0:
            raise DictlabError(f"price is {self.price}; expected 0 or more for a million tokens in, and out.")
        if self.budget is not None and self.price is None:
            raise DictlabError("a budget needs prices: give `price=...` (in, out), in money for a million tokens.")
        _check_address(self.endpoint)
        _ = self.extra

    @property
    def host(self) -> str:
        """Where requests go."""
        return urlsplit(self.endpoint).hostname or ""

    @property
    def is_local(self) -> bool:
        """Whether requests stay on this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def scores_with(self) -> str:
        """The model that scores."""
        return self.scorer or self.explainer

    @cached_property
    def extra(self) -> Mapping[str, Any]:
        """What `parameters` say.

        Raises:
            DictlabError: They are no JSON object, or say what is not theirs to say.
        """
        try:
            parameters = json.loads(self.parameters)
        except (ValueError, RecursionError):
            parameters = None
        if not isinstance(parameters, dict):
            raise DictlabError(
                f"parameters {self.parameters!r}: expected a JSON object such as "
                '\'{"max_tokens": null, "max_completion_tokens": 2000}\'.'
            )
        taken = sorted(set(parameters) & set(RESERVED))
        if taken:
            raise DictlabError(f"parameters: {', '.join(taken)} cannot be set there.")
        return parameters

    @property
    def answer_tokens(self) -> int | None:
        """Tokens that an answer may have by the user's own parameters; None where they do not say."""
        return next((n for name in LENGTHS if isinstance(n := self.extra.get(name), int)), None)

    def key(self) -> str | None:
        """The key, out of the environment; None where there is none.

        Raises:
            DictlabError: It cannot be one. The message does not repeat it.
        """
        names = (KEY, OPENAI_KEY) if self.host == OPENAI else (KEY,)
        for name in names:
            if value := os.environ.get(name, "").strip():
                if not value.isascii() or not value.isprintable() or " " in value:
                    raise DictlabError(f"{name} is set to what is no key: it holds spaces, line ends or odd letters.")
                return value
        return None

    def exposed(self) -> str | None:
        """A warning where the key travels in the clear."""
        if self.is_local or urlsplit(self.endpoint).scheme != "http" or self.key() is None:
            return None
        return f"The key goes to {self.host} over http, where others on the way can read it; https hides it."

    def settings(self) -> dict[str, Any]:
        """What a report says of it. There is no key in it."""
        settings = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "estimate"}
        return settings | {"scorer": self.scores_with, "parameters": dict(self.extra), "answers": str(self.answers)}


def _check_address(address: str) -> None:
    """Refuse what is no address, and what may hold a secret: reports name the address."""
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError as error:
        raise DictlabError(f"endpoint {address!r}: {error}; expected such as http://127.0.0.1:8080/v1.") from error
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise DictlabError(
            "the endpoint's address holds a name, a password or a query, which reports would show. Give the address "
            f"alone, such as http://127.0.0.1:8080/v1, and the key in the environment variable {KEY}."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DictlabError(f"endpoint {address!r} is no web address; expected such as http://127.0.0.1:8080/v1.")
