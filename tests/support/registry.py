"""Registries for tests, on loopback: Debian's docker-registry, plain or with TLS and passwords, and images to put into them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import ssl
import subprocess
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from firebuild.images.archive import import_layer
from firebuild.names import parse_reference
from firebuild.store.blobs import BlobStore
from firebuild.store.images import Image, ImageConfig, ImageStore, RootFs, RunConfig
from tests.support.cli import find_free_port


@contextmanager
def start_registry(folder: Path, extra: str = "", *, tls: bool = False) -> Iterator[int]:
    """Debian's docker-registry on a free port of the loopback, all its files in `folder`."""
    port = find_free_port()
    folder.mkdir()
    config = folder / "config.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/data}}, delete: {{enabled: true}}}}\n{extra}"
        f"http:\n  addr: 127.0.0.1:{port}\n"
        + (f"  tls: {{certificate: {folder.parent}/cert.pem, key: {folder.parent}/key.pem}}\n" if tls else "")
    )
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log)
    try:
        _wait_answering(port, tls, process)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_answering(port: int, tls: bool, process: subprocess.Popen[bytes]) -> None:
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


def write_certificate(folder: Path) -> Path:
    """A self-signed certificate of 127.0.0.1, `cert.pem`, and its key, `key.pem`."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder / "cert.pem"


def password_auth(folder: Path) -> str:
    """Configuration of a registry that takes `user` with the password `secret` only."""
    # bcrypt of `secret`.
    line = "user:$2b$05$VSAqhDpMIFQAsgiSDYCoCuT41CcRV5IKFpUDx/xwlGfD6.9PDmCXq\n"
    (folder / "htpasswd").write_text(line)
    return f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n"


def make_blobs(folder: Path) -> BlobStore:
    """An empty store."""
    store = BlobStore(folder)
    store.ensure()
    return store


def tree_tar(text: bytes = b"hello", extra: Sequence[tuple[str, bytes]] = ()) -> bytes:
    """A tree with /etc/motd, and whatever `extra` adds."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in (("etc/motd", text), *extra):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def make_image(blobs: BlobStore, folder: Path, name: str, *trees: bytes, config: RunConfig | None = None) -> Image:
    """An image with a layer for each tree (without any, one), under a name."""
    layers = []
    for tree in trees or (tree_tar(),):
        path = folder / "tree.tar"
        path.write_bytes(tree)
        layers.append(import_layer(path, blobs))
        path.unlink()
    image = ImageConfig(
        "amd64",
        "linux",
        created="2026-01-01T00:00:00Z",
        config=config or RunConfig(cmd=["/bin/app"]),
        rootfs=RootFs(diff_ids=[layer.diff_id for layer in layers]),
    )
    return ImageStore(blobs).commit_image(image, [layer.descriptor for layer in layers], [parse_reference(name)])


def assert_nothing_staged(blobs: BlobStore) -> None:
    """No half-made file is left in the store."""
    assert os.listdir(blobs.root / "ingest") == []


def put_docker_image(port: int, name: str, config: bytes, layer: bytes) -> bytes:
    """Push an image as Docker does with its classic store, Docker's manifest (schema 2) over a gzip layer; the manifest.

    Registry's protocol: OCI distribution-spec, "Pushing blobs", "Pushing manifests"; manifest: Docker's
    image-manifest-v2-2. `name`: repository and tag.
    """
    repository, _, tag = name.partition(":")
    url = f"http://127.0.0.1:{port}/v2/{repository}"
    packed = gzip.compress(layer, mtime=0)

    def describe(data: bytes, kind: str) -> dict[str, object]:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        return {"mediaType": f"application/vnd.docker.{kind}", "size": len(data), "digest": digest}

    def send(target: str, data: bytes, method: str, kind: str = "application/octet-stream") -> str:
        request = urllib.request.Request(target, data=data, method=method, headers={"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.headers.get("Location") or ""

    for data in (config, packed):
        place = send(f"{url}/blobs/uploads/", b"", "POST")
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        send(f"{place}{'&' if '?' in place else '?'}digest={digest}", data, "PUT")
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": kind,
            "config": describe(config, "container.image.v1+json"),
            "layers": [describe(packed, "image.rootfs.diff.tar.gzip")],
        },
        indent=3,
    ).encode()
    send(f"{url}/manifests/{tag}", manifest, "PUT", kind)
    return manifest
