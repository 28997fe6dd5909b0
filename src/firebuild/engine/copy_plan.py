"""Where a copy goes: Docker's rules for `cp`, without looking at anything."""

from __future__ import annotations

import posixpath

import msgspec

from firebuild.errors import UsageError

STREAM = "-"


class End(msgspec.Struct, frozen=True):
    """One end of a copy as it was written. `machine`: empty for the host; `path`: STREAM for a tar on standard input or output."""

    machine: str
    path: str


class Side(msgspec.Struct, frozen=True):
    """What stands at an end. `kind`: file, directory, symlink or missing; `path`: clean; `shown`: as it was written.

    `is_folder`: it was written with a `/` or `/.` behind it; `contents`: with `/.`."""

    kind: str
    path: str
    shown: str
    is_folder: bool = False
    contents: bool = False


class Place(msgspec.Struct, frozen=True):
    """Where the source goes: as `name` in `folder`; with an empty name what is in the source goes into `folder`."""

    folder: str
    name: str


def parse_end(text: str) -> End:
    """`MACHINE:PATH`, `PATH` or `-`. What begins with `/` or `.` is a path of the host, colons or not. Raises UsageError."""
    machine, colon, path = text.partition(":")
    if not colon or text.startswith((".", "/")):
        if not text:
            raise UsageError("an empty path names nothing")
        return End("", text)
    if not machine or not path or "\0" in path:
        raise UsageError(
            f"`{text[:200]}` is not MACHINE:PATH", hint="write MACHINE:PATH, or ./NAME for a file of the host"
        )
    return End(machine, path)


def is_folder_path(path: str) -> bool:
    """Whether it says that it is a folder: `x/` or `x/.`."""
    return path.endswith(("/", "/.")) or path in (".", "..")


def is_contents_path(path: str) -> bool:
    """Whether it means what is in the folder: `x/.`."""
    return path.endswith("/.") or path == "."


def clean_guest_path(path: str) -> str:
    """Absolute in the guest: a relative one counts from `/`, and `..` does not lead above it."""
    clean = posixpath.normpath("/" + path.lstrip("/"))
    return clean if clean == "/" else "/" + clean.strip("/")


def plan_place(source: Side, target: Side) -> Place:
    """Where `source` goes. Raises UsageError where Docker's rules have no place for it.

    A missing target's folder must be there: that is the caller's to see."""
    if source.kind == "directory":
        if target.kind == "directory":
            return Place(target.path, "" if source.contents else posixpath.basename(source.path))
        if target.kind == "missing":
            return Place(posixpath.dirname(target.path), posixpath.basename(target.path))
        raise UsageError(f"`{source.shown}` is a folder and cannot be copied over the file `{target.shown}`")
    if source.is_folder:
        raise UsageError(f"`{source.shown}` is not a folder")
    if target.kind == "directory":
        return Place(target.path, posixpath.basename(source.path))
    if target.is_folder:
        what = "does not exist" if target.kind == "missing" else "is not a folder"
        raise UsageError(f"the folder `{target.shown}` {what}", hint="make it first, or leave out the `/` behind it")
    return Place(posixpath.dirname(target.path), posixpath.basename(target.path))
