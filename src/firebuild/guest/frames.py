"""Frames of the guest protocol, and reading them from a peer that may be hostile (protocol/PROTOCOL.md, section 2)."""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from firebuild.errors import GuestError

MAX_FRAME = 1 << 20
MAX_JSON_DEPTH = 32


class FrameType(enum.IntEnum):
    """The types of frames."""

    REQUEST = 0x01
    REPLY = 0x02
    ERROR = 0x03
    EVENT = 0x04
    STDIN = 0x10
    STDOUT = 0x11
    STDERR = 0x12
    DATA = 0x13
    EXIT = 0x14
    RESIZE = 0x15
    SIGNAL = 0x16


_JSON_TYPES = frozenset(
    (
        FrameType.REQUEST,
        FrameType.REPLY,
        FrameType.ERROR,
        FrameType.EVENT,
        FrameType.EXIT,
        FrameType.RESIZE,
        FrameType.SIGNAL,
    )
)
_NEVER_EMPTY = frozenset((FrameType.STDOUT, FrameType.STDERR))


class Frame(msgspec.Struct, frozen=True):
    """One frame. `payload`: at most 1 MiB less one byte."""

    type: FrameType
    payload: bytes

    def json(self) -> dict[str, Any]:
        """The payload as a JSON object. Raises GuestError."""
        return parse_json(self.payload)


def parse_json(payload: bytes) -> dict[str, Any]:
    """A JSON object nested at most 32 deep. Raises GuestError."""
    import json

    # Depth is bounded before decoding: a decoder may recurse as deep as the peer likes.
    depth = deepest = 0
    in_string = escaped = False
    for byte in payload:
        if in_string:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    if deepest > MAX_JSON_DEPTH:
        raise violation(f"JSON nested {deepest} deep")
    try:
        value = json.loads(payload.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        if b"\\ud" in payload.lower():
            # Half of a surrogate pair is no text: it could be neither printed nor stored.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise violation(f"a payload that is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise violation("a JSON payload that is not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice in an object")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def violation(what: str) -> GuestError:
    """The error for a peer that broke the protocol."""
    return GuestError(f"the guest broke the protocol: it sent {what}", guest_code="protocol")


def encode_header(frame_type: FrameType, payload_length: int) -> bytes:
    """The five bytes before a payload of that length."""
    if payload_length + 1 > MAX_FRAME:
        raise ValueError(f"a frame's payload has at most {MAX_FRAME - 1} bytes")
    return (payload_length + 1).to_bytes(4, "big") + bytes((frame_type,))


def encode_frame(frame_type: FrameType, payload: bytes) -> bytes:
    """A whole frame."""
    return encode_header(frame_type, len(payload)) + payload


def parse_header(header: bytes) -> tuple[FrameType, int]:
    """The type and payload length from the first five bytes of a frame. Raises GuestError."""
    length = int.from_bytes(header[:4], "big")
    if not 1 <= length <= MAX_FRAME:
        raise violation(f"a frame of {length} bytes")
    try:
        frame_type = FrameType(header[4])
    except ValueError:
        raise violation(f"a frame of the unknown type {header[4]:#04x}") from None
    return frame_type, length - 1


def check_frame(frame: Frame) -> Frame:
    """The frame itself, if its payload fits its type. Raises GuestError."""
    if frame.type in _JSON_TYPES:
        frame.json()
    elif frame.type in _NEVER_EMPTY and not frame.payload:
        raise violation("empty output")
    return frame


def decode_frames(data: bytes) -> list[Frame]:
    """All frames in `data`, which must hold whole frames only. Raises GuestError."""
    frames = []
    offset = 0
    while offset < len(data):
        header = data[offset : offset + 5]
        if len(header) < 5:
            raise violation("a frame that is cut short")
        frame_type, length = parse_header(header)
        payload = data[offset + 5 : offset + 5 + length]
        if len(payload) < length:
            raise violation("a frame that is cut short")
        frames.append(check_frame(Frame(frame_type, payload)))
        offset += 5 + length
    return frames
