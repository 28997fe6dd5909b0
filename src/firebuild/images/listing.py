"""What a Docker archive holds, read from its `manifest.json` (the format of `docker save` before version 25)."""

from __future__ import annotations

import msgspec

from firebuild.errors import ImageError


class _Entry(msgspec.Struct, rename="pascal"):
    repo_tags: list[str] | None = None


def docker_names(manifest: bytes, subject: str) -> list[list[str]]:
    """The names of each image of an archive. Raises ImageError if its index does not parse or names no image."""
    try:
        entries = msgspec.json.decode(manifest, type=list[_Entry])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ImageError(f"the index of {subject} does not parse: {error}") from error
    if not entries:
        raise ImageError(f"{subject} holds no image")
    return [list(entry.repo_tags or []) for entry in entries]
