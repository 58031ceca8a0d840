"""How much may a server that is not trusted cost, and what may it give away?

time        a request is cut off when its time is over, however slowly the server sends; connections serve one
            request each, so that cutting one off harms no other
size        no more than MAX_REPLY bytes of a reply are read, and no compressed ones, whose size is not known
redirects   are not followed: prompts and key would go to wherever the server says
key         is struck out of all that a server says, in whatever encoding it says it
"""

from __future__ import annotations

import base64
import html
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import httpx2

MAX_REPLY = 5_000_000  # bytes
DEADLINE, REFUSED = "dictlab.deadline", "dictlab.refused"  # extensions of a request, and of a response
LEAST_ENCODED = 8  # characters of an encoded key that are enough to know it by


class Deadline:
    """Shuts a request's connection down when its time is over."""

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._socket: socket.socket | None = None
        self._lock, self._timer = threading.Lock(), threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """httpcore's `trace` extension: keeps the socket of the connection that was made."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            with self._lock:
                self._socket = info["return_value"].get_extra_info("socket")
            if self.expired:
                self._expire()

    def cancel(self) -> None:
        """The request is over."""
        self._timer.cancel()

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            if self._socket is not None:
                with suppress(OSError):  # closed already
                    self._socket.shutdown(socket.SHUT_RDWR)


class LimitedStream(httpx2.SyncByteStream):
    """The body of a response, cut off after MAX_REPLY bytes."""

    def __init__(self, response: httpx2.Response, deadline: Deadline) -> None:
        assert isinstance(response.stream, httpx2.SyncByteStream)
        self._response, self._stream, self._deadline = response, response.stream, deadline

    def __iter__(self) -> Iterator[bytes]:
        """The body, piece by piece."""
        if self._response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            self._response.extensions[REFUSED] = "its reply is compressed, though it was asked not to"
            return
        size = 0
        try:
            for chunk in self._stream:
                size += len(chunk)
                if size > MAX_REPLY:
                    self._response.extensions[REFUSED] = f"its reply is longer than {MAX_REPLY // 10**6} MB"
                    return
                yield chunk
        except httpx2.TransportError:
            if not self._deadline.expired:
                raise
        if self._deadline.expired:
            raise httpx2.ReadTimeout("the time of the request is over")

    def close(self) -> None:
        """Give the connection up."""
        self._deadline.cancel()
        self._stream.close()


def limited_client(openai: Any, seconds: float, before: Callable[[], None], *, trust_env: bool) -> Any:
    """The HTTP client of the `openai` package with all of these limits.

    Args:
        openai: The package.
        seconds: Of each request, from when it is sent to the last byte of its reply.
        before: Called before each request, repeated ones too.
        trust_env: Whether proxies of the environment are used.
    """

    def sending(request: httpx2.Request) -> None:
        before()
        request.extensions[DEADLINE] = deadline = Deadline(seconds)
        request.extensions["trace"] = deadline.trace

    def received(response: httpx2.Response) -> None:
        response.stream = LimitedStream(response, response.request.extensions[DEADLINE])

    return openai.DefaultHttpxClient(
        event_hooks={"request": [sending], "response": [received]},
        follow_redirects=False,
        headers={"accept-encoding": "identity", "connection": "close"},
        limits=httpx2.Limits(max_keepalive_connections=0),
        trust_env=trust_env,
    )


def expired(error: Any) -> bool:
    """Whether a request failed because its time was over."""
    request = getattr(error, "request", None)
    deadline = request.extensions.get(DEADLINE) if request is not None else None
    return deadline is not None and deadline.expired


def key_pattern(key: str) -> re.Pattern[str]:
    """Matches a key as it is, percent-encoded, as escapes of JSON or Python, as entities of HTML, in hex, in base64."""
    spelt = "".join(_spellings(character) for character in key)
    encoded = [f"(?i:{key.encode().hex()})", *(re.escape(core) for core in _base64_cores(key.encode()))]
    return re.compile("|".join([spelt, *(one for one in encoded if len(one) >= LEAST_ENCODED)]))


def _spellings(character: str) -> str:
    number = ord(character)
    ways = [
        re.escape(character), f"(?i:%{number:02x})", rf"(?i:\\+u00{number:02x})", rf"(?i:\\+x{number:02x})",
        rf"\\+{re.escape(character)}", f"&#0*{number};?", f"(?i:&#x0*{number:x};?)", re.escape(html.escape(character)),
    ]  # fmt: skip
    return f"(?:{'|'.join(dict.fromkeys(ways))})"


def _base64_cores(key: bytes) -> set[str]:
    """What base64 makes of a key wherever it begins among the bytes, without the signs that its neighbours share."""
    cores = set()
    for before in range(3):
        text = base64.b64encode(bytes(before) + key).decode().rstrip("=")
        first, last = -(-before * 8 // 6), (before + len(key)) * 8 // 6
        cores |= {text[first:last], text[first:last].translate(str.maketrans("+/", "-_"))}
    return cores
