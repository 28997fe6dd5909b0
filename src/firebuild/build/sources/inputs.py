"""The inputs of a build: the Dockerfile's text and the tree that COPY takes from, whatever the user's words mean."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from firebuild.build.context import BuildContext
from firebuild.build.filedigests import FileDigests
from firebuild.build.sources.address import ANY_RANK, rank_host
from firebuild.build.sources.gitref import GitSource
from firebuild.build.sources.scratch import Scratch
from firebuild.build.sources.spec import HttpSource, InlineSource, LocalSource, Source, StdinSource
from firebuild.build.sources.url import Url
from firebuild.build.tree import ContextTree
from firebuild.dockerfile.ignore import ignore_file_names, parse_ignore
from firebuild.errors import ContextError, UsageError
from firebuild.events.progress import Reporter
from firebuild.events.text import neutralise

if TYPE_CHECKING:
    from firebuild.build.sources.fetched import Fetched
    from firebuild.build.sources.http import FetchLimits
    from firebuild.build.sources.remote import RemoteSources
    from firebuild.build.sources.tartree import TarTree

DEFAULT_NAME = "Dockerfile"
DOCKERFILE_LIMIT = 1 << 20
IGNORE_LIMIT = 1 << 20
_STDIN_LIMIT = 64 << 30
_SNIFF = 4096


class Inputs(msgspec.Struct, frozen=True):
    """`name`: the Dockerfile's, as messages show it; `tree`: None for a build without a context, ignore files applied;
    `identity`: names the Dockerfile across builds; `rank`: how close an address may be that the Dockerfile names."""

    dockerfile: bytes
    name: str
    tree: ContextTree | None
    identity: str
    rank: int = ANY_RANK


class InputOpener:
    """Opens what a user named. What it opens belongs to `resources`. All methods raise ContextError, UsageError,
    DeadlineError and HostError. `stdin`: where `-` is read from;
    `digests`: where those of files are kept between builds."""

    def __init__(
        self,
        resources: ExitStack,
        scratch: Scratch,
        remote: RemoteSources,
        reporter: Reporter,
        *,
        stdin: BinaryIO | None = None,
        http_limits: FetchLimits | None = None,
        digests: Path | None = None,
    ) -> None:
        self._resources = resources
        self._scratch = scratch
        self._remote = remote
        self._reporter = reporter
        self._stdin = stdin
        self._http_limits = http_limits
        self._digests = digests

    def open(self, dockerfile: Source | None, context: Source | None) -> Inputs:
        """Open --dockerfile and the context argument; one of them may be missing."""
        if dockerfile is None and context is None:
            raise UsageError(
                "name a Dockerfile or a build context", hint="firebuild rootfs --dockerfile Dockerfile --tag org/name:1"
            )
        if context is None or dockerfile is None:
            source = dockerfile if context is None else context
            assert source is not None, "one of both is there"
            return self._open_whole(source)
        if isinstance(dockerfile, StdinSource) and isinstance(context, StdinSource):
            raise UsageError("standard input cannot be both the Dockerfile and the build context")
        if isinstance(context, LocalSource) and Path(context.path).is_dir():
            return self._open_beside(dockerfile, self._open_local(context.path))
        tree = self.open_tree(context)
        if isinstance(dockerfile, LocalSource):
            rank = _rank_of(context.url) if isinstance(context, GitSource | HttpSource) else ANY_RANK
            return self._from_tree(tree, dockerfile.path, f"{tree.place}: {dockerfile.path}", rank)
        return self._open_beside(dockerfile, tree)

    def open_tree(self, source: Source) -> ContextTree:
        """A build context on its own, its .dockerignore applied: a named context, or the one that --dockerfile is not in."""
        tree: ContextTree
        if isinstance(source, LocalSource):
            path = Path(source.path)
            if path.is_file() and _is_packed(_read_head(path)):
                tree = self._open_tar(self._resources.enter_context(_open_regular(path)), source.path)
            else:
                tree = self._open_local(source.path)
        elif isinstance(source, GitSource):
            if source.dockerfile:
                raise UsageError(
                    f"`{source.shown}` names a Dockerfile, not a build context", hint="write `#ref:folder`"
                )
            tree = self._open_git(source)
        elif isinstance(source, HttpSource):
            fetched = self._fetch(source.url)
            if not _is_packed_file(fetched):
                raise ContextError(f"`{source.url.shown}` is no archive, and so no build context")
            tree = self._open_tar(fetched.file, source.url.shown)
        elif isinstance(source, StdinSource):
            file = self._spool_stdin()
            if not _is_packed(_read_all(file)):
                raise ContextError("standard input is no archive, and so no build context")
            tree = self._open_tar(file, "standard input")
        else:
            raise UsageError("the text of a Dockerfile is no build context")
        apply_ignore(tree, "")
        return tree

    # -- one source for both -------------------------------------------------------------------------------------------

    def _open_whole(self, source: Source) -> Inputs:
        if isinstance(source, InlineSource):
            data = source.text.encode("utf-8", "surrogateescape")
            return Inputs(data, DEFAULT_NAME, None, "the Dockerfile on the command line")
        if isinstance(source, StdinSource):
            return self._open_stdin()
        if isinstance(source, HttpSource):
            return self._open_http(source.url)
        if isinstance(source, GitSource):
            folder, _, name = source.dockerfile.rpartition("/")
            # The Dockerfile's own folder is the context, as for one on this host.
            whole = GitSource(
                source.url, source.scp, source.ref, folder or source.subdir, "", source.checksum, source.keep_git_dir,
                source.submodules,
            )  # fmt: skip
            tree = self._open_git(whole)
            return self._from_tree(tree, name or DEFAULT_NAME, source.shown, _rank_of(source.url))
        path = Path(source.path)
        if path.is_dir():
            return self._from_tree(self._open_local(source.path), DEFAULT_NAME, str(path.absolute()), ANY_RANK)
        if _is_packed(_read_head(path)):
            file = self._resources.enter_context(_open_regular(path))
            return self._from_tree(self._open_tar(file, source.path), DEFAULT_NAME, str(path.absolute()), ANY_RANK)
        tree = self._open_local(str(path.parent))
        return self._open_beside(source, tree)

    def _open_stdin(self) -> Inputs:
        file = self._spool_stdin()
        if _is_packed(_read_all(file)):
            return self._from_tree(
                self._open_tar(file, "standard input"), DEFAULT_NAME, "the archive on standard input", ANY_RANK
            )
        data = file.read(DOCKERFILE_LIMIT + 1)
        return Inputs(_check_size(data, "standard input"), DEFAULT_NAME, None, "the Dockerfile on standard input")

    def _open_http(self, url: Url) -> Inputs:
        fetched = self._fetch(url)
        rank = _rank_of(url)
        if _is_packed_file(fetched):
            return self._from_tree(self._open_tar(fetched.file, url.shown), DEFAULT_NAME, url.shown, rank)
        data = _check_size(fetched.file.read(DOCKERFILE_LIMIT + 1), url.shown)
        from firebuild.build.sources.httptree import HttpTree

        tree = self._resources.enter_context(HttpTree(url, self._scratch, self._http_limits))
        return Inputs(data, url.shown, tree, url.shown, rank)

    def _from_tree(self, tree: ContextTree, path: str, identity: str, rank: int) -> Inputs:
        data = read_from_tree(tree, path)
        apply_ignore(tree, path)
        name = path if isinstance(tree, BuildContext) and rank == ANY_RANK else f"{tree.place}: {path}"
        return Inputs(data, name, tree, identity, rank)

    # -- a Dockerfile, and a tree from elsewhere -----------------------------------------------------------------------

    def _open_beside(self, dockerfile: Source, tree: ContextTree) -> Inputs:
        """The Dockerfile is on this host, or from anywhere but the tree; the tree's ignore file counts."""
        if isinstance(dockerfile, LocalSource):
            path = Path(dockerfile.path)
            if path.is_dir():
                path = path / DEFAULT_NAME
            with _open_regular(path) as file:
                data = _check_size(file.read(DOCKERFILE_LIMIT + 1), str(path))
            if not _apply_own_ignore(tree, path):
                apply_ignore(tree, "")
            return Inputs(data, dockerfile.path, tree, str(path.absolute()))
        text = self._read_dockerfile(dockerfile)
        apply_ignore(tree, "")
        return Inputs(text.dockerfile, text.name, tree, f"{text.identity} in {tree.place}", text.rank)

    def _read_dockerfile(self, source: Source) -> Inputs:
        if isinstance(source, HttpSource):
            fetched = self._fetch(source.url)
            data = _check_size(fetched.file.read(DOCKERFILE_LIMIT + 1), source.url.shown)
            return Inputs(data, source.url.shown, None, source.url.shown, _rank_of(source.url))
        if isinstance(source, StdinSource):
            data = _check_size(self._spool_stdin().read(DOCKERFILE_LIMIT + 1), "standard input")
            return Inputs(data, DEFAULT_NAME, None, "the Dockerfile on standard input")
        return self._open_whole(source)

    # -- kinds ---------------------------------------------------------------------------------------------------------

    def _open_local(self, path: str) -> BuildContext:
        folder = Path(path)
        if not folder.is_dir():
            raise ContextError(
                f"the build context `{neutralise(path)}` {'is not a folder' if folder.exists() else 'does not exist'}"
            )
        digests = FileDigests(self._digests, folder.absolute()) if self._digests is not None else None
        return self._resources.enter_context(BuildContext(folder.absolute(), digests=digests))

    def _open_git(self, source: GitSource) -> ContextTree:
        with self._reporter.step(f"[internal] load git source {neutralise(source.shown)}") as report:
            tree = self._remote.open_repository(source, keep_git_dir=bool(source.keep_git_dir and not source.subdir))
            report.note(f"folder {tree.place}")
            return tree

    def _fetch(self, url: Url) -> Fetched:
        from firebuild.build.sources.http import fetch

        with self._reporter.step(f"[internal] load remote build context {neutralise(url.shown)}"):
            fetched = fetch(url, self._scratch, self._http_limits, canceled=self._remote.canceled)
            self._resources.callback(fetched.file.close)
            self._remote.materials.note_file(url.shown, fetched.sha256)
            return fetched

    def _open_tar(self, file: BinaryIO, shown: str) -> TarTree:
        with self._reporter.step("[internal] read the archive of the build context"):
            subject = f"`{neutralise(shown)}`"
            file.seek(0)
            from firebuild.build.sources.tartree import TarTree, spool_plain

            plain = self._resources.enter_context(spool_plain(file, subject, self._scratch))
            return self._resources.enter_context(TarTree(plain, subject))

    def _spool_stdin(self) -> BinaryIO:
        if self._stdin is None:
            raise UsageError("there is no standard input to read")
        with self._reporter.step("[internal] read standard input"):
            file = self._scratch.open_file()
            self._resources.callback(file.close)
            total = 0
            while chunk := self._stdin.read(1 << 18):
                total += len(chunk)
                if total > _STDIN_LIMIT:
                    raise ContextError(f"standard input has more than {_STDIN_LIMIT >> 30} GiB")
                file.write(chunk)
            if not total:
                raise ContextError("standard input is empty", hint="pipe a Dockerfile or an archive into it")
            file.flush()
            file.seek(0)
            return file


def can_reopen(dockerfile: Source | None, context: Source | None) -> bool:
    """Whether opening both again gives what their owner has made of them since: they are paths of this host."""
    return all(source is None or isinstance(source, LocalSource) for source in (dockerfile, context))


def read_from_tree(tree: ContextTree, path: str) -> bytes:
    """A Dockerfile in a tree; links are followed inside it only. Raises ContextError."""
    entry = tree.find_resolved(path)
    if entry is None and path == DEFAULT_NAME:
        entry = tree.find_resolved(path.lower())  # as BuildKit does
    if entry is None or entry.kind != "file":
        what = "has no" if entry is None else "has something else than a file as"
        raise ContextError(
            f"the build context `{neutralise(tree.place)}` {what} `{neutralise(path)}`",
            hint="name the Dockerfile with --dockerfile",
        )
    if entry.size > DOCKERFILE_LIMIT:
        raise ContextError(f"the Dockerfile `{neutralise(path)}` has more than {DOCKERFILE_LIMIT >> 20} MiB")
    return b"".join(tree.read_chunks(entry))


def apply_ignore(tree: ContextTree, dockerfile_path: str) -> None:
    """Hide what the tree's ignore file names: `<Dockerfile>.dockerignore` before `.dockerignore`. Raises DockerfileError."""
    for name in ignore_file_names(dockerfile_path) if dockerfile_path else (".dockerignore",):
        entry = tree.find_resolved(name)
        if entry is not None and entry.kind == "file":
            if entry.size > IGNORE_LIMIT:
                raise ContextError(f"`{neutralise(name)}` is larger than {IGNORE_LIMIT >> 20} MiB")
            tree.hide(parse_ignore(b"".join(tree.read_chunks(entry)), name))
            return


def _apply_own_ignore(tree: ContextTree, dockerfile: Path) -> bool:
    """`<Dockerfile>.dockerignore` beside a Dockerfile on this host, wherever that lies."""
    path = dockerfile.with_name(dockerfile.name + ".dockerignore")
    if not path.is_file():
        return False
    with _open_regular(path) as file:
        data = file.read(IGNORE_LIMIT + 1)
    if len(data) > IGNORE_LIMIT:
        raise ContextError(f"`{path}` is larger than {IGNORE_LIMIT >> 20} MiB")
    tree.hide(parse_ignore(data, path.name))
    return True


def _is_packed(pieces: Iterator[bytes]) -> bool:
    from firebuild.build.sources.archive import is_packed

    return is_packed(pieces)


def _is_packed_file(fetched: Fetched) -> bool:
    from firebuild.build.sources.streams import read_file

    return _is_packed(read_file(fetched))


def _rank_of(url: Url) -> int:
    try:
        return rank_host(url)
    except OSError:
        return 0  # only the proxy knows it: then it is elsewhere


def _check_size(data: bytes, shown: str) -> bytes:
    if len(data) > DOCKERFILE_LIMIT:
        raise ContextError(f"the Dockerfile `{neutralise(shown)}` has more than {DOCKERFILE_LIMIT >> 20} MiB")
    return data


@contextmanager
def _open_regular(path: Path) -> Iterator[BinaryIO]:
    try:
        # Without O_NONBLOCK a FIFO would hold the build up for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ContextError(f"the Dockerfile `{neutralise(str(path))}` cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ContextError(
                f"the Dockerfile `{neutralise(str(path))}` is not a file", hint="`-` reads standard input"
            )
        yield file


def _read_head(path: Path) -> Iterator[bytes]:
    with _open_regular(path) as file:
        while chunk := file.read(1 << 18):
            yield chunk


def _read_all(file: BinaryIO) -> Iterator[bytes]:
    position = 0
    while chunk := os.pread(file.fileno(), 1 << 18, position):
        position += len(chunk)
        yield chunk
