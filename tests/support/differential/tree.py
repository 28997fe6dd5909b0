"""The tree that a stack of OCI layers means, and how two trees differ. It shares no code with firebuild.

Layers: OCI image-spec, layer.md (change sets, whiteouts). Of the extended attributes only security.capability is looked at: it
is the only one that Docker's image store keeps.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import BinaryIO

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
CAPABILITY = "SCHILY.xattr.security.capability"
_KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.SYMTYPE: "symlink",
    tarfile.DIRTYPE: "directory",
    tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
    tarfile.FIFOTYPE: "fifo",
}


@dataclass(frozen=True)
class Entry:
    """One entry of a layer. `link`: of a hard link the path that it is one more name of; `content`: digest, or a link's target."""

    path: str
    kind: str
    mode: str
    owner: str
    mtime_s: int
    content: str
    device: str
    capability: str
    link: str = ""


@dataclass(eq=False)
class _Inode:
    """What several names may share."""

    entry: Entry


Layer = tuple[Entry, ...]


def read_layer(file: BinaryIO) -> Layer:
    """All entries of a plain layer tar, in their order."""
    with tarfile.open(fileobj=file, mode="r|", encoding="utf-8", errors="surrogateescape") as archive:
        return tuple(_read_entry(archive, member) for member in archive)


def _read_entry(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    path = _clean(member.name)
    if member.type == tarfile.LNKTYPE:
        return Entry(path, "hard link", "", "", 0, "", "", "", link=_clean(member.linkname))
    kind = _KINDS[member.type]
    content = member.linkname if kind == "symlink" else ""
    if kind == "file":
        data = archive.extractfile(member)
        assert data is not None
        content = f"{member.size} bytes, sha256 {hashlib.sha256(data.read()).hexdigest()[:16]}"
    device = f"{member.devmajor}:{member.devminor}" if kind.endswith("device") else ""
    # A link's mode means nothing.
    mode = "" if kind == "symlink" else f"{member.mode & 0o7777:04o}"
    capability = member.pax_headers.get(CAPABILITY, "").encode("utf-8", "surrogateescape").hex()
    return Entry(path, kind, mode, f"{member.uid}:{member.gid}", int(member.mtime), content, device, capability)


def _clean(name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    assert ".." not in parts, name
    return "/".join(parts)


class Tree:
    """Path to inode, without the root itself."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        self._nodes: dict[str, _Inode] = {}
        for layer in layers:
            self._apply(layer)

    def _apply(self, layer: Layer) -> None:
        # What a whiteout hides is what lies below this layer, wherever it stands in the archive.
        for entry in layer:
            parent, _, name = entry.path.rpartition("/")
            if name == OPAQUE:
                self._remove_below(parent)
            elif name.startswith(WHITEOUT):
                self._remove(f"{parent}/{name.removeprefix(WHITEOUT)}".lstrip("/"))
        for entry in layer:
            if not entry.path or entry.path.rpartition("/")[2].startswith(WHITEOUT):
                continue
            old = self._nodes.get(entry.path)
            if old is not None and not (old.entry.kind == entry.kind == "directory"):
                self._remove(entry.path)
            self._nodes[entry.path] = self._nodes[entry.link] if entry.link else _Inode(entry)

    def _remove(self, path: str) -> None:
        self._nodes.pop(path, None)
        self._remove_below(path)

    def _remove_below(self, path: str) -> None:
        for each in [each for each in self._nodes if each.startswith(f"{path}/" if path else "")]:
            del self._nodes[each]

    def facts(self, since_s: int) -> dict[str, dict[str, str]]:
        """For each path what can be compared. A time from `since_s` on is `now`: both builders were at work then."""
        names: dict[_Inode, list[str]] = defaultdict(list)
        for path, inode in self._nodes.items():
            names[inode].append(path)
        found: dict[str, dict[str, str]] = {}
        for path, inode in self._nodes.items():
            fields = {key: str(value) for key, value in asdict(inode.entry).items() if key not in ("path", "link")}
            if inode.entry.mtime_s >= since_s:
                fields["mtime_s"] = "now"
            group = sorted(names[inode])
            fields["links"] = " = ".join(group) if len(group) > 1 else ""
            found[path] = fields
        return found


def compare_trees(docker: Tree, firebuild: Tree, since_s: int) -> Iterator[str]:
    """A line for each difference: `tree /path (kind) what: Docker …, firebuild …`."""
    ours, theirs = firebuild.facts(since_s), docker.facts(since_s)
    for path in sorted({*ours, *theirs}):
        if path not in ours:
            yield f"tree /{path} only with Docker: {_show(theirs[path])}"
        elif path not in theirs:
            yield f"tree /{path} only with firebuild: {_show(ours[path])}"
        else:
            for key, value in theirs[path].items():
                if ours[path][key] != value:
                    kind = ours[path]["kind"]
                    yield f"tree /{path} ({kind}) {key}: Docker {value!r}, firebuild {ours[path][key]!r}"


def _show(fields: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in fields.items() if value)
