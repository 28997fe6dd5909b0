"""Images in and out with the real skopeo and a real registry on the loopback: plain, with TLS and passwords, and lying."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import os
import shutil
import socket
import ssl
import subprocess
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firebuild.errors import ConflictError, DeadlineError, ImageError, RegistryError
from firebuild.images import skopeo
from firebuild.images.archive import import_layer, open_layer
from firebuild.names import Digest, Reference, parse_reference
from firebuild.store.blobs import BlobStore
from firebuild.store.fsck import check_store
from firebuild.store.images import Image, ImageConfig, ImageStore, RootFs, RunConfig


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def start_registry(folder: Path, extra: str = "", *, tls: bool = False) -> Iterator[int]:
    """Debian's docker-registry on a free port of the loopback, all its files in `folder`."""
    port = free_port()
    folder.mkdir()
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n{extra}"
        f"http:\n  addr: 127.0.0.1:{port}\n"
        + (f"  tls: {{certificate: {folder.parent}/cert.pem, key: {folder.parent}/key.pem}}\n" if tls else "")
    )
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log)
    try:
        wait_answering(port, tls, process)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_answering(port: int, tls: bool, process: subprocess.Popen[bytes]) -> None:
    context = ssl._create_unverified_context() if tls else None
    for _ in range(1000):
        assert process.poll() is None, "the registry ended"
        try:
            url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/v2/"
            with urllib.request.urlopen(url, timeout=10, context=context):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            threading.Event().wait(0.02)  # nothing to wait on: the registry does not tell when it listens
    raise AssertionError("the registry never answered")


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    store = BlobStore(tmp_path / "store")
    store.ensure()
    return store


def tree_tar(text: bytes = b"hello") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("etc/motd")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
    return buffer.getvalue()


def make_image(blobs: BlobStore, tmp_path: Path, name: str, text: bytes = b"hello") -> Image:
    path = tmp_path / "tree.tar"
    path.write_bytes(tree_tar(text))
    layer = import_layer(path, blobs)
    config = ImageConfig(
        "amd64",
        "linux",
        created="2026-01-01T00:00:00Z",
        config=RunConfig(cmd=["/bin/app"]),
        rootfs=RootFs(diff_ids=[layer.diff_id]),
    )
    return ImageStore(blobs).commit_image(config, [layer.descriptor], [parse_reference(name)])


def push(blobs: BlobStore, image: Image, reference: Reference, *flags: str) -> None:
    """With skopeo itself: the store is a layout that it can read."""
    archive = blobs.root.parent / "push.tar"
    skopeo.save(image.manifest_digest, blobs.size(image.manifest_digest), [], blobs, archive)
    subprocess.run(
        ["skopeo", "copy", "-q", *flags, f"oci-archive:{archive}", f"docker://{reference.full}"],
        check=True,
        capture_output=True,
    )
    archive.unlink()


def assert_nothing_staged(blobs: BlobStore) -> None:
    assert os.listdir(blobs.root / "ingest") == []


def test_pull_keeps_digests_and_content(blobs: BlobStore, tmp_path: Path) -> None:
    image = make_image(blobs, tmp_path, "made:1")
    with start_registry(tmp_path / "registry") as port:
        reference = parse_reference(f"127.0.0.1:{port}/team/app:1.0")
        push(blobs, image, reference, "--dest-tls-verify=false")
        other = BlobStore(tmp_path / "other")
        other.ensure()
        lines: list[str] = []
        moved = skopeo.pull(reference, other, progress=lines.append)
        again = skopeo.pull(parse_reference(f"127.0.0.1:{port}/team/app@{image.manifest_digest}"), other)
    assert moved.manifest_digest == again.manifest_digest == image.manifest_digest
    assert any("blob" in line for line in lines)
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


@pytest.mark.parametrize("archive_format", ["oci-archive", "docker-archive"])
def test_save_and_load(blobs: BlobStore, tmp_path: Path, archive_format: str) -> None:
    image = make_image(blobs, tmp_path, "examples/made:1")
    archive = tmp_path / "image.tar"
    names = [parse_reference("examples/made:1")]
    size = blobs.size(image.manifest_digest)
    skopeo.save(image.manifest_digest, size, names, blobs, archive, archive_format=archive_format)
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
    with pytest.raises(ConflictError, match="exists already"):
        skopeo.save(image.manifest_digest, size, names, blobs, archive)
    other = BlobStore(tmp_path / "other")
    other.ensure()
    (moved,) = skopeo.load(archive, other)
    assert [parse_reference(name) for name in moved.names] == names
    loaded = ImageStore(other).tag(names[0], moved.manifest_digest)
    assert loaded.chain_id == image.chain_id and loaded.config.config.cmd == ["/bin/app"]
    if archive_format == "oci-archive":
        assert loaded.manifest_digest == image.manifest_digest
    assert check_store(other).clean
    assert_nothing_staged(other)
    assert_nothing_staged(blobs)


def test_a_damaged_archive_leaves_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    image = make_image(blobs, tmp_path, "made:1", os.urandom(100_000))
    archive = tmp_path / "image.tar"
    skopeo.save(image.manifest_digest, blobs.size(image.manifest_digest), [], blobs, archive)
    data = bytearray(archive.read_bytes())
    other = BlobStore(tmp_path / "other")
    other.ensure()
    for name, content in [
        ("flipped", data[:50_000] + bytes([data[50_000] ^ 1]) + data[50_001:]),
        ("cut", data[:50_000]),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=name):
            skopeo.load(tmp_path / name, other)
        assert_nothing_staged(other)
    assert ImageStore(other).list_references() == {}


def test_unknown_names_and_tags(blobs: BlobStore, tmp_path: Path) -> None:
    image = make_image(blobs, tmp_path, "made:1")
    with start_registry(tmp_path / "registry") as port:
        push(blobs, image, parse_reference(f"127.0.0.1:{port}/app:1"), "--dest-tls-verify=false")
        for name in ("app:2", "none:1", f"app@sha256:{'0' * 64}"):
            with pytest.raises(RegistryError) as caught:
                skopeo.pull(parse_reference(f"127.0.0.1:{port}/{name}"), blobs, retries=0)
            assert caught.value.reason == "not-found", caught.value.details
            assert name.split("@")[0] in caught.value.message
    assert_nothing_staged(blobs)


def test_nobody_listens(blobs: BlobStore) -> None:
    with pytest.raises(RegistryError, match="cannot be reached") as caught:
        skopeo.pull(parse_reference(f"127.0.0.1:{free_port()}/app:1"), blobs, retries=0)
    assert caught.value.reason == "unreachable" and "connection refused" in (caught.value.details or "")
    assert_nothing_staged(blobs)


def test_tls_and_passwords(blobs: BlobStore, tmp_path: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    line = (
        subprocess.run(["htpasswd", "-Bbn", "user", "secret"], check=True, capture_output=True, text=True).stdout
        if shutil.which("htpasswd")
        else "user:$2y$05$1Avg9XR6x1xN/5Zl7cyTAuSeZ3IWb38UtxMEQlFBaEwoMaT7AMSmy\n"
    )
    (tmp_path / "htpasswd").write_text(line)
    auth = f"auth: {{htpasswd: {{realm: test, path: {tmp_path}/htpasswd}}}}\n"
    with start_registry(tmp_path / "registry", auth, tls=True) as port:
        reference = parse_reference(f"127.0.0.1:{port}/app:1")
        with pytest.raises(RegistryError) as caught:
            skopeo.pull(reference, blobs, tls_verify=True, retries=0)
        assert caught.value.reason == "tls", caught.value.details
        with pytest.raises(RegistryError) as caught:
            skopeo.pull(reference, blobs, tls_verify=False, retries=0)
        assert caught.value.reason == "unauthorized", caught.value.details
        authfile = tmp_path / "auth.json"
        token = base64.b64encode(b"user:wrong").decode()
        authfile.write_text(json.dumps({"auths": {f"127.0.0.1:{port}": {"auth": token}}}))
        with pytest.raises(RegistryError) as caught:
            skopeo.pull(reference, blobs, tls_verify=False, authfile=authfile, retries=0)
        assert caught.value.reason == "unauthorized", caught.value.details
        assert "wrong" not in str(caught.value) + (caught.value.details or "") and token not in (
            caught.value.details or ""
        )
    with pytest.raises(ImageError, match="does not exist"):
        skopeo.pull(reference, blobs, authfile=tmp_path / "none")
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
        skopeo.pull(parse_reference(f"127.0.0.1:{port}/app:1"), blobs, retries=0)
    assert "127.0.0.1" in caught.value.message
    assert_nothing_staged(blobs)
    assert ImageStore(blobs).list_references() == {}
    assert check_store(blobs).clean


def test_an_honest_answer_of_the_same_server_comes_in(blobs: BlobStore) -> None:
    with start_liar("") as port:
        moved = skopeo.pull(parse_reference(f"127.0.0.1:{port}/app:1"), blobs, retries=0)
    assert ImageStore(blobs).load_image(moved.manifest_digest).layers[0].size == len(tree_tar())


def test_a_registry_that_never_answers_ends_with_the_deadline(blobs: BlobStore) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        with pytest.raises(DeadlineError, match="moving the image"):
            skopeo.pull(parse_reference(f"127.0.0.1:{port}/app:1"), blobs, retries=0, timeout_s=1)
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
        push(blobs, image, parse_reference(f"127.0.0.1:{port}/app:single"), "--dest-tls-verify=false")
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v2/app/manifests/multi", data=json.dumps(index).encode(), method="PUT",
            headers={"Content-Type": "application/vnd.oci.image.index.v1+json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=30):
            pass
        reference = parse_reference(f"127.0.0.1:{port}/app:multi")
        assert skopeo.pull(reference, blobs).manifest_digest == image.manifest_digest
        with pytest.raises(RegistryError) as caught:
            skopeo.pull(reference, blobs, architecture="s390x", retries=0)
    assert caught.value.reason == "platform", caught.value.details


def test_without_skopeo(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    from firebuild.errors import MissingProgramError

    monkeypatch.setattr("firebuild.host.process.find_program", lambda name: None)
    with pytest.raises(MissingProgramError, match="skopeo") as caught:
        skopeo.pull(parse_reference("app:1"), blobs)
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
        skopeo._adopt(layout, other, "x")
    assert not other.has(Digest(image.manifest_digest))
