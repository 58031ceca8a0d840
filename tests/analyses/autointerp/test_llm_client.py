"""A language model behind an endpoint, on the loopback interface: what is sent and kept, and what is said of failures."""

import json
import socket
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from analyses.autointerp.answer_cache import ApiCost, Request, cost_of
from analyses.autointerp.llm_client import Endpoint, RateLimit
from analyses.autointerp.questions import Question, ask_all, outstanding
from analyses.autointerp.settings import Interpreter
from dictlab.errors import DictlabError
from tests.loopback import Reply, completion, error, serving

KEY = "sk-a-secret-0123456789"
SOON = {"retry-after-ms": "1"}


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("DICTLAB_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def opened(tmp_path):
    """Makes endpoints that are closed in the end."""
    made = []

    def make(server, **options):
        address = server if isinstance(server, str) else server.address
        given = {"timeout": 20.0, "retries": 2, "answers": tmp_path / "answers.sqlite", **options}
        made.append(Endpoint(Interpreter(address, "model", **given)))
        return made[-1]

    yield make
    for endpoint in made:
        endpoint.close()


def say(text="Hello?", model="model", tokens=10):
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": text})
    return Request(model, messages, tokens)


def echo(messages):
    return messages[-1]["content"].upper()


def test_a_request_is_a_chat_completion(opened):
    with serving(echo) as server:
        answer = opened(server, parameters='{"seed": 3, "max_tokens": null}').ask(say())
    assert answer.text == "HELLO?" and answer.counted
    assert server.requests == [
        {
            "model": "model",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}],
            "temperature": 0,
            "seed": 3,
        }
    ]


def test_what_fails_for_a_while_is_repeated(opened):
    passing = [error(429, "slow down", **SOON), error(500, "oops", **SOON), error(503, "busy", **SOON)]
    with serving(echo, passing) as server:
        assert opened(server, retries=3).ask(say()).text == "HELLO?"
        assert len(server.requests) == 4


def test_the_server_says_when_to_come_again(opened):
    with serving(echo, [error(429, "slow down", **{"retry-after": "1"})]) as server:
        assert opened(server).ask(say()).text == "HELLO?"
    assert server.times[1] - server.times[0] >= 0.9


@pytest.mark.parametrize(
    ("replies", "said"),
    [
        ([error(401, "no such key")], "it wants a key, and none is set.*DICTLAB_API_KEY"),
        ([error(403, "not you")], "it wants a key, and none is set.*403: not you"),
        ([error(404, "no such model")], r"has no model 'model'.*no such model.*/v1/models"),
        ([error(400, "max_tokens is not supported")], "max_tokens is not supported.*parameters="),
        ([error(429, "quota", **SOON)] * 3, "429: quota.*in 3 tries.*per_minute="),
        ([error(500, "oops", **SOON)] * 3, "server failed.*500: oops.*in 3 tries.*goes on from there"),
        ([Reply(502, b"<html>Bad <b>gateway</b></html>", SOON)] * 3, "502: .*Bad"),
        ([Reply(200, b"<html>Welcome</html>", {"content-type": "text/html"})], "no chat completion.*Welcome"),
        ([Reply(200, b'{"choices": [', {"content-type": "application/json"})], "no chat completion"),
        ([Reply(200, b'{"choices": []}', {"content-type": "application/json"})], "no chat completion"),
        ([Reply(200, b"[]", {"content-type": "application/json"})], "no chat completion"),
        ([Reply(200, b'{"error": {"message": "no"}}', {"content-type": "application/json"})], "no chat completion"),
        ([Reply(200, b'{"choices": [{"message": {"content": 7}}]}')], "no chat completion"),
        ([Reply(200, b"")], "no chat completion"),
    ],
)
def test_every_failure_has_one_clear_message(opened, replies, said):
    with serving(echo, list(replies)) as server, pytest.raises(DictlabError, match=said) as caught:
        opened(server).ask(say())
    assert len(server.requests) == len(replies) and "\n" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_an_answer_that_takes_too_long_is_not_waited_for(opened):
    slow = completion("late")
    slow.wait = 30.0
    with serving(echo, [slow]) as server, pytest.raises(DictlabError, match=r"no answer within 0\.3 s, in 1 try"):
        opened(server, timeout=0.3, retries=0).ask(say())


def test_a_slow_answer_is_asked_for_again(opened, monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    slow = completion("late")
    slow.wait = 30.0
    with serving(echo, [slow]) as server:
        assert opened(server, timeout=2.0).ask(say()).text == "HELLO?"


def test_an_endpoint_that_is_down_is_named(opened):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(
        DictlabError, match=r"cannot be reached, in 1 try \(.*refused\). Is the server running"
    ) as caught:
        opened(address, retries=0).ask(say())
    assert address in str(caught.value)


def test_a_key_comes_from_the_environment_and_stays_there(opened, monkeypatch, tmp_path):
    monkeypatch.setenv("DICTLAB_API_KEY", f" {KEY}\n")
    with serving(lambda messages: f"your key is {KEY}") as server:
        endpoint = opened(server)
        assert endpoint.ask(say()).text == "your key is [key]"
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
        server.before = [error(401, "x" * 190 + f"{KEY} is wrong"), Reply(200, f"{KEY}".encode())]
        for words in ("the key that it was given is refused", "no chat completion"):
            with pytest.raises(DictlabError, match=words) as caught:
                endpoint.ask(say("again"))
            assert "sk-a" not in str(caught.value)
    assert KEY not in json.dumps(endpoint.interpreter.settings()) + repr(endpoint.interpreter)
    assert KEY.encode() not in (tmp_path / "answers.sqlite").read_bytes()


def test_the_key_of_openai_goes_to_openai_only(opened, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    with serving(echo) as server:
        opened(server).ask(say())
    assert KEY not in json.dumps(server.headers) and "org-mine" not in json.dumps(server.headers)
    assert Interpreter("https://api.openai.com/v1", "m").key() == KEY
    assert Interpreter("https://api.openai.com.example.org/v1", "m").key() is None
    monkeypatch.setenv("DICTLAB_API_KEY", "another")
    assert Interpreter("https://api.openai.com/v1", "m").key() == "another"


def test_what_cannot_be_a_key_is_refused_without_showing_it(monkeypatch):
    monkeypatch.setenv("DICTLAB_API_KEY", "sk-se cret")
    with pytest.raises(DictlabError, match="DICTLAB_API_KEY is set to what is no key") as caught:
        Interpreter("http://127.0.0.1/v1", "m").key()
    assert "cret" not in str(caught.value)


def test_a_key_that_travels_in_the_clear_is_warned_of(monkeypatch):
    assert Interpreter("http://somewhere.example/v1", "m").exposed() is None
    monkeypatch.setenv("DICTLAB_API_KEY", KEY)
    warning = Interpreter("http://somewhere.example/v1", "m").exposed()
    assert "somewhere.example over http" in warning and KEY not in warning
    for address in (
        "https://somewhere.example/v1",
        "http://127.0.0.1:8080/v1",
        "http://localhost/v1",
        "http://[::1]/v1",
    ):
        assert Interpreter(address, "m").exposed() is None


def test_no_proxy_stands_between_this_machine_and_itself(opened, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(echo) as server:
        assert opened(server).ask(say()).text == "HELLO?"


def test_answers_are_kept_by_all_that_was_sent(opened, tmp_path):
    with serving(echo) as server:
        first = opened(server).ask(say())
        assert opened(server).ask(say()) == first and len(server.requests) == 1
        for other in (say("Bye."), say(model="other"), say(tokens=11)):
            opened(server).ask(other)
        opened(server, parameters='{"seed": 1}').ask(say())
        assert len(server.requests) == 5
        assert opened(server).known(say()) == first and opened(server).known(say("new")) is None
    with closing(sqlite3.connect(tmp_path / "answers.sqlite")) as file:
        assert file.execute("SELECT count(*) FROM answers").fetchone() == (5,)


def test_several_threads_keep_their_answers(opened):
    with serving(echo) as server:
        endpoint = opened(server)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda i: endpoint.ask(say(f"number {i}")).text, range(60)))
        assert answers == [f"NUMBER {i}" for i in range(60)]
        assert endpoint.sent.requests == 60 == len(server.requests)


def test_what_is_no_file_of_answers_is_refused(opened, tmp_path):
    (tmp_path / "notes.txt").write_text("These are notes, and no answers at all. " * 50)
    with pytest.raises(DictlabError, match=r"notes\.txt: cannot be used"):
        opened("http://127.0.0.1:1/v1", answers=tmp_path / "notes.txt")
    with closing(sqlite3.connect(tmp_path / "other.sqlite")) as file:
        file.execute("CREATE TABLE answers (question TEXT)")
    with pytest.raises(DictlabError, match=r"other\.sqlite: cannot be used"):
        opened("http://127.0.0.1:1/v1", answers=tmp_path / "other.sqlite")
    with pytest.raises(DictlabError, match="cannot be used"):
        opened("http://127.0.0.1:1/v1", answers=tmp_path / "notes.txt" / "answers.sqlite")


def test_tokens_are_counted_by_the_server_or_reckoned(opened):
    with serving(echo) as server:
        counting = opened(server)
        counting.ask(say())
        assert counting.sent == ApiCost(1, cost_of(say()).tokens_in, 2) and not counting.n_uncounted
        server.usage = False
        silent = opened(server)
        silent.ask(say("Hello you"))
        assert silent.sent == ApiCost(1, cost_of(say("Hello you")).tokens_in, 3) and silent.n_uncounted == 1


def test_spending_stops_at_the_budget(opened):
    one = cost_of(say("number 0"))
    price = (1e6, 0.0)  # one for each token in
    with serving(echo) as server:
        endpoint = opened(server, price=price, budget=3.5 * one.tokens_in)
        for i in range(3):
            endpoint.ask(say(f"number {i}"))
        with pytest.raises(DictlabError, match=r"the budget of .* is used up"):
            endpoint.ask(say("number 3"))
        assert len(server.requests) == 3 and endpoint.ask(say("number 1")).text == "NUMBER 1"


def test_requests_begin_evenly_within_the_rate():
    now = [0.0]
    began = []
    rate = RateLimit(120, clock=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    for _ in range(5):
        rate.wait()
        began.append(now[0])
    assert began == pytest.approx([0, 0.5, 1, 1.5, 2])
    now[0] = 100.0  # a pause earns nothing
    rate.wait()
    rate.wait()
    assert now[0] == pytest.approx(100.5)


def test_repeated_requests_keep_the_rate_too(opened, monkeypatch):
    waits = []
    monkeypatch.setattr(RateLimit, "wait", lambda self: waits.append(self))
    with serving(echo, [error(500, "oops", **SOON)] * 2) as server:
        opened(server, per_minute=600).ask(say())
    assert len(waits) == len(server.requests) == 3


def test_longer_answers_that_the_user_allows_are_reckoned_with(opened):
    for parameters in ('{"max_tokens": 4000}', '{"max_tokens": null, "max_completion_tokens": 4000}'):
        assert opened("http://127.0.0.1:1/v1", parameters=parameters).cost(say()).tokens_out == 4000
    assert opened("http://127.0.0.1:1/v1", parameters='{"max_tokens": null}').cost(say()).tokens_out == 10


def question(text, read=lambda text: text or None):
    return Question("model", "Answer.", text, "In capitals.", 10, read)


def test_questions_are_answered_in_their_order(opened):
    with serving(echo) as server:
        found = ask_all([question(f"number {i}") for i in range(20)], opened(server), "numbers")
    assert [one.value for one in found] == [f"NUMBER {i}" for i in range(20)]


def test_the_first_failure_ends_the_run_and_nothing_more_is_sent(opened):
    with serving(echo, [None] * 5 + [error(400, "stop here")] * 195) as server:
        with pytest.raises(DictlabError, match="stop here"):
            ask_all([question(f"number {i}") for i in range(200)], opened(server, concurrency=4), "numbers")
        assert len(server.requests) <= 5 + 4  # each of the four may find it out by itself


def test_an_interruption_says_how_to_go_on(opened, capsys):
    def interrupt(text):
        raise KeyboardInterrupt

    with serving(echo) as server, pytest.raises(KeyboardInterrupt):
        ask_all([question("number", interrupt)], opened(server), "numbers")
    assert "the same command goes on from there" in capsys.readouterr().err


def test_what_is_outstanding_follows_the_answers_that_are_there(opened):
    one = question("number", lambda text: text if text == "IN CAPITALS." else None)
    with serving(lambda messages: echo(messages).removeprefix("THIS CANNOT BE READ. ")) as server:
        endpoint = opened(server)
        assert outstanding(one, endpoint) == cost_of(one.request())
        endpoint.ask(one.request())
        assert outstanding(one, endpoint).requests == 1
        assert outstanding(one, endpoint).tokens_in > cost_of(one.request()).tokens_in
        assert ask_all([one] * 5, endpoint, "numbers")[0].attempts == 2
        assert outstanding(one, endpoint) == ApiCost()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"endpoint": "127.0.0.1:80"}, "no web address"),
        ({"endpoint": "ftp://host/v1"}, "no web address"),
        ({"endpoint": "http://host:99999/v1"}, "endpoint"),
        ({"endpoint": "http://me:secret@host/v1"}, "holds a name"),
        ({"endpoint": "http://host/v1?key=secret"}, "holds a name"),
        ({"shown": 0}, "shown is 0"),
        ({"judged": 7}, "judged is 7"),
        ({"judged": 0}, "judged is 0"),
        ({"together": 0}, "together"),
        ({"window": 1}, "window"),
        ({"concurrency": 0}, "concurrency"),
        ({"retries": -1}, "retries"),
        ({"timeout": 0}, "timeout"),
        ({"per_minute": 0}, "per_minute"),
        ({"price": (-1.0, 2.0)}, "price"),
        ({"budget": 3.0}, "`price="),
        ({"price": (1.0, 2.0), "budget": -3.0}, "budget"),
        ({"parameters": "seed=1"}, "JSON object"),
        ({"parameters": "[1]"}, "JSON object"),
        ({"parameters": '{"stream": true}'}, "stream cannot be set"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(DictlabError, match=said) as caught:
        Interpreter(**{"endpoint": "http://127.0.0.1:8080/v1", "explainer": "m", **options})
    assert "secret" not in str(caught.value)


def test_without_the_package_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(DictlabError, match=r"pip install 'dictlab\[endpoint\]'"):
        Endpoint(Interpreter("http://127.0.0.1:8080/v1", "m", answers=Path(tmp_path) / "a.sqlite"))
