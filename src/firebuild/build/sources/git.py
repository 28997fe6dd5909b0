"""Checking one commit of a repository out, with its submodules: each fetched by the same way, into a private folder.

Submodules are read from .gitmodules by firebuild itself (gitmodules(5)): git is never asked to follow them.
"""

from __future__ import annotations

import os
import stat
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from firebuild.build.sources.gitaccess import GitLimits, SshAccess
from firebuild.build.sources.gitref import GitSource
from firebuild.build.sources.gitrun import GitBudget, GitRunner
from firebuild.build.sources.scratch import Scratch
from firebuild.build.sources.submodules import check_neighbour, find_submodules
from firebuild.errors import ContextError
from firebuild.events.text import neutralise
from firebuild.host.beneath import open_beneath
from firebuild.host.confined import give_folder
from firebuild.host.deadline import Deadline
from firebuild.host.files import remove_tree


@dataclass(frozen=True)
class Checkout:
    """A commit's files in a private folder. `folder`: of the files, `subdir` taken into account; `time_s`: the commit's."""

    folder: Path
    commit: str
    time_s: int


@dataclass
class GitFetcher:
    """Checks repositories out below `scratch`, which owns what it makes. All methods raise ContextError, DeadlineError."""

    scratch: Scratch
    ssh: SshAccess = field(default_factory=SshAccess)
    limits: GitLimits = field(default_factory=GitLimits)
    canceled: threading.Event = field(default_factory=threading.Event)

    def resolve(self, source: GitSource) -> str:
        """The commit that the reference means now; nothing is fetched if the reference says it itself."""
        if source.commit:
            return source.commit
        with ExitStack() as resources:
            run = self._open(source, Deadline(self.limits.timeout_s, f"asking `{source.shown}`"), resources)
            return run.find_ref()[1]

    def checkout(self, source: GitSource, *, keep_git_dir: bool = False) -> Checkout:
        """Fetch the commit, check it against `source.checksum`, and check its files and submodules out."""
        deadline = Deadline(self.limits.timeout_s, f"fetching `{source.shown}`")
        budget = GitBudget(self.limits.bytes, self.limits.files, self.limits.submodules)
        with ExitStack() as resources:
            run = self._open(source, deadline, resources)
            folder = run.work / "tree"
            commit = self._fill(run, folder, budget, keep_git_dir=keep_git_dir, depth=0)
            time_s = run.commit_time(commit)
        top = _enter_subdir(folder, source) if source.subdir else folder
        return Checkout(top, commit, time_s)

    def _open(self, source: GitSource, deadline: Deadline, resources: ExitStack) -> GitRunner:
        return GitRunner(source, self.scratch, self.ssh, self.limits, self.canceled, deadline, resources)

    def _fill(self, run: GitRunner, folder: Path, budget: GitBudget, *, keep_git_dir: bool, depth: int) -> str:
        if not folder.exists():
            folder.mkdir(mode=0o755)
            give_folder(folder, run.user)
        run.git_dir = folder / ".git" if keep_git_dir else run.work / "repository"
        commit, name = run.fetch(keep_ref=keep_git_dir)
        run.check_checksum(commit)
        links = run.check_tree(commit, budget)
        run.write_files(commit, folder)
        if keep_git_dir:
            run.finish_git_dir(commit, name)
        if links and run.source.submodules is not False:
            if depth >= self.limits.depth:
                raise run.error(f"its submodules are nested deeper than {self.limits.depth}")
            for path, submodule in find_submodules(run, commit, links).items():
                self._fill_submodule(run, submodule, _enter(folder, path, run.source), budget, depth + 1)
        return commit

    def _fill_submodule(
        self, parent: GitRunner, source: GitSource, folder: Path, budget: GitBudget, depth: int
    ) -> None:
        budget.submodules -= 1
        if budget.submodules < 0:
            raise parent.error(f"it has more than {self.limits.submodules} submodules")
        check_neighbour(parent, source)
        with ExitStack() as resources:
            run = self._open(source, parent.deadline, resources)
            self._fill(run, folder, budget, keep_git_dir=False, depth=depth)
            remove_tree(run.work)


def _enter(folder: Path, path: str, source: GitSource) -> Path:
    """A folder below another one, reached over folders only. Raises ContextError."""
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        descriptor = open_beneath(root, os.fsencode(path), os.O_PATH | os.O_NOFOLLOW)
    except OSError as error:
        raise ContextError(
            f"the repository `{source.shown}` has no folder `{neutralise(path)}`: {error.strerror}"
        ) from error
    finally:
        os.close(root)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise ContextError(f"`{neutralise(path)}` in the repository `{source.shown}` is not a folder")
    finally:
        os.close(descriptor)
    return folder / path


def _enter_subdir(folder: Path, source: GitSource) -> Path:
    return _enter(folder, source.subdir, source)
