"""A language model that is a few lines of Python: a server on the loopback interface that speaks as OpenAI's do."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Speaker = Callable[[list[dict[str, str]]], str]
EXPLAIN, DETECT, FUZZ = "explain", "detection", "fuzzing"


@dataclass
class Reply:
    """What goes over the wire."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0


@dataclass
class Server:
    """A server, and what it was asked.

    Attributes:
        speak: From messages to an answer.
        before: Replies that come first, one a request, in place of an answer; None for an answer after all.
        requests: Every request body.
        headers: Every request's headers.
    """

    speak: Speaker
    before: list[Reply | None] = field(default_factory=list)
    usage: bool = True
    address: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        with self.lock:
            self.requests.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            planned = self.before.pop(0) if self.before else None
        return planned or completion(self.speak(body["messages"]), body["messages"] if self.usage else None)


def completion(text: str, messages: list[dict[str, str]] | None = None) -> Reply:
    """A chat completion; the server counts tokens as the estimate does, a third of the bytes."""
    content: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    if messages is not None:
        tokens = sum(4 + third(message["content"]) for message in messages)
        content["usage"] = {"prompt_tokens": tokens, "completion_tokens": third(text)}
    return Reply(body=json.dumps(content).encode(), headers={"content-type": "application/json"})


def error(status: int, message: str, **headers: str) -> Reply:
    body = json.dumps({"error": {"message": message}}).encode()
    return Reply(status, body, {"content-type": "application/json", **headers})


def third(text: str) -> int:
    return -(-len(text.encode()) // 3)


@contextmanager
def serving(speak: Speaker, before: list[Reply | None] | None = None, usage: bool = True) -> Iterator[Server]:
    """The server, while it runs."""
    server = Server(speak, before or [], usage)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            reply = server.reply(body, {name.lower(): value for name, value in self.headers.items()})
            time.sleep(reply.wait)
            try:
                self.send_response(reply.status)
                for name, value in {**reply.headers, "content-length": str(len(reply.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)
            except OSError:
                pass  # whoever asked did not wait

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.address = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def asked(messages: list[dict[str, str]]) -> str:
    """Which of the three tasks this is."""
    task = messages[0]["content"]
    if "marked" in task and "description" in task:
        return FUZZ
    return DETECT if "description" in task else EXPLAIN


def excerpts(messages: list[dict[str, str]]) -> list[str]:
    """The numbered contexts of a judgement, without the spaces that the tiny tokenizer puts between letters."""
    found = re.findall(r"^\d+\. (.*)$", messages[1]["content"], flags=re.MULTILINE)
    return [text.replace(" ", "") for text in found]


def oracle(messages: list[dict[str, str]]) -> str:
    """Knows of latents that are active at one character: says which, and looks for it."""
    given = messages[1]["content"]
    if asked(messages) == EXPLAIN:
        character = re.findall(r"« ?(\S)", given)[0]
        return f"The character {character}."
    character = re.findall(r"Description: The character (.)\.", given)[0]
    if asked(messages) == DETECT:
        return json.dumps([int(character in text) for text in excerpts(messages)])
    return json.dumps([int(bool(re.search(f"«{re.escape(character)}+»", text))) for text in excerpts(messages)])
