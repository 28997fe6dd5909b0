"""Kernel files are known by their content, whatever they are packed in."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebuild.errors import KernelError
from firebuild.images.compression import load_zstd
from firebuild.kernels.lz4 import Lz4LegacyDecompressor
from firebuild.kernels.vmlinux import parse_config, parse_kernel
from tests.unit.kernels.samples import CONFIG_TEXT, VERSION, make_bzimage, make_elf

ELF = make_elf(config=CONFIG_TEXT)


def kernel_xz(data: bytes) -> bytes:
    """As scripts/xz_wrap.sh: the x86 branch filter and a CRC32."""
    filters: list[dict[str, Any]] = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6}]
    return lzma.compress(data, check=lzma.CHECK_CRC32, filters=filters)


def lz4_literals(data: bytes) -> bytes:
    """A legacy LZ4 frame of literals only, in blocks of 1000 bytes."""
    frame = b"\x02\x21\x4c\x18"
    for start in range(0, len(data), 1000):
        part = data[start : start + 1000]
        block = bytes([min(len(part), 15) << 4])
        if len(part) >= 15:
            block += b"\xff" * ((len(part) - 15) // 255) + bytes([(len(part) - 15) % 255])
        block += part
        frame += len(block).to_bytes(4, "little") + block
    return frame


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": kernel_xz,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": load_zstd().compress,
    "lz4": lz4_literals,
}


@pytest.mark.parametrize("name", PACKERS)
def test_the_vmlinux_is_taken_out_of_a_bzimage(name: str) -> None:
    kernel = parse_kernel(make_bzimage(PACKERS[name](ELF)), "`vmlinuz`")
    assert kernel.content == ELF
    assert (kernel.format, kernel.architecture, kernel.version, kernel.pvh) == ("elf", "x86_64", VERSION, True)


def test_a_plain_and_a_gzipped_vmlinux() -> None:
    assert parse_kernel(ELF, "x") == parse_kernel(gzip.compress(ELF), "x")
    assert parse_kernel(make_elf(pvh=False), "x").pvh is False
    assert parse_kernel(make_elf(machine=183), "x").architecture == "aarch64"


def test_an_unreadable_payload_keeps_the_bzimage() -> None:
    data = make_bzimage(b"\x89LZO\x00" + bytes(100))
    kernel = parse_kernel(data, "x")
    assert (kernel.content, kernel.format, kernel.version, kernel.config) == (data, "bzImage", VERSION, None)


def test_an_arm64_image() -> None:
    data = bytes(0x38) + b"ARM\x64" + f"Linux version {VERSION} (x)".encode()
    kernel = parse_kernel(gzip.compress(data), "x")
    assert (kernel.format, kernel.architecture, kernel.version) == ("Image", "aarch64", VERSION)


def test_the_embedded_config() -> None:
    assert parse_kernel(ELF, "x").config == {
        "CONFIG_EXT4_FS": "y", "CONFIG_VIRTIO_BLK": "m", "CONFIG_PVH": "n", "CONFIG_LOCALVERSION": '"-test"',
    }  # fmt: skip
    assert parse_kernel(make_elf(), "x").config is None
    assert parse_config("") == {}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a Linux kernel"),
        (b"#!/bin/sh\n", "not a Linux kernel"),
        (b"\x7fELF", "not a 64-bit"),
        (b"\x7fELF\x01\x01" + bytes(100), "not a 64-bit"),
        (make_elf(machine=40), "ELF machine 40"),
        (make_elf(kind=1), "a kernel module perhaps"),
        (make_elf(version=""), "holds no version text"),
        (make_elf()[:200], "cut short"),
        (make_elf()[:100], "program headers"),
        (make_bzimage(gzip.compress(ELF), protocol=0x204), "old boot protocol 2.04"),
        (make_bzimage(gzip.compress(ELF))[:2200], "cut short"),
        (make_bzimage(gzip.compress(b"no elf")), "no ELF file"),
        (make_bzimage(gzip.compress(ELF)[:-40]), "damaged|cut short"),
        (gzip.compress(ELF)[:50], "cut short"),
        (b"\x89LZO\x00" + bytes(10), "lzo, which firebuild does not read"),
    ],
)
def test_what_is_no_kernel_is_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(KernelError, match=message) as caught:
        parse_kernel(data, "`the file`")
    assert "`the file`" in caught.value.message


@given(st.integers(0, len(ELF) - 1), st.integers(0, 255))
def test_a_changed_byte_never_crashes(position: int, value: int) -> None:
    data = bytearray(make_bzimage(gzip.compress(ELF, mtime=0)))
    data[position % len(data)] = value
    try:
        parse_kernel(bytes(data), "x")
    except KernelError as error:
        assert "x" in error.message


@given(st.binary(max_size=200))
def test_lz4_noise_is_a_value_error_or_content(noise: bytes) -> None:
    try:
        Lz4LegacyDecompressor().decompress(b"\x02\x21\x4c\x18" + len(noise).to_bytes(4, "little") + noise, 1 << 20)
    except ValueError as error:
        assert str(error)


def test_lz4_matches_by_hand() -> None:
    # "abc", then 12 bytes from 3 back (overlapping), then the literal "!": lz4_Block_format.md.
    block = bytes([0x38, *b"abc", 3, 0, 0x10, *b"!"])
    frame = b"\x02\x21\x4c\x18" + len(block).to_bytes(4, "little") + block
    assert Lz4LegacyDecompressor().decompress(frame, 100) == b"abc" * 5 + b"!"
