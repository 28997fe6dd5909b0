"""Firecracker's versions: how they are written, the oldest that firebuild drives, and what each lacks.

The versions in which things appeared are those of Firecracker's CHANGELOG.md.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from firebuild.errors import UsageError, VmmError

_VERSION = re.compile(r"v?(\d{1,4})\.(\d{1,4})\.(\d{1,4})(-dev)?")
_ANSWER = re.compile(r"^(Firecracker|Jailer) (v\S+)$", re.MULTILINE)


class Version(NamedTuple):
    """A version. One of development counts as the release that it becomes."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


OLDEST = Version(1, 12, 0)

# What came after OLDEST: the thing, as `firebuild firecracker ls` names it → the first version that has it.
FEATURES: dict[str, Version] = {
    "pci": Version(1, 13, 0),
    "serial-file": Version(1, 14, 0),
    "page-reporting": Version(1, 14, 0),
    "pmem": Version(1, 14, 0),
    "memory-hotplug": Version(1, 14, 0),
    "clock-realtime": Version(1, 16, 0),
    "vsock-override": Version(1, 16, 0),
    "serial-rate-limit": Version(1, 16, 0),
    "bzimage": Version(1, 17, 0),
    "transparent-huge-pages": Version(1, 17, 0),
}


def parse_version(text: str) -> Version:
    """A version such as `1.16.1` or `v1.16.1`. Raises UsageError."""
    match = _VERSION.fullmatch(text)
    if match is None:
        raise UsageError(f"`{text[:50]}` is not a version of Firecracker", hint="write it as 1.16.1")
    return Version(int(match[1]), int(match[2]), int(match[3]))


def parse_answer(program: str, text: str) -> Version:
    """The version in what `PROGRAM --version` printed; `program`: Firecracker or Jailer. Raises VmmError."""
    for name, version in _ANSWER.findall(text):
        if name == program and _VERSION.fullmatch(version):
            return parse_version(version)
    raise VmmError(
        f"a program that should be Firecracker's does not say `{program} v…` when it is asked for its version"
    )


def check_supported(version: Version) -> None:
    """Raises VmmError for a version that is too old."""
    if version < OLDEST:
        raise VmmError(f"Firecracker {version} is too old: firebuild needs {OLDEST} or newer")


def find_lacking(version: Version) -> list[str]:
    """What a version does not have yet, in the table's order."""
    return [name for name, since in FEATURES.items() if version < since]
