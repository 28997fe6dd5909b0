"""Servers that lie, never end or lead elsewhere, and trees that try to escape: each ends in its error, in time."""

from __future__ import annotations

import io
import os
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firebuild.build.sources import http as http_module
from firebuild.build.sources.address import rank_address
from firebuild.build.sources.http import FetchLimits, fetch
from firebuild.build.sources.scratch import Scratch, sweep_scratch
from firebuild.build.sources.url import parse_url
from firebuild.errors import ContextError, DeadlineError, FirebuildError
from tests.support.contexts import Bench, bench, make_archive, web
from tests.support.ledger import Watch
from tests.support.web import Answer, WebServer, lie_about_length, pour, raw, redirect_to, serve_web

__all__ = ["bench", "web"]

LIMITS = FetchLimits(bytes=100_000, timeout_s=4, stall_s=1, slow_bytes=1000, slow_s=1.5)
HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def scratch(private_folders: Watch) -> Iterator[Scratch]:
    with Scratch(private_folders.state / "scratch") as made:
        yield made
    assert not list((private_folders.state / "scratch").glob("*"))


def get(url: str, scratch: Scratch, limits: FetchLimits = LIMITS) -> bytes:
    fetched = fetch(parse_url(url, ("http", "https")), scratch, limits)
    with fetched.file as file:
        return file.read()


def fail(url: str, scratch: Scratch) -> FirebuildError:
    start = time.monotonic()
    with pytest.raises((ContextError, DeadlineError)) as caught:
        get(url, scratch)
    assert time.monotonic() - start < 60
    return caught.value


LIES: list[tuple[Answer, str]] = [
    (lambda handler: handler.send(404, b"a page"), "404"),
    (lambda handler: handler.send(500, b"a page"), "500"),
    (lambda handler: handler.send(206, b"a part"), "206"),
    (lambda handler: handler.send(204, b""), "204"),
    (lambda handler: handler.send(304, b""), "304"),
    (lambda handler: handler.send(300, b""), "300"),
    (lambda handler: handler.send(401, b"", WWW_Authenticate="Basic"), "401"),
    (lie_about_length(5000, b"x" * 100), "cut short"),
    (lie_about_length(10**15, b"x"), "at most"),
    (pour(b"x" * 10_000), "more than 100000 bytes"),
    (pour(b"x", 0.3), "slow"),
    (pour(b"X-Y: z\r\n", 0.05, HEAD), "answer"),
    (pour(b"X-Y: z\r\n", 0.0, HEAD), "HTTP"),
    (pour(b"y" * 1000, 0.0, HEAD + b"X: "), "HTTP"),
    (pour(b"", 0.1, b""), "answer"),
    (pour(b"5\r\nhello\r\n", 0.0, HEAD + b"Transfer-Encoding: chunked\r\n\r\n"), "more than 100000 bytes"),
    (raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel"), "cut short"),
    (raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"), "cut short"),
    (raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello"), "cut short"),
    (raw(b"SSH-2.0-OpenSSH\r\n"), "HTTP"),
    (raw(b""), "HTTP"),
    (raw(b"HTTP/1.1 abc\r\n\r\n"), "HTTP"),
    (raw(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + b"x" * 200_000), "more than 100000 bytes"),
    (raw(b"HTTP/1.1 302 Found\r\n\r\n"), "without saying where"),
    (redirect_to("/loop"), "more than 5 times"),
    (redirect_to("file:///etc/passwd"), "somewhere else"),
    (redirect_to("ftp://127.0.0.1/x"), "somewhere else"),
    (redirect_to("http://user:pw@127.0.0.1/x"), "credentials"),
    (redirect_to("http://169.254.169.254/latest/meta-data"), "link-local address"),
    (redirect_to("http://[fe80::1]/x"), "link-local address"),
    (redirect_to("http://[::ffff:169.254.169.254]/x"), "link-local address"),
    (redirect_to("http://0xa9fea9fe/x"), "link-local address"),
    (raw(HEAD + b"Content-Le"), "closed in the middle"),
    (raw(HEAD), "closed in the middle"),
    (raw(b"HTTP/1.1 302 Found\r\nLocation: /x"), "closed in the middle"),
    (redirect_to("http://127.0.0.1:99999/x"), "not a URL"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(LIES)))
def test_a_lying_server(scratch: Scratch, web: WebServer, number: int) -> None:
    web.pages["/loop"] = LIES[number][0]
    assert LIES[number][1] in fail(f"{web.url}/loop", scratch).message


def test_what_a_good_server_does(scratch: Scratch, web: WebServer) -> None:
    web.pages["/file"] = b"x" * 100_000
    web.pages["/plain"] = raw(HEAD + b"\r\nuntil the end")
    web.pages["/chunked"] = raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    for number in range(1, 6):
        web.pages[f"/{number}"] = redirect_to(
            f"/{number - 1}" if number > 1 else "file", (301, 302, 303, 307, 308)[number - 1]
        )
    assert get(f"{web.url}/5", scratch) == b"x" * 100_000
    assert get(f"{web.url}/plain", scratch) == b"until the end"
    assert get(f"{web.url}/chunked", scratch) == b"hello"


def test_no_server(scratch: Scratch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert "refused" in fail(f"http://127.0.0.1:{port}/x", scratch).message
    assert "name is not known" in fail("http://nowhere.invalid/x", scratch).message


def test_a_server_without_tls(scratch: Scratch, web: WebServer) -> None:
    assert "cannot be fetched" in fail(web.url.replace("http", "https") + "/x", scratch).message


def test_credentials_stay_with_their_origin(scratch: Scratch, web: WebServer) -> None:
    with serve_web() as other:
        other.pages["/x"] = b"found"
        web.pages["/away"] = redirect_to(f"{other.url}/x")
        web.pages["/here"] = redirect_to("/away")
        assert get(web.url.replace("//", "//user:pw@") + "/here", scratch) == b"found"
        assert all("Authorization" in headers for _, headers in web.seen) and len(web.seen) == 2
        assert not any("Authorization" in headers for _, headers in other.seen)


def test_a_redirect_comes_no_closer(scratch: Scratch, web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the first server were elsewhere: its redirect to this host is refused, and this host is not asked."""
    with serve_web() as inner:
        inner.pages["/secret"] = b"secret"
        web.pages["/x"] = redirect_to(f"{inner.url}/secret")
        port = web.server_address[1]
        ranks = {"public": 0, "private": 1}
        for kind, rank in ranks.items():

            def resolve(url: object, here: object, bound: int, *, rank: int = rank) -> tuple[list[str], int]:
                found = rank if here.effective_port == port else 2  # type: ignore[attr-defined]
                http_module._check_rank(url, here, bound, found)  # type: ignore[arg-type]
                return ["127.0.0.1"], found

            monkeypatch.setattr(http_module, "_resolve", resolve)
            assert "loopback address" in fail(f"{web.url}/x", scratch).message, kind
        assert inner.paths() == []


def test_no_way_back_from_tls(scratch: Scratch, web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "_start_tls", lambda connection, host: None)  # the server speaks plain HTTP
    web.pages["/x"] = redirect_to(f"{web.url}/y")
    assert "not encrypted" in fail(web.url.replace("http", "https") + "/x", scratch).message


def test_a_proxy_is_used(scratch: Scratch, web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", web.url.replace("//", "//me:pw@"))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    web.pages["http://files.invalid/x"] = b"through the proxy"
    assert get("http://files.invalid/x?q=1", scratch) == b"through the proxy"
    path, headers = web.seen[-1]
    assert (
        path == "http://files.invalid/x?q=1" and headers["Host"] == "files.invalid" and "Proxy-Authorization" in headers
    )


def test_a_canceled_fetch_ends_at_once(scratch: Scratch, web: WebServer) -> None:
    web.pages["/x"] = pour(b"", 0.1, HEAD + b"\r\n")
    canceled = threading.Event()
    found: list[BaseException] = []

    def run() -> None:
        try:
            fetch(parse_url(f"{web.url}/x", ("http",)), scratch, FetchLimits(), canceled=canceled)
        except ContextError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not web.seen:
        thread.join(0.05)
    canceled.set()
    thread.join(30)
    assert not thread.is_alive() and "given up" in str(found[0])


def test_nothing_is_cached_of_a_failure(bench: Bench, web: WebServer) -> None:
    text = f"FROM debian:12\nADD {web.url}/x /x\n"
    web.pages["/x"] = lie_about_length(5000, b"x")
    assert isinstance(bench.fail(text), ContextError)
    web.pages["/x"] = b"good"
    assert not bench.build(text).cached and bench.workshop.guest.copies[-1]["tar"] == {"0": b"good"}


# -- archives ----------------------------------------------------------------------------------------------------------


def tar_of(*infos: tuple[str, bytes, str]) -> bytes:
    """name, type, link target."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, link in infos:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            archive.addfile(info)
        for name in ("Dockerfile", "good"):
            data = b"FROM debian:12\nCOPY . /x\n"
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


HOSTILE = {
    "up": (("../evil", tarfile.REGTYPE, ""),),
    "deep up": (("a/../../evil", tarfile.REGTYPE, ""),),
    "hard link out": (("x", tarfile.LNKTYPE, "../../etc/passwd"),),
    "hard link to nothing": (("x", tarfile.LNKTYPE, "/etc/passwd"),),
    "below a link": (("l", tarfile.SYMTYPE, "/etc"), ("l/x", tarfile.REGTYPE, "")),
    "below a file": (("l", tarfile.REGTYPE, ""), ("l/x", tarfile.REGTYPE, "")),
    "device": (("d", tarfile.CHRTYPE, ""),),
    "fifo": (("p", tarfile.FIFOTYPE, ""),),
    "unknown": (("u", b"Q", ""),),
    "sparse": (("s", tarfile.GNUTYPE_SPARSE, ""),),
    "long": (("n" * 300, tarfile.REGTYPE, ""),),
    "very deep": (("d/" * 300 + "x", tarfile.REGTYPE, ""),),
    "empty link": (("e", tarfile.SYMTYPE, ""),),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_an_archive_that_is_no_context(bench: Bench, name: str) -> None:
    error = bench.fail(None, "-", stdin=tar_of(*HOSTILE[name]))
    assert isinstance(error, ContextError), error
    assert bench.workshop.boots == 0 and not Path("/evil").exists()


ADD_FAILS = {"device", "up", "deep up", "hard link out", "unknown", "sparse", "long", "very deep", "empty link"}


@pytest.mark.parametrize("name", sorted(set(HOSTILE) - {"hard link to nothing"}))
def test_an_archive_that_add_unpacks(bench: Bench, name: str) -> None:
    """What the host can judge it refuses; the rest is the guest's, below the destination of its layer."""
    (bench.workshop.context / "x.tar").write_bytes(tar_of(*HOSTILE[name]))
    text, here = "FROM debian:12\nADD x.tar /opt/\n", str(bench.workshop.context)
    if name in ADD_FAILS:
        error = bench.fail(text, here)
        assert isinstance(error, ContextError) and "archive `x.tar`" in error.message
        assert error.message.startswith("Dockerfile:2:")
    else:
        bench.build(text, here)


@pytest.mark.parametrize("damage", ["cut", "flipped", "trailing", "garbage"])
def test_a_damaged_archive(bench: Bench, damage: str) -> None:
    data = make_archive(
        {"Dockerfile": "FROM debian:12\nCOPY . /\n", "x": "y" * 100_000}, "w:gz" if damage != "trailing" else "w"
    )
    data = {
        "cut": data[: len(data) // 2], "flipped": data[:-20] + b"\xff" * 12 + data[-8:],
        "garbage": b"\x1f\x8b\x08" + os.urandom(1000), "trailing": data,
    }[damage]  # fmt: skip
    if damage == "trailing":
        bench.build(None, "-", stdin=data + b"junk" * 1000)  # behind the end nobody reads, as with tar(1)
    else:
        assert isinstance(bench.fail(None, "-", stdin=data), FirebuildError)


@pytest.mark.parametrize("kind", ["gzip", "xz", "zstd", "bzip2"])
def test_a_bomb(bench: Bench, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from firebuild.build.sources import tartree
    from firebuild.images.compression import ExpansionLimits, load_zstd

    monkeypatch.setattr(tartree, "PLAIN_LIMITS", ExpansionLimits(bytes=8 << 20, ratio=2000, ratio_from_bytes=1 << 20))
    info = tarfile.TarInfo("zeros")
    info.size = 1 << 30
    plain = tar_of()[:-1024] + info.tobuf() + bytes(64 << 20)
    if kind == "zstd":
        data = load_zstd().compress(plain)
    else:
        import bz2
        import gzip
        import lzma

        packers: dict[str, Callable[[bytes], bytes]] = {
            "gzip": gzip.compress,
            "xz": lzma.compress,
            "bzip2": bz2.compress,
        }
        data = packers[kind](plain)
    error = bench.fail(None, "-", stdin=data)
    assert "expands" in error.message


# -- folders -----------------------------------------------------------------------------------------------------------


def test_a_file_that_changes_while_it_is_read(bench: Bench) -> None:
    path = bench.workshop.context / "x"
    path.write_bytes(b"a" * 3_000_000)
    writing = threading.Event()
    done = threading.Event()

    def rewrite() -> None:
        while not done.is_set():
            with open(path, "r+b") as file:
                file.write(os.urandom(16))
            writing.set()

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        writing.wait(10)
        error = bench.fail("FROM debian:12\nCOPY x /\n", str(bench.workshop.context))
        assert "changed while it was being read" in error.message
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_special_files_are_refused_by_name(bench: Bench, kind: str) -> None:
    path = bench.workshop.context / "special"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        os.mknod(path, 0o20600, os.makedev(1, 3))
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    for source in (".", "special", "spec*"):
        for instruction in ("COPY", "ADD"):
            error = bench.fail(f"FROM debian:12\n{instruction} {source} /x/\n", str(bench.workshop.context))
            assert "`special`" in error.message


def test_links_out_of_a_context(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "context-evil").mkdir()
    (tmp_path / "context-evil" / "x").write_text("secret")
    context = bench.workshop.context
    (context / "out").symlink_to("/etc/shadow")
    (context / "sibling").symlink_to("../context-evil")
    for source in ("out", "sibling/x", "../context-evil/x", "sibling"):
        error = bench.fail(f"FROM debian:12\nCOPY {source} /x\n", str(context))
        assert isinstance(error, ContextError) and "secret" not in str(error.details)
    (context / "Dockerfile").symlink_to("/etc/shadow")
    assert "root:" not in str(bench.fail(None, str(context)).details)
    (context / ".dockerignore").symlink_to("/etc/shadow")
    bench.build("FROM debian:12\nCOPY . /x/\n", str(context))
    assert bench.workshop.guest.copies[-1]["tar"]["0/out"] == b"-> /etc/shadow"


# -- what is left ------------------------------------------------------------------------------------------------------


def test_killed_builds_are_swept(private_folders: Watch) -> None:
    root = private_folders.state / "scratch"
    with Scratch(root) as running:
        (running.make_folder("git") / "x").write_text("x")
        pid = os.fork()
        if pid == 0:
            Scratch(root).make_folder("git")
            os._exit(0)
        os.waitpid(pid, 0)
        assert len(list(root.iterdir())) == 4
        assert len(sweep_scratch(root)) == 1 and running.folder.exists()
        assert len(list(root.iterdir())) == 2
    assert not list(root.iterdir())


def test_rank_of_addresses() -> None:
    expected = {
        "8.8.8.8": 0, "2606:4700::1": 0, "10.1.2.3": 1, "192.168.0.1": 1, "100.64.0.1": 1, "fd00::1": 1, "224.0.0.1": 1,
        "127.0.0.1": 2, "127.9.9.9": 2, "::1": 2, "0.0.0.0": 2, "::": 2, "::ffff:127.0.0.1": 2, "64:ff9b::7f00:1": 2,
        "169.254.169.254": 3, "fe80::1": 3, "fe80::1%lo": 3, "::ffff:169.254.1.1": 3,
    }  # fmt: skip
    assert {text: rank_address(text) for text in expected} == expected
