"""A small registry in memory that takes pushes, with or without the referrers API.

OCI distribution-spec 1.1: "Pushing blobs", "Pushing manifests", "Listing Referrers". Debian's docker-registry has no referrers API.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.web import read_body, send_answer

INDEX = "application/vnd.oci.image.index.v1+json"


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class ApiRegistry(ThreadingHTTPServer):
    """`referrers`: whether it has the API; `manifests`: by repository and by tag or digest, their media type and bytes; `held`:
    while it is not set, no upload is answered; `waiting`: set once one waits."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, referrers: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.referrers = referrers
        self.blobs: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.asked: list[str] = []
        self.held = threading.Event()
        self.held.set()
        self.waiting = threading.Event()

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def list_referrers(self, repository: str, subject: str) -> list[dict[str, Any]]:
        """The descriptors of what names a manifest as its subject."""
        found = {}
        for (place, _), (media_type, data) in self.manifests.items():
            document = json.loads(data)
            if place == repository and (document.get("subject") or {}).get("digest") == subject:
                kind = document.get("artifactType") or document["config"]["mediaType"]
                found[digest_of(data)] = {
                    "mediaType": media_type, "digest": digest_of(data), "size": len(data), "artifactType": kind,
                    "annotations": document.get("annotations") or {},
                }  # fmt: skip
        return [found[digest] for digest in sorted(found)]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: ApiRegistry
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path = urlsplit(self.path).path
        if path == "/v2/":
            self.send(200, b"{}")
        elif match := re.fullmatch(r"/v2/(.+)/blobs/(sha256:[0-9a-f]{64})", path):
            data = self.server.blobs.get(match[2])
            self.send(404 if data is None else 200, data or b"")
        elif match := re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", path):
            media_type, content = self.server.manifests.get((match[1], match[2]), ("application/json", b""))
            self.send(200 if content else 404, content, Content_Type=media_type)
        elif (match := re.fullmatch(r"/v2/(.+)/referrers/(sha256:[0-9a-f]{64})", path)) and self.server.referrers:
            listed = self.server.list_referrers(match[1], match[2])
            body = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}).encode()
            self.send(200, body, Content_Type=INDEX)
        else:
            self.send(404, b"{}")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        read_body(self)
        upload = str(len(self.server.uploads))
        self.server.uploads[upload] = b""
        self.send(202, b"", Location=f"{urlsplit(self.path).path.rstrip('/')}/{upload}")

    def do_PATCH(self) -> None:
        upload = self.path.rpartition("/")[2]
        if not self.server.held.is_set():
            self.server.waiting.set()
            self.server.held.wait()
        self.server.uploads[upload] += read_body(self)
        self.send(202, b"", Location=self.path, Range=f"0-{len(self.server.uploads[upload]) - 1}")

    def do_PUT(self) -> None:
        url = urlsplit(self.path)
        data = read_body(self)
        if match := re.fullmatch(r"/v2/(.+)/blobs/uploads/(\d+)", url.path):
            data = self.server.uploads.pop(match[2]) + data
            fits = parse_qs(url.query)["digest"] == [digest_of(data)]
            if fits:
                self.server.blobs[digest_of(data)] = data
            self.send(201 if fits else 400, b"")
        elif match := re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", url.path):
            for name in (match[2], digest_of(data)):
                self.server.manifests[match[1], name] = (self.headers["Content-Type"], data)
            subject = (json.loads(data).get("subject") or {}).get("digest")
            more = {"OCI_Subject": subject} if subject and self.server.referrers else {}
            self.send(201, b"", Docker_Content_Digest=digest_of(data), **more)
        else:
            self.send(404, b"{}")

    def send(self, status: int, body: bytes, **headers: str) -> None:
        send_answer(self, status, body, headers)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: tests read `asked` and `manifests`."""


@contextmanager
def serve_api_registry(*, referrers: bool = True) -> Iterator[ApiRegistry]:
    """A registry; stopped with the block."""
    server = ApiRegistry(referrers)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.held.set()
        server.shutdown()
        server.server_close()
        thread.join()
