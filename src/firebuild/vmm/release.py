"""Firecracker's release archives: what is in them, and their two programs taken out, checked.

As the project's tools/release.sh makes them: `firecracker-vV-ARCH.tgz` holds `release-vV-ARCH/firecracker-vV-ARCH`,
`jailer-vV-ARCH`, debug symbols, licences and SHA256SUMS; beside it lies `firecracker-vV-ARCH.tgz.sha256.txt`.
"""

from __future__ import annotations

import re
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from firebuild.errors import VmmError
from firebuild.host.files import open_atomic
from firebuild.vmm.versions import Version

PROGRAMS = ("firecracker", "jailer")
_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}  # elf(5), e_machine
_PROGRAM_MAX = 256 << 20
_EXPANDED_MAX = 2 << 30
_MEMBERS_MAX = 1000
_CHUNK = 1 << 20


def archive_name(version: Version, architecture: str) -> str:
    """The file name of a release's archive. `architecture`: x86_64 or aarch64, as `uname -m` says."""
    return f"firecracker-v{version}-{architecture}.tgz"


def parse_checksum(text: str, name: str) -> str:
    """The SHA-256 of the file `name`, hex, from sha256sum's output. Raises VmmError."""
    for line in text.splitlines():
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](?:\./)?(\S+)", line.strip())
        if match and match[2] == name:
            return match[1]
    raise VmmError(f"the checksum file has no SHA-256 of {name}")


def unpack_programs(archive: IO[bytes], folder: Path, version: Version, architecture: str) -> None:
    """Write the two programs of an archive below `folder`, executable. Raises VmmError, DiskFullError, HostError.

    Nothing else is written, whatever names the archive has.
    """
    stem = f"release-v{version}-{architecture}"
    wanted = {f"{stem}/{program}-v{version}-{architecture}": program for program in PROGRAMS}
    try:
        with tarfile.open(fileobj=archive, mode="r|gz") as members:
            for member in _bounded(members):
                program = wanted.pop(member.name.removeprefix("./"), None)
                if program is None:
                    continue
                if not member.isreg() or member.size > _PROGRAM_MAX:
                    raise VmmError(f"the release's entry `{member.name}` is not a file of a sane size")
                content = members.extractfile(member)
                assert content is not None, "it is a regular file"
                _copy_program(content, folder / program, architecture)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise VmmError(f"the archive of Firecracker {version} cannot be read: {error}") from error
    if wanted:
        raise VmmError(f"the archive of Firecracker {version} does not hold {' and '.join(sorted(wanted))}")


def _bounded(members: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    total = 0
    for count, member in enumerate(members):
        total += member.size
        if count >= _MEMBERS_MAX or total > _EXPANDED_MAX:
            raise VmmError("the archive holds far more than a release of Firecracker")
        yield member


def _copy_program(content: IO[bytes], path: Path, architecture: str) -> None:
    with open_atomic(path, mode=0o755) as file:
        head = content.read(_CHUNK)
        check_program(head[:20], path.name, architecture)
        while head:
            file.write(head)
            head = content.read(_CHUNK)


def check_program(head: bytes, name: str, architecture: str) -> None:
    """Whether a file that begins with `head` can run on `architecture`. Raises VmmError."""
    if len(head) < 20 or head[:5] != b"\x7fELF\x02":
        raise VmmError(f"`{name}` is not a program of a 64-bit Linux")
    (machine,) = struct.unpack_from("<H", head, 18)
    if machine != _ELF_MACHINES.get(architecture):
        raise VmmError(f"`{name}` is a program for another processor than this host's ({architecture})")
