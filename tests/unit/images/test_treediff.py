"""Differences of trees: whiteouts, links, folders that become files, packages of dpkg and apk, and layers that are no tar."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from firebuild.errors import ImageError, StoreError
from firebuild.images.packages import parse_packages
from firebuild.images.treediff import Change, LayerSource, compare_packages, compare_trees, load_tree
from firebuild.names import Digest

Entry = tuple[str, bytes | None] | tarfile.TarInfo


def info(name: str, kind: bytes, **fields: object) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry


def layer(folder: Path, *entries: Entry) -> LayerSource:
    """A layer; a name with None is a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
                continue
            name, data = entry
            member = info(name, tarfile.DIRTYPE if data is None else tarfile.REGTYPE, size=len(data or b""))
            archive.addfile(member, io.BytesIO(data or b""))
    return write(folder, buffer.getvalue())


def write(folder: Path, data: bytes) -> LayerSource:
    digest = hashlib.sha256(data).hexdigest()
    (folder / digest).write_bytes(data)
    return LayerSource(folder / digest, "application/vnd.oci.image.layer.v1.tar", Digest(f"sha256:{digest}"))


def changes(folder: Path, base: LayerSource, above: LayerSource) -> list[Change]:
    return compare_trees(load_tree([base], unread=1), load_tree([base, above], unread=1))


def test_whiteouts_and_folders(tmp_path: Path) -> None:
    base = layer(
        tmp_path, ("a", None), ("a/one", b"1"), ("a/two", b"2"), ("b", None), ("b/x", b"x"), ("b/y", b"y"), ("c", None), ("c/in", b"")
    )  # fmt: skip
    above = layer(tmp_path, ("a/.wh.one", b""), ("b/.wh..wh..opq", b""), ("b/new", b"n"), ("c", b"a file now"))
    found = {(change.kind, change.path) for change in changes(tmp_path, base, above)}
    assert found == {
        ("removed", "/a/one"), ("removed", "/b/x"), ("removed", "/b/y"), ("added", "/b/new"), ("changed", "/c"), ("removed", "/c/in"),
    }  # fmt: skip


def test_what_changed_is_named(tmp_path: Path) -> None:
    base = layer(tmp_path, ("f", b"one"), info("l", tarfile.SYMTYPE, linkname="f"), ("same", b"s"))
    above = layer(
        tmp_path, info("f", tarfile.REGTYPE, mode=0o755, uid=7), info("l", tarfile.SYMTYPE, linkname="../../g"),
        info("d", tarfile.CHRTYPE, devmajor=1), info("h", tarfile.LNKTYPE, linkname="same"),
    )  # fmt: skip
    found = {change.path: (change.kind, change.what) for change in changes(tmp_path, base, above)}
    assert found["/f"] == ("changed", ["mode", "owner", "size", "content"])
    assert found["/l"] == ("changed", ["content"]) and found["/d"][0] == found["/h"][0] == "added"
    assert "/same" not in found


def test_names_that_climb_stay_names(tmp_path: Path) -> None:
    above = layer(tmp_path, ("../../etc/x", b"1"), ("/abs", b"2"), ("a/../../b", b"3"))
    assert set(load_tree([above]).nodes) == {"/etc/x", "/abs", "/b"}


def test_packages(tmp_path: Path) -> None:
    old = layer(tmp_path, ("lib/apk/db/installed", b"P:musl\nV:1.2\n\nP:zlib\nV:1\n\n"))
    new = layer(tmp_path, ("lib/apk/db/installed", b"P:musl\nV:1.3\n\nP:curl\nV:8\n\n"))
    assert compare_packages(load_tree([old]), load_tree([old, new])) == [
        {"name": "curl", "old": None, "new": "8"},
        {"name": "musl", "old": "1.2", "new": "1.3"},
        {"name": "zlib", "old": "1", "new": None},
    ]
    status = b"Package: a\nStatus: deinstall ok config-files\nVersion: 1\n\nPackage: b\nVersion: 2\nStatus: install ok installed\n"
    assert parse_packages("/var/lib/dpkg/status", status) == {"b": "2"}
    assert parse_packages("/var/lib/dpkg/status", b"\xff\n\n: \n\n") == {}
    gone = layer(tmp_path, ("lib/.wh.apk", b""))
    assert load_tree([old, gone]).databases == {}


@pytest.mark.parametrize("data", [b"", b"no tar" * 1000, b"\0" * 512 + b"x" * 512])
def test_what_is_no_layer(tmp_path: Path, data: bytes) -> None:
    source = write(tmp_path, data)
    try:
        assert load_tree([source]).nodes == {}
    except ImageError as error:
        assert source.diff_id[:19] in error.message


def test_another_content_than_the_diff_id_says(tmp_path: Path) -> None:
    """The image's lie, or the store's damage: each is told as what it is."""
    source = layer(tmp_path, ("f", b"one"))
    with pytest.raises(ImageError, match="diff id"):
        load_tree([LayerSource(source.path, source.media_type, Digest("sha256:" + "1" * 64))])
    source.path.write_bytes(source.path.read_bytes().replace(b"one", b"two"))
    with pytest.raises(StoreError, match=f"the blob {source.diff_id} is damaged") as caught:
        load_tree([source])
    assert "firebuild fsck --repair" in (caught.value.hint or "")
