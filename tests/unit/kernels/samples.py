"""Small files that have the shape of kernels and modules."""

from __future__ import annotations

import gzip
import struct

VERSION = "6.1.0-9-test"
CONFIG_TEXT = """CONFIG_EXT4_FS=y
CONFIG_VIRTIO_BLK=m
# CONFIG_PVH is not set
CONFIG_LOCALVERSION="-test"
"""


def make_elf(
    *, version: str = VERSION, machine: int = 62, kind: int = 2, config: str | None = None, pvh: bool = True
) -> bytes:
    """An ELF64 file with one loadable segment that holds a version text, and a note segment."""
    payload = f"....Linux version {version} (someone@somewhere) (gcc) #1\n\0".encode() if version else b"nothing here"
    if config is not None:
        payload += b"IKCFG_ST" + gzip.compress(config.encode(), mtime=0) + b"IKCFG_ED"
    note = struct.pack("<III", 4, 8, 18 if pvh else 6) + b"Xen\0" + bytes(8)
    start = 64 + 2 * 56
    segments = [(1, start, len(payload)), (4, start + len(payload), len(note))]
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", kind, machine, 1)
    header += struct.pack("<QQQIHHHHHH", 0x1000000, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    table = b"".join(struct.pack("<IIQQQQQQ", kind, 5, offset, 0, 0, size, size, 1) for kind, offset, size in segments)
    return header + table + payload + note


def make_bzimage(payload: bytes, *, version: str = VERSION, protocol: int = 0x20F) -> bytes:
    """A bzImage: setup sectors with the boot header, then the payload at an offset, as the kernel build lays it out."""
    sectors = 3
    setup = bytearray((sectors + 1) * 512)
    setup[0x1F1] = sectors
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, protocol)
    struct.pack_into("<H", setup, 0x20E, 0x300)
    text = f"{version} (someone@somewhere) #1 SMP\0".encode()
    setup[0x500 : 0x500 + len(text)] = text
    # The build appends the uncompressed size to what does not carry it.
    payload += bytes(4)
    struct.pack_into("<II", setup, 0x248, 64, len(payload))
    return bytes(setup) + b"\x90" * 64 + payload + b"\xcc" * 100


def make_module(*, depends: str = "", softdep: str = "", alias: tuple[str, ...] = (), vermagic: str = VERSION) -> bytes:
    """A relocatable ELF64 file with a .modinfo section."""
    items = [f"depends={depends}", f"vermagic={vermagic} SMP mod_unload"]
    items += [f"softdep={softdep}"] if softdep else []
    items += [f"alias={name}" for name in alias]
    modinfo = b"".join(item.encode() + b"\0" for item in items)
    names = b"\0.modinfo\0.shstrtab\0"
    offset = 64
    sections = [(0, 0, 0), (1, offset, len(modinfo)), (10, offset + len(modinfo), len(names))]
    table_offset = offset + len(modinfo) + len(names)
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 1, 62, 1)
    header += struct.pack("<QQQIHHHHHH", 0, 0, table_offset, 0, 64, 0, 0, 64, len(sections), 2)
    table = b"".join(struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, at, size, 0, 0, 1, 0) for name, at, size in sections)
    return header + modinfo + names + table
