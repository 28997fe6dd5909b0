"""An image's init, found in its layers through the links that distributions have."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from firebuild.images.inits import has_init
from firebuild.images.treediff import LayerSource
from firebuild.names import Digest


def layer(folder: Path, entries: Iterable[tuple[str, str | int]]) -> LayerSource:
    """A layer of links (name, target) and files (name, mode)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, what in entries:
            entry = tarfile.TarInfo(name)
            if isinstance(what, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, what
            else:
                entry.mode = what
            archive.addfile(entry)
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    (folder / digest).write_bytes(data)
    return LayerSource(folder / digest, "application/vnd.oci.image.layer.v1.tar", Digest(f"sha256:{digest}"))


MERGED: list[tuple[str, str | int]] = [("sbin", "usr/sbin"), ("lib", "usr/lib")]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([[("sbin/init", 0o755)]], True),
        ([[*MERGED, ("usr/sbin/init", "/lib/systemd/systemd"), ("usr/lib/systemd/systemd", 0o755)]], True),
        ([[*MERGED, ("usr/sbin/init", "../lib/systemd/systemd"), ("usr/lib/systemd/systemd", 0o755)]], True),
        ([MERGED, [("usr/sbin/init", 0o755)]], True),
        ([MERGED], False),
        ([[("sbin/init", 0o644)]], False),
        ([[("sbin/init", "/bin/busybox")]], False),
        ([[("sbin/init", "../sbin/init")]], False),
        ([[("sbin/init", 0o755)], [("sbin/.wh.init", 0)]], False),
    ],
)
def test_images(tmp_path: Path, layers: list[list[tuple[str, str | int]]], expected: bool) -> None:
    assert has_init([layer(tmp_path, entries) for entries in layers]) is expected
