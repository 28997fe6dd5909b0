"""Registries that lie, stall and steal: nothing of theirs comes in, and no credentials go out to another host."""

from __future__ import annotations

import base64
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from firebuild.engine.core import Engine
from firebuild.engine.images import pull_image
from firebuild.errors import FirebuildError, ImageError
from firebuild.images import transfer
from firebuild.images.skopeo import Access
from firebuild.names import parse_reference
from firebuild.store.blobs import BlobStore
from firebuild.store.fsck import check_store
from tests.support.cli import Cli
from tests.support.fake_registry import BASE, INDEX, LAYER, FakeImage, digest_of, needs_login, serve_image, typed
from tests.support.registry import assert_nothing_staged, make_blobs, tree_tar
from tests.support.web import WebServer, lie_about_length, pour, redirect_to, serve_web

ENDLESS = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\n\r\n"
Change = Callable[[WebServer, FakeImage], None]


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return make_blobs(tmp_path / "store")


def pull(web: WebServer, blobs: BlobStore, **access: Any) -> Any:
    reference = parse_reference(f"127.0.0.1:{web.server_address[1]}/team/app:1")
    return transfer.pull(reference, blobs, access=Access(retries=0, timeout_s=60, **access))


def manifest(change: Callable[[dict[str, Any]], object]) -> Change:
    def apply(web: WebServer, image: FakeImage) -> None:
        change(image.manifest)
        image.serve(web)

    return apply


def page(path: str, answer: Any) -> Change:
    return lambda web, image: web.pages.__setitem__(path, answer)


def layer_page(answer: Callable[[bytes], Any]) -> Change:
    def apply(web: WebServer, image: FakeImage) -> None:
        web.pages[image.layer] = answer(image.blobs[image.manifest["layers"][0]["digest"]])

    return apply


def index_of(*entries: dict[str, Any]) -> Change:
    data = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)}).encode()
    return page(f"{BASE}/manifests/1", typed(data, INDEX))


def config_states(size: int, answer: Callable[[bytes], Any] = bytes) -> Change:
    """The manifest states that size of the configuration, and `answer` is what comes for it."""

    def apply(web: WebServer, image: FakeImage) -> None:
        entry = image.manifest["config"]
        entry["size"] = size
        image.serve(web)
        web.pages[f"{BASE}/blobs/{entry['digest']}"] = answer(image.blobs[entry["digest"]])

    return apply


def continue_with(change: Callable[[bytes, int], tuple[str, bytes]]) -> Change:
    """A layer of 3 MiB that is cut in the middle; who asks for the rest gets what `change` makes of the layer and the place:
    what Content-Range says, and bytes. A newer skopeo asks for a rest; an older one gives up."""

    def apply(web: WebServer, image: FakeImage) -> None:
        data = os.urandom(3 << 20)
        image.manifest["layers"][0].update(digest=digest_of(data), size=len(data))
        image.serve(web)

        def answer(handler: Any) -> None:
            wanted = handler.headers.get("Range")
            if wanted is None:
                handler.send_response(200)
                handler.send_header("Accept-Ranges", "bytes")
                handler.send_header("Content-Length", str(len(data)))
                handler.end_headers()
                handler.wfile.write(data[: 2 << 20])
                handler.close_connection = True
            else:
                place, rest = change(data, int(wanted.removeprefix("bytes=").partition("-")[0]))
                handler.send(206, rest, Content_Range=place)

        web.pages[image.layer] = answer

    return apply


ENTRY = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:" + "a" * 64, "size": 100}
OTHER = {**ENTRY, "platform": {"architecture": "s390x", "os": "linux"}}
SCHEMA_1 = {"schemaVersion": 1, "name": "team/app", "tag": "1", "architecture": "amd64", "fsLayers": [], "history": []}

LIES: dict[str, Change] = {
    "a layer of another content": layer_page(lambda data: data[:-9] + b"otherwise"),
    "a layer that is cut": layer_page(lambda data: lie_about_length(len(data), data[: len(data) // 2])),
    "a longer layer": layer_page(lambda data: data + b"more"),
    "another size": manifest(lambda it: it["layers"][0].update(size=7)),
    "a negative size": manifest(lambda it: it["layers"][0].update(size=-2)),
    "a path for a digest": manifest(lambda it: it["layers"][0].update(digest="sha256:../../../../etc/passwd")),
    "another algorithm": manifest(lambda it: it["layers"][0].update(digest="md5:" + "0" * 32)),
    "an empty digest": manifest(lambda it: it["config"].update(digest="")),
    "no configuration": manifest(lambda it: it.pop("config")),
    "a manifest that is an index too": manifest(lambda it: it.update(manifests=[ENTRY])),
    "an endless manifest": page(f"{BASE}/manifests/1", pour(b" " * 65536, head=ENDLESS)),
    "a manifest nested deeply": page(f"{BASE}/manifests/1", typed(b"[" * 100_000, ENTRY["mediaType"])),  # type: ignore[arg-type]
    "a page of the hotel": page(f"{BASE}/manifests/1", b"<html>welcome</html>"),
    "redirects in a circle": page(f"{BASE}/manifests/1", redirect_to(f"{BASE}/manifests/1")),
    "an index of other platforms": index_of(OTHER),
    "an index without platforms": index_of(ENTRY),
    "an empty index": index_of(),
    "an index of itself": index_of({**OTHER, "mediaType": INDEX, "platform": {"architecture": "amd64", "os": "linux"}}),
    "the old schema without layers": page(
        f"{BASE}/manifests/1", typed(json.dumps(SCHEMA_1).encode(), "application/vnd.docker.distribution.manifest.v1+json")
    ),
    "errors": layer_page(lambda _: lambda handler: handler.send(500, b"{}")),
    "a configuration of a gigabyte": config_states(1 << 30),
    "an endless configuration": config_states(100, lambda _: pour(b" " * 65536)),
    "a longer configuration": config_states(100, lambda data: data + b" " * (8 << 20)),
    "an image that its type calls an index": lambda web, image: web.pages.__setitem__(
        f"{BASE}/manifests/1", typed(json.dumps(image.manifest).encode(), INDEX)
    ),
    "an index that its type calls an image": lambda web, image: web.pages.__setitem__(
        f"{BASE}/manifests/1",
        typed(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [OTHER]}).encode(), str(ENTRY["mediaType"])),
    ),
    "a part that nobody asked for": layer_page(lambda data: lambda handler: handler.send(206, data[:50], Content_Range="bytes 0-49/50")),
    "a rest of other bytes": continue_with(
        lambda data, place: (f"bytes {place}-{len(data) - 1}/{len(data)}", os.urandom(len(data) - place))
    ),
    "a rest from another place": continue_with(lambda data, place: (f"bytes 0-{len(data) - 1}/{len(data)}", data)),
    "a rest that says nothing of its place": continue_with(lambda data, place: ("", data[place:])),
    "no end of logins": page(f"{BASE}/manifests/1", lambda handler: handler.send(401, b"{}", WWW_Authenticate="Basic")),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_no_lie_comes_in(blobs: BlobStore, lie: str) -> None:
    image = FakeImage()
    with serve_image(image, lambda web: LIES[lie](web, image)) as web:
        with pytest.raises(FirebuildError) as caught:
            pull(web, blobs)
        assert len(web.seen) < 60, "it must not ask for ever"
    assert "team/app" in caught.value.message, caught.value.message
    assert "time=" not in (caught.value.details or "")
    assert_nothing_staged(blobs)
    assert check_store(blobs).clean


def login_file(folder: Path, web: WebServer) -> Path:
    path = folder / "auth.json"
    token = base64.b64encode(b"user:secret").decode()
    path.write_text(json.dumps({"auths": {f"127.0.0.1:{web.server_address[1]}": {"auth": token}}}))
    return path


def credentials_seen(web: WebServer) -> list[str]:
    return [path for path, headers in web.seen if any(name.lower() == "authorization" for name in headers)]


def test_credentials_stay_when_a_registry_redirects_to_another_host(blobs: BlobStore, tmp_path: Path) -> None:
    image = FakeImage()
    with serve_image(image) as web, serve_web() as thief:
        thief.pages["/*"] = image.blobs[image.manifest["layers"][0]["digest"]]
        # Another name is another host, though here it is the same machine.
        elsewhere = f"http://localhost:{thief.server_address[1]}/layer"
        for path, answer in list(web.pages.items()):
            web.pages[path] = needs_login(answer)
        web.pages[image.layer] = needs_login(redirect_to(elsewhere, 307))
        pull(web, blobs, authfile=login_file(tmp_path, web))
        assert credentials_seen(web), "the registry itself got them"
        assert thief.paths() == ["/layer"] and credentials_seen(thief) == []


def test_layers_at_addresses_of_the_manifests_choice_get_no_credentials(blobs: BlobStore, tmp_path: Path) -> None:
    image = FakeImage()
    layer = image.manifest["layers"][0]
    with serve_image(image) as web, serve_web() as thief:
        thief.pages["/*"] = image.blobs[layer["digest"]]
        layer["mediaType"] = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        layer["urls"] = [f"http://localhost:{thief.server_address[1]}/foreign"]
        image.serve(web)
        for path, answer in list(web.pages.items()):
            web.pages[path] = needs_login(answer)
        with pytest.raises(ImageError, match="did not come with it") as caught:
            pull(web, blobs, authfile=login_file(tmp_path, web))
        assert "team/app" in caught.value.message
        assert credentials_seen(web) and credentials_seen(thief) == []
    assert_nothing_staged(blobs)


def test_a_registry_that_no_credentials_please(blobs: BlobStore, tmp_path: Path) -> None:
    image = FakeImage()

    def refuse(handler: Any) -> None:
        handler.send(401, b'{"errors":[{"code":"UNAUTHORIZED"}]}', WWW_Authenticate='Basic realm="x"')

    with serve_image(image) as web:
        for path in web.pages:
            web.pages[path] = refuse
        with pytest.raises(ImageError, match="refuses access") as caught:
            pull(web, blobs, authfile=login_file(tmp_path, web))
        assert len(web.seen) < 20
    assert "secret" not in f"{caught.value} {caught.value.details}"
    assert "firebuild login" in (caught.value.hint or "")


def test_a_layer_that_is_not_what_the_configuration_states(firebuild_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every digest that travels fits; only who unpacks would see the difference. The name is not given."""
    image = FakeImage()
    config = json.loads(image.blobs[image.manifest["config"]["digest"]])
    config["rootfs"]["diff_ids"] = ["sha256:" + "1" * 64]
    data = json.dumps(config).encode()
    image.blobs[digest_of(data)] = data
    image.manifest["config"].update(digest=digest_of(data), size=len(data))
    for name, value in firebuild_cli.environment().items():
        monkeypatch.setenv(name, value)
    with serve_image(image) as web, Engine() as engine:
        reference = parse_reference(f"127.0.0.1:{web.server_address[1]}/team/app:1")
        with pytest.raises(ImageError, match=r"cannot be taken in: .*expected the diff id"):
            pull_image(engine, reference)
        assert engine.images.list_references() == {}


def test_strange_but_honest_images_come_in(blobs: BlobStore) -> None:
    """An empty layer, 130 layers, a layer of the content of another."""
    empty = io.BytesIO()
    with tarfile.open(fileobj=empty, mode="w"):
        pass
    image = FakeImage(empty.getvalue(), *(tree_tar(b"%d" % number) for number in range(129)))
    with serve_image(image) as web:
        moved = pull(web, blobs)
    assert len(moved.blobs) == 132 and all(entry["mediaType"] == LAYER for entry in image.manifest["layers"])
    assert check_store(blobs).clean


@pytest.mark.parametrize("listed", ["by its name", "in an index"])
def test_a_manifest_beyond_the_limit_of_layers_is_refused_before_anything_else_is_asked_for(
    blobs: BlobStore, listed: str
) -> None:
    """One layer a thousand and one times, or as many layers: who asked for each would be busy for long."""
    image = FakeImage()
    image.manifest["layers"] *= 1001
    data = json.dumps(image.manifest).encode()
    entry = {
        **ENTRY,
        "digest": digest_of(data),
        "size": len(data),
        "platform": {"architecture": "amd64", "os": "linux"},
    }

    def change(web: WebServer) -> None:
        if listed == "in an index":
            web.pages[f"{BASE}/manifests/{digest_of(data)}"] = typed(data, str(ENTRY["mediaType"]))
            index_of(entry)(web, image)

    with serve_image(image, change) as web:
        with pytest.raises(ImageError, match=r"team/app:1` has 1001 layers; 1000 are allowed"):
            pull(web, blobs)
        assert not [path for path in web.paths() if "/blobs/" in path]
    assert_nothing_staged(blobs)


def refuse_with(challenge: str) -> Callable[[Any], None]:
    return lambda handler: handler.send(401, b'{"errors":[{"code":"UNAUTHORIZED"}]}', WWW_Authenticate=challenge)


@pytest.mark.parametrize("way", ["redirect", "foreign layer"])
def test_another_hosts_question_for_a_login_is_not_answered(blobs: BlobStore, tmp_path: Path, way: str) -> None:
    """The host that a layer is redirected to, or kept at, asks for a token of itself: the registry's password is not for it."""
    image = FakeImage()
    layer = image.manifest["layers"][0]
    with serve_image(image) as web, serve_web() as thief:
        url = f"http://localhost:{thief.server_address[1]}"
        thief.pages["/token"] = b'{"token": "t"}'
        thief.pages["/*"] = refuse_with(f'Bearer realm="{url}/token",service="fake"')
        if way == "foreign layer":
            layer.update(
                mediaType="application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", urls=[f"{url}/layer"]
            )
            image.serve(web)
        else:
            web.pages[image.layer] = redirect_to(f"{url}/layer", 307)
        for path, answer in list(web.pages.items()):
            web.pages[path] = needs_login(answer)
        with pytest.raises(ImageError):
            pull(web, blobs, authfile=login_file(tmp_path, web))
        assert credentials_seen(web) and credentials_seen(thief) == []
    assert_nothing_staged(blobs)


def test_the_password_goes_to_the_registrys_place_of_tokens_and_not_beyond(blobs: BlobStore, tmp_path: Path) -> None:
    """Where tokens are to be had is the registry's to say, on another host too, as Docker's own registry does: it could as well
    ask for the password itself. A host that the place of tokens redirects to learns nothing."""
    image = FakeImage()
    with serve_image(image) as web, serve_web() as tokens, serve_web() as thief:
        thief.pages["/*"] = b'{"token": "t"}'
        tokens.pages["/token"] = redirect_to(f"http://127.0.0.1:{thief.server_address[1]}/token", 307)
        realm = f"http://localhost:{tokens.server_address[1]}/token"
        for path, answer in list(web.pages.items()):
            web.pages[path] = needs_login(answer, f'Bearer realm="{realm}",service="fake"')
        pull(web, blobs, authfile=login_file(tmp_path, web))
        assert {headers.get("Authorization") for _, headers in web.seen} == {None, "Bearer t"}
        assert credentials_seen(tokens) and thief.paths() and credentials_seen(thief) == []


def test_names(firebuild_cli: Cli) -> None:
    """The grammar itself is tested without a process; here, that it is asked before anything is touched."""
    for name in ("a/../b:1", "a\u202eb:1"):
        for command in (["pull", "--", name], ["rm", "--", name]):
            assert firebuild_cli.refused("image", *command).status == 125
    assert not any((firebuild_cli.state / "store" / "blobs" / "sha256").iterdir())
    assert os.listdir(firebuild_cli.state / "store" / "ingest") == []
