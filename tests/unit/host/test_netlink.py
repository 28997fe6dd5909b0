"""rtnetlink's attributes and answers, as bytes."""

from __future__ import annotations

import errno
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebuild.host.netlink import attribute, nested, parse_attributes, parse_error, plan_refusal, text

EXT_ACK, CAPPED = 0x200, 0x100


def error_body(number: int, after_header: bytes) -> bytes:
    """struct nlmsgerr: the number, and the header of a request of 16 + 5 bytes."""
    return struct.pack("=iIHHII", -number, 21, 36, 0x605, 1, 0) + after_header


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40))))
def test_attributes_are_read_as_they_were_written(attributes: list[tuple[int, bytes]]) -> None:
    written = b"".join(attribute(kind, payload) for kind, payload in attributes)
    assert len(written) % 4 == 0
    assert list(parse_attributes(written)) == attributes


def test_a_nested_attribute_holds_others_and_is_marked() -> None:
    inner = text(1, "veth") + attribute(2, b"abc")
    outer = nested(18, text(1, "veth"), attribute(2, b"abc"))
    assert struct.unpack_from("=HH", outer) == (4 + len(inner), 18 | 0x8000)
    assert list(parse_attributes(outer)) == [(18, inner)]
    assert inner == b"\x09\0\x01\0veth\0\0\0\0\x07\0\x02\0abc\0"


@given(st.binary(max_size=64))
def test_any_bytes_end_as_a_list_of_attributes(data: bytes) -> None:
    assert sum(4 + len(payload) for _, payload in parse_attributes(data)) <= len(data)


def test_an_acknowledgement() -> None:
    assert parse_error(CAPPED, error_body(0, b"")) == (0, "")


@pytest.mark.parametrize(("flags", "echo"), [(EXT_ACK | CAPPED, b""), (EXT_ACK, b"hello\0\0\0")])
def test_what_the_kernel_says_is_found_behind_the_echo_of_the_request(flags: int, echo: bytes) -> None:
    body = error_body(errno.EINVAL, echo + attribute(2, b"\0\0\0\0") + text(1, "Parent Qdisc doesn't exists."))
    assert parse_error(flags, body) == (errno.EINVAL, "Parent Qdisc doesn't exists")


def test_an_echo_alone_is_not_taken_for_words() -> None:
    assert parse_error(0, error_body(errno.ENODEV, text(1, "echo"))) == (errno.ENODEV, "")


@pytest.mark.parametrize(
    ("number", "modules", "hint"),
    [
        (errno.EPERM, "veth", "run it as root"),
        (errno.EOPNOTSUPP, "veth", "run: modprobe -a veth"),
        (errno.ENOENT, "cls_u32 act_mirred", "run: modprobe -a cls_u32 act_mirred"),
        (errno.ENOENT, "", None),
        (errno.EBUSY, "veth", None),
    ],
)
def test_a_refusal_names_the_deed_and_says_what_to_do(number: int, modules: str, hint: str | None) -> None:
    error = plan_refusal("making the interface `a0`", number, "Unknown device type", modules)
    assert str(error) == f"making the interface `a0` failed: {os.strerror(number)} (Unknown device type)"
    assert error.hint == hint
