"""How two images' file trees differ, read from their layers as data: nothing is unpacked, no name is followed.

Whiteouts as in OCI's layer.md: `.wh.NAME` removes what lies below, `.wh..wh..opq` all that a folder had below.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from firebuild.errors import ImageError
from firebuild.images.archive import open_layer
from firebuild.images.packages import DATABASES, Packages, parse_packages
from firebuild.names import Digest

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_DATABASE_LIMIT = 64 << 20
_NAME_MAX = 4096
_KINDS = {
    tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.DIRTYPE: "folder", tarfile.SYMTYPE: "link",
    tarfile.CHRTYPE: "device", tarfile.BLKTYPE: "device", tarfile.FIFOTYPE: "fifo",
}  # fmt: skip


class Node(msgspec.Struct, frozen=True):
    """An entry of a tree. `content`: a file's sha256, a link's target, a device's numbers; empty in layers that both images have.

    `layer`: the number of the layer that it comes from, so that what two images share compares equal without being read.
    """

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    content: str
    layer: str


class Tree(msgspec.Struct):
    """A merged tree: nodes by absolute path, and the package databases found in it."""

    nodes: dict[str, Node] = {}
    databases: dict[str, bytes] = {}


class LayerSource(msgspec.Struct, frozen=True):
    """A layer blob: its file, media type and the digest of its plain tar."""

    path: Path
    media_type: str
    diff_id: Digest


class Change(msgspec.Struct, frozen=True):
    """One difference. `kind`: added, changed or removed; `what`: which properties changed."""

    path: str
    kind: str
    what: list[str] = []
    size_bytes: int = 0


def load_tree(layers: Sequence[LayerSource], *, unread: int = 0, progress: Callable[[int], None] | None = None) -> Tree:
    """The merged tree of a stack of layers, lowest first. The content of the first `unread` layers' files is not digested.

    Raises ImageError for a layer that is damaged or no tar.
    """
    tree, done = Tree(), 0
    for number, layer in enumerate(layers):
        with open_layer(layer.path, layer.media_type, expected_diff_id=layer.diff_id) as stream:
            try:
                with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|") as archive:
                    added = _read_layer(archive, tree, str(number) if number < unread else "", layer.diff_id)
            except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
                raise ImageError(f"the layer {layer.diff_id[:19]} is not a tar that can be read: {error}") from error
            for piece in stream:
                del piece  # to its end, so that its digest is checked
            done += stream.position
        tree.nodes.update(added)
        if progress:
            progress(done)
    return tree


def _read_layer(archive: tarfile.TarFile, tree: Tree, shared: str, diff_id: str) -> dict[str, Node]:
    """A layer's own entries; what it removes is taken from `tree` at once."""
    added: dict[str, Node] = {}
    for member in archive:
        if len(member.name) > _NAME_MAX:
            raise ImageError(f"the layer {diff_id[:19]} has an entry whose name has {len(member.name)} characters")
        path = posixpath.normpath("/" + member.name).replace("//", "/")
        folder, name = posixpath.split(path)
        if name == _OPAQUE:
            _remove(tree, folder, keep_itself=True)
        elif name.startswith(_WHITEOUT):
            _remove(tree, posixpath.join(folder, name[len(_WHITEOUT) :]), keep_itself=False)
        elif member.islnk():
            target = posixpath.normpath("/" + member.linkname)
            found = added.get(target) or tree.nodes.get(target)
            if found is not None:
                added[path] = found
        else:
            added[path] = _node(archive, member, path, tree, shared)
    for path, node in added.items():
        if node.kind != "folder" and tree.nodes.get(path, node).kind == "folder":
            _remove(tree, path, keep_itself=False)
    return added


def _node(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str, tree: Tree, shared: str) -> Node:
    content = ""
    if member.isreg():
        database = path in DATABASES and member.size <= _DATABASE_LIMIT
        if database or not shared:
            content, data = _digest(archive.extractfile(member), database)
            if database:
                tree.databases[path] = data
    elif member.issym():
        content = member.linkname
    elif member.ischr() or member.isblk():
        content = f"{member.type!r} {member.devmajor}:{member.devminor}"
    kind = _KINDS.get(member.type, "other")
    size = member.size if kind == "file" else 0
    return Node(kind, member.mode & 0o7777, member.uid, member.gid, size, content, shared)


def _digest(file: IO[bytes] | None, keep: bool) -> tuple[str, bytes]:
    import hashlib

    total, kept = hashlib.sha256(), bytearray()
    while file is not None and (data := file.read(1 << 18)):
        total.update(data)
        if keep:
            kept += data
    return total.hexdigest(), bytes(kept)


def _remove(tree: Tree, path: str, *, keep_itself: bool) -> None:
    below = path.rstrip("/") + "/"
    for name in [name for name in tree.nodes if name.startswith(below)]:
        del tree.nodes[name]
    for name in [name for name in tree.databases if name.startswith(below) or name == path]:
        del tree.databases[name]
    if not keep_itself:
        tree.nodes.pop(path, None)


def compare_trees(old: Tree, new: Tree) -> list[Change]:
    """What is added, changed and removed from `old` to `new`, by path. Times do not count, as builds change them all."""
    changes = []
    for path in sorted(old.nodes.keys() | new.nodes.keys()):
        before, after = old.nodes.get(path), new.nodes.get(path)
        if before is None and after is not None:
            changes.append(Change(path, "added", [], after.size))
        elif after is None and before is not None:
            changes.append(Change(path, "removed", [], -before.size))
        elif before is not None and after is not None and before != after:
            what = _differing(before, after)
            if what:
                changes.append(Change(path, "changed", what, after.size - before.size))
    return changes


def _differing(before: Node, after: Node) -> list[str]:
    pairs: list[tuple[str, Any, Any]] = [
        ("kind", before.kind, after.kind), ("mode", before.mode, after.mode),
        ("owner", (before.uid, before.gid), (after.uid, after.gid)), ("size", before.size, after.size),
    ]  # fmt: skip
    what = [name for name, one, other in pairs if one != other]
    if (before.layer, before.content) != (after.layer, after.content):
        # A file of a shared layer beside one that a layer above wrote anew: its content was not read, so it counts as changed.
        what.append("content")
    return what


def compare_packages(old: Tree, new: Tree) -> list[dict[str, str | None]]:
    """Packages added, removed and of another version: `name`, `old`, `new`, by name."""
    before, after = _packages(old), _packages(new)
    return [
        {"name": name, "old": before.get(name), "new": after.get(name)}
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _packages(tree: Tree) -> Packages:
    found: Packages = {}
    for path in sorted(tree.databases):
        found.update(parse_packages(path, tree.databases[path]))
    return found
