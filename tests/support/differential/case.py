"""What a case of the differential suite is: one Dockerfile, its build context, and what is known of the result."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

BASE = "differential/base:1"
# Of everything in a context: long before any build.
CONTEXT_MTIME_S = 981_173_106


@dataclass(frozen=True)
class File:
    """A regular file. `mtime_s`: Unix time."""

    content: bytes = b""
    mode: int = 0o644
    mtime_s: int = CONTEXT_MTIME_S


@dataclass(frozen=True)
class Folder:
    """A directory with a mode of its own; those that only hold files need none."""

    mode: int = 0o755


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class HardLink:
    """One more name of the file `of`, which stands before it in the context."""

    of: str


Item = str | bytes | File | Folder | Link | HardLink


@dataclass(frozen=True)
class Refusal:
    """Both builders must fail. The patterns are searched in what they say, so that they fail for the reason that is meant."""

    docker: str
    firebuild: str


@dataclass(frozen=True)
class Older:
    """What Docker before `since` does in another way than later ones, whose way is firebuild's: a pattern of the lines.

    Where no release notes tell, `since` is the series behind the one in which it was seen.
    """

    pattern: str
    since: tuple[int, int]
    why: str


@dataclass(frozen=True)
class Case:
    """One rule. `name` says which; `dockerfile`: BASE stands for itself, `@HTTP@` for the web server; `after`: cases whose
    images (`differential/NAME:1`) this one builds upon; `differs`: differences that are meant, as patterns of their lines,
    each with the reason; `older`: differences to old daemons; `since`: the version of the daemon from which it can do it;
    `own_machine`: it needs a build machine of its own.
    """

    name: str
    dockerfile: str
    files: Mapping[str, Item] = field(default_factory=dict)
    args: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    refused: Refusal | None = None
    after: tuple[str, ...] = ()
    differs: Mapping[str, str] = field(default_factory=dict)
    older: tuple[Older, ...] = ()
    since: tuple[int, int] = (0, 0)
    own_machine: bool = False

    @property
    def tag(self) -> str:
        """What both builders call the image."""
        return f"differential/{self.name}:1"


def make_context(folder: Path, case: Case, http: str) -> None:
    """Write the context and its Dockerfile below the new folder `folder`. `http`: the web server's URL."""
    folder.mkdir()
    for name, item in case.files.items():
        _make(folder, name, item)
    _make(folder, "Dockerfile", case.dockerfile.replace("@HTTP@", http))
    for path, names, others in os.walk(folder, topdown=False):
        for name in (*names, *others):
            each = Path(path, name)
            if each.is_symlink() or each.is_dir():
                os.utime(each, (CONTEXT_MTIME_S, CONTEXT_MTIME_S), follow_symlinks=False)
    os.utime(folder, (CONTEXT_MTIME_S, CONTEXT_MTIME_S))


def _make(folder: Path, name: str, item: Item) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    match item:
        case Folder():
            path.mkdir(exist_ok=True)
            path.chmod(item.mode)
        case Link():
            path.symlink_to(item.target)
        case HardLink():
            path.hardlink_to(folder / item.of)
        case File():
            path.write_bytes(item.content)
            path.chmod(item.mode)
            os.utime(path, (item.mtime_s, item.mtime_s))
        case str() | bytes():
            _make(folder, name, File(item.encode() if isinstance(item, str) else item))
