"""A registry on loopback whose every answer a test can turn into a lie. It serves one repository, `team/app`, tag `1`."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.registry import tree_tar
from tests.support.web import Answer, Handler, WebServer, serve_web

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
BASE = "/v2/team/app"


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class FakeImage:
    """An honest image; tests change `manifest` and the pages before or after `serve`."""

    def __init__(self, *trees: bytes) -> None:
        trees = trees or (tree_tar(),)
        self.blobs = {digest_of(data): data for data in (gzip.compress(tree, mtime=0) for tree in trees)}
        layers = [{"mediaType": LAYER, "digest": key, "size": len(data)} for key, data in self.blobs.items()]
        diff_ids = [digest_of(tree) for tree in dict.fromkeys(trees)]
        config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        data = json.dumps(config).encode()
        self.blobs[digest_of(data)] = data
        entry = {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(data), "size": len(data),
        }  # fmt: skip
        self.manifest: dict[str, Any] = {
            "schemaVersion": 2, "mediaType": MANIFEST, "config": entry, "layers": layers,
        }  # fmt: skip

    @property
    def layer(self) -> str:
        """The first layer's page."""
        return f"{BASE}/blobs/{self.manifest['layers'][0]['digest']}"

    def serve(self, web: WebServer) -> None:
        web.pages["/v2/"] = b"{}"
        web.pages[f"{BASE}/manifests/1"] = typed(json.dumps(self.manifest).encode(), MANIFEST)
        for digest, data in self.blobs.items():
            web.pages[f"{BASE}/blobs/{digest}"] = data


def typed(data: bytes, media_type: str) -> Answer:
    """A page of that type."""
    return lambda handler: handler.send(200, data, Content_Type=media_type)


def needs_login(page: bytes | Answer, challenge: str = 'Basic realm="fake"') -> Answer:
    """A page for who sends credentials; others are asked for them."""

    def answer(handler: Handler) -> None:
        if "Authorization" not in handler.headers:
            handler.send(401, b'{"errors":[{"code":"UNAUTHORIZED"}]}', WWW_Authenticate=challenge)
        elif isinstance(page, bytes):
            handler.send(200, page)
        else:
            page(handler)

    return answer


@contextmanager
def serve_image(image: FakeImage, change: Callable[[WebServer], None] = lambda _: None) -> Iterator[WebServer]:
    """The image's registry, changed as the test wishes."""
    with serve_web() as web:
        image.serve(web)
        change(web)
        yield web
