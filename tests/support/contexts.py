"""Builds from real servers against a fake build machine: what the functional tests of contexts share."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from firebuild.build.build import build_image
from firebuild.build.materials import Materials
from firebuild.build.services import BuildRequest, BuildResult
from firebuild.build.sources.gitaccess import GitLimits, SshAccess
from firebuild.build.sources.http import FetchLimits
from firebuild.build.sources.httpcache import HttpCache
from firebuild.build.sources.inputs import InputOpener, Inputs
from firebuild.build.sources.remote import RemoteSources
from firebuild.build.sources.scratch import Scratch
from firebuild.build.sources.spec import parse_context, parse_dockerfile_source, parse_named_context
from firebuild.errors import FirebuildError
from firebuild.events.progress import NullSink, Reporter
from firebuild.names import parse_reference
from tests.support.ledger import Watch
from tests.support.web import Repository, WebServer, git_backend, make_repository, serve_web
from tests.unit.build.fakes import Recorder, Tree, Workshop

DOCKERFILE = "FROM debian:12\nCOPY app.txt /app/\n"


class Bench:
    """Builds against a fake machine, from what a user would write."""

    def __init__(self, workshop: Workshop, scratch: Path) -> None:
        self.workshop = workshop
        self.scratch = scratch
        self.ssh = SshAccess()
        self.http = FetchLimits(timeout_s=20, stall_s=5)
        self.git = GitLimits(timeout_s=60)
        self.cache: HttpCache | None = None
        self.materials = Materials()
        self.recorder = Recorder()

    def open(
        self, resources: ExitStack, dockerfile: str | None, context: str | None, stdin: bytes | None = None
    ) -> tuple[Inputs, InputOpener, Scratch]:
        scratch = resources.enter_context(Scratch(self.scratch))
        own = RemoteSources(
            scratch, self.ssh, http_limits=self.http, git_limits=self.git, materials=self.materials
        )  # fmt: skip
        remote = resources.enter_context(own)
        opener = InputOpener(
            resources, scratch, remote, Reporter(NullSink()),
            stdin=None if stdin is None else io.BytesIO(stdin), http_limits=self.http,
        )  # fmt: skip
        inputs = opener.open(
            None if dockerfile is None else parse_dockerfile_source(dockerfile, os.path.exists),
            None if context is None else parse_context(context, os.path.exists),
        )
        return inputs, opener, scratch

    def build(
        self, dockerfile: str | None = None, context: str | None = None, *, stdin: bytes | None = None,
        contexts: tuple[str, ...] = (), rank: int | None = None, **options: Any,
    ) -> BuildResult:  # fmt: skip
        self.recorder, self.materials = Recorder(), Materials()
        with ExitStack() as resources:
            inputs, opener, scratch = self.open(resources, dockerfile, context, stdin)
            remote = RemoteSources(
                scratch,
                self.ssh,
                rank=inputs.rank if rank is None else rank,
                http_limits=self.http,
                git_limits=self.git,
                cache=self.cache,
                materials=self.materials,
            )
            request = BuildRequest(
                dockerfile=inputs.dockerfile, name=inputs.name, context=inputs.tree, identity=inputs.identity,
                contexts=dict(parse_named_context(text, os.path.exists) for text in contexts),
                open_tree=opener.open_tree, remote=resources.enter_context(remote), progress=self.recorder,
                tags=[parse_reference("test/result:1")], materials=self.materials, **options,
            )  # fmt: skip
            return build_image(request, self.workshop.services())

    def added(self, *arguments: Any, **options: Any) -> Tree:
        """What the build's last copy sent, by path below the item."""
        self.build(*arguments, **options)
        return {
            name.partition("/")[2] if "/" in name else name: content
            for name, content in self.workshop.guest.copies[-1]["tar"].items()
        }

    def fail(self, *arguments: Any, **options: Any) -> FirebuildError:
        with pytest.raises(FirebuildError) as caught:
            self.build(*arguments, **options)
        self.check_nothing_left()
        return caught.value

    def check_nothing_left(self) -> None:
        assert not list(self.scratch.iterdir()) if self.scratch.exists() else True


@pytest.fixture
def bench(tmp_path: Path, private_folders: Watch) -> Iterator[Bench]:
    workshop = Workshop(tmp_path)
    workshop.add_image("debian:12", {"bin/sh": b"shell"})
    made = Bench(workshop, private_folders.state / "scratch")
    yield made
    made.check_nothing_left()
    workshop.check_nothing_left()
    workshop.database.close()


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serve_web() as server:
        yield server


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = make_repository(tmp_path / "git" / "app")
    made.commit({"Dockerfile": DOCKERFILE, "app.txt": "one", "sub/Dockerfile": DOCKERFILE, "sub/app.txt": "of sub"})
    made.git("tag", "-a", "v1", "-m", "first")
    made.git("branch", "old")
    made.commit({"app.txt": "two", "run.sh": "+x#!/bin/sh\n", "link": "-> app.txt", "out": "-> /etc/passwd"})
    return made


@pytest.fixture
def git_url(web: WebServer, repository: Repository) -> str:
    # Below the repository's own folder: `/app/.git` is what is served, as `/app.git`.
    (repository.folder.parent / "app.git").symlink_to(repository.folder / ".git")
    web.pages["/*"] = git_backend(repository.folder.parent)
    return f"{web.url}/app.git"


def make_archive(files: dict[str, str], mode: str = "w:gz") -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode) as archive:  # type: ignore[call-overload]
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            info.uid, info.mode = 1000, 0o640
            archive.addfile(info, io.BytesIO(text.encode()))
    return target.getvalue()
