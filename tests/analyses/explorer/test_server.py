"""The server: what it answers, against the model itself, and what it refuses."""

import http.client
import json
import threading

import pytest
import torch

from analyses.common.inputs import open_inputs
from analyses.explorer.explore import explore
from analyses.explorer.live_model import LiveModel
from analyses.explorer.server import MAX_BODY, ExplorerServer
from dictlab import Metadata, TopK
from tests.planted import SITE, random_dictionary, tiny_model

CONTEXT, TEXT = 16, "def f(x): return x"


@pytest.fixture(scope="module")
def live(text):
    about = Metadata(site=SITE, training={"context": CONTEXT})
    dictionaries = [
        random_dictionary(n, 16, activation=TopK(4), seed=n, name=f"d{n}", metadata=about) for n in (24, 40)
    ]
    return LiveModel(open_inputs(dictionaries, model=tiny_model(), text=text))


@pytest.fixture(scope="module")
def server(live, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "page"
    explore(live.inputs.dictionaries, model=live.model, text=text, tokens=16 * CONTEXT, umap=False, out=folder)
    (folder / "data" / "link.js").symlink_to("/etc/passwd")
    (folder / "private.pem").write_text("secret")
    with ExplorerServer(folder, live) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(server, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    given = {"Host": f"127.0.0.1:{server.server_port}"} | {name.replace("_", "-"): v for name, v in headers.items()}
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    if content is not None:
        given = {"Content-Type": "application/json", "Content-Length": str(len(content))} | given
    for name, value in given.items():
        connection.putheader(name, value)
    connection.endheaders(content)
    reply = connection.getresponse()
    return reply.status, reply.read(), dict(reply.getheaders())


def test_it_listens_on_the_loopback_interface_alone(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.address == f"http://127.0.0.1:{server.server_port}/{server.token}/index.html"
    assert len(server.token) >= 32


def test_the_page_and_its_data_are_served_with_a_strict_policy(server):
    for path in ("index.html", "", "explorer.js", "explorer.css", "data/meta.js", "latents.csv"):
        status, body, headers = ask(server, "GET", f"/{server.token}/{path}")
        assert status == 200 and body
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
    assert b"data-live" in ask(server, "GET", f"/{server.token}/")[1]
    assert ask(server, "HEAD", f"/{server.token}/index.html")[1] == b""


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/index.html",
        "/wrong/index.html",
        "/{token}",
        "/{token}x/index.html",
        "/{token}/../index.html",
        "/{token}/data/../../etc/passwd",
        "/{token}/data/%2e%2e/report.json",
        "/{token}//etc/passwd",
        "/{token}/data/link.js",
        "/{token}/private.pem",
        "/{token}/report.json",
        "/{token}/data",
    ],
)
def test_nothing_else_is_served(server, path):
    status, body, _ = ask(server, "GET", path.format(token=server.token))
    assert status == 404 and json.loads(body) == {"error": "not found."}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:{port}"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://127.0.0.1:{port}"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Origin": "http://127.0.0.1:{port}", "Sec_Fetch_Site": "same-origin"}, 200),
        ({"Host": "localhost:{port}"}, 200),
    ],
)
def test_requests_of_other_sites_are_refused(server, headers, status):
    given = {name: value.format(port=server.server_port) for name, value in headers.items()}
    found, body, _ = ask(server, "POST", f"/{server.token}/api/run", {"text": TEXT}, **given)
    assert found == status and (("error" in json.loads(body)) == (status != 200))


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("api/run", b"{", 400),
        ("api/run", b"[" * 100_000, 400),
        ("api/run", [], 400),
        ("api/run", {"text": 3}, 400),
        ("api/run", {"text": ""}, 400),
        ("api/other", {"text": TEXT}, 404),
        ("api/change", {"text": TEXT}, 400),
        ("api/change", {"text": TEXT, "dictionary": 2, "latent": 0, "scale": 0}, 400),
        ("api/change", {"text": TEXT, "dictionary": 0, "latent": -1, "scale": 0}, 400),
        ("api/change", {"text": TEXT, "dictionary": 0, "latent": 0}, 400),
        ("api/change", {"text": TEXT, "dictionary": 0, "latent": 0, "scale": 1e300}, 400),
        ("api/change", {"text": TEXT, "dictionary": 0, "latent": True, "scale": 1}, 400),
        ("api/change", {"text": TEXT, "dictionary": 0, "latent": 0, "scale": 1, "position": 99}, 400),
    ],
)
def test_bad_questions_are_refused(server, path, body, status):
    found, reply, _ = ask(server, "POST", f"/{server.token}/{path}", body)
    assert found == status and "error" in json.loads(reply)


def test_too_large_a_question_is_not_read(server):
    headers = {"Content_Length": str(MAX_BODY + 1)}
    assert ask(server, "POST", f"/{server.token}/api/run", b"", **headers)[0] == 413


def test_active_latents_and_predictions_are_the_models(server, live):
    answer = json.loads(ask(server, "POST", f"/{server.token}/api/run", {"text": TEXT})[1])
    tokens = torch.tensor([live.model.tokenizer(TEXT)["input_ids"]])
    x = live.model.capture(tokens, SITE)[SITE]
    clean = live.model.forward(tokens).logits[0].log_softmax(dim=-1)
    for dictionary, about in zip(live.dictionaries, answer["dictionaries"], strict=True):
        dense = dictionary.encode(x).dense()
        for t, latents in enumerate(about["latents"]):
            assert dict(latents) == pytest.approx({i: float(v) for i, v in enumerate(dense[t]) if v != 0}, rel=1e-4)
        spliced = live.model.splice(tokens, SITE, dictionary.reconstruct(x)).logits[0].log_softmax(dim=-1)
        kl = (clean.exp() * (clean - spliced)).sum(dim=-1)
        assert about["kl"] == pytest.approx(kl.tolist(), rel=1e-4, abs=1e-5)
    probabilities = [[p for _, p in row] for row in answer["clean"]["next"]]
    for row, expected in zip(probabilities, clean.exp().topk(8).values.tolist(), strict=True):
        assert row == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("position", [None, 5])
@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_scaling_a_latent_changes_its_contribution_alone(live, scale, position):
    tokens = torch.tensor([live.model.tokenizer(TEXT)["input_ids"]])
    x, dictionary = live.model.capture(tokens, SITE)[SITE], live.dictionaries[1]
    dense = dictionary.encode(x).dense()
    latent = int((dense != 0).sum(dim=0).argmax())
    step = (scale - 1) * dense[:, latent, None] * dictionary.W_dec[latent]
    if position is not None:
        step[[t for t in range(len(step)) if t != position]] = 0
    clean = live.model.forward(tokens).logits[0].log_softmax(dim=-1)
    altered = live.model.splice(tokens, SITE, x + step).logits[0].log_softmax(dim=-1)
    answer = live.change(TEXT, 1, latent, scale=scale, add=None, position=position)
    assert answer["kl"] == pytest.approx((clean.exp() * (clean - altered)).sum(dim=-1).tolist(), rel=1e-4, abs=1e-5)
    assert live.change(TEXT, 1, latent, scale=1.0, add=None, position=position)["kl"] == pytest.approx(
        [0] * len(step), abs=1e-6
    )


def test_adding_a_direction(live):
    tokens = torch.tensor([live.model.tokenizer(TEXT)["input_ids"]])
    x, dictionary = live.model.capture(tokens, SITE)[SITE], live.dictionaries[0]
    altered = live.model.splice(tokens, SITE, x + 4 * dictionary.W_dec[3]).logits[0].softmax(dim=-1)
    answer = live.change(TEXT, 0, 3, scale=None, add=4.0, position=None)
    for row, expected in zip(answer["next"], altered.topk(8).values.tolist(), strict=True):
        assert [p for _, p in row] == pytest.approx(expected, rel=1e-4)


def test_text_that_is_no_unicode_is_answered(server):
    status, body, _ = ask(server, "POST", f"/{server.token}/api/run", b'{"text": "a\\ud800</script>\\u202e"}')
    assert status == 200 and json.loads(body)["sequence"]["lengths"]
