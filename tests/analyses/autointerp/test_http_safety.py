"""A server that is not trusted: redirects, endless and slow replies, absurd answers, and a key in every encoding."""

import base64
import gzip
import html
import json
import socket
import threading
import time
import urllib.parse
from contextlib import contextmanager, suppress

import pytest

from analyses.autointerp import http_safety
from analyses.autointerp.answer_cache import Request
from analyses.autointerp.http_safety import key_pattern
from analyses.autointerp.llm_client import Endpoint
from analyses.autointerp.prompts import read_judgements
from analyses.autointerp.settings import Interpreter
from dictlab.errors import DictlabError
from tests.loopback import Reply, completion, serving

KEY = "sk-a/secret+0123456789"
ASKED = Request("model", ({"role": "user", "content": "Hello?"},), 10)
JSON = {"content-type": "application/json"}


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("DICTLAB_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ask(tmp_path):
    """Asks a server once."""

    def asked(address, **options):
        given = {"timeout": 20.0, "retries": 0, "answers": tmp_path / "answers.sqlite", **options}
        endpoint = Endpoint(Interpreter(address, "model", **given))
        try:
            return endpoint.ask(ASKED)
        finally:
            endpoint.close()

    return asked


@contextmanager
def raw_server(answer):
    """A server of which `answer(connection)` says everything, after the request's headers have come."""
    listening = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve():
        while not over.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                with suppress(OSError):  # whoever asked has gone
                    answer(connection, over)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        over.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(5)


def said(content, **more):
    return Reply(body=json.dumps({"choices": [{"message": {"content": content}}], **more}).encode(), headers=JSON)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(ask, monkeypatch, status):
    monkeypatch.setenv("DICTLAB_API_KEY", KEY)
    with serving(lambda messages: "believed") as elsewhere:
        target = f"{elsewhere.address}/chat/completions?key={KEY}"
        with serving(lambda messages: "", [Reply(status, b"", {"location": target})]) as server:
            with pytest.raises(DictlabError, match=rf"is a redirect \({status}\) to .*not followed") as caught:
                ask(server.address)
            assert len(server.requests) == 1
        assert not elsewhere.requests
    assert elsewhere.address in str(caught.value) and KEY not in str(caught.value)


def test_replies_are_read_up_to_a_bound(ask, monkeypatch, tmp_path):
    monkeypatch.setattr(http_safety, "MAX_REPLY", 2_000_000)
    with serving(lambda messages: "", [said("x" * 1_000_000)]) as server:
        assert len(ask(server.address).text) == 1_000_000
    with serving(lambda messages: "", [said("x" * 3_000_000)] * 9) as server:
        with pytest.raises(DictlabError, match="its reply is longer than 2 MB"):
            ask(server.address, answers=tmp_path / "more.sqlite", retries=3)
        assert len(server.requests) == 1, "asked for again"


def test_a_reply_without_end_is_given_up_after_the_bound(ask, monkeypatch):
    monkeypatch.setattr(http_safety, "MAX_REPLY", 300_000)
    sent = []

    def endless(connection, over):
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
        while not over.is_set():
            sent.append(connection.send(b" " * 10_000))

    with raw_server(endless) as address, pytest.raises(DictlabError, match="longer than"):
        ask(address)
    assert sum(sent) < 20_000_000  # what lies in the buffers of both sides


def test_compressed_replies_are_not_unpacked(ask):
    bomb = gzip.compress(b" " * 50_000_000)
    with serving(lambda messages: "", [Reply(body=bomb, headers=JSON | {"content-encoding": "gzip"})]) as server:
        with pytest.raises(DictlabError, match="its reply is compressed"):
            ask(server.address)
        assert server.headers[0]["accept-encoding"] == "identity"


@pytest.mark.parametrize("part", ["headers", "body", "body of known length"])
def test_a_server_that_dribbles_is_cut_off(ask, part):
    def dribble(connection, over):
        if part != "headers":
            length = b"content-length: 9999\r\n" if "length" in part else b""
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n" + length + b"\r\n")
        else:
            connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
        while not over.wait(0.05):
            connection.send(b"x")

    began = time.monotonic()
    with raw_server(dribble) as address, pytest.raises(DictlabError, match=r"no answer within 0\.5 s, in 1 try"):
        ask(address, timeout=0.5)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(body=b"[" * 100_000, headers=JSON), "no chat completion"),
        (Reply(body=b'{"choices":' * 50_000, headers=JSON), "no chat completion"),
        (Reply(body=b'{"choices": ' + b"9" * 10_000 + b"}", headers=JSON), "no chat completion"),
        (said("a", usage={"prompt_tokens": -5, "completion_tokens": 1}), "took -5 tokens"),
        (said("a", usage={"prompt_tokens": 1, "completion_tokens": 10**40}), "took 1000.* tokens"),
        (said("a", usage={"prompt_tokens": True, "completion_tokens": 1}), "took True tokens"),
        (said("a", usage={"prompt_tokens": 1.5, "completion_tokens": 1}), "took 1.5 tokens"),
        (said("a", usage={"prompt_tokens": float("inf"), "completion_tokens": 1}), "took inf tokens"),
        (said("a", usage={"prompt_tokens": {"a": [1]}, "completion_tokens": 1}), "took .* tokens"),
    ],
)
def test_nesting_and_absurd_numbers_are_an_error_of_that_answer(ask, reply, message):
    with serving(lambda messages: "", [reply]) as server, pytest.raises(DictlabError, match=message) as caught:
        ask(server.address, price=(1.0, 1.0), budget=100.0)
    assert len(str(caught.value)) < 800 and "\n" not in str(caught.value)


@pytest.mark.parametrize("usage", [None, {}, "many", {"prompt_tokens": None, "completion_tokens": 3}])
def test_usage_that_is_not_there_is_estimated(ask, usage):
    with serving(lambda messages: "", [said("abc", usage=usage)]) as server:
        answer = ask(server.address)
    assert not answer.counted and answer.tokens_out == 1


def test_an_answer_of_spaces_is_read_in_no_time():
    began = time.monotonic()
    assert read_judgements("[1" + " " * 1_000_000, 1) is None and read_judgements("[ " * 500_000, 1) is None
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "address", ["http://somewhere.example/v1", "HTTP://somewhere.example/v1", "Http://some.example"]
)
def test_a_key_in_the_clear_is_warned_of_however_the_address_is_spelt(monkeypatch, address):
    monkeypatch.setenv("DICTLAB_API_KEY", KEY)
    assert "over http" in Interpreter(address, "m").exposed()


ENCODINGS = {
    "plain": lambda k: k,
    "percent": lambda k: urllib.parse.quote(k, safe=""),
    "every character percent": lambda k: "".join(f"%{ord(c):02x}" for c in k),
    "JSON": lambda k: json.dumps(k).strip('"').replace("/", "\\/"),
    "JSON escapes": lambda k: "".join(f"\\u{ord(c):04X}" for c in k),
    "escaped twice": lambda k: "".join(f"\\\\u{ord(c):04x}" for c in k),
    "Python escapes": lambda k: "".join(f"\\x{ord(c):02x}" for c in k),
    "HTML": html.escape,
    "entities": lambda k: "".join(f"&#{ord(c)};" for c in k),
    "hex entities": lambda k: "".join(f"&#x{ord(c):X};" for c in k),
    "hex": lambda k: k.encode().hex(),
    "HEX": lambda k: k.encode().hex().upper(),
    **{
        f"base64 after {n}": lambda k, n=n: base64.b64encode(b"user:"[:n] + k.encode() + b"!").decode()
        for n in range(5)
    },
    **{
        f"url base64 after {n}": lambda k, n=n: base64.urlsafe_b64encode(b"?????"[:n] + k.encode()).decode()
        for n in range(5)
    },
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("key", [KEY, "sk-proj-AbC_d-e&f<g>'h\"i~j.k?l"])
def test_the_key_is_struck_out_in_every_encoding(encoding, key):
    encoded = ENCODINGS[encoding](key)
    left = key_pattern(key).sub("[key]", f"before {encoded} after")
    assert left.startswith("before ") and left.endswith(" after") and "[key]" in left
    assert len(left) <= len("before [key] after") + (12 if "base64" in encoding else 0)  # signs shared with neighbours


def test_what_is_no_key_stays():
    text = "The key of C minor, 100 % and &#65; or \\u0041."
    assert key_pattern(KEY).sub("[key]", text) == text


@pytest.mark.parametrize("encoding", ["plain", "percent", "hex", "base64 after 1", "JSON escapes"])
def test_no_encoding_of_the_key_is_kept_or_said(ask, monkeypatch, tmp_path, encoding):
    monkeypatch.setenv("DICTLAB_API_KEY", KEY)
    told = ENCODINGS[encoding](KEY)
    with serving(lambda messages: f"Your key: {told}") as server:
        assert "[key]" in ask(server.address).text
    assert KEY[3:].encode() not in (tmp_path / "answers.sqlite").read_bytes()
    refusing = serving(lambda messages: "", [Reply(400, told.encode())])
    with refusing as server, pytest.raises(DictlabError, match=r"\[key\]"):
        ask(server.address, answers=tmp_path / "more.sqlite")


def test_a_plain_answer_still_comes_through(ask):
    with serving(lambda messages: "", [completion("é 中 fine")]) as server:
        assert ask(server.address).text == "é 中 fine"
