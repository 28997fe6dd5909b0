"""Reading kernel files: the ELF vmlinux inside a bzImage, its architecture, version and embedded configuration.

The bzImage setup header: Linux Documentation/arch/x86/boot.rst, protocol 2.08 and newer. The arm64 Image header:
Documentation/arch/arm64/booting.rst. The embedded configuration: kernel/configs.c.
"""

from __future__ import annotations

import re
import struct

import msgspec

from firebuild.errors import KernelError
from firebuild.kernels.compression import uncompress

_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
_EM_OFFSET = 18
_VERSION = re.compile(rb"Linux version ([0-9][^\s\x00]{0,100}) ")
_CONFIG_START = b"IKCFG_ST"
_CONFIG_LINE = re.compile(r"(?:(?P<name>CONFIG_\w+)=(?P<value>.*)|# (?P<unset>CONFIG_\w+) is not set)")
_PVH_NOTE_TYPE = 18  # XEN_ELFNOTE_PHYS32_ENTRY


class KernelFile(msgspec.Struct, frozen=True):
    """What a kernel file turned out to be. `content`: what is to be booted; `format`: elf, bzImage or Image.

    `version` is what `uname -r` will say, empty if it could not be found; `config` the embedded configuration, or None;
    `pvh` whether an ELF has the entry point that QEMU needs to boot it directly.
    """

    content: bytes
    format: str
    architecture: str
    version: str
    config: dict[str, str] | None
    pvh: bool


def parse_kernel(data: bytes, subject: str) -> KernelFile:
    """Know a kernel file by its content: an ELF vmlinux, a bzImage (its vmlinux is taken out), an arm64 Image; each also gzipped
    or otherwise compressed as a whole.

    A bzImage whose payload no library here can read is kept as it is. Raises KernelError naming `subject`.
    """
    data = uncompress(data, subject)
    if data[:4] == b"\x7fELF":
        return _parse_elf(data, subject)
    if data[0x202:0x206] == b"HdrS":
        return _parse_bzimage(data, subject)
    if data[0x38:0x3C] == b"ARM\x64":
        return KernelFile(data, "Image", "aarch64", _find_version(data), find_config(data), False)
    raise KernelError(
        f"{subject} is not a Linux kernel: neither an ELF file (vmlinux) nor a bzImage nor an arm64 Image",
        hint="give the file `vmlinux` from a kernel build, or `/boot/vmlinuz-…`",
    )


def _parse_elf(data: bytes, subject: str) -> KernelFile:
    if len(data) < 64 or data[4] != 2 or data[5] != 1:
        raise KernelError(f"{subject} is not a 64-bit little-endian ELF file")
    kind, machine = struct.unpack_from("<HH", data, 16)
    if machine not in _ELF_MACHINES:
        raise KernelError(f"{subject} is for the ELF machine {machine}, not for x86_64 (62) or aarch64 (183)")
    if kind not in (2, 3):
        raise KernelError(f"{subject} is an ELF file of type {kind}, not an executable: a kernel module perhaps")
    segments = list(_segments(data, subject))
    for _, offset, size in segments:
        if offset + size > len(data):
            raise KernelError(f"{subject} is cut short: a segment reaches to byte {offset + size} of {len(data)}")
    if not any(kind == 1 for kind, _, _ in segments):
        raise KernelError(f"{subject} has nothing to load: it is not a kernel")
    pvh = any(_has_pvh_note(data[offset : offset + size]) for kind, offset, size in segments if kind == 4)
    version = _find_version(data)
    if not version:
        raise KernelError(f"{subject} is an ELF file, but not a Linux kernel: it holds no version text")
    return KernelFile(data, "elf", _ELF_MACHINES[machine], version, find_config(data), pvh)


def _segments(data: bytes, subject: str) -> list[tuple[int, int, int]]:
    """Type, offset and size in the file of each program header (elf(5))."""
    (table,) = struct.unpack_from("<Q", data, 32)
    entry_size, count = struct.unpack_from("<HH", data, 54)
    if entry_size != 56 or not count or table + entry_size * count > len(data):
        raise KernelError(f"{subject} has no program headers that can be read: it is not a kernel, or cut short")
    found = []
    for number in range(count):
        kind, _, offset, _, _, size = struct.unpack_from("<IIQQQQ", data, table + number * entry_size)
        found.append((kind, offset, size))
    return found


def _has_pvh_note(notes: bytes) -> bool:
    position = 0
    while position + 12 <= len(notes):
        name_size, desc_size, kind = struct.unpack_from("<III", notes, position)
        name = notes[position + 12 : position + 12 + name_size]
        if kind == _PVH_NOTE_TYPE and name.rstrip(b"\0") == b"Xen":
            return True
        position += 12 + -(-name_size // 4) * 4 + -(-desc_size // 4) * 4
    return False


def _parse_bzimage(data: bytes, subject: str) -> KernelFile:
    protocol = struct.unpack_from("<H", data, 0x206)[0]
    if protocol < 0x208:
        raise KernelError(f"{subject} is a bzImage of the old boot protocol {protocol >> 8}.{protocol & 255:02}")
    sectors = data[0x1F1] or 4
    payload_offset, payload_length = struct.unpack_from("<II", data, 0x248)
    begin = (sectors + 1) * 512 + payload_offset
    if not payload_length or begin + payload_length > len(data):
        raise KernelError(
            f"{subject} is cut short: its payload reaches to byte {begin + payload_length} of {len(data)}"
        )
    payload = data[begin : begin + payload_length]
    try:
        vmlinux = uncompress(payload, f"the payload of {subject}")
    except KernelError as error:
        if "does not read" in error.message:
            return KernelFile(data, "bzImage", "x86_64", _bzimage_version(data), None, False)
        raise
    if vmlinux[:4] != b"\x7fELF":
        raise KernelError(f"the payload of {subject} is no ELF file")
    return _parse_elf(vmlinux, f"the vmlinux in {subject}")


def _bzimage_version(data: bytes) -> str:
    pointer = struct.unpack_from("<H", data, 0x20E)[0] + 0x200
    return data[pointer : pointer + 100].split(b"\0", 1)[0].split(b" ", 1)[0].decode("ascii", "replace")


def _find_version(data: bytes) -> str:
    match = _VERSION.search(data)
    return match[1].decode("ascii", "replace") if match else ""


def find_config(data: bytes) -> dict[str, str] | None:
    """The configuration that CONFIG_IKCONFIG embeds in a kernel, or None."""
    start = data.find(_CONFIG_START + b"\x1f\x8b")
    if start < 0:
        return None
    text = uncompress(data[start + len(_CONFIG_START) :], "the kernel's embedded configuration", size_max=16 << 20)
    return parse_config(text.decode("utf-8", "replace"))


def parse_config(text: str) -> dict[str, str]:
    """A kernel configuration: `CONFIG_X` to `y`, `m`, `n` (also for "is not set") or a value."""
    found = {}
    for line in text.splitlines():
        match = _CONFIG_LINE.fullmatch(line.strip())
        if match and match["name"]:
            found[match["name"]] = match["value"]
        elif match:
            found[match["unset"]] = "n"
    return found
