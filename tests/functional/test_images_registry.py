"""Images in and out with the real skopeo and a real registry on the loopback: plain, with TLS and passwords, and lying."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from firebuild.errors import DeadlineError, ImageError, RegistryError
from firebuild.images import transfer
from firebuild.images.archive import open_layer
from firebuild.images.arrival import adopt_layout
from firebuild.images.ocilayout import MovedImage
from firebuild.images.skopeo import Access
from firebuild.images.transfer import Place
from firebuild.names import Digest, Reference, parse_reference
from firebuild.store.blobs import BlobStore
from firebuild.store.fsck import check_store
from firebuild.store.images import Image, ImageStore
from tests.support.cli import find_free_port
from tests.support.registry import (
    assert_nothing_staged,
    make_blobs,
    make_image,
    password_auth,
    start_registry,
    tree_tar,
    write_certificate,
)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return make_blobs(tmp_path / "store")


def pull(reference: Reference, blobs: BlobStore, **options: Any) -> MovedImage[Any]:
    """One try, as the tests want to see the first answer."""
    given = {name: options.pop(name) for name in ("tls_verify", "authfile", "timeout_s") if name in options}
    return transfer.pull(reference, blobs, access=Access(retries=0, **given), **options)


def push(blobs: BlobStore, image: Image, reference: Reference) -> None:
    target = Place("docker", reference)
    assert transfer.push(image.manifest_digest, blobs, target, compression="keep") == image.manifest_digest


def test_pull_keeps_digests_and_content(blobs: BlobStore, tmp_path: Path) -> None:
    image = make_image(blobs, tmp_path, "made:1")
    with start_registry(tmp_path / "registry") as port:
        reference = parse_reference(f"127.0.0.1:{port}/team/app:1.0")
        push(blobs, image, reference)
        other = BlobStore(tmp_path / "other")
        other.ensure()
        moved = pull(reference, other)
        again = pull(parse_reference(f"127.0.0.1:{port}/team/app@{image.manifest_digest}"), other)
    assert moved.manifest_digest == again.manifest_digest == image.manifest_digest
    pulled = ImageStore(other).tag(reference, moved.manifest_digest)
    assert pulled.config.config.cmd == ["/bin/app"] and pulled.chain_id == image.chain_id
    layer = pulled.layers[0]
    with open_layer(
        other.path(layer.digest), layer.media_type, expected_diff_id=pulled.config.rootfs.diff_ids[0]
    ) as stream:
        assert stream.read() == tree_tar()
    assert_nothing_staged(other)
    assert check_store(other).clean


def test_skopeo_reads_the_store_itself(blobs: BlobStore, tmp_path: Path) -> None:
    image = make_image(blobs, tmp_path, "made:1")
    output = subprocess.run(
        ["skopeo", "inspect", f"oci:{blobs.root}:docker.io/library/made:1"], check=True, capture_output=True
    ).stdout
    assert json.loads(output)["Digest"] == image.manifest_digest


def test_unknown_names_and_tags(blobs: BlobStore, tmp_path: Path) -> None:
    image = make_image(blobs, tmp_path, "made:1")
    with start_registry(tmp_path / "registry") as port:
        push(blobs, image, parse_reference(f"127.0.0.1:{port}/app:1"))
        for name in ("app:2", "none:1", f"app@sha256:{'0' * 64}"):
            with pytest.raises(RegistryError) as caught:
                pull(parse_reference(f"127.0.0.1:{port}/{name}"), blobs)
            assert caught.value.reason == "not-found", caught.value.details
            assert name.split("@")[0] in caught.value.message
    assert_nothing_staged(blobs)


def test_nobody_listens(blobs: BlobStore) -> None:
    with pytest.raises(RegistryError, match="cannot be reached") as caught:
        pull(parse_reference(f"127.0.0.1:{find_free_port()}/app:1"), blobs)
    assert caught.value.reason == "unreachable" and "connection refused" in (caught.value.details or "")
    assert_nothing_staged(blobs)


def test_tls_and_passwords(blobs: BlobStore, tmp_path: Path) -> None:
    write_certificate(tmp_path)
    auth = password_auth(tmp_path)
    with start_registry(tmp_path / "registry", auth, tls=True) as port:
        reference = parse_reference(f"127.0.0.1:{port}/app:1")
        with pytest.raises(RegistryError) as caught:
            pull(reference, blobs, tls_verify=True)
        assert caught.value.reason == "tls", caught.value.details
        with pytest.raises(RegistryError) as caught:
            pull(reference, blobs, tls_verify=False)
        assert caught.value.reason == "unauthorized", caught.value.details
        authfile = tmp_path / "auth.json"
        token = base64.b64encode(b"user:wrong").decode()
        authfile.write_text(json.dumps({"auths": {f"127.0.0.1:{port}": {"auth": token}}}))
        with pytest.raises(RegistryError) as caught:
            pull(reference, blobs, tls_verify=False, authfile=authfile)
        assert caught.value.reason == "unauthorized", caught.value.details
        assert "wrong" not in str(caught.value) + (caught.value.details or "") and token not in (
            caught.value.details or ""
        )
    with pytest.raises(ImageError, match="does not exist"):
        pull(reference, blobs, authfile=tmp_path / "none")
    assert_nothing_staged(blobs)


class Liar(http.server.BaseHTTPRequestHandler):
    """A registry that serves one image and lies in the way that `lie` says."""

    protocol_version = "HTTP/1.1"
    lie = ""
    layer = tree_tar()
    seen_credentials: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if "Authorization" in self.headers:
            self.seen_credentials.append(self.path)
        digest = "sha256:" + hashlib.sha256(self.layer).hexdigest()
        config = json.dumps(
            {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest]}}
        ).encode()
        config_digest = "sha256:" + hashlib.sha256(config).hexdigest()
        stated = "sha256:../../../../etc/passwd" if self.lie == "digest-path" else digest
        size = len(self.layer) + (7 if self.lie == "size" else 0)
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest,
                "size": len(config),
            },
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": stated, "size": size}],
        }
        if self.lie == "ambiguous":
            manifest["manifests"] = []
        body, kind, status = b"{}", "application/json", 200
        if "/manifests/" in self.path:
            body, kind = json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json"
            if self.lie == "garbage":
                body = b"<html>welcome to the hotel's network</html>"
        elif config_digest in self.path:
            body = config
        elif "/blobs/" in self.path:
            body = self.layer
            if self.lie == "content":
                body = body[:-600] + b"x" * 600
            if self.lie == "error":
                status = 500
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if self.lie == "cut" and "/blobs/" in self.path else body)
            if self.lie == "cut" and "/blobs/" in self.path:
                self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        return


@contextmanager
def start_liar(lie: str) -> Iterator[int]:
    handler = type("Handler", (Liar,), {"lie": lie, "seen_credentials": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("lie", ["content", "size", "cut", "digest-path", "ambiguous", "garbage", "error"])
def test_a_lying_registry_gets_nothing_in(blobs: BlobStore, lie: str) -> None:
    with start_liar(lie) as port, pytest.raises(ImageError) as caught:
        pull(parse_reference(f"127.0.0.1:{port}/app:1"), blobs)
    assert "127.0.0.1" in caught.value.message
    assert_nothing_staged(blobs)
    assert ImageStore(blobs).list_references() == {}
    assert check_store(blobs).clean


def test_an_honest_answer_of_the_same_server_comes_in(blobs: BlobStore) -> None:
    with start_liar("") as port:
        moved = pull(parse_reference(f"127.0.0.1:{port}/app:1"), blobs)
    assert ImageStore(blobs).load_image(moved.manifest_digest).layers[0].size == len(tree_tar())


def test_a_registry_that_never_answers_ends_with_the_deadline(blobs: BlobStore) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        with pytest.raises(DeadlineError, match="moving the image"):
            pull(parse_reference(f"127.0.0.1:{port}/app:1"), blobs, timeout_s=1)
    assert_nothing_staged(blobs)


def test_another_platform_is_said(blobs: BlobStore, tmp_path: Path) -> None:
    image = make_image(blobs, tmp_path, "made:1")
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": image.manifest_digest,
                "size": blobs.size(image.manifest_digest),
                "platform": {"architecture": "amd64", "os": "linux"},
            }
        ],
    }
    with start_registry(tmp_path / "registry") as port:
        push(blobs, image, parse_reference(f"127.0.0.1:{port}/app:single"))
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v2/app/manifests/multi", data=json.dumps(index).encode(), method="PUT",
            headers={"Content-Type": "application/vnd.oci.image.index.v1+json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=30):
            pass
        reference = parse_reference(f"127.0.0.1:{port}/app:multi")
        assert pull(reference, blobs).manifest_digest == image.manifest_digest
        with pytest.raises(RegistryError) as caught:
            pull(reference, blobs, architecture="s390x")
    assert caught.value.reason == "platform", caught.value.details


def test_without_skopeo(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    from firebuild.errors import MissingProgramError

    monkeypatch.setattr("firebuild.host.process.find_program", lambda name: None)
    with pytest.raises(MissingProgramError, match="skopeo") as caught:
        pull(parse_reference("app:1"), blobs)
    assert "apt-get install" in (caught.value.hint or "")
    assert_nothing_staged(blobs)


def test_a_wrong_digest_in_a_layout_is_found_here_too(blobs: BlobStore, tmp_path: Path) -> None:
    """Whatever moved the blobs, they are verified again before they are the store's."""
    image = make_image(blobs, tmp_path, "made:1")
    layout = tmp_path / "layout"
    subprocess.run(["cp", "-a", blobs.root, layout], check=True)
    broken = layout / "blobs" / "sha256" / image.layers[0].digest[7:]
    broken.chmod(0o600)
    broken.write_bytes(b"x" * image.layers[0].size)
    other = BlobStore(tmp_path / "other")
    other.ensure()
    with pytest.raises(RegistryError, match=r"arrived damaged: .* does not match its descriptor"):
        adopt_layout(layout, other, "x")
    assert not other.has(Digest(image.manifest_digest))
