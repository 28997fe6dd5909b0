"""The sources of a layer-copy as they go over the stream (protocol/PROTOCOL.md, section 5)."""

from __future__ import annotations

import msgspec


class CopyItem(msgspec.Struct, frozen=True):
    """One source of a COPY. `kind`: "file", "directory" or "archive"; `name`: a file's last path component, else empty."""

    name: str
    kind: str
