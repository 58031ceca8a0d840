"""The explorer's folder with the model behind it, served to this machine alone.

What is promised:
* it listens on 127.0.0.1, and answers requests whose Host is that address and port, so that a name that some site
  points here (DNS rebinding) gets nothing;
* every address begins with a random token, which is compared in constant time; without it nothing is answered;
* a request that a browser sends for another site (Origin, Sec-Fetch-Site) is refused, and a question to the model is
  JSON, which no form of another site can send;
* of the file system it gives the page's own files, as they were listed at the start, and no others;
* questions are answered one at a time, and are bounded in size.

What is not: another user of this machine who reads the token from this user's screen or browser can use it.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from analyses.explorer.live_model import LiveModel
from analyses.explorer.page import PAGE, POLICY
from dictlab.errors import DictlabError
from dictlab.runtime.progress import write

HOST = "127.0.0.1"
MAX_BODY = 1 << 20  # bytes of a question
PATIENCE = 30.0  # seconds that a connection may take to send its request
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".csv": "text/csv"}
HEADERS = {
    "Content-Security-Policy": POLICY + "; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """A request that is not answered, and with which status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class ExplorerServer(ThreadingHTTPServer):
    """Serves one explorer.

    Args:
        folder: Of the explorer.
        live: The model behind it.
        port: 0 for any that is free.

    Attributes:
        address: What to open in a browser; it holds the token.
    """

    daemon_threads = True

    def __init__(self, folder: Path, live: LiveModel, port: int = 0) -> None:
        self.token = secrets.token_urlsafe(24)
        self.files = {path.relative_to(folder).as_posix(): path for path in _own_files(folder)}
        self.live, self.busy = live, threading.Lock()
        super().__init__((HOST, port), _Handler)
        self.address = f"http://{HOST}:{self.server_port}/{self.token}/{PAGE}"


def serve_explorer(folder: Path, live: LiveModel, port: int = 0) -> None:
    """Serve an explorer until Ctrl-C, and say where.

    Raises:
        DictlabError: The port is taken.
    """
    try:
        server = ExplorerServer(folder, live, port)
    except OSError as error:
        raise DictlabError(f"port {port}: {error.strerror}; choose another, or leave it out.") from error
    with server:
        write(f"Open {server.address}\nIt is served to this machine alone, by this address alone. Ctrl-C ends.\n")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            write("The server has ended.\n")


def _own_files(folder: Path) -> list[Path]:
    """The explorer's files; links are none of them."""
    inside = [*folder.iterdir(), *(folder / "data").iterdir()]
    return [path for path in inside if path.is_file() and not path.is_symlink() and path.suffix in TYPES]


class _Handler(BaseHTTPRequestHandler):
    server: ExplorerServer
    server_version, sys_version, protocol_version = "dictlab", "", "HTTP/1.1"
    timeout: ClassVar[float] = PATIENCE

    def do_GET(self) -> None:
        self._answer(self._file)

    def do_HEAD(self) -> None:
        self._answer(self._file)

    def do_POST(self) -> None:
        self._answer(self._question)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the address holds the token."""

    def _answer(self, of: Callable[[str], tuple[str, bytes]]) -> None:
        try:
            kind, body = of(self._checked_path())
            status = 200
        except Refused as refused:
            status, kind, body = refused.status, "application/json", _json({"error": str(refused)})
            self.close_connection = True  # what is left of the request is not read
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _checked_path(self) -> str:
        """What is asked for, behind the token."""
        allowed = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        if self.headers.get_all("Host", []) not in [[host] for host in allowed]:
            raise Refused(421, "this server answers for 127.0.0.1 alone.")
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site")
        if origin is not None and origin not in {f"http://{host}" for host in allowed}:
            raise Refused(403, "a request of another site.")
        if site is not None and site not in ("same-origin", "none"):
            raise Refused(403, "a request of another site.")
        token, slash, path = self.path.split("?", 1)[0].removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()) or not slash:
            raise Refused(404, "not found.")
        return path or PAGE

    def _file(self, path: str) -> tuple[str, bytes]:
        file = self.server.files.get(path)
        if file is None:
            raise Refused(404, "not found.")
        content = file.read_bytes()
        if path == PAGE:
            content = content.replace(b'<html lang="en">', b'<html lang="en" data-live>', 1)
        return TYPES[file.suffix], content

    def _question(self, path: str) -> tuple[str, bytes]:
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "a question is application/json.")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or self.headers.get("Transfer-Encoding") is not None:
            raise Refused(411, "the length of the question must be given.")
        if int(length) > MAX_BODY:
            raise Refused(413, f"a question has at most {MAX_BODY} bytes.")
        try:
            asked = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise Refused(400, "the question is no JSON.") from error
        with self.server.busy:
            return "application/json", _json(answered(self.server.live, path, asked))


def answered(live: LiveModel, path: str, asked: Any) -> dict[str, Any]:
    """The answer to a question.

    Raises:
        Refused: The question has another form than it must have.
    """
    if not isinstance(asked, dict) or not isinstance(asked.get("text"), str):
        raise Refused(400, "a question is an object with a text.")
    text = asked["text"].encode("utf-8", "replace").decode("utf-8")
    try:
        if path == "api/run":
            return live.run(text)
        if path == "api/change":
            numbers = {key: _number(asked, key) for key in ("scale", "add")}
            whole = {key: _whole(asked, key) for key in ("dictionary", "latent", "position")}
            if whole["dictionary"] is None or whole["latent"] is None:
                raise Refused(400, "dictionary and latent: numbers are expected.")
            return live.change(text, whole["dictionary"], whole["latent"], position=whole["position"], **numbers)
    except DictlabError as error:
        raise Refused(400, str(error)) from error
    raise Refused(404, "not found.")


def _number(asked: dict[str, Any], key: str) -> float | None:
    value = asked.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e6:
        raise Refused(400, f"{key}: a number up to a million is expected.")
    return float(value)


def _whole(asked: dict[str, Any], key: str) -> int | None:
    value = asked.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise Refused(400, f"{key}: a whole number is expected.")
    return value


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=True, allow_nan=False).encode("ascii")
