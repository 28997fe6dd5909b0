"""Repositories as contexts, over HTTP and ssh: every form, every ref, submodules, and what a hostile one cannot do."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from firebuild.build.sources.gitaccess import GitLimits, SshAccess
from firebuild.build.tree import ContextTree
from firebuild.errors import ContextError
from tests.support.contexts import Bench, bench, git_url, repository, web
from tests.support.web import (
    Repository,
    SshServer,
    WebServer,
    git_backend,
    make_repository,
    pour,
    redirect_to,
    serve_ssh,
    serve_web,
)

__all__ = ["bench", "git_url", "repository", "web"]


# -- git over HTTP -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "content"),
    [
        ("", b"two"), ("#main", b"two"), ("#old", b"one"), ("#v1", b"one"), ("#refs/tags/v1", b"one"),
        ("#refs/heads/main", b"two"), ("?branch=old", b"one"), ("?tag=v1", b"one"), ("#:sub", b"of sub"),
        ("#v1:sub/", b"of sub"), ("?ref=v1&subdir=sub", b"of sub"),
    ],
)  # fmt: skip
def test_dockers_git_references(bench: Bench, git_url: str, reference: str, content: bytes) -> None:
    assert bench.added(None, git_url + reference) == {"0": content}


@pytest.mark.parametrize(
    ("behind", "content"),
    [("", b"two"), ("#old", b"one"), (":/Dockerfile#v1", b"one"), (":/sub/Dockerfile", b"of sub")],
)
def test_the_originals_git_urls(bench: Bench, git_url: str, behind: str, content: bytes) -> None:
    assert bench.added(f"git+{git_url}{behind}") == {"0": content}


def test_a_commit_by_its_number(bench: Bench, git_url: str, repository: Repository) -> None:
    first = repository.git("rev-parse", "v1^{commit}")
    assert bench.added(None, f"{git_url}#{first}") == {"0": b"one"}
    assert bench.added(None, f"{git_url}#old", no_cache=True) == {"0": b"one"}
    assert bench.added(None, f"{git_url}?ref=old&checksum={first[:12]}", no_cache=True) == {"0": b"one"}
    error = bench.fail(None, f"{git_url}?ref=main&checksum={first}")
    assert isinstance(error, ContextError) and first in error.message


def test_what_came_from_where_is_noted(bench: Bench, git_url: str, repository: Repository, web: WebServer) -> None:
    """Of a context, a named context and of ADD, pinned or not; once each, and without credentials."""
    web.pages["/f"] = b"data"
    sum_of_file = hashlib.sha256(b"data").hexdigest()
    secret = web.url.replace("://", "://user:word@") + "/f"
    dockerfile = (
        f"FROM debian:12\nADD {secret} /f\nADD --checksum=sha256:{sum_of_file} {web.url}/f /g\n"
        f"ADD {git_url}#v1 /one\nCOPY --from=other app.txt /\nCOPY app.txt /\n"
    )
    repository.commit({"Dockerfile": dockerfile})
    built = bench.build(None, git_url, contexts=(f"other={git_url}#old",))
    now, first = repository.git("rev-parse", "main"), repository.git("rev-parse", "v1^{commit}")
    found = {(material.algorithm, material.value) for material in built.materials}
    assert found == {("sha256", sum_of_file), ("sha1", now), ("sha1", first)}
    assert len(built.materials) == 4 and not any("word" in material.uri for material in built.materials)


@pytest.mark.parametrize("ref", ["nothing", "0" * 40, "v1.0", "refs/heads/v1", "deadbeef"])
def test_an_unknown_ref_is_never_the_default_branch(bench: Bench, git_url: str, ref: str) -> None:
    error = bench.fail(None, f"{git_url}#{ref}")
    assert isinstance(error, ContextError) and f"`{ref}`" in error.message


@pytest.mark.parametrize("subdir", ["nothing", "app.txt", "link", "escape"])
def test_a_folder_that_is_none(bench: Bench, git_url: str, repository: Repository, subdir: str) -> None:
    repository.commit({"escape": "-> ../../../../etc"})
    error = bench.fail(None, f"{git_url}#main:{subdir}")
    assert isinstance(error, ContextError) and f"`{subdir}`" in error.message


def test_a_link_in_a_repository_leads_nowhere_else(bench: Bench, git_url: str, repository: Repository) -> None:
    repository.commit({"Dockerfile": "FROM debian:12\nCOPY out /x\n"})
    assert isinstance(bench.fail(None, git_url), ContextError)
    repository.commit({"Dockerfile": "FROM debian:12\nCOPY . /x\n"})
    assert bench.added(None, git_url)["out"] == b"-> /etc/passwd"


def test_a_dockerfile_that_is_a_link_out(bench: Bench, git_url: str, repository: Repository) -> None:
    (repository.folder / "Dockerfile").unlink()
    repository.commit({"Dockerfile": "-> /etc/passwd"})
    error = bench.fail(None, git_url)
    assert "has no `Dockerfile`" in error.message and "root:" not in str(error.details)


def test_git_runs_as_nobody_without_hooks_filters_or_attributes(
    bench: Bench, git_url: str, repository: Repository, tmp_path: Path
) -> None:
    proof = tmp_path / "proof"
    repository.git("config", "filter.evil.smudge", f"touch {proof}")
    repository.commit(
        {".gitattributes": "* filter=evil\n*.txt export-subst\n", "Dockerfile": "FROM debian:12\nCOPY . /x\n"}
    )
    tree = bench.added(None, git_url)
    assert tree["app.txt"] == b"two" and not proof.exists() and ".git" not in tree
    with ExitStack() as resources:
        inputs, _, scratch = bench.open(resources, None, git_url)
        assert isinstance(inputs.tree, ContextTree)
        owners = {path.lstat().st_uid for path in scratch.folder.glob("git-*/tree/*")}
        assert owners == {65534} and scratch.folder.stat().st_mode & 0o777 == 0o711
        assert all(path.stat().st_mode & 0o077 == 0 for path in scratch.folder.glob("git-*"))
        assert not list(scratch.folder.glob("git-*/repository/hooks/*"))


def test_the_context_of_a_repository_has_the_commits_time(bench: Bench, git_url: str) -> None:
    with ExitStack() as resources:
        inputs, _, _ = bench.open(resources, None, git_url)
        assert inputs.tree is not None
        entry = inputs.tree.find_entry("app.txt")
        assert entry is not None and entry.mtime_s == 1767323045


def test_credentials_reach_their_server_only(
    bench: Bench, git_url: str, repository: Repository, web: WebServer
) -> None:
    web.pages["/*"] = git_backend(repository.folder.parent, login="user:pass word")
    with serve_web() as other:
        other.pages["/*"] = git_backend(repository.folder.parent)
        web.pages["/moved.git/info/refs"] = redirect_to(f"{other.url}/app.git/info/refs?service=git-upload-pack")
        address = git_url.replace("http://", "http://user:pass%20word@")
        assert bench.added(None, address) == {"0": b"two"}
        assert bench.added(None, address.replace("/app.git", "/moved.git"), no_cache=True) == {"0": b"two"}
        assert other.seen and not any("Authorization" in headers for _, headers in other.seen)
    wrong = bench.fail(None, git_url.replace("http://", "http://user:sesame@"))
    assert "credentials" in wrong.message
    for text in (wrong.message, wrong.details or "", wrong.hint or "", repr(bench.recorder.events)):
        assert "sesame" not in text and "c2VzYW1l" not in text and "pass" not in text


def test_a_repository_that_is_none(bench: Bench, web: WebServer) -> None:
    assert "no such repository" in bench.fail(None, f"{web.url}/x.git").message
    web.pages["/x.git/info/refs"] = b"<html>"
    assert isinstance(bench.fail(None, f"{web.url}/x.git"), ContextError)


def test_a_repository_that_is_too_large(bench: Bench, git_url: str, repository: Repository) -> None:
    repository.commit({"big": "x" * 200_000})
    bench.git = GitLimits(bytes=100_000)
    assert "more than 100000 bytes" in bench.fail(None, git_url).message
    bench.git = GitLimits(files=3)
    assert "more than 3 files" in bench.fail(None, git_url).message
    (repository.folder / "noise").write_bytes(os.urandom(3_000_000))
    repository.commit({})
    bench.git = GitLimits(pack_bytes=1_000_000)
    error = bench.fail(None, git_url)
    assert "larger than firebuild fetches" in error.message, error.details


def test_a_server_that_never_ends(bench: Bench, web: WebServer) -> None:
    web.pages["/x.git/info/refs"] = pour(b"", 0.05, b"")
    bench.git = GitLimits(timeout_s=2)
    assert bench.fail(None, f"{web.url}/x.git").code in ("deadline", "context")


# -- submodules --------------------------------------------------------------------------------------------------------


def add_submodule(repository: Repository, path: str, url: str, commit: str) -> None:
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
    (repository.folder / ".gitmodules").write_text(f'[submodule "x"]\n\tpath = {path}\n\turl = {url}\n')
    repository.git("add", ".gitmodules")
    repository.git("commit", "--quiet", "-m", "submodule")


@pytest.mark.parametrize("url", ["../part.git", "{web}/part.git"])
def test_submodules_are_fetched_as_docker_does(
    bench: Bench, git_url: str, repository: Repository, web: WebServer, url: str
) -> None:
    part = make_repository(repository.folder.parent / "part")
    commit = part.commit({"inner.txt": "inner"})
    part.commit({"inner.txt": "newer"})
    (part.folder.parent / "part.git").symlink_to(part.folder / ".git")
    repository.commit({"Dockerfile": "FROM debian:12\nCOPY lib /lib/\n"})
    add_submodule(repository, "lib/part", url.format(web=web.url), commit)
    assert bench.added(None, git_url)["part/inner.txt"] == b"inner"
    tree = bench.added(None, f"{git_url}?submodules=0", no_cache=True)
    assert "part" in tree and "part/inner.txt" not in tree


@pytest.mark.parametrize(
    "url", ["file:///etc", "ext::sh -c 'touch /tmp/x'", "/etc", "git://127.0.0.1/x", "-oProxyCommand=x"]
)
def test_a_submodule_by_another_way(bench: Bench, git_url: str, repository: Repository, url: str) -> None:
    add_submodule(repository, "lib", url, "1" * 40)
    error = bench.fail(None, git_url)
    assert isinstance(error, ContextError) and "submodule" in error.message


def test_a_submodule_below_a_link(bench: Bench, git_url: str, repository: Repository, web: WebServer) -> None:
    """CVE-2024-32002's shape: the submodule's path goes through a link of the repository itself."""
    part = make_repository(repository.folder.parent / "part")
    commit = part.commit({"hooks/post-checkout": "+x#!/bin/sh\ntouch /tmp/owned\n"})
    (part.folder.parent / "part.git").symlink_to(part.folder / ".git")
    add_submodule(repository, "A/modules/x", "../part.git", commit)
    blob = repository.git("hash-object", "-w", "--stdin", stdin=b"/tmp")
    repository.git("update-index", "--add", "--cacheinfo", f"120000,{blob},a")
    repository.git("commit", "--quiet", "-m", "link")
    bench.build(None, git_url)
    assert not Path("/tmp/owned").exists() and not Path("/tmp/modules").exists()


# -- git over ssh ------------------------------------------------------------------------------------------------------


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[SshServer]:
    if not Path("/usr/sbin/sshd").exists():
        pytest.skip("openssh-server is not installed")
    (tmp_path / "ssh").mkdir(mode=0o700)
    with serve_ssh(tmp_path / "ssh") as server:
        yield server


@pytest.mark.parametrize(
    "form", ["ssh://root@127.0.0.1:{port}{path}", "git+ssh://root@127.0.0.1:{port}{path}:/sub/Dockerfile"]
)
def test_git_over_ssh(bench: Bench, ssh: SshServer, repository: Repository, form: str) -> None:
    bench.ssh = SshAccess(ssh.agent, (ssh.known_hosts,))
    url = form.format(port=ssh.port, path=repository.folder)
    assert bench.added(url) == {"0": b"of sub" if "sub" in form else b"two"}
    assert bench.added(f"{url}#v1", no_cache=True) == {"0": b"of sub" if "sub" in form else b"one"}


def test_ssh_needs_a_known_host_and_a_key(bench: Bench, ssh: SshServer, repository: Repository, tmp_path: Path) -> None:
    url = f"ssh://root@127.0.0.1:{ssh.port}{repository.folder}"
    bench.ssh = SshAccess(ssh.agent, ())
    assert "key of the host" in bench.fail(url).message
    bench.ssh = SshAccess(None, (ssh.known_hosts,))
    assert "accepts no key" in bench.fail(url).message
    (tmp_path / "other").write_text(ssh.known_hosts.read_text().replace("AAAAC3", "AAAAC4"))
    bench.ssh = SshAccess(ssh.agent, (tmp_path / "other",))
    assert isinstance(bench.fail(url), ContextError)
