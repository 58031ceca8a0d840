"""Requests to a language model, what they cost, and its answers, kept in one file.

An interrupted run goes on from that file, and a second one asks nothing. An answer is found by a hash of all that was
sent for it: the endpoint's address, the model, the messages, the parameters. No key is part of that, so none gets into
the file. Each answer is a transaction of SQLite: after a crash it is there or not, never half.

Which tokenizer an endpoint has is not known. Tokens are estimated from bytes, rather too many, and answers are taken to
be as long as they may be.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dictlab.errors import DictlabError

BYTES_A_TOKEN = 3  # of UTF-8; English has 4 and more, code and other scripts about 3
MESSAGE_TOKENS = 4  # that a chat template puts around each message
MILLION = 10**6
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS answers "
    "(hash TEXT PRIMARY KEY, request TEXT, text TEXT, tokens_in INTEGER, tokens_out INTEGER, counted INTEGER)"
)


class Request(NamedTuple):
    """What is sent.

    Attributes:
        model: Who is asked.
        messages: The conversation so far, as OpenAI's chat completions have it: `role` and `content` of each message.
        max_tokens: Tokens of the answer, at most.
    """

    model: str
    messages: tuple[Mapping[str, str], ...]
    max_tokens: int


class Answer(NamedTuple):
    """What came back for one request.

    Attributes:
        text: The answer.
        tokens_in: Tokens of the request.
        tokens_out: Tokens of the answer.
        counted: Whether the endpoint counted these tokens; else they are estimated from bytes.
    """

    text: str
    tokens_in: int
    tokens_out: int
    counted: bool


@dataclass(frozen=True)
class ApiCost:
    """Requests and their tokens, expected or sent."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def __add__(self, other: ApiCost) -> ApiCost:
        """The sum of both."""
        return ApiCost(
            self.requests + other.requests, self.tokens_in + other.tokens_in, self.tokens_out + other.tokens_out
        )

    def money(self, price: tuple[float, float] | None) -> float | None:
        """At a price for a million tokens in, and out."""
        return None if price is None else (self.tokens_in * price[0] + self.tokens_out * price[1]) / MILLION


def estimated_tokens(text: str) -> int:
    """Tokens of a text, from its bytes; rather too many."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_A_TOKEN)


def cost_of(request: Request) -> ApiCost:
    """One request with the longest answer that is asked for."""
    tokens_in = sum(estimated_tokens(message["content"]) + MESSAGE_TOKENS for message in request.messages)
    return ApiCost(1, tokens_in, request.max_tokens)


class AnswerCache:
    """A file of answers, which several threads may use.

    Args:
        path: Made, with its folder, if it does not exist.

    Raises:
        DictlabError: It cannot be made, or is something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self._lock = Path(path), threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, timeout=60)
            self._file.execute(SCHEMA)
            self._file.execute("SELECT hash, request, text, tokens_in, tokens_out, counted FROM answers LIMIT 1")
        except (sqlite3.Error, OSError) as error:
            raise DictlabError(
                f"answers {self.path}: cannot be used ({error}); expected a file of answers, or none yet. "
                "Give another with `answers=...`, or delete it."
            ) from error

    def get(self, request: Mapping[str, Any]) -> Answer | None:
        """The answer to a request, if there is one."""
        try:
            with self._lock:
                row = self._file.execute(
                    "SELECT text, tokens_in, tokens_out, counted FROM answers WHERE hash = ?", (_hash(request),)
                ).fetchone()
        except sqlite3.Error as error:
            raise DictlabError(f"answers {self.path}: cannot be read ({error}). Delete it, and ask again.") from error
        return None if row is None else Answer(row[0], row[1], row[2], bool(row[3]))

    def put(self, request: Mapping[str, Any], answer: Answer) -> None:
        """Keep an answer."""
        row = (_hash(request), _written(request), answer.text, answer.tokens_in, answer.tokens_out, answer.counted)
        try:
            with self._lock:
                self._file.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise DictlabError(
                f"answers {self.path}: cannot be written ({error}). Free space, or give another file with "
                f"`answers=...`."
            ) from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()


def _written(request: Mapping[str, Any]) -> str:
    return json.dumps(request, sort_keys=True)


def _hash(request: Mapping[str, Any]) -> str:
    return hashlib.sha256(_written(request).encode()).hexdigest()
