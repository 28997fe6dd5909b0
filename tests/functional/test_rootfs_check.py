"""`firebuild rootfs --check` as a user runs it, with the real skopeo and a small registry on the loopback."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).with_name("firebuild")
CONFIG = {
    "architecture": "amd64",
    "os": "linux",
    "config": {"Env": ["PATH=/bin", "PYTHON_VERSION=3.13"], "OnBuild": ["ARG late=1"]},
    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]},
}
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@contextmanager
def start_registry() -> Iterator[tuple[int, list[str]]]:
    """A registry with the one image `py:1`, whose layer nobody may ask for; gives its port and what was asked."""
    config = json.dumps(CONFIG).encode()
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "sha256:" + "0" * 64, "size": 1 << 40}
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(config),
                "size": len(config),
            },
            "layers": [layer],
        }
    ).encode()
    answers = {
        "/v2/": (b"{}", "application/json"),
        "/v2/py/manifests/1": (manifest, MANIFEST_TYPE),
        f"/v2/py/blobs/{digest(config)}": (config, "application/octet-stream"),
    }
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body, kind = answers.get(self.path, (b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}', "application/json"))
            self.send_response(200 if self.path in answers else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1], asked
        finally:
            server.shutdown()
            thread.join()


class Checker:
    """Runs the program in a state of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"

    def run(self, dockerfile: str, *options: str, ignore: str = "") -> subprocess.CompletedProcess[str]:
        context = self.folder / "context"
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text(dockerfile)
        (context / ".dockerignore").write_text(ignore)
        environment = {**os.environ, "FIREBUILD_STATE": str(self.state), "FIREBUILD_RUN": str(self.folder / "run")}
        argv: Sequence[str] = [str(PROGRAM), "rootfs", "--check", *options, str(context)]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=180, check=False)


@pytest.fixture
def checker(tmp_path: Path) -> Checker:
    return Checker(tmp_path)


def test_a_base_is_looked_at_in_its_registry_and_not_pulled(checker: Checker) -> None:
    with start_registry() as (port, asked):
        result = checker.run(
            f"FROM 127.0.0.1:{port}/py:1\nENV A=$PYTHON_VERSION B=$NOPE\nCOPY $late secret.txt /x/\n",
            ignore="secret.*\n",
        )
    assert result.returncode == 1 and result.stderr == ""
    assert [line for line in result.stdout.splitlines() if line.startswith(("Check", "WARNING"))] == [
        "Check complete, 2 warnings have been found!",
        "WARNING: UndefinedVar - docs/reference/lint-rules.md#undefinedvar",
        "WARNING: CopyIgnoredFile - docs/reference/lint-rules.md#copyignoredfile",
    ]
    assert not any("0" * 64 in path for path in asked)
    assert digest(json.dumps(CONFIG).encode()).partition(":")[2] not in {path.name for path in checker.state.rglob("*")}


def test_a_file_without_fault_passes(checker: Checker) -> None:
    result = checker.run("FROM scratch\nCOPY . /\n")
    assert (result.returncode, result.stdout, result.stderr) == (0, "Check complete, no warnings found.\n", "")


def test_an_image_that_the_registry_does_not_have_is_an_error(checker: Checker) -> None:
    with start_registry() as (port, _):
        result = checker.run(f"FROM scratch AS a\nENV a b\nFROM 127.0.0.1:{port}/py:2\n")
    assert result.returncode == 1
    assert "WARNING: LegacyKeyValueFormat" in result.stdout
    assert "error: Dockerfile:3:1: the base image" in result.stderr and "neither stored nor" in result.stderr


def test_a_registry_that_does_not_answer_is_a_note(checker: Checker) -> None:
    with start_registry() as (port, _):
        pass
    result = checker.run(f"FROM 127.0.0.1:{port}/py:1\nENV A=$NOPE\n")
    assert (result.returncode, result.stdout) == (0, "Check complete, no warnings found.\n")
    assert result.stderr.startswith("note: not planned, because the base image is not at hand: ")


def test_json(checker: Checker) -> None:
    result = checker.run("FROM scratch\nENV a b\nCOPY --from=9 a b\n", "--format", "json")
    document = json.loads(result.stdout)
    assert result.returncode == 1 and result.stderr == ""
    assert [warning["ruleName"] for warning in document["warnings"]] == ["LegacyKeyValueFormat"]
    assert "there is no stage with the index" in document["buildError"]["message"]


def test_a_format_that_is_none(checker: Checker) -> None:
    result = checker.run("FROM scratch\n", "--format", "xml")
    assert result.returncode == 125 and "choose text or json" in result.stderr
