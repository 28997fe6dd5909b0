"""The guest protocol's frames against the golden vectors that the guest's side is tested with too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from firebuild.errors import GuestError
from firebuild.guest.frames import FrameType, decode_frames, encode_frame

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[3] / "protocol" / "vectors" / "frames.json").read_text()
)


@pytest.mark.parametrize("vector", [v for v in VECTORS if "frames" in v], ids=lambda v: v["name"])
def test_valid_vectors(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    frames = decode_frames(data)
    assert [frame.type.name for frame in frames] == [expected["type"] for expected in vector["frames"]]
    for frame, expected in zip(frames, vector["frames"], strict=True):
        if "json" in expected:
            assert frame.json() == expected["json"]
        else:
            assert frame.payload == bytes.fromhex(expected["payload_hex"])
    assert b"".join(encode_frame(frame.type, frame.payload) for frame in frames) == data


@pytest.mark.parametrize("vector", [v for v in VECTORS if "error" in v], ids=lambda v: v["name"])
def test_invalid_vectors(vector: dict[str, Any]) -> None:
    with pytest.raises(GuestError) as caught:
        decode_frames(bytes.fromhex(vector["hex"]))
    assert caught.value.guest_code == "protocol"


def test_a_payload_that_is_too_long_is_a_fault_of_ours() -> None:
    with pytest.raises(ValueError, match="at most"):
        encode_frame(FrameType.DATA, bytes(1 << 20))
