"""Remote sources of ADD: a file from a URL, or a repository; what they hold is known before they are sent."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

from firebuild.build.context import BuildContext
from firebuild.build.digest import compute_digest
from firebuild.build.materials import Materials
from firebuild.build.sources.address import ANY_RANK, rank_host
from firebuild.build.sources.gitaccess import GitLimits, SshAccess
from firebuild.build.sources.gitref import GitSource, is_commit, looks_like_git, parse_git
from firebuild.build.sources.items import RemoteItem
from firebuild.build.sources.scratch import Scratch
from firebuild.build.sources.spec import HttpSource
from firebuild.build.sources.url import Url, parse_url
from firebuild.errors import ContextError, DockerfileError, UsageError
from firebuild.guest.items import CopyItem

if TYPE_CHECKING:
    from firebuild.build.sources.fetched import Fetched
    from firebuild.build.sources.git import GitFetcher
    from firebuild.build.sources.http import FetchLimits
    from firebuild.build.sources.httpcache import HttpCache


class RemoteAdd(msgspec.Struct, frozen=True):
    """A remote source of ADD with the flags that matter to it. `checksum`: sha256 hex of a file, or digits of a commit."""

    source: HttpSource | GitSource
    checksum: str = ""
    keep_git_dir: bool = False
    unpack: bool = False


def parse_remote(
    source: str, *, checksum: str = "", keep_git_dir: bool | None = None, unpack: bool | None = None
) -> RemoteAdd | None:
    """The remote source that an ADD's source is, or None for a path. Raises DockerfileError."""
    try:
        if looks_like_git(source):
            git = parse_git(source)
            if git.dockerfile:
                raise UsageError(f"`{git.shown}` names a Dockerfile", hint="ADD takes `#ref:folder`")
            if keep_git_dir is not None and git.keep_git_dir not in (None, keep_git_dir):
                raise UsageError("--keep-git-dir and the source's own keep-git-dir differ")
            pinned = _git_checksum(git, checksum)
            if unpack:
                raise UsageError("--unpack is for archives, not for repositories")
            return RemoteAdd(pinned, keep_git_dir=bool(git.keep_git_dir if keep_git_dir is None else keep_git_dir))
        if source.lower().startswith(("http://", "https://")):
            if keep_git_dir is not None:
                raise UsageError("--keep-git-dir needs a git source")
            return RemoteAdd(
                HttpSource(parse_url(source, ("http", "https"))),
                checksum=_http_checksum(checksum),
                unpack=bool(unpack),
            )
    except UsageError as error:
        raise DockerfileError(error.message, hint=error.hint) from error
    return None


def _http_checksum(text: str) -> str:
    if not text:
        return ""
    algorithm, _, value = text.partition(":")
    if algorithm != "sha256" or len(value) != 64 or value.strip("0123456789abcdef"):
        raise UsageError(f"`{text[:100]}` is not a checksum of a file", hint="write `--checksum=sha256:` and 64 digits")
    return value


def _git_checksum(git: GitSource, checksum: str) -> GitSource:
    if not checksum:
        return git
    if checksum.strip("0123456789abcdef") or not 7 <= len(checksum) <= 64:
        raise UsageError(f"`{checksum[:100]}` is not a commit's checksum", hint="7 to 64 hex digits")
    if git.checksum and git.checksum != checksum:
        raise UsageError("--checksum and the source's own checksum differ")
    if is_commit(git.ref) and not git.ref.startswith(checksum):
        raise UsageError("--checksum and the source's commit differ")
    ref = git.ref or (checksum if is_commit(checksum) else "")
    return GitSource(
        git.url, git.scp, ref, git.subdir, git.dockerfile, checksum, git.keep_git_dir, git.submodules
    )  # fmt: skip


class RemoteSources:
    """Fetches for one build. A context manager; thread-safe. `rank`: how close an address may be that the Dockerfile
    names (http.rank_address): a stranger's Dockerfile must not reach what only this host can. `cache`: what was fetched
    before; a file that its server calls unchanged, or that a checksum names, comes from there. `materials`: is told what
    was taken in."""

    def __init__(
        self,
        scratch: Scratch,
        ssh: SshAccess | None = None,
        *,
        rank: int = ANY_RANK,
        http_limits: FetchLimits | None = None,
        git_limits: GitLimits | None = None,
        cache: HttpCache | None = None,
        materials: Materials | None = None,
    ) -> None:
        self.canceled = threading.Event()
        self.materials = materials or Materials()
        self._scratch = scratch
        self._ssh = ssh or SshAccess()
        self._git_limits = git_limits or GitLimits()
        self._rank = rank
        self._http_limits = http_limits
        self._cache = cache
        self._resources = ExitStack()
        self._lock = threading.Lock()

    def __enter__(self) -> RemoteSources:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.__exit__(kind, error, trace)

    @cached_property
    def _git(self) -> GitFetcher:
        from firebuild.build.sources.git import GitFetcher

        return GitFetcher(self._scratch, self._ssh, self._git_limits, self.canceled)

    def cancel(self) -> None:
        """Let every fetch in another thread fail soon."""
        self.canceled.set()

    def select(self, add: RemoteAdd) -> RemoteItem:
        """What a source holds. A file without a checksum is fetched now, a repository asked for its commit; what the
        Dockerfile pins waits until it is needed. Raises ContextError, DeadlineError."""
        if isinstance(add.source, GitSource):
            return self._select_git(add, add.source)
        from firebuild.build.sources.archive import is_archive
        from firebuild.build.sources.streams import FetchedArchive, FetchedFile, LazyFile, read_file

        url = add.source.url
        if add.checksum and not add.unpack:
            self.materials.note_file(url.shown, add.checksum)
            digest = compute_digest("add-http-1", {"name": url.name, "content": add.checksum})
            return RemoteItem(CopyItem(url.name, "file"), digest, url.shown, LazyFile(self, add))
        fetched = self.fetch_file(add)
        if add.unpack and is_archive(read_file(fetched)):
            digest = compute_digest("add-archive-1", {"content": fetched.sha256})
            return RemoteItem(CopyItem("", "archive"), digest, url.shown, FetchedArchive(fetched, f"`{url.shown}`"))
        digest = compute_digest("add-http-1", {"name": url.name, "content": fetched.sha256})
        return RemoteItem(CopyItem(url.name, "file"), digest, url.shown, FetchedFile(fetched))

    def fetch_file(self, add: RemoteAdd) -> Fetched:
        """Fetch a URL and check its checksum."""
        assert isinstance(add.source, HttpSource), "only files are fetched"
        url = add.source.url
        fetched = self._fetch(url, add.checksum)
        with self._lock:
            self._resources.callback(fetched.file.close)
        self.materials.note_file(url.shown, fetched.sha256)
        if add.checksum and fetched.sha256 != add.checksum:
            raise ContextError(
                f"`{url.shown}` is not what --checksum says: expected sha256:{add.checksum}, got sha256:{fetched.sha256}"
            )
        return fetched

    def _fetch(self, url: Url, checksum: str) -> Fetched:
        from firebuild.build.sources.fetched import Validators
        from firebuild.build.sources.http import fetch_changed

        kept = self._cache.find(url) if self._cache is not None else None
        if self._cache is not None and kept is not None and kept.sha256 == checksum:
            found = self._cache.open(kept, url)
            if found is not None:
                return found
            kept = None
        known = kept.validators if kept is not None else Validators()
        limits, rank, canceled = self._http_limits, self._rank, self.canceled
        fetched = fetch_changed(url, self._scratch, known, limits, rank=rank, canceled=canceled)
        if fetched is None and self._cache is not None and kept is not None:
            fetched = self._cache.open(kept, url)
        if fetched is None:
            # What was kept is gone, or no longer what it was.
            kept = None
            fetched = fetch_changed(url, self._scratch, Validators(), limits, rank=rank, canceled=canceled)
            assert fetched is not None, "only a conditional request is answered by 304"
        if self._cache is not None and (kept is None or kept.sha256 != fetched.sha256):
            self._cache.keep(url, fetched)
        return fetched

    def _select_git(self, add: RemoteAdd, source: GitSource) -> RemoteItem:
        from firebuild.build.sources.streams import LazyRepository

        self.check_rank(source)
        commit = self._git.resolve(source)
        self.materials.note_commit(source.shown, commit)
        keep = add.keep_git_dir and not source.subdir
        fields = {
            "commit": commit,
            "folder": source.subdir,
            "submodules": str(source.submodules is not False),
            "git": f"{source.remote} {source.ref}" if keep else "",
        }
        pinned = GitSource(
            source.url, source.scp, source.ref if keep else commit, source.subdir, "", source.checksum, None,
            source.submodules,
        )  # fmt: skip
        digest = compute_digest("add-git-1", fields)
        return RemoteItem(CopyItem("", "directory"), digest, source.shown, LazyRepository(self, pinned, keep))

    def open_repository(self, source: GitSource, *, keep_git_dir: bool = False, noted: bool = False) -> BuildContext:
        """A commit's files as a tree, until this object is left. `noted`: the materials have it, by its own name."""
        self.check_rank(source)
        checkout = self._git.checkout(source, keep_git_dir=keep_git_dir)
        if not noted:
            self.materials.note_commit(source.shown, checkout.commit)
        tree = BuildContext(checkout.folder, mtime_s=checkout.time_s)
        tree.place = source.shown
        with self._lock:
            return self._resources.enter_context(tree)

    def check_rank(self, source: GitSource) -> None:
        """Raises ContextError for a repository that is closer to this host than the Dockerfile may reach."""
        if self._rank >= ANY_RANK:
            return
        try:
            found = rank_host(source.url)
        except OSError:
            return  # behind a proxy that alone knows the name; git says what is wrong otherwise
        if found > self._rank:
            raise ContextError(
                f"the repository `{source.shown}` is at a private address, and the Dockerfile came from elsewhere: "
                "that is refused"
            )
