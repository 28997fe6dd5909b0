"""Servers for tests, on loopback only: a scripted HTTP server that can lie, git over HTTP, and git over ssh."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Hands each GET and POST to the page of its path."""

    server: WebServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers.items())))
        page = self.server.find_page(self.path)
        if page is None:
            self.send(404, b"<html>nothing here</html>")
        elif isinstance(page, bytes):
            self.send(200, page)
        else:
            page(self)

    do_POST = do_GET

    def send(self, status: int, body: bytes, **headers: str) -> None:
        send_answer(self, status, body, headers)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: tests read `seen`."""


class WebServer(ThreadingHTTPServer):
    """`pages`: path without query to a body or to a function that answers; `seen`: paths and headers of all requests."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, bytes | Answer] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.stopping = threading.Event()

    def find_page(self, path: str) -> bytes | Answer | None:
        plain = path.partition("?")[0]
        if plain in self.pages:
            return self.pages[plain]
        return next(
            (page for name, page in self.pages.items() if name.endswith("/*") and plain.startswith(name[:-1])), None
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def paths(self) -> list[str]:
        """The paths that were asked for, in order."""
        return [path for path, _ in self.seen]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of the tests."""


@contextmanager
def serve_web() -> Iterator[WebServer]:
    """A scripted server; stopped with the block."""
    server = WebServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()


def redirect_to(location: str, status: int = 302) -> Answer:
    return lambda handler: handler.send(status, b"", Location=location)


def lie_about_length(stated: int, body: bytes) -> Answer:
    """A body of another length than is said, then the end of the connection."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(stated))
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True

    return answer


def pour(chunk: bytes, pause_s: float = 0.0, head: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> Answer:
    """An endless answer: `head`, then `chunk` again and again with a pause between."""

    def answer(handler: Handler) -> None:
        handler.close_connection = True
        handler.wfile.write(head)
        while not handler.server.stopping.wait(pause_s):
            handler.wfile.write(chunk)
            handler.wfile.flush()

    return answer


def raw(data: bytes) -> Answer:
    """Exactly these bytes, then the end of the connection."""

    def answer(handler: Handler) -> None:
        handler.close_connection = True
        handler.wfile.write(data)

    return answer


# -- git ---------------------------------------------------------------------------------------------------------------

_IDENTITY = {
    "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.com", "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.com", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_DATE": "2026-01-02T03:04:05Z", "GIT_COMMITTER_DATE": "2026-01-02T03:04:05Z",
}  # fmt: skip


@dataclass
class Repository:
    """A repository on this host that tests change and serve. `folder`: its work tree."""

    folder: Path

    def git(self, *arguments: str, stdin: bytes | None = None) -> str:
        result = subprocess.run(
            ["git", *arguments], cwd=self.folder, input=stdin, check=True, capture_output=True, timeout=60,
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **_IDENTITY},
        )  # fmt: skip
        return result.stdout.decode().strip()

    def commit(self, files: dict[str, str], message: str = "x") -> str:
        """Write files (`-> x` is a link, `+x` before the content an executable), commit them, and return the commit."""
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if text.startswith("-> "):
                path.symlink_to(text[3:])
            else:
                path.write_text(text.removeprefix("+x"))
                path.chmod(0o755 if text.startswith("+x") else 0o644)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")


def make_repository(folder: Path) -> Repository:
    folder.mkdir(parents=True)
    repository = Repository(folder)
    repository.git("init", "--quiet", "-b", "main")
    return repository


def git_backend(root: Path, login: str | None = None) -> Answer:
    """Serves the repositories below `root` with git's own http-backend (git-http-backend(1)); `login`: `user:password`."""

    def answer(handler: Handler) -> None:
        expected = "Basic " + base64.b64encode((login or "").encode()).decode()
        if login and handler.headers.get("Authorization") != expected:
            handler.send(401, b"", WWW_Authenticate='Basic realm="x"')
            return
        path, _, query = handler.path.partition("?")
        body = read_body(handler)
        result = subprocess.run(
            ["git", "http-backend"], input=body, capture_output=True, check=False, timeout=60,
            env={
                "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(root), "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path,
                "QUERY_STRING": query, "REQUEST_METHOD": handler.command, "REMOTE_ADDR": "127.0.0.1",
                "CONTENT_TYPE": handler.headers.get("Content-Type", ""),
                "HTTP_CONTENT_ENCODING": handler.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": handler.headers.get("Git-Protocol", ""), "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
            },
        )  # fmt: skip
        head, _, content = result.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        handler.send(int(headers.pop("Status", "200").split()[0]), content, **headers)

    return answer


def read_body(handler: BaseHTTPRequestHandler) -> bytes:
    """A request's body, whichever way its length is told."""
    if handler.headers.get("Transfer-Encoding") == "chunked":
        parts = []
        while size := int(handler.rfile.readline(), 16):
            parts.append(handler.rfile.read(size))
            handler.rfile.readline()
        handler.rfile.readline()
        return b"".join(parts)
    return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))


def send_answer(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    """A whole answer; `_` in a header's name stands for `-`. The body is left out where it was not asked for."""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


# -- ssh ---------------------------------------------------------------------------------------------------------------


@dataclass
class SshServer:
    """`known_hosts`: a file with its key; `agent`: the socket of an agent that holds the client's key."""

    port: int
    known_hosts: Path
    agent: Path
    log: Path
    public_key: str = field(default="")


@contextmanager
def serve_ssh(folder: Path) -> Iterator[SshServer]:
    """sshd on loopback with a configuration, host key and client key of its own; logs in whoever runs this."""
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "authorized").write_text((folder / "client.pub").read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configuration = folder / "sshd_config"
    configuration.write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder / 'host'}\nAuthorizedKeysFile {folder / 'authorized'}\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nPidFile none\n"
        "PermitRootLogin prohibit-password\nAcceptEnv GIT_PROTOCOL\nSetEnv GIT_CONFIG_COUNT=1 "
        "GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=*\n"
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    log, agent = folder / "sshd.log", folder / "agent.sock"
    server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", configuration, "-E", log])
    helper = subprocess.Popen(["ssh-agent", "-D", "-a", agent], stdout=subprocess.DEVNULL)
    try:
        _wait_for(lambda: _answers(port) and agent.exists())
        environment = {**os.environ, "SSH_AUTH_SOCK": str(agent)}
        subprocess.run(["ssh-add", "-q", folder / "client"], check=True, env=environment, stderr=subprocess.DEVNULL)
        known = folder / "known_hosts"
        kind, key = (folder / "host.pub").read_text().split()[:2]
        known.write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
        yield SshServer(port, known, agent, log)
    finally:
        for process in (server, helper):
            process.terminate()
            process.wait(10)


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "a test's server does not start"
        time.sleep(0.02)
