"""The file of a saved machine: what the machine is made of, its devices' state, and a checksum over both.

`u8[8] magic · u32 version · u32 header length · u64 state length · header (JSON) · state (QEMU's) · u8[32] SHA-256`, big-endian.
The memory is a file of its own: the RAM, then two pages that bind it to this one (`memory.py`).
"""

from __future__ import annotations

import hashlib
import os
import secrets
import struct
from pathlib import Path

import msgspec

from firebuild.emulator.models import BalloonConfig, Drive, Entropy, MachineConfig, MmdsConfig, NetworkInterface, Vsock

MAGIC = b"FBEMSNAP"
VERSION = 1
_HEAD = struct.Struct(">8sIIQ")
_DIGEST_BYTES = 32
# As Firecracker's bound.
_HEADER_MAX = 10_000_000
_STATE_MAX = 256 << 20


class StateFileError(Exception):
    """A file that is no saved state, or not all of one. The text says which, in Firecracker's words where it has some."""


class SavedNet(msgspec.Struct, frozen=True):
    """A network interface and the address that the guest knows it by."""

    config: NetworkInterface
    mac: str


class SavedChannel(msgspec.Struct, frozen=True):
    """Where the two ends of the guest's port stood.

    `greeted`: whether streams could be opened; `awaiting`: whether the host's HELLO was still to be answered.
    `to_guest`: the rest of the record that the guest has read half of (and of a HELLO that was on its way, all up to that);
    `from_guest`: the first part of the one that it had half written.
    """

    greeted: bool
    awaiting: bool = False
    to_guest: bytes = b""
    from_guest: bytes = b""


class SavedMachine(msgspec.Struct, frozen=True, kw_only=True):
    """The header: what a machine must be rebuilt as, and what the host must have in common with the first one."""

    vmm_version: str
    qemu_version: str
    accelerator: str
    cpu_model: str
    machine: MachineConfig
    drives: list[Drive]
    nets: list[SavedNet]
    vsock: Vsock | None
    channel: SavedChannel | None
    entropy: Entropy | None
    balloon: BalloonConfig | None
    mmds_config: MmdsConfig | None
    memory_id: str


def save_state_file(path: Path, header: SavedMachine, state: bytes) -> None:
    """Write the file aside, sync it and put it in its place. Raises OSError."""
    text = msgspec.json.encode(header)
    body = _HEAD.pack(MAGIC, VERSION, len(text), len(state)) + text + state
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with open(aside, "xb", opener=_open_private) as file:
            file.write(body)
            file.write(hashlib.sha256(body).digest())
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def load_state_file(path: Path) -> tuple[SavedMachine, bytes]:
    """The header and QEMU's state. Raises OSError, StateFileError."""
    with open(path, "rb") as file:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise StateFileError("IO Error: the file is too short")
        magic, version, header_size, state_size = _HEAD.unpack(head)
        if magic != MAGIC:
            raise StateFileError(f"Magic value does not match arch: {int.from_bytes(magic, 'big')}")
        if version != VERSION:
            raise StateFileError(f"Invalid data version: {version}.0.0")
        if header_size > _HEADER_MAX or state_size > _STATE_MAX:
            raise StateFileError(f"Snapshot size exceeds limit of {_HEADER_MAX} bytes")
        rest = file.read(header_size + state_size + _DIGEST_BYTES + 1)
    body = rest[: header_size + state_size]
    if len(rest) != len(body) + _DIGEST_BYTES or hashlib.sha256(head + body).digest() != rest[len(body) :]:
        raise StateFileError("CRC64 validation failed: the file is cut or damaged")
    try:
        return msgspec.json.decode(body[:header_size], type=SavedMachine), body[header_size:]
    except msgspec.MsgspecError as error:
        raise StateFileError(f"the header does not parse: {error}") from error


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
