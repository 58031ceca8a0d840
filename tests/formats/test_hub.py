"""Names on the Hub, against a server on this machine that answers as the Hub does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from dictlab import DictlabError, load, save
from dictlab.formats import hub, loading
from dictlab.formats.hub import fetched
from dictlab.formats.native import native_file as native
from tests.planted import SITE, random_dictionary

MAIN, OLD = "a" * 40, "b" * 40
REVISIONS = {"main": MAIN, MAIN: MAIN, "v1": OLD, OLD: OLD, "refs/pr/3": OLD}
REPO = "owner/saes"
CHILD = """
import json, sys, types
package = types.ModuleType("dictlab")  # its modules without all that it imports, which takes seconds
package.__path__ = [sys.argv[1]]
sys.modules["dictlab"] = package
from dictlab.errors import DictlabError
from dictlab.formats.hub import fetched
for name in sys.argv[2:]:
    try:
        found = fetched(name)
        names = sorted(str(p.relative_to(found.path)) for p in found.path.rglob("*") if p.is_file())
        print(json.dumps({"path": str(found.path), "scale": found.scale, "files": names}))
    except DictlabError as error:
        print(json.dumps({"error": str(error)}))
"""


class Hub(BaseHTTPRequestHandler):
    """The few addresses that huggingface_hub asks for."""

    server: "Http"

    def log_message(self, *_) -> None:
        pass

    def say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        parts = parts[2:] if parts[:2] == ["api", "models"] else parts
        repo, what, revision = "/".join(parts[:2]), *([*parts[2:], "", ""])[:2]
        commit = REVISIONS.get(revision or "main")
        if repo == "owner/gated":
            self.say(403, X_Error_Code="GatedRepo")
        elif repo != REPO or commit is None:
            self.say(404, X_Error_Code="RepoNotFound" if repo != REPO else "RevisionNotFound")
        else:
            self.answer(what, commit, "/".join(parts[4:]))

    def answer(self, what: str, commit: str, path: str) -> None:
        files = self.server.commits[commit]
        if what in ("", "revision"):
            siblings = [{"rfilename": name} for name in files]
            self.say(200, json.dumps({"id": REPO, "sha": commit, "siblings": siblings}).encode())
        elif what == "tree":
            self.say(200, json.dumps(tree(files, path, "recursive=true" in self.path.lower())).encode())
        elif path not in files:
            self.say(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        else:
            if self.command == "GET":
                self.server.downloads.append(path)
            self.say(200, files[path], ETag=f'"{digest(path, files)}"', X_Repo_Commit=commit)


class Http(ThreadingHTTPServer):
    commits: dict[str, dict[str, bytes]]
    downloads: list[str]


def digest(name: str, files: dict[str, bytes]) -> str:
    """Another one for each file, so that the cache does not take one for another."""
    return hashlib.sha1(name.encode() + files[name]).hexdigest()


def tree(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, object]]:
    inside = [name for name in files if name.startswith(f"{folder}/" if folder else "")]
    found = [{"type": "file", "path": name, "size": len(files[name]), "oid": digest(name, files)} for name in inside]
    if recursive and not folder:
        return found
    depth = folder.count("/") + 2 if folder else 1
    folders = {"/".join(name.split("/")[:depth]) for name in inside if name.count("/") >= depth}
    return [f for f in found if str(f["path"]).count("/") < depth] + [
        {"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders)
    ]


@pytest.fixture
def weights(tmp_path) -> bytes:
    return save(random_dictionary(), tmp_path / "a.safetensors").read_bytes()


@pytest.fixture
def server(weights) -> Iterator[Http]:
    files = {
        "README.md": b"#",
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "model.safetensors": weights,
        "run/notes.md": b"#",
        "run/config.json": b'{"run": 1}',
        "run/other.safetensors": weights,
        "run/layer/cfg.json": b'{"k": 1}',
        "run/layer/sae.safetensors": weights,
        "run/layer/deeper/sae.safetensors": weights,
        "run/layer/deeper/cfg.json": b"{}",
        "run/layer-2/sae.safetensors": weights,
        "run/[x]*/sae.safetensors": weights,
    }
    old = {"run/layer/cfg.json": b'{"k": 0}', "run/layer/sae.safetensors": weights}
    http = Http(("127.0.0.1", 0), Hub)
    http.commits, http.downloads = {MAIN: files, OLD: old}, []
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield http
    http.shutdown()
    http.server_close()


@pytest.fixture
def fetch(tmp_path, server):
    """Fetch names in another process, whose Hub is the server; `offline` or with the server gone."""

    def run(
        *names: str, url: str = f"http://127.0.0.1:{server.server_port}", path: Path | None = None, **environment: str
    ) -> list[dict]:
        own = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(tmp_path / "cache")}
        own |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
        paths = os.pathsep.join(p for p in (str(path or ""), os.environ.get("PYTHONPATH", "")) if p)
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(Path(hub.__file__).parent.parent), *names],
            capture_output=True,
            text=True,
            env={**os.environ, **own, "PYTHONPATH": paths, **environment},
        )
        assert done.returncode == 0, done.stderr
        assert "No files matched" not in done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_local_paths_pass_through(tmp_path):
    assert fetched("some/where.pt") == (Path("some/where.pt"), None)
    assert fetched("a@b/c.pt").path == Path("a@b/c.pt")
    (tmp_path / "odd:").mkdir()
    (tmp_path / "odd:" / "x").touch()
    assert fetched(f"{tmp_path}/odd://x").path == tmp_path / "odd:" / "x"


@pytest.mark.parametrize(
    "name",
    [
        "hf://",
        "hf://owner",
        "hf:///repo/x",
        "hf://owner//x",
        "hf://owner/repo/../../x",
        "hf://../repo/x",
        "hf://owner/../x",
        "hf://owner/repo/./x",
        "hf://owner/repo/a\\..\\b",
        "hf://owner/repo/a\nb",
        "hf://owner/repo/x@",
        "hf://owner/repo/x@../../main",
        "hf://owner/repo/x@/etc/passwd",
        "s3://bucket/x",
        "https://huggingface.co/owner/repo",
    ],
)
def test_names_that_lead_elsewhere_are_refused_before_anything_is_asked(name, monkeypatch):
    monkeypatch.setattr(hub, "_downloaded", lambda place: pytest.fail(f"{place} was asked for"))
    with pytest.raises(DictlabError):
        fetched(name)


def test_a_folder_is_downloaded_once_with_the_configurations_around_it_and_then_found_without_network(fetch, server):
    name = f"hf://{REPO}/run/layer"
    (found,) = fetch(name)
    assert found["files"] == ["cfg.json", "sae.safetensors"]
    assert sorted(server.downloads) == [
        "config.json",
        "run/config.json",
        "run/layer/cfg.json",
        "run/layer/sae.safetensors",
    ]
    assert load(found["path"]).name == "layer"
    server.downloads.clear()
    again, gone = fetch(name), fetch(name, url="http://127.0.0.1:9")
    offline = fetch(name, f"hf://{REPO}/run/layer-2", url="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert again == gone == [found] and offline[0] == found and server.downloads == []
    assert "not in the cache" in offline[1]["error"] and f"hf://{REPO}/run/layer-2" in offline[1]["error"]


def test_files_and_whole_repositories_bring_their_own_files_only(fetch, server):
    file, odd, whole = fetch(
        f"hf://{REPO}/run/layer/sae.safetensors", f"hf://{REPO}/run/[x]*/sae.safetensors", f"hf://{REPO}"
    )
    assert Path(file["path"]).name == "sae.safetensors" and odd["path"].endswith("run/[x]*/sae.safetensors")
    assert sorted(server.downloads) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "run/[x]*/sae.safetensors",
        "run/config.json",
        "run/layer/cfg.json",
        "run/layer/sae.safetensors",
    ]
    assert load(f"{whole['path']}/model.safetensors").metadata.site == SITE


@pytest.mark.parametrize("revision", ["v1", OLD, "refs/pr/3"])
def test_a_revision_pins_what_is_read(fetch, server, revision):
    pinned, latest = fetch(f"hf://{REPO}/run/layer@{revision}", f"hf://{REPO}/run/layer")
    assert OLD in pinned["path"] and MAIN in latest["path"]
    assert Path(pinned["path"], "cfg.json").read_text() == '{"k": 0}'
    assert Path(latest["path"], "cfg.json").read_text() == '{"k": 1}'


def test_what_is_not_there_is_named_in_one_line(fetch):
    names = [
        f"hf://{REPO}/run/absent",
        f"hf://{REPO}/run/layer@v9",
        "hf://owner/none/x",
        "hf://owner/gated/x",
        "hf://owner/bad name/x",
    ]
    found = [answer["error"] for answer in fetch(*names)]
    for name, error in zip(names, found, strict=True):
        assert error.startswith(f"{name}: ") and "\n" not in error
    absent, revision, repository, gated, _ = found
    assert "layer-2" in absent and "run has" in absent  # what is there instead
    assert "no revision v9" in revision and "owner/none" in repository and "gated" in gated
    (unreachable,) = fetch(names[0], url="http://127.0.0.1:9")
    assert "cannot be reached" in unreachable["error"]


REGISTRY = """
first-release:
  repo_id: owner/saes
  model: gpt2
  saes:
  - {id: blocks.0/x, path: run/layer, norm_scaling_factor: 1.5}
  - {id: plain, path: run/layer-2}
  - {id: out, path: ../../etc}
  - {id: 7, path: 7}
  - {id: odd, path: run/layer, norm_scaling_factor: -1}
changed:
  repo_id: owner/saes
  config_overrides: {normalize_activations: constant_norm_rescale}
  saes: [{id: x, path: run/layer}]
harmless:
  repo_id: owner/saes
  config_overrides: {dataset_path: text}
  saes: [{id: x, path: run/layer}]
"""


@pytest.fixture
def registry(tmp_path) -> Path:
    """A stand-in for SAELens' package, which must not be imported."""
    package = tmp_path / "packages" / "sae_lens"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "pretrained_saes.yaml").write_text(REGISTRY)
    return package.parent


def test_names_of_saelens_are_looked_up_in_its_registry_with_their_scale(fetch, registry):
    names = ["first-release/blocks.0/x", "first-release/blocks.0/x@v1", "first-release/plain", "harmless/x"]
    scaled, pinned, plain, harmless = fetch(*(f"saelens://{name}" for name in names), path=registry)
    assert scaled["path"].endswith(f"{MAIN}/run/layer") and scaled["scale"] == 1.5
    assert pinned["path"].endswith(f"{OLD}/run/layer") and pinned["scale"] == 1.5
    assert plain["path"].endswith("run/layer-2") and plain["scale"] is None
    assert harmless["path"] == scaled["path"]


def test_names_that_saelens_does_not_know_are_answered_with_those_it_knows(monkeypatch, registry):
    monkeypatch.syspath_prepend(registry)
    expected = {
        "none/x": "first-release, changed, harmless",
        "first-release/none": "blocks.0/x, plain, out, 7, odd",
        "first-release": "blocks.0/x",
        "first-release/out": "'..'",
        "first-release/odd": "norm_scaling_factor",
        "changed/x": "normalize_activations",
    }
    for name, words in expected.items():
        with pytest.raises(DictlabError) as caught:
            fetched(f"saelens://{name}")
        assert f"saelens://{name}" in str(caught.value) and words in str(caught.value)


def test_without_saelens_its_names_are_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(DictlabError, match=r"install sae-lens, or write hf://owner/repo/path"):
        fetched("saelens://gpt2-small-res-jb/blocks.8.hook_resid_pre")


def test_the_scale_of_a_registry_reaches_the_reader_beside_one_that_is_given(monkeypatch, tmp_path):
    path = save(random_dictionary(), tmp_path / "a.safetensors")
    scales = []
    read = native.read
    monkeypatch.setattr(
        native, "read", lambda s: scales.append((s.scale, s.registered)) or read(replace(s, scale=None))
    )
    monkeypatch.setattr(hub, "fetched", lambda name: hub.Fetched(path, 2.5))
    loading.load("saelens://a/b")
    loading.load("saelens://a/b", scale=3.0)
    assert scales == [(None, 2.5), (3.0, 2.5)]
