"""What is asked of a language model, and what does it cost?

Which tokenizer an endpoint has is not known. Tokens are reckoned from bytes, rather too many, and answers are taken to
be as long as they may be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

BYTES_A_TOKEN = 3  # of UTF-8; English has 4 and more, code and other scripts about 3
MESSAGE_TOKENS = 4  # that a chat template puts around each message
MILLION = 10**6


class Message(NamedTuple):
    """What one side said."""

    role: str
    content: str


class Request(NamedTuple):
    """What is asked: the conversation so far, and how long an answer may be."""

    model: str
    messages: tuple[Message, ...]
    tokens: int


@dataclass(frozen=True)
class Cost:
    """What requests cost, before or after."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Both."""
        return Cost(
            self.requests + other.requests, self.tokens_in + other.tokens_in, self.tokens_out + other.tokens_out
        )

    def money(self, price: tuple[float, float] | None) -> float | None:
        """At a price for a million tokens in, and out."""
        return None if price is None else (self.tokens_in * price[0] + self.tokens_out * price[1]) / MILLION


def reckoned(text: str) -> int:
    """Tokens of a text, from its bytes: which tokenizer the endpoint has is not known. Rather too many."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_A_TOKEN)


def cost_of(request: Request) -> Cost:
    """One request with the longest answer that is asked for."""
    return Cost(1, sum(reckoned(m.content) + MESSAGE_TOKENS for m in request.messages), request.tokens)
