"""The mounts of a layer-run as they go over the stream (protocol/PROTOCOL.md, section 5)."""

from __future__ import annotations

import msgspec


class BindMount(msgspec.Struct, frozen=True, tag_field="type", tag="bind"):
    """A path of a stack's tree. Writes are lost with the step."""

    target: str
    stack: list[str]
    source: str = "/"
    read_only: bool = True


class TmpfsMount(msgspec.Struct, frozen=True, tag_field="type", tag="tmpfs"):
    """Memory; `size_bytes` 0: no limit of its own."""

    target: str
    size_bytes: int = 0
    read_only: bool = False


class CacheSeed(msgspec.Struct, frozen=True):
    """What a cache begins with. `id` names it: with another one than last time the cache begins anew."""

    id: str
    stack: list[str]
    source: str


class CacheMount(msgspec.Struct, frozen=True, tag_field="type", tag="cache"):
    """The cache on the disk `drive`. Without `keep` what is written to it is lost with the step."""

    target: str
    drive: str
    read_only: bool = False
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    seed: CacheSeed | None = None
    keep: bool = True


class SecretMount(msgspec.Struct, frozen=True, tag_field="type", tag="secret"):
    """A secret as a file, a variable or both. Its content is no part of this: it follows the request."""

    target: str | None
    env: str | None
    mode: int = 0o400
    uid: int = 0
    gid: int = 0


class SshMount(msgspec.Struct, frozen=True, tag_field="type", tag="ssh"):
    """A socket whose connections the host takes, by its name `socket` (1-32 of `[a-z0-9]`)."""

    target: str
    socket: str
    mode: int = 0o600
    uid: int = 0
    gid: int = 0


Mount = BindMount | TmpfsMount | CacheMount | SecretMount | SshMount
