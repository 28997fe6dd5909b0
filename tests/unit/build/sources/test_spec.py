"""What users write for a Dockerfile or a context: every form means one thing, and no form can be taken for an option."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebuild.build.sources.gitref import GitSource, is_commit, looks_like_git, parse_git
from firebuild.build.sources.remote import parse_remote
from firebuild.build.sources.spec import (
    HttpSource,
    ImageContext,
    InlineSource,
    LocalSource,
    StdinSource,
    normalise_context_name,
    parse_context,
    parse_dockerfile_source,
    parse_named_context,
)
from firebuild.build.sources.url import parse_url, redact_urls
from firebuild.errors import DockerfileError, UsageError


def no(_: str) -> bool:
    return False


GIT = {
    # text: remote, ref, subdir, dockerfile
    "https://example.com/foo.git": ("https://example.com/foo.git", "", "", ""),
    "https://example.com/foo.git#deadbeef": ("https://example.com/foo.git", "deadbeef", "", ""),
    "https://example.com/foo.git#release/1.2": ("https://example.com/foo.git", "release/1.2", "", ""),
    "https://github.com/foo/bar.git#baz/qux:quux/quuz": ("https://github.com/foo/bar.git", "baz/qux", "quux/quuz", ""),
    "https://github.com/docker/docker.git#:myfolder": ("https://github.com/docker/docker.git", "", "myfolder", ""),
    "https://github.com/docker/docker.git?ref=v1.0.0&subdir=/subdir": (
        "https://github.com/docker/docker.git", "v1.0.0", "subdir", "",
    ),
    "https://example.com/x.git?tag=v1": ("https://example.com/x.git", "refs/tags/v1", "", ""),
    "https://example.com/x.git?branch=refs/heads/b": ("https://example.com/x.git", "refs/heads/b", "", ""),
    "git://example.com/foo": ("git://example.com/foo", "", "", ""),
    "git@github.com:moby/buildkit": ("git@github.com:moby/buildkit", "", "", ""),
    "git@github.com:moby/buildkit.git#v1:sub": ("git@github.com:moby/buildkit.git", "v1", "sub", ""),
    "ssh://git@example.com:2222/a/b#main": ("ssh://git@example.com:2222/a/b", "main", "", ""),
    "github.com/moby/buildkit": ("https://github.com/moby/buildkit", "", "", ""),
    "https://foo:bar@github.com/moby/buildkit.git": ("https://github.com/moby/buildkit.git", "", "", ""),
    # The original's.
    "git+https://example.com/a/b.git:/0.X/Dockerfile#main": ("https://example.com/a/b.git", "main", "", "0.X/Dockerfile"),
    "git+http://example.com/a/b": ("http://example.com/a/b", "", "", ""),
    "git+ssh://git@example.com/a/b.git:/Dockerfile": ("ssh://git@example.com/a/b.git", "", "", "Dockerfile"),
    "ssh://git@example.com:22/a.git:/x/y#v1": ("ssh://git@example.com:22/a.git", "v1", "", "x/y"),
    "git://example.com/a.git:/Dockerfile#refs/tags/v1": ("git://example.com/a.git", "refs/tags/v1", "", "Dockerfile"),
    "git@example.com:a/b.git:/D": ("git@example.com:a/b.git", "", "", "D"),
    "https://[::1]:8443/a.git": ("https://[::1]:8443/a.git", "", "", ""),
}  # fmt: skip


@pytest.mark.parametrize("text", sorted(GIT))
def test_git_forms(text: str) -> None:
    found = parse_context(text, no)
    assert isinstance(found, GitSource)
    assert (found.remote, found.ref, found.subdir, found.dockerfile) == GIT[text]
    assert "bar@" not in found.shown and "bar@" not in repr(found)


OTHERS = {
    "-": StdinSource(), ".": LocalSource("."), "./.git": LocalSource("./.git"), "a/b": LocalSource("a/b"),
    "custom.xyz/moby/buildkit.git": LocalSource("custom.xyz/moby/buildkit.git"),
    "FROM scratch": LocalSource("FROM scratch"), "C:\\x": LocalSource("C:\\x"),
}  # fmt: skip


@pytest.mark.parametrize("text", sorted(OTHERS))
def test_other_contexts(text: str) -> None:
    assert parse_context(text, no) == OTHERS[text]


@pytest.mark.parametrize(
    "text",
    ["https://example.com/", "https://example.com/foo", "https://example.com/foo.git/", "https://example.com/foo.git.bar",
     "http://example.com/Dockerfile?x=y.git", "HTTP://EXAMPLE.com/x.tar.gz"],
)  # fmt: skip
def test_urls_that_are_no_repositories(text: str) -> None:
    found = parse_context(text, no)
    assert isinstance(found, HttpSource) and found.url.host == "example.com"


def test_a_path_wins_over_a_short_name() -> None:
    assert parse_context("github.com/x/y", lambda path: True) == LocalSource("github.com/x/y")
    assert parse_context("me@host:file", lambda path: True) == LocalSource("me@host:file")
    assert isinstance(parse_context("https://x.org/y.git", lambda path: True), GitSource)


@pytest.mark.parametrize(
    "text", ["FROM scratch", "from scratch", "FROM a\nRUN b", "\nFROM x", "ARG X=1 ", "# x\nFROM y"]
)
def test_inline_dockerfiles(text: str) -> None:
    assert parse_dockerfile_source(text, no) == InlineSource(text)


@pytest.mark.parametrize("text", ["Dockerfile", "FROMAGE", "from", "build/FROM x", "# x", "RUN"])
def test_paths_of_dockerfiles(text: str) -> None:
    assert parse_dockerfile_source(text, no) == LocalSource(text)
    assert parse_dockerfile_source("FROM scratch", lambda path: True) == LocalSource("FROM scratch")


HOSTILE = [
    "",  "file:///etc", "git+file:///etc/x", "git+ext://x/y", "ftp://example.com/x", "javascript://x",
    "ssh://-oProxyCommand=x/y", "ssh://-x@example.com/y", "git+ssh://git:pw@example.com/x", "git@-host:x", "git@host:-x/y",
    "git@host:", "ssh://example.com", "ssh://example.com/", "git+https:///x", "https:///x.git", "https://:80/x.git",
    "https://exa mple.com/x.git", "https://example.com/x\x00.git", "https://example.com/x\n.git#a", "https://ex\\ample/x.git",
    "https://example.com:99999/x.git", "https://example.com:0/x.git", "https://example.com:x/x.git",
    "https://example.com/x.git#-x", "https://example.com/x.git#--upload-pack=x", "https://example.com/x.git#a..b",
    "https://example.com/x.git#a b", "https://example.com/x.git#a~1", "https://example.com/x.git#a^{}",
    "https://example.com/x.git#a@{1}", "https://example.com/x.git#a*", "https://example.com/x.git#@",
    "https://example.com/x.git#a.lock", "https://example.com/x.git#%2d%2dx", "https://example.com/x.git#" + "a" * 300,
    "https://example.com/x.git#a:../b", "https://example.com/x.git#a:b/../../c", "https://example.com/x.git#a:%2e%2e/c",
    "https://example.com/x.git#a:.git/hooks", "https://example.com/x.git#a:x/.GIT", "https://example.com/x.git#a:%00",
    "https://example.com/x.git?ref=a&ref=b", "https://example.com/x.git?ref=", "https://example.com/x.git?what=1",
    "https://example.com/x.git?ref=a#b", "https://example.com/x.git?tag=a&branch=b", "https://example.com/x.git?submodules=x",
    "https://example.com/x.git?checksum=zz", "https://example.com/x.git?subdir=a#b:c", "git+https://example.com/x.git:/",
    "git+https://example.com/x.git:/../D", "git+https://example.com/x.git:/D#a:b", "git+https://example.com/x.git:/.git/config",
    "http://" + "x" * 9000, "http://user:p\x7fw@example.com/", "http://user:p%0aw@example.com/",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_forms(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_context(text, no)
    assert len(caught.value.message) < 1000 and caught.value.message.isprintable()


@given(
    st.text(max_size=80), st.sampled_from(["", "https://", "git+https://h/", "ssh://", "git@h:", "http://u:sesame@h/"])
)
def test_any_text_is_a_source_or_a_usage_error(text: str, prefix: str) -> None:
    try:
        found = parse_dockerfile_source(prefix + text, no)
    except UsageError as error:
        assert "sesame" not in error.message or "sesame" in text
        return
    if isinstance(found, GitSource):
        assert not found.remote.startswith("-") and not found.ref.startswith("-")
        assert ".." not in found.subdir.split("/") and not found.subdir.startswith("/")
        assert found.url.scheme in ("http", "https", "ssh", "git") and not found.url.host.startswith("-")
        assert re.search(r"[\x00-\x20]", found.remote + found.ref) is None or found.scp


@given(st.text(alphabet="abc/.-_@:~^*[ 0", max_size=30))
def test_refs_are_what_git_allows(ref: str) -> None:
    try:
        found = parse_git(f"https://h/x.git?ref={ref}" if ref else "https://h/x.git").ref
    except UsageError:
        return
    assert found == ref.replace("+", " ") and not found.startswith(("-", ".", "/")) and ".." not in found
    assert not set(found) & set(" ~^:?*[\\")


@given(
    st.from_regex(r"[a-z0-9]{1,8}(:[a-z0-9@%]{0,8})?", fullmatch=True), st.sampled_from(["http", "https", "git+https"])
)
def test_credentials_are_in_no_text(login: str, scheme: str) -> None:
    text = f"{scheme}://{login}-sesame@example.com/x.git#main"
    try:
        found = parse_git(text)
    except UsageError as refusal:
        # A control character behind a percent sign.
        assert "%" in login and "sesame" not in f"{refusal}{refusal.hint}{refusal.details}"
        return
    for shown in (found.shown, found.remote, repr(found), redact_urls(f"a {text} b"), str(found.url)):
        assert "sesame" not in shown
    assert found.url.login is not None


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("ADD https://u:p@h/x /", "ADD https://h/x /"), ("https://u:p@ss@h/x", "https://h/x"), ("http://h/a@b", "http://h/a@b"),
        ("ssh://git@h/x", "ssh://git@h/x"), ("ssh://git:pw@h/x", "ssh://git@h/x"), ("git@h:x", "git@h:x"),
        ("HTTPS://T0KEN@h", "HTTPS://h"), ("a http://x:y@h b ftp://q@i", "a http://h b ftp://i"),
    ],
)  # fmt: skip
def test_redaction(text: str, clean: str) -> None:
    assert redact_urls(text) == clean


def test_names_of_fetched_files() -> None:
    names = {
        "http://h/a/b.txt": "b.txt", "http://h/a/b.txt?x=/y": "b.txt", "http://h/": "__unnamed__", "http://h": "__unnamed__",
        "http://h/a/": "a", "http://h/a%20b": "a b", "http://h/a%2Fb": "b", "http://h/..": "__unnamed__", "http://h/x%00": "__unnamed__",
    }  # fmt: skip
    assert {text: parse_url(text, ("http",)).name for text in names} == names


def test_joined_urls() -> None:
    base = parse_url("https://u:p@h/a/b?q", ("https",))
    joined = {
        "c": "https://h/a/c",
        "/c": "https://h/c",
        "//i/c": "https://i/c",
        "http://i:80/c#f": "http://i:80/c",
        "?z": "https://h/a/b?z",
    }
    assert {text: base.join(text).text for text in joined} == joined
    assert all(base.join(text).login is None for text in joined)


def test_named_contexts() -> None:
    assert parse_named_context("Alpine=.", no) == ("alpine", LocalSource("."))
    assert parse_named_context("docker.io/library/alpine:latest=x", no)[0] == "alpine"
    assert parse_named_context("alpine:3=x", no)[0] == "alpine:3"
    assert parse_named_context("a=docker-image://scratch", no) == ("a", ImageContext(None))
    _, found = parse_named_context("a=docker-image://debian:12", no)
    assert isinstance(found, ImageContext) and found.reference is not None and found.reference.familiar == "debian:12"
    for text in (
        "a",
        "=x",
        "a=",
        "a b=x",
        "a=-",
        "a=oci-layout://",
        "a=oci-layout:///x@sha256:0",
        "a=oci-layout:///x@sha512:" + "0" * 128,
        "a=oci-layout://@sha256:" + "0" * 64,
        "a=oci-layout://x:1:2",
        "a=target:x",
        "a=container:x",
        "-a=x",
    ):
        with pytest.raises(UsageError):
            parse_named_context(text, no)
    assert normalise_context_name("docker.io/library/debian:latest") == normalise_context_name("debian") == "debian"


def test_sources_of_add() -> None:
    assert parse_remote("a/b.txt") is None and parse_remote("github.com/x/y") is None
    found = parse_remote("https://h/x", checksum="sha256:" + "0" * 64, unpack=True)
    assert found is not None and found.checksum == "0" * 64 and found.unpack
    git = parse_remote("https://h/x.git?keep-git-dir=1#main:d", checksum="0123456")
    assert (
        git is not None and isinstance(git.source, GitSource) and git.keep_git_dir and git.source.checksum == "0123456"
    )
    pinned = parse_remote("https://h/x.git", checksum="a" * 40)
    assert pinned is not None and isinstance(pinned.source, GitSource) and pinned.source.commit == "a" * 40
    for arguments in (
        {"source": "https://h/x", "checksum": "sha512:" + "0" * 128}, {"source": "https://h/x", "keep_git_dir": True},
        {"source": "https://h/x.git", "checksum": "xyz"}, {"source": "https://h/x.git", "unpack": True},
        {"source": "https://h/x.git#" + "a" * 40, "checksum": "b" * 40}, {"source": "https://h/x.git:/D"},
        {"source": "https://h/x.git?keep-git-dir=0", "keep_git_dir": True}, {"source": "https://u:p@-h/x"},
    ):  # fmt: skip
        with pytest.raises(DockerfileError):
            parse_remote(**arguments)


def test_what_looks_like_git() -> None:
    assert not any(map(looks_like_git, ["x", "./git@h:x", "a b@h:x", "http://h/x", "docker.io/x:y", "mailto:me@h:x/"]))
    assert is_commit("0" * 40) and is_commit("f" * 64) and not is_commit("0" * 39) and not is_commit("G" * 40)
