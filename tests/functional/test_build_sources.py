"""Sources of builds that are kept or come from elsewhere: files of ADD that did not change, images of OCI layouts."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from firebuild.build.sources.httpcache import HttpCache
from firebuild.build.sources.spec import ImageContext, parse_named_context
from firebuild.build.sources.url import parse_url
from firebuild.config.settings import load_settings
from firebuild.engine.bases import list_layouts, resolve_base
from firebuild.engine.cache import list_cache, prune_cache
from firebuild.engine.core import Engine
from firebuild.errors import ContextError, ImageError, RegistryError
from tests.support.contexts import Bench, bench, web
from tests.support.web import Answer, Handler, WebServer
from tests.unit.build.fakes import Workshop

__all__ = ["bench", "web"]


def versioned(versions: list[tuple[str, bytes]], header: str = "ETag") -> Answer:
    """A page whose last version counts: a name for it, and its bytes. It answers conditional requests."""

    def answer(handler: Handler) -> None:
        name, body = versions[-1]
        asked = handler.headers.get("If-None-Match" if header == "ETag" else "If-Modified-Since")
        handler.send(304, b"", **{header: name}) if asked == name else handler.send(200, body, **{header: name})

    return answer


@pytest.mark.parametrize("header", ["ETag", "Last_Modified"])
def test_a_file_that_did_not_change_is_not_fetched_again(
    bench: Bench, web: WebServer, tmp_path: Path, header: str
) -> None:
    names = (
        ['"one"', '"two"'] if header == "ETag" else ["Mon, 02 Jan 2006 15:04:05 GMT", "Tue, 03 Jan 2006 15:04:05 GMT"]
    )
    versions = [(names[0], b"first")]
    web.pages["/f"] = versioned(versions, header.replace("_", "-") if header != "ETag" else header)
    bench.cache = HttpCache(tmp_path / "http")
    text = f"FROM debian:12\nADD {web.url}/f /f\n"
    bench.build(dockerfile=text)
    assert bench.workshop.guest.copies[-1]["tar"] == {"0": b"first"}
    again = bench.build(dockerfile=text)
    assert not again.booted and again.cached == again.steps
    field = "If-None-Match" if header == "ETag" else "If-Modified-Since"
    assert [headers.get(field) for _, headers in web.seen] == [None, names[0]]

    # What runs again takes the bytes that were kept.
    bench.build(dockerfile=text.replace("debian:12\n", "debian:12\nRUN other\n"))
    assert bench.workshop.guest.copies[-1]["tar"] == {"0": b"first"}
    assert len(web.seen) == 3

    versions.append((names[1], b"second"))
    bench.build(dockerfile=text)
    assert bench.workshop.guest.copies[-1]["tar"] == {"0": b"second"}
    assert bench.recorder.reason("ADD").endswith("/f changed")


def test_a_checksum_that_is_kept_asks_nobody(bench: Bench, web: WebServer, tmp_path: Path) -> None:
    import hashlib

    web.pages["/f"] = versioned([('"one"', b"data")])
    bench.cache = HttpCache(tmp_path / "http")
    digest = hashlib.sha256(b"data").hexdigest()
    for command in ("one", "two"):
        bench.build(dockerfile=f"FROM debian:12\nRUN {command}\nADD --checksum=sha256:{digest} {web.url}/f /f\n")
        assert bench.workshop.guest.copies[-1]["tar"] == {"0": b"data"}
    assert len(web.seen) == 1


@pytest.mark.parametrize("damage", ["changed", "gone", "no record"])
def test_what_was_kept_and_is_damaged_is_fetched(bench: Bench, web: WebServer, tmp_path: Path, damage: str) -> None:
    web.pages["/f"] = versioned([('"one"', b"data")])
    bench.cache = HttpCache(tmp_path / "http")
    text = f"FROM debian:12\nADD {web.url}/f /f\n"
    bench.build(dockerfile=text)
    [kept] = bench.cache.list_kept()
    body, record = (tmp_path / "http" / f"{kept.key}.{suffix}" for suffix in ("body", "json"))
    if damage == "changed":
        body.write_bytes(b"DATA")
    elif damage == "gone":
        body.unlink()
    else:
        record.write_text("{")
    bench.build(dockerfile=text, no_cache=True)
    assert bench.workshop.guest.copies[-1]["tar"] == {"0": b"data"}
    fetched = bench.cache.open(bench.cache.list_kept()[0], parse_url(f"{web.url}/f", ("http",)))
    assert fetched is not None
    with fetched.file as file:
        assert file.read() == b"data"


def test_a_server_that_names_no_version_is_asked_each_time(bench: Bench, web: WebServer, tmp_path: Path) -> None:
    web.pages["/f"] = b"data"
    bench.cache = HttpCache(tmp_path / "http")
    for _ in range(2):
        bench.build(dockerfile=f"FROM debian:12\nADD {web.url}/f /f\n")
    assert len(web.seen) == 2 and bench.cache.list_kept() == []


# -- image layouts ----------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    settings = load_settings({"FIREBUILD_STATE": str(tmp_path / "state"), "FIREBUILD_RUN": str(tmp_path / "run")})[0]
    with Engine(settings) as opened:
        yield opened


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A layout of two images, `one` and `two`, as skopeo writes them."""
    (tmp_path / "shop").mkdir()
    shop = Workshop(tmp_path / "shop")
    for name in ("one", "two"):
        shop.add_image(name, {"name": name.encode()})
        source = f"oci:{shop.blobs.root}:docker.io/library/{name}:latest"
        target = f"oci:{tmp_path / 'layout'}:{name}"
        argv = ["skopeo", "--insecure-policy", "copy", "--dest-oci-accept-uncompressed-layers", source, target]
        subprocess.run(argv, check=True, capture_output=True, timeout=120)
    shop.database.close()
    return tmp_path / "layout"


def test_a_named_context_of_an_image_layout(engine: Engine, layout: Path, tmp_path: Path) -> None:
    name, context = parse_named_context(f"base=oci-layout://{layout}:two", lambda _: False)
    assert name == "base" and isinstance(context, ImageContext) and context.reference is not None
    image = resolve_base(engine, context.reference, layouts=list_layouts({name: context}))
    assert image.reference is None and engine.blobs.has(image.layers[0].digest)
    _, other = parse_named_context(f"base=oci-layout://{layout}:one", lambda _: False)
    assert isinstance(other, ImageContext) and other.reference is not None
    assert resolve_base(engine, other.reference, layouts=list_layouts({name: other})).chain_id != image.chain_id
    text = f"base=oci-layout://{layout}:one@{image.manifest_digest}"
    _, pinned = parse_named_context(text, lambda _: False)
    assert isinstance(pinned, ImageContext) and pinned.reference is not None
    found = resolve_base(engine, pinned.reference, layouts=list_layouts({name: pinned}))
    assert found.manifest_digest == image.manifest_digest, "the digest counts, not the tag"


def test_layouts_that_are_none(engine: Engine, layout: Path, tmp_path: Path) -> None:
    for path, error in (
        (tmp_path, ContextError),
        (tmp_path / "absent", ContextError),
        (f"{layout}:three", RegistryError),
        (f"{layout}@sha256:{'0' * 64}", ImageError),
    ):
        name, context = parse_named_context(f"base=oci-layout://{path}", lambda _: False)
        assert isinstance(context, ImageContext) and context.reference is not None
        with pytest.raises(error) as caught:
            resolve_base(engine, context.reference, layouts=list_layouts({name: context}))
        assert str(path).rpartition("/")[2].partition(":")[0].partition("@")[0] in caught.value.message


def test_what_add_fetched_is_listed_and_pruned(engine: Engine, bench: Bench, web: WebServer) -> None:
    web.pages["/f"] = versioned([('"one"', b"data")])
    bench.cache = engine.http_cache
    bench.build(dockerfile=f"FROM debian:12\nADD {web.url}/f /f\n")
    [entry] = list_cache(engine)
    assert (entry.kind, entry.size_bytes, entry.description) == ("file", 4, f"{web.url}/f")
    assert prune_cache(engine, lambda each: True).size_bytes == 4
    assert list_cache(engine) == []
