"""Images whose layers mean harm, through the whole way: taken in as data, unpacked by a guest, below the disk's root or not at all."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from firebuild.store.blobs import BlobStore
from tests.support.cli import BUILD_TIMEOUT_S, Cli
from tests.support.registry import make_image

TAG = "tests/hostile-layer:1"
UP = "../" * 40


class Layer:
    """A tar, entry by entry. Nothing is looked at: names and targets are as they are given."""

    def __init__(self) -> None:
        self.buffer = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.buffer, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed by `bytes`

    def add(
        self, name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"", **fields: object
    ) -> Layer:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size, info.mode = kind, link, len(data), 0o755
        for field, value in fields.items():
            setattr(info, field, value)
        self.tar.addfile(info, io.BytesIO(data))
        return self

    def link(self, name: str, target: str) -> Layer:
        return self.add(name, tarfile.SYMTYPE, target)

    def folder(self, name: str) -> Layer:
        return self.add(name, tarfile.DIRTYPE)

    def bytes(self) -> bytes:
        self.tar.close()
        return self.buffer.getvalue()


def make(cli: Cli, folder: Path, *layers: bytes) -> list[str]:
    """An image of these layers under TAG; the layers' digests."""
    return [layer.digest for layer in make_image(BlobStore(cli.state / "store"), folder, TAG, *layers).layers]


def lower() -> bytes:
    """Each way out, in one layer: through links that this layer makes, over what it makes, and by the names themselves."""
    layer = Layer().add("/abs/file", data=b"a").add("./dot//file", data=b"d").folder("/")
    layer.link("l1", "/etc").add("l1/new", data=b"1").add("l1/sub/new", data=b"1")
    layer.link("l2", UP + "etc").add("l2/other", data=b"2")
    layer.link("l3", "/etc/shadow").add("l3", data=b"in its place")
    layer.link("l4", UP + "var/lib").folder("l4").add("l4/new", data=b"4")
    layer.link("l5", "l6").link("l6", "/srv").add("l5/two", data=b"5")
    layer.folder("d1").link("d1", "/opt").add("d1/new", data=b"6")
    layer.folder("d2").link("d2/l", UP).add("d2/l/top", data=b"7")
    layer.link("l7", "/proc/self/root").add("l7/caught", data=b"8").link("l8", "/dev/vda").add("l8", data=b"9")
    layer.link("l9", "/srv/two").add("h", tarfile.LNKTYPE, "l9").add("h", data=b"h")
    layer.add("n", tarfile.CHRTYPE, devmajor=1, devminor=3).add("n", data=b"n").add("p", tarfile.FIFOTYPE)
    layer.add("p", data=b"p").add("twice", data=b"once").add("twice", data=b"twice").folder("flip").add(
        "flip", data=b"f"
    )
    layer.add("disk", tarfile.BLKTYPE, devmajor=254, devminor=0, mode=0o666).add(
        "mem", tarfile.CHRTYPE, devmajor=1, devminor=1
    )
    layer.add("setuid", data=b"x", mode=0o6755, uid=4_000_000_000, gid=70_000)
    layer.add("caps", data=b"x", pax_headers={"SCHILY.xattr.security.capability": "\x01\0\0\x02" + "\0" * 16})
    layer.add("redirect", tarfile.DIRTYPE, pax_headers={"SCHILY.xattr.trusted.overlay.redirect": "/etc"})
    layer.add("x" * 255, data=b"long").add("new\nline\x1b[2J", data=b"odd").add("caf\u00e9")
    for name in ("kept", "gone", "hidden/old", "deep/er/old"):
        layer.add(name, data=b"lower")
    return layer.bytes()


def upper() -> bytes:
    """The same upon another layer: through its links, and with whiteouts that climb through them."""
    layer = Layer().add("l1/upper", data=b"u").add("l5/upper", data=b"u").add("l7/upper", data=b"u").add("d2/l/.wh.top")
    layer.add("l1/.wh.new").add("l2/.wh..wh..opq").add("/.wh.gone").add("hidden/.wh..wh..opq").add("hidden/new")
    layer.add(".wh.none").add("deep/.wh.er").folder("l6").add("l6/over", data=b"u").add(
        "kept", tarfile.SYMTYPE, "/etc/shadow"
    )
    layer.add("again", tarfile.LNKTYPE, "kept").add("h2", data=b"own")
    return layer.bytes()


EXPECTED = {
    "abs/file": "a", "dot/file": "d", "etc/upper": "u", "l3": "in its place", "l4/new": "4", "opt/new": "6", "l8": "9",
    "h": "h", "n": "n", "p": "p", "twice": "twice", "flip": "f", "setuid": "x", "caps": "x", "x" * 255: "long",
    "new\nline\x1b[2J": "odd", "hidden/new": "", "l6/over": "u", "h2": "own", "srv/two": "5", "srv/upper": "u",
}  # fmt: skip


def test_no_layer_leaves_the_disk(cli: Cli, tmp_path: Path) -> None:
    make(cli, tmp_path, lower(), upper())
    cli.ok("image", "export", TAG, "-o", tmp_path / "tree.tar", timeout_s=BUILD_TIMEOUT_S)
    with tarfile.open(tmp_path / "tree.tar", encoding="utf-8", errors="surrogateescape") as tar:
        members = {member.name.removeprefix("./"): member for member in tar.getmembers()}
        files = {
            name: stream.read().decode()
            for name, member in members.items()
            if member.isreg() and (stream := tar.extractfile(member)) is not None
        }
    for name, content in EXPECTED.items():
        assert files.get(name) == content, name
    assert not [name for name in members if name.startswith("/") or ".." in name.split("/") or ".wh." in name]
    assert not {"gone", "etc/new", "hidden/old", "deep/er", "top"} & set(members)
    owner = members["setuid"]
    assert (owner.uid, owner.gid, owner.mode) == (4_000_000_000, 70_000, 0o6755)
    assert (members["disk"].isblk(), members["disk"].devmajor, members["disk"].devminor) == (True, 254, 0)
    # Two names of one symbolic link: the first is the link, the other a name more.
    assert (members["again"].issym(), members["again"].linkname, members["kept"].islnk()) == (True, "/etc/shadow", True)
    assert not any("overlay" in key for member in members.values() for key in member.pax_headers)
    assert cli.ok("fsck") == ""
    cli.ok("image", "rm", TAG)
    cli.ok("gc", "-a")


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "a name that climbs": (lambda: Layer().add("a/../../escape\x1b[2J", data=b"x").bytes(), "escape"),
    "a hard link to what is not there": (lambda: Layer().add("h", tarfile.LNKTYPE, UP + "etc/shadow").bytes(), "h"),
    "a name that no file can have": (lambda: Layer().add("n" * 300).bytes(), "nnnn"),
}


@pytest.mark.parametrize("shape", REFUSED)
def test_what_cannot_be_unpacked_is_named(cli: Cli, tmp_path: Path, shape: str) -> None:
    layer, entry = REFUSED[shape][0](), REFUSED[shape][1]
    digests = make(cli, tmp_path, Layer().add("base").bytes(), layer)
    refused = cli.refused("image", "export", TAG, "-o", tmp_path / "tree.tar", timeout_s=BUILD_TIMEOUT_S).stderr
    assert entry in refused and digests[1] in refused and TAG in refused, refused
    assert "\x1b" not in refused and not (tmp_path / "tree.tar").exists()
    cli.ok("image", "rm", TAG)
    cli.ok("gc", "-a")
