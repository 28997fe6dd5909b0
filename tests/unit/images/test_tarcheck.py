"""The tar checker: every well-formed archive passes, whatever the pieces; every ambiguous or broken one is named."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebuild.errors import ImageError
from firebuild.images.tarcheck import TarChecker, TarLimits

END = bytes(1024)


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def make_tar(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def check(data: bytes, *, piece: int = 1 << 16, limits: TarLimits | None = None) -> TarChecker:
    checker = TarChecker("`x.tar`", limits)
    for start in range(0, len(data), piece):
        checker.feed(data[start : start + piece])
    checker.finish()
    return checker


def header(edit: Callable[[bytearray], None], name: str = "x", data: bytes = b"") -> bytes:
    """A raw header, edited, with its checksum made right again."""
    block = bytearray(member(name, data)[0].tobuf(tarfile.USTAR_FORMAT)[:512])
    edit(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


ALL_KINDS = [
    member("dir", kind=tarfile.DIRTYPE),
    member("file", b"hello" * 300, pax_headers={"SCHILY.xattr.user.x": "1"}),
    member("empty"),
    member("link", kind=tarfile.SYMTYPE, linkname="/etc/passwd"),
    member("hard", kind=tarfile.LNKTYPE, linkname="file"),
    member("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3),
    member("block", kind=tarfile.BLKTYPE),
    member("fifo", kind=tarfile.FIFOTYPE),
    member("long/" * 60 + "name", b"x"),
    member("../escape", b"not followed here, so not judged here"),
]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("piece", [1, 7, 511, 512, 513, 1 << 20])
def test_well_formed_archives_pass_in_any_pieces(format: int, piece: int) -> None:
    data = make_tar(*ALL_KINDS, format=format)
    checker = check(data, piece=piece)
    assert (checker.entries, checker.size) == (len(ALL_KINDS), len(data))
    assert checker.data_bytes == sum(len(content) for _, content in ALL_KINDS)


@given(
    st.lists(st.tuples(st.text("ab/", min_size=1, max_size=300), st.binary(max_size=2000)), max_size=8),
    st.integers(1, 4000),
)
def test_whatever_tarfile_writes_passes(files: list[tuple[str, bytes]], piece: int) -> None:
    assert check(make_tar(*(member(name, data) for name, data in files)), piece=piece).entries == len(files)


@given(st.binary(max_size=3000))
def test_noise_never_crashes(data: bytes) -> None:
    try:
        check(data)
    except ImageError as error:
        assert "x.tar" in error.message


@given(st.integers(0, 2047), st.integers(0, 255))
def test_one_changed_byte_passes_or_is_an_image_error(position: int, value: int) -> None:
    data = bytearray(make_tar(*ALL_KINDS[:3]))
    data[position] = value
    try:
        check(bytes(data))
    except ImageError as error:
        assert "at byte" in error.message


def test_every_truncation_is_found() -> None:
    data = make_tar(*ALL_KINDS, format=tarfile.GNU_FORMAT).rstrip(b"\0")
    for length in range(0, len(data), 64):
        with pytest.raises(ImageError, match="ends"):
            check(data[:length])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"hello world" * 100, r"no tar header where one should be .*|at byte 0"),
        (make_tar(member("a", b"x")) + b"more", "in the middle|behind its end"),
        (make_tar(member("a", b"x")) + make_tar(member("b")), "bytes behind its end"),
        (header(lambda b: b.__setitem__(slice(156, 157), b"S"), "sp") + END, "`sp` is a GNU sparse file"),
        (header(lambda b: b.__setitem__(slice(156, 157), b"V"), "vol") + END, "`vol` is a volume label"),
        (header(lambda b: b.__setitem__(slice(156, 157), b"Q"), "q") + END, "unknown type b'Q'"),
        (header(lambda b: b.__setitem__(slice(156, 157), b"1"), "hl", b"x" * 600) + bytes(1024) + END, "`hl` is a link.* has data"),
        (header(lambda b: b.__setitem__(slice(156, 157), b"5"), "d", b"x") + bytes(512) + END, "has data"),
        (header(lambda b: b.__setitem__(slice(124, 136), b"\xff" * 12)) + END, "negative or too large"),
        (header(lambda b: b.__setitem__(slice(124, 136), b"\x80" + b"\xff" * 11)) + END, "too large"),
        (header(lambda b: b.__setitem__(slice(124, 136), b"000000000z9\0")) + END, "not a number"),
        (header(lambda b: b.__setitem__(slice(124, 136), b"77777777777\0")) + END, "in the middle of an entry"),
        (header(lambda b: b.__setitem__(slice(156, 157), b"x"), "pax", b"x" * (2 << 20)) + END, "more than 1048576"),
    ],
)  # fmt: skip
def test_broken_and_ambiguous_archives_are_named(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        check(data)
    assert "`x.tar`" in caught.value.message and "at byte" in caught.value.message


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"GNU.sparse.major": "1"}, "sparse"),
        ({"size": "-5"}, "impossible size"),
        ({"size": "9" * 30}, "impossible size"),
    ],
)
def test_pax_records_that_change_framing(records: dict[str, str], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        check(make_tar(member("a", b"x", pax_headers=records)))


@pytest.mark.parametrize("record", [b"0 a=b\n", b"99 a=b\n", b"nonsense", b"5 ab\n", b"6 a=bX"])
def test_damaged_pax_records(record: bytes) -> None:
    block = header(lambda b: b.__setitem__(slice(156, 157), b"x"), "pax", record)
    with pytest.raises(ImageError, match="pax header"):
        check(block + record.ljust(512, b"\0") + END)


def test_a_size_in_a_pax_header_rules_the_framing() -> None:
    # The ustar field says 0; the pax record says 700: readers that ignore it would take the data for headers.
    record = b"12 size=700\n"
    pax = header(lambda b: b.__setitem__(slice(156, 157), b"x"), "pax", record) + record.ljust(512, b"\0")
    checker = check(pax + header(lambda b: None, "big") + b"d" * 700 + bytes(324) + END)
    assert checker.data_bytes == 700


def test_limits() -> None:
    data = make_tar(*(member(str(number)) for number in range(5)))
    with pytest.raises(ImageError, match="more than 4 entries"):
        check(data, limits=TarLimits(entries=4))
    with pytest.raises(ImageError, match="larger than 2000 bytes"):
        check(data, limits=TarLimits(bytes=2000))


def test_hostile_names_are_shown_harmlessly() -> None:
    block = header(lambda b: b.__setitem__(slice(156, 157), b"Q"), "x\x1b[31mred")
    with pytest.raises(ImageError) as caught:
        check(block + END)
    assert "\x1b" not in caught.value.message and "\\x1b[31mred" in caught.value.message
