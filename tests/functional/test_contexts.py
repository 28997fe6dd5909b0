"""Build contexts and remote sources from real servers: each kind gives the tree that it means, and nothing is left."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from firebuild.errors import ContextError, DockerfileError
from tests.support.contexts import DOCKERFILE, Bench, bench, git_url, make_archive, repository, web
from tests.support.web import Repository, WebServer

__all__ = ["bench", "git_url", "repository", "web"]


# -- HTTP --------------------------------------------------------------------------------------------------------------


def test_a_dockerfile_with_its_files_beside_it(bench: Bench, web: WebServer) -> None:
    web.pages["/a/b/Dockerfile"] = b"FROM debian:12\nCOPY app.txt conf/x.txt /app/\n"
    web.pages["/a/b/app.txt"] = b"app"
    web.pages["/a/b/conf/x.txt"] = b"conf"
    bench.build(f"{web.url}/a/b/Dockerfile")
    assert bench.workshop.guest.copies[-1]["tar"] == {"0": b"app", "1": b"conf"}
    assert web.paths() == ["/a/b/Dockerfile", "/a/b/app.txt", "/a/b/conf/x.txt"]


@pytest.mark.parametrize(
    "source", ["missing.txt", ".", "*.txt", "conf/", "../secret", "../b-evil/x", "%2e%2e/secret", "x?y"]
)
def test_what_does_not_lie_beside_it(bench: Bench, web: WebServer, source: str) -> None:
    web.pages["/a/b/Dockerfile"] = f"FROM debian:12\nCOPY {source} /app/\n".encode()
    web.pages["/a/secret"] = web.pages["/a/b-evil/x"] = b"secret"
    assert isinstance(bench.fail(f"{web.url}/a/b/Dockerfile"), ContextError)
    assert not {"/a/secret", "/a/b-evil/x"} & set(web.paths())


def test_a_dockerfile_from_a_url_with_a_context_here(bench: Bench, web: WebServer) -> None:
    web.pages["/Dockerfile"] = DOCKERFILE.encode()
    (bench.workshop.context / "app.txt").write_text("here")
    assert bench.added(f"{web.url}/Dockerfile", str(bench.workshop.context)) == {"0": b"here"}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_an_archive_from_a_url(bench: Bench, web: WebServer, mode: str) -> None:
    files = {"Dockerfile": DOCKERFILE, "./app.txt": "packed", "deep/D": DOCKERFILE}
    web.pages["/context"] = make_archive(files, mode)
    assert bench.added(None, f"{web.url}/context") == {"0": b"packed"}
    assert bench.added("deep/D", f"{web.url}/context", no_cache=True) == {"0": b"packed"}


# -- standard input, files and text -------------------------------------------------------------------------------------


def test_standard_input(bench: Bench) -> None:
    archive = make_archive({"Dockerfile": DOCKERFILE, "app.txt": "piped", ".dockerignore": "*.log"})
    assert bench.added(None, "-", stdin=archive) == {"0": b"piped"}
    assert bench.added("-", None, stdin=archive, no_cache=True) == {"0": b"piped"}
    bench.build("-", stdin=b"FROM debian:12\nRUN x\n")
    assert [spec.argv[-1] for spec in bench.workshop.guest.ran] == ["x"]
    (bench.workshop.context / "app.txt").write_text("here")
    assert bench.added("-", str(bench.workshop.context), stdin=DOCKERFILE.encode()) == {"0": b"here"}
    assert "no context" in bench.fail("-", stdin=DOCKERFILE.encode()).message
    assert "empty" in bench.fail("-", stdin=b"").message
    assert "both" in bench.fail("-", "-", stdin=b"x").message


def test_inline_local_and_archive_files(bench: Bench, tmp_path: Path) -> None:
    context = bench.workshop.context
    (context / "app.txt").write_text("here")
    (context / "Dockerfile").write_text(DOCKERFILE)
    assert bench.added(DOCKERFILE, str(context)) == {"0": b"here"}
    for arguments in (
        ((context / "Dockerfile"), None),
        (None, context),
        (context / "Dockerfile", context),
        (context, None),
    ):
        words = [None if each is None else str(each) for each in arguments]
        assert bench.added(*words, no_cache=True) == {"0": b"here"}
    (tmp_path / "context.tar.xz").write_bytes(make_archive({"Dockerfile": DOCKERFILE, "app.txt": "xz"}, "w:xz"))
    assert bench.added(None, str(tmp_path / "context.tar.xz"), no_cache=True) == {"0": b"xz"}
    bench.build("FROM debian:12\nRUN y")
    assert bench.workshop.guest.ran[-1].argv[-1] == "y"


def test_a_path_in_an_archive_or_a_repository(bench: Bench, git_url: str, tmp_path: Path) -> None:
    files = {"deep/D": DOCKERFILE, "app.txt": "packed", "x.log": "x", "deep/D.dockerignore": "*.log"}
    (tmp_path / "c.tar").write_bytes(make_archive(files, "w"))
    assert bench.added("deep/D", str(tmp_path / "c.tar")) == {"0": b"packed"}
    assert bench.added("sub/Dockerfile", f"{git_url}#v1", no_cache=True) == {"0": b"one"}
    assert "nothing/D" in bench.fail("nothing/D", git_url).message
    (bench.workshop.context / "dockerfile").write_text("FROM debian:12\nRUN lower\n")
    bench.build(None, str(bench.workshop.context))
    assert bench.workshop.guest.ran[-1].argv[-1] == "lower"


def test_an_ignore_file_of_the_dockerfile_elsewhere(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "D").write_text("FROM debian:12\nCOPY . /x\n")
    (tmp_path / "other" / "D.dockerignore").write_text("*.log\n")
    (bench.workshop.context / "a.log").write_text("x")
    (bench.workshop.context / "a.txt").write_text("x")
    assert "a.log" not in bench.added(str(tmp_path / "other" / "D"), str(bench.workshop.context))


@pytest.mark.parametrize("what", ["fifo", "folder-less", "device", "folder", "socket"])
def test_a_dockerfile_that_is_no_file(bench: Bench, tmp_path: Path, what: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    paths = {
        "fifo": tmp_path / "pipe",
        "folder-less": tmp_path / "none" / "D",
        "device": Path("/dev/zero"),
        "folder": tmp_path / "empty",
        "socket": tmp_path / "socket",
    }
    error = bench.fail(str(paths[what]))
    assert isinstance(error, ContextError)
    assert str(paths[what]) in str(error)


# -- named contexts ----------------------------------------------------------------------------------------------------


def test_named_contexts(bench: Bench, git_url: str, tmp_path: Path) -> None:
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "n.txt").write_text("named")
    (tmp_path / "named" / "n.log").write_text("hidden")
    (tmp_path / "named" / ".dockerignore").write_text("*.log")
    bench.workshop.add_image("other:1", {"etc/other": b"other"})
    bench.build(
        "FROM debian:12\nCOPY --from=folder . /a/\nCOPY --from=repo app.txt /b\nCOPY --from=image /etc/other /c\n",
        contexts=(f"folder={tmp_path / 'named'}", f"repo={git_url}#v1", "image=docker-image://other:1"),
    )
    first, second = (copy["tar"] for copy in bench.workshop.guest.copies)
    assert first["0/n.txt"] == b"named" and "0/n.log" not in first
    assert second == {"0": b"one"}
    bench.build("FROM base\nRUN x\n", contexts=(f"base={tmp_path / 'named'}",))
    assert bench.workshop.guest.copies[-1]["dest"] == "/"
    bench.build("FROM debian:12 AS made\nRUN never\nFROM debian:12\nCOPY --from=made n.txt /\n",
                contexts=(f"made={tmp_path / 'named'}",), no_cache=True)  # fmt: skip
    assert not bench.workshop.guest.ran
    bench.build("FROM alpine\nRUN z\n", contexts=("alpine=docker-image://debian:12",))
    assert "debian:12" in bench.workshop.resolved and "alpine:latest" not in bench.workshop.resolved


def test_contexts_that_cannot_be(bench: Bench, web: WebServer) -> None:
    web.pages["/x"] = b"no archive"
    file = "FROM debian:12\nCOPY --from=c x /\n"
    assert "no archive" in bench.fail(file, contexts=(f"c={web.url}/x",)).message
    assert "does not exist" in bench.fail(file, contexts=("c=/nowhere",)).message
    assert "names no image layout" in bench.fail(file, contexts=("c=oci-layout://a:b:c",)).message


# -- ADD ---------------------------------------------------------------------------------------------------------------


def test_add_of_a_url(bench: Bench, web: WebServer) -> None:
    def page(handler: Any) -> None:
        handler.send(200, b"body", Last_Modified="Sat, 04 Nov 2023 21:17:22 GMT")

    web.pages["/d/some%20file.txt"] = page
    bench.build(f"FROM debian:12\nADD --chmod=644 {web.url}/d/some%20file.txt?x=1 /opt/\n")
    copy = bench.workshop.guest.copies[-1]
    assert [item.name for item in copy["items"]] == ["some file.txt"] and copy["tar"] == {"0": b"body"}
    assert (copy["chmod"], copy["dest"]) == ("644", "/opt/")


def test_add_is_cached_by_what_the_url_holds(bench: Bench, web: WebServer) -> None:
    web.pages["/x"] = b"1"
    text = f"FROM debian:12\nADD {web.url}/x /x\n"
    assert not bench.build(text).cached
    assert bench.build(text).cached == 1
    web.pages["/x"] = b"2"
    assert not bench.build(text).cached
    assert "changed" in bench.recorder.reason("ADD")


def test_add_with_a_checksum(bench: Bench, web: WebServer) -> None:
    import hashlib

    web.pages["/x"] = b"1"
    text = f"FROM debian:12\nADD --checksum=sha256:{hashlib.sha256(b'1').hexdigest()} {web.url}/x /x\n"
    assert not bench.build(text).cached
    seen = len(web.seen)
    assert bench.build(text).cached == 1 and len(web.seen) == seen, "what is pinned and cached touches no network"
    web.pages["/x"] = b"2"
    error = bench.fail(text, no_cache=True)
    assert isinstance(error, ContextError) and "--checksum" in error.message
    assert bench.build(text).cached == 1


def test_add_of_archives(bench: Bench, web: WebServer) -> None:
    archive = make_archive({"a/b": "packed"})
    (bench.workshop.context / "x.tgz").write_bytes(archive)
    web.pages["/x.tgz"] = archive
    here = str(bench.workshop.context)
    assert bench.added("FROM debian:12\nADD x.tgz /opt/\n", here) == {"a/b": b"packed"}
    assert bench.added("FROM debian:12\nADD --unpack=false x.tgz /opt/\n", here) == {"0": archive}
    assert bench.added("FROM debian:12\nCOPY x.tgz /opt/\n", here) == {"0": archive}
    assert bench.added(f"FROM debian:12\nADD {web.url}/x.tgz /opt/\n") == {"0": archive}
    assert bench.added(f"FROM debian:12\nADD --unpack=true {web.url}/x.tgz /opt/\n") == {"a/b": b"packed"}
    assert [item.kind for item in bench.workshop.guest.copies[-1]["items"]] == ["archive"]


def test_add_of_a_repository(bench: Bench, git_url: str, repository: Repository) -> None:
    text = f"FROM debian:12\nADD {git_url}#v1 /src/\n"
    tree = bench.added(text)
    assert tree["app.txt"] == b"one" and ".git" not in tree
    repository.commit({"later": "x"})
    assert bench.build(text).cached == 1, "the tag's commit is the same"
    assert bench.added(f"FROM debian:12\nADD {git_url}#v1:sub /src/\n")["app.txt"] == b"of sub"
    kept = bench.added(f"FROM debian:12\nADD --keep-git-dir=true {git_url}#old /src/\n")
    assert kept[".git/HEAD"] is not None and "old" not in (kept[".git/HEAD"] or b"").decode()
    config = (kept[".git/config"] or b"").decode()
    assert git_url in config
    main = f"FROM debian:12\nADD {git_url} /src/\n"
    bench.build(main)
    repository.commit({"later": "y"})
    assert not bench.build(main).cached
    commit = repository.git("rev-parse", "HEAD")
    assert bench.added(f"FROM debian:12\nADD --checksum={commit} {git_url} /s/\n")["later"] == b"y"


def test_secrets_of_sources_leave_no_trace(bench: Bench, web: WebServer) -> None:
    import base64

    web.pages["/x"] = b"1"
    address = web.url.replace("http://", "http://user:sesame@")
    result = bench.build(f"FROM debian:12\nADD {address}/x /x\n")
    assert web.seen[-1][1]["Authorization"] == "Basic " + base64.b64encode(b"user:sesame").decode()
    facts = bench.workshop.database.query_one("SELECT explain FROM steps")
    for text in (repr(result.image), repr(bench.recorder.events), str(dict(facts or {}))):
        assert "sesame" not in text
    error = bench.fail(f"FROM debian:12\nADD {address}/none /x\n")
    assert "404" in error.message and "sesame" not in error.message + (error.details or "")


def test_a_strangers_dockerfile_reaches_nothing_private(bench: Bench, web: WebServer, git_url: str) -> None:
    web.pages["/x"] = b"1"
    for line in (f"ADD {web.url}/x /x", f"ADD {git_url} /x"):
        error = bench.fail(f"FROM debian:12\n{line}\n", rank=0)
        assert isinstance(error, ContextError) and "refused" in error.message
    assert web.paths() == []


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("ADD --checksum=sha256:00 https://example.com/x /", "not a checksum"),
        ("ADD --checksum=md5:00 https://example.com/x /", "not a checksum"),
        ("ADD --keep-git-dir https://example.com/x /", "needs a git source"),
        ("ADD --checksum=abc https://example.com/x.git /", "commit's checksum"),
        ("ADD https://example.com/x.git#../../x /", "not a git ref"),
        ("ADD https://example.com/x.git#main:../x /", "leads out"),
        ("ADD https://example.com/x.git#--upload-pack=x /", "not a git ref"),
        ("ADD ssh://-oProxyCommand=x/y /", "no valid host"),
        ("COPY https://example.com/x /", "COPY takes no remote source"),
        ("COPY git@example.com:x/y.git /", "COPY takes no remote source"),
        ("ADD --checksum=sha256:00 x /", "--checksum needs"),
    ],
)  # fmt: skip
def test_adds_that_mean_nothing(bench: Bench, line: str, text: str) -> None:
    error = bench.fail(f"FROM debian:12\n{line}\n", str(bench.workshop.context))
    assert isinstance(error, DockerfileError) and text in error.message and bench.workshop.boots == 0
