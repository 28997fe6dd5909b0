"""The examples as a user meets them: built from their Dockerfiles, run all at once, talked to over the network, stopped in order."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.support.cli import BUILD_TIMEOUT_S, Cli, find_free_port
from tests.vm.conftest import CACHE, SharedState

EXAMPLES = ROOT / "examples"
BASES = ("golang:1.19-bookworm", "node:18-bookworm-slim", "postgres:15-bookworm", "python:3.11-slim-bookworm")
PASSWORD = "an owner's pass word"
PORTS = {"links": 8080, "tasks": 8000, "board": 3000, "site": 8080, "library": 5432}
SAYS_WHEN_READY = {
    "links": "listens on :8080",
    "board": "listens on port 3000",
    "tasks": "Serving on",
    "site": "start worker process",
    "library": "database system is ready to accept connections",
}
REQUEST_TIMEOUT_S = 60.0


def ensure_wheels() -> Path:
    """The Python example's requirements as wheels, fetched once for this requirements.txt."""
    requirements = EXAMPLES / "python" / "requirements.txt"
    folder = CACHE / f"wheels-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]}"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--only-binary", ":all:"]
    # What is in the folder already is not fetched again; the hashes are checked in any case.
    subprocess.run(
        [*pip, "--require-hashes", "--dest", folder, "--find-links", folder, "-r", requirements],
        check=True, timeout=BUILD_TIMEOUT_S,
    )  # fmt: skip
    return folder


def make_base(image: str) -> Path:
    """The base image's tree as a tar, bootstrapped once for its recipe."""
    recipe = EXAMPLES / "debian" / "make-base"
    done = subprocess.run([recipe, "--cached", CACHE, image], capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def images(shared_state: SharedState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The examples' references by name, built two at a time."""
    cli = shared_state.cli()
    CACHE.mkdir(parents=True, exist_ok=True)
    password = tmp_path_factory.mktemp("secret") / "password"
    password.write_text(PASSWORD)
    with ThreadPoolExecutor(2) as pool:
        for image, tarball in zip(BASES, pool.map(make_base, BASES), strict=True):
            cli.ok("image", "import", tarball, image, timeout_s=BUILD_TIMEOUT_S)
        offline = ("--network", "none", "--build-arg", "PIP_NO_INDEX=1", "--build-context", f"wheels={ensure_wheels()}")
        secret = ("--secret", f"id=library-password,src={password}")
        builds: dict[str, tuple[str, tuple[str, ...]]] = {
            "library": ("postgres", secret),
            "tasks": ("python", offline),
            "site": ("nginx", ("--build-arg", "FOOTER=made by a test")),
            "links": ("go", ("--build-arg", "VERSION=1.2.3")),
            "board": ("node", ()),
        }

        def build(name: str) -> None:
            folder, options = builds[name]
            cli.ok("rootfs", "-t", f"examples/{name}:1", *options, EXAMPLES / folder, timeout_s=BUILD_TIMEOUT_S)

        list(pool.map(build, builds))
    references = {name: f"examples/{name}:1" for name in builds}
    yield references
    cli.ok("image", "rm", *references.values(), *BASES)


def http(port: int, path: str, *, method: str = "GET", body: str | None = None) -> tuple[int, str]:
    """One request to a published port; returns the status and the body. Redirects are not followed."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=None if body is None else body.encode(),
        method=method,
        headers={"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
    try:
        with opener.open(request, timeout=REQUEST_TIMEOUT_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers.get("Location") or error.read().decode()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_arguments: Any) -> None:
        return None


def use_links(cli: Cli, port: int) -> None:
    assert http(port, "/version") == (200, "1.2.3\n")
    assert http(port, "/home", method="PUT", body="http://example.org/far/away")[0] == 201
    assert http(port, "/home") == (302, "http://example.org/far/away")
    assert http(port, "/nothing")[0] == 404
    assert http(port, "/bad", method="PUT", body="no url")[0] == 400
    assert '"path":"/home"' in cli.ok("logs", "links")
    # The image holds two files and no shell: what it can run is itself.
    assert cli.run("exec", "links", "--", "/links", "-check").status == 0
    assert cli.run("exec", "links", "--", "/bin/sh").status == 127


def use_tasks(cli: Cli, port: int) -> None:
    assert http(port, "/tasks", method="POST", body='{"title": "write"}')[0] == 201
    assert http(port, "/tasks", method="POST", body='{"title": " "}')[0] == 400
    assert http(port, "/tasks/1/done", method="PUT")[0] == 204
    assert json.loads(http(port, "/tasks")[1]) == [{"id": 1, "title": "write", "done": True}]
    assert cli.ok("exec", "tasks", "--", "id", "-un") == "tasks\n"
    assert cli.ok("exec", "tasks", "--", "stat", "-c", "%U", "tasks.sqlite") == "tasks\n"
    assert cli.run("exec", "tasks", "--", "touch", "/srv/tasks/x").status != 0


def use_board(cli: Cli, port: int) -> None:
    status, page = http(port, "/")
    assert status == 200
    style = page.split('rel="stylesheet" href="')[1].split('"')[0]
    assert style.startswith("/style.") and style != "/style.css"
    assert http(port, style)[0] == 200
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/events", timeout=REQUEST_TIMEOUT_S) as events:
        assert events.readline() == b": welcome\n"
        assert http(port, "/messages", method="POST", body='{"text": "hello"}')[0] == 201
        heard = next(line for line in events if line.startswith(b"data: "))
    assert json.loads(heard.removeprefix(b"data: ")) == {"id": 1, "text": "hello"}
    assert "# pass 2" in cli.ok("exec", "board", "--", "cat", "test-report.txt")
    assert cli.run("exec", "board", "--", "test", "-e", "test/board.test.js").status == 1


def use_site(cli: Cli, port: int) -> None:
    status, index = http(port, "/")
    assert status == 200 and 'href="/microvms.html"' in index and "made by a test" in index
    assert "<code>processor</code>" in http(port, "/microvms.html")[1]
    assert http(port, "/nothing.html")[0] == 404
    assert "GET /microvms.html" in cli.ok("logs", "site")
    # What generated the site, and what apt downloaded, is in no layer of the image.
    places = ("/out", "/src", "/usr/bin/python3", "/var/lib/apt/lists")
    left = cli.run("exec", "-u", "root", "site", "--", "find", *places, "!", "-type", "d", "-size", "+0")
    assert left.stdout == "", left.describe()


def sql(port: int, statement: str) -> str:
    """What the host's psql prints for a statement of the library's owner."""
    environment = {**os.environ, "PGPASSWORD": PASSWORD, "PGCONNECT_TIMEOUT": "60"}
    command = ["psql", "-h", "127.0.0.1", "-p", str(port), "-U", "library", "-d", "library", "-XAtqc", statement]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=REQUEST_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def use_library(cli: Cli, port: int) -> None:
    assert sql(port, "SELECT count(*) FROM shelf WHERE author = 'Mary Shelley'") == "2"
    sql(port, "INSERT INTO author (name) VALUES ('Ada Lovelace')")
    assert (
        sql(port, "SELECT string_agg(name, ',' ORDER BY name) FROM author") == "Ada Lovelace,Jules Verne,Mary Shelley"
    )
    assert cli.ok("exec", "library", "--", "id", "-un") == "postgres\n"
    assert cli.ok("exec", "library", "--", "stat", "-c", "%a %U", ".") == "700 postgres\n"
    assert cli.run("exec", "library", "--", "pg_isready", "-h", "/tmp").status == 0


USES = {"links": use_links, "tasks": use_tasks, "board": use_board, "site": use_site, "library": use_library}


def test_all_examples_at_once(cli: Cli, images: dict[str, str]) -> None:
    ports: dict[str, int] = {}
    for name, reference in images.items():
        ports[name] = find_free_port()
        cli.ok("run", "-d", "--name", name, "--from", reference, "-p", f"127.0.0.1:{ports[name]}:{PORTS[name]}")
    listed = [json.loads(line) for line in cli.ok("ls", "--format", "json").splitlines()]
    assert {item["name"] for item in listed if item["running"]} == set(images)
    for name, words in SAYS_WHEN_READY.items():
        cli.await_output(name, words)
    for name, use in USES.items():
        use(cli, ports[name])

    cli.ok("stop", *images)
    assert "links ends in order" in cli.run("logs", "links").stderr
    assert "board got SIGTERM and ends" in cli.ok("logs", "board")
    ended = cli.run("logs", "library").stderr
    assert "received fast shutdown request" in ended and ended.rstrip().endswith("database system is shut down")
    codes = {
        item["name"]: item["exit-code"] for item in map(json.loads, cli.ok("ls", "-a", "--format", "json").splitlines())
    }
    assert {name: codes[name] for name in ("links", "board", "site", "library")} == dict.fromkeys(
        ("links", "board", "site", "library"), 0
    )
    cli.ok("purge")
    assert "clean" in cli.run("fsck").stderr


def test_what_the_images_say(cli: Cli, images: dict[str, str]) -> None:
    configs = {name: cli.json("image", "inspect", reference)[0]["Config"] for name, reference in images.items()}
    assert all(config["Healthcheck"]["Test"][0] == "CMD" for config in configs.values())
    assert {name: config["User"] for name, config in configs.items()} == {
        "links": "65532:65532",
        "tasks": "tasks",
        "board": "nobody",
        "site": "www-data:www-data",
        "library": "postgres",
    }
    for name, config in configs.items():
        assert list(config["ExposedPorts"]) == [f"{PORTS[name]}/tcp"]
    assert configs["links"]["Labels"]["org.opencontainers.image.version"] == "1.2.3"
    assert configs["library"]["StopSignal"] == "SIGINT"
    assert list(configs["library"]["Volumes"]) == ["/var/lib/postgresql/library"]
    # The password was lent to one step: it is in no configuration, and nothing of its mount is in the tree.
    assert PASSWORD not in json.dumps(configs)
