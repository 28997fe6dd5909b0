"""What a running process may do, as /proc shows it (proc(5)): its users, its namespaces, its root, its limits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from firebuild.errors import HostError

_NAMESPACES = ("mnt", "pid", "net")


class Isolation(msgspec.Struct, frozen=True):
    """`uids`, `gids`: real, effective, saved, of files. `no_new_privs`, `seccomp`: of each thread, its values in
    /proc/PID/status (1, and 2 for a filter). `root`: device and inode. `namespaces`: inodes by name. `limits`: soft and hard
    ones by their names in /proc/PID/limits."""

    uids: list[int]
    gids: list[int]
    groups: list[int]
    no_new_privs: list[int]
    seccomp: list[int]
    root: tuple[int, int]
    namespaces: dict[str, int]
    limits: dict[str, tuple[str, str]]


def read_isolation(pid: int) -> Isolation:
    """Of a process that runs. Raises HostError where it is gone."""
    folder = Path(f"/proc/{pid}")
    try:
        threads = list(_threads(folder / "task"))
        main = _status(folder / "status")
        root = os.stat(folder / "root/.")
        return Isolation(
            uids=_numbers(main, "Uid"), gids=_numbers(main, "Gid"), groups=_numbers(main, "Groups"),
            no_new_privs=[_numbers(each, "NoNewPrivs")[0] for each in threads],
            seccomp=[_numbers(each, "Seccomp")[0] for each in threads],
            root=(root.st_dev, root.st_ino),
            namespaces={name: os.stat(folder / "ns" / name).st_ino for name in _NAMESPACES},
            limits=_limits((folder / "limits").read_text(encoding="ascii")),
        )  # fmt: skip
    except (OSError, KeyError, IndexError) as error:
        raise HostError(f"what the process {pid} may do cannot be read: {error}") from error


def read_own_namespaces() -> dict[str, int]:
    """This process's, as `Isolation.namespaces`."""
    return {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in _NAMESPACES}


def _threads(folder: Path) -> Iterator[dict[str, str]]:
    for name in os.listdir(folder):
        try:
            yield _status(folder / name / "status")
        except (FileNotFoundError, ProcessLookupError):
            continue  # It has ended meanwhile.


def _status(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _numbers(status: dict[str, str], name: str) -> list[int]:
    return [int(text) for text in status[name].split()]


def _limits(text: str) -> dict[str, tuple[str, str]]:
    """The table's columns stand at fixed places: names of 25 letters, then the values."""
    found = {}
    for line in text.splitlines()[1:]:
        values = line[25:].split()
        found[line[:25].strip()] = (values[0], values[1])
    return found
