"""What an image archive holds, read from its index without unpacking anything."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import msgspec

from firebuild.errors import ImageError

_INDEX_LIMIT = 4 << 20
_MEMBERS_MAX = 100_000
# An image's full name, as containerd and docker write it beside OCI's short one.
_NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


class ArchiveListing(msgspec.Struct, frozen=True):
    """`transport`: skopeo's name for the kind of archive; `names`: of each image in it; `selectors`: how skopeo picks each."""

    transport: str
    names: list[list[str]]
    selectors: list[str]

    def selector(self, number: int) -> str:
        """What follows the path in skopeo's source for the image of that number."""
        return self.selectors[number]


def list_archive(path: Path) -> ArchiveListing:
    """Read an archive's own index. Raises ImageError if it is neither an OCI nor a Docker archive, or holds no image."""
    members = _read_members(path, ("index.json", "manifest.json", "oci-layout"))
    try:
        if "manifest.json" in members:
            return _docker(msgspec.json.decode(members["manifest.json"]), path)
        if "index.json" in members and "oci-layout" in members:
            return _oci(msgspec.json.decode(members["index.json"]), path)
    except (msgspec.MsgspecError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ImageError(f"the index of the archive `{path}` does not parse: {error}") from error
    raise ImageError(
        f"`{path}` is not an image archive: it has neither a `manifest.json` nor an `index.json`",
        hint="a file tree as a tarball is taken in with `firebuild image import`",
    )


def _read_members(path: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for count, member in enumerate(archive):
                if count > _MEMBERS_MAX:
                    raise ImageError(f"`{path}` has more than {_MEMBERS_MAX} entries: it is not an image archive")
                name = member.name.removeprefix("./")
                if name in wanted and member.isreg():
                    if member.size > _INDEX_LIMIT:
                        raise ImageError(f"`{name}` in the archive `{path}` has {member.size} bytes, far too many")
                    reader = archive.extractfile(member)
                    found[name] = reader.read() if reader else b""
                    if len(found) == len(wanted):
                        break
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ImageError(f"the archive `{path}` cannot be read: {error}") from error
    return found


def _docker(manifest: Any, path: Path) -> ArchiveListing:
    names = [list(entry.get("RepoTags") or []) for entry in manifest]
    if not names:
        raise ImageError(f"the archive `{path}` holds no image")
    return ArchiveListing("docker-archive", names, [f":@{number}" for number in range(len(names))])


def _oci(index: Any, path: Path) -> ArchiveListing:
    entries = index["manifests"]
    if not entries:
        raise ImageError(f"the archive `{path}` holds no image")
    names, selectors = [], []
    for entry in entries:
        annotations = entry.get("annotations") or {}
        known = [annotations[key] for key in _NAME_ANNOTATIONS if key in annotations]
        names.append(known[:1])
        short = annotations.get(_NAME_ANNOTATIONS[1])
        if len(entries) > 1 and short is None:
            raise ImageError(f"the archive `{path}` holds several images, and one has no name to pick it by")
        selectors.append(f":{short}" if len(entries) > 1 else "")
    return ArchiveListing("oci-archive", names, selectors)
