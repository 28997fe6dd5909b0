"""What a hostile guest sends lands below the folder that was named, or not at all."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from firebuild.engine import copying
from firebuild.engine.copy_plan import Place
from firebuild.engine.copying import CopyOptions, land
from firebuild.errors import ConflictError, DiskFullError, FirebuildError, GuestError
from firebuild.host import landing
from firebuild.host.packing import PackOptions, pack_tree


def make_tar(*entries: tuple[str, str, bytes], **attributes: int) -> bytes:
    """A tar of entries: name, type by tarfile's letter, content or a link's target."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, content in entries:
            info = tarfile.TarInfo(name)
            info.type = kind.encode()
            info.devmajor, info.devminor = 1, 3
            info.mode = attributes.get("mode", 0o755)
            info.uid = info.gid = attributes.get("uid", os.geteuid())
            if kind in "12":
                info.linkname = content.decode()
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def receive(data: bytes, folder: Path, *, name: str = "out", kind: str = "directory", piece: int = 1000) -> list[str]:
    """Land it as `folder`/`name`, asked for as `d`; what was left out."""
    left_out: list[str] = []
    pieces = (data[start : start + piece] for start in range(0, len(data), piece))
    land(pieces, "d", Place(str(folder), name), kind, CopyOptions(left_out=left_out.append))
    return left_out


def snapshot(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


D = ("d", "5", b"")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A folder beside a file that nobody may touch."""
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def test_a_tree_comes_as_it_is(target: Path) -> None:
    left_out = receive(
        make_tar(D, ("d/a", "0", b"hello"), ("d/sub", "5", b""), ("d/sub/l", "2", b"/nowhere"), ("d/dev", "3", b"")),
        target,
    )
    assert snapshot(target) == {"out", "out/a", "out/sub", "out/sub/l"}
    assert (target / "out/a").read_text() == "hello"
    assert (target / "out/sub/l").readlink() == Path("/nowhere")
    assert (target / "out/sub").stat().st_mode & 0o7777 == 0o755
    assert (target / "out").stat().st_mtime == 0
    assert left_out == ["`d/dev` is a character device and was left out"]


@pytest.mark.parametrize(
    "entries",
    [
        (D, ("d/../../secret", "0", b"x")),
        (D, ("../secret", "0", b"x")),
        (D, ("secret", "0", b"x")),
        (("secret", "0", b"x"),),
        (D, ("d/h", "1", b"../secret")),
        (D, ("d/h", "1", b"d/h")),
        (),
    ],
)
def test_what_was_not_asked_for_is_refused(target: Path, entries: tuple[tuple[str, str, bytes], ...]) -> None:
    with pytest.raises(GuestError) as caught:
        receive(make_tar(*entries), target)
    assert caught.value.guest_code == "bad-archive"
    assert snapshot(target) <= {"out"}
    assert (target.parent / "secret").read_text() == "secret"


def test_links_lead_nowhere(target: Path) -> None:
    for first in (("d/l", "2", b"../.."), ("d/l", "2", str(target.parent).encode())):
        with pytest.raises(ConflictError, match="a link or a file stands"):
            receive(make_tar(D, first, ("d/l/secret", "0", b"x")), target)
    # One that an earlier copy brought is replaced, not written through.
    receive(make_tar(D, ("d/l", "2", b"../../secret")), target)
    receive(make_tar(D, ("d/l", "0", b"mine")), target)
    assert not (target / "out/l").is_symlink() and (target / "out/l").read_text() == "mine"
    assert (target.parent / "secret").read_text() == "secret"


def test_a_file_does_not_take_a_folders_place(target: Path) -> None:
    (target / "out" / "x" / "y").mkdir(parents=True)
    with pytest.raises(ConflictError, match="a folder of that name"):
        receive(make_tar(D, ("d/x", "0", b"")), target)
    (target / "out" / "f").write_text("f")
    with pytest.raises(ConflictError):
        receive(make_tar(D, ("d/f", "5", b"")), target)
    assert snapshot(target) == {"out", "out/x", "out/x/y", "out/f"}


def test_rights_are_not_lent(target: Path) -> None:
    receive(make_tar(D, ("d/su", "0", b"x"), mode=0o7777), target)
    assert (target / "out/su").stat().st_mode & 0o7777 == 0o777
    assert (target / "out").stat().st_mode & 0o7777 == 0o1777


def test_a_file_is_one_entry_of_its_kind(target: Path) -> None:
    receive(make_tar(("d", "0", b"data")), target, kind="file")
    assert (target / "out").read_text() == "data"
    for entries in ((("d", "0", b""), ("d/x", "0", b"")), (("d", "2", b"/etc"),)):
        with pytest.raises(GuestError):
            receive(make_tar(*entries), target, kind="file")
    with pytest.raises(GuestError):
        receive(make_tar(("d", "0", b"")), target)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 3],
        lambda data: data + b"x",
        lambda data: data + bytes(2 << 20),
        lambda data: b"\xff" * 512 + data,
        lambda data: b"",
    ],
)
def test_a_broken_archive_is_refused(target: Path, spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(GuestError):
        receive(spoil(make_tar(D, ("d/a", "0", b"x" * 5000))), target, piece=100_000)
    assert not [name for name in snapshot(target) if name.endswith(".part")]


def test_an_endless_stream_ends_where_the_room_does(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([*[10**12] * 3, 0])
    monkeypatch.setattr("firebuild.host.files.free_bytes", lambda path: next(looks))
    monkeypatch.setattr(landing, "_CHECK_BYTES", 1 << 20)
    head = make_tar(D, ("d/a", "0", b""))[:1024]
    info = tarfile.TarInfo("d/big")
    info.size = 1 << 40

    def endless() -> object:
        yield head + info.tobuf(tarfile.PAX_FORMAT)
        while True:
            yield b"x" * 100_000

    with pytest.raises(DiskFullError):
        land(endless(), "d", Place(str(target), "out"), "directory", CopyOptions())  # type: ignore[arg-type]
    assert snapshot(target) == {"out", "out/a"}


def test_holes_stay_holes(target: Path) -> None:
    receive(make_tar(D, ("d/hole", "0", bytes(4 << 20) + b"x")), target, piece=1 << 20)
    status = (target / "out/hole").stat()
    assert status.st_size == (4 << 20) + 1 and status.st_blocks * 512 < 1 << 20


def test_what_is_packed_can_land(target: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "file").write_bytes(b"content")
    (source / os.fsdecode(b"bad\xffname")).write_bytes(b"1")
    (source / "a" / ("n" * 200)).write_bytes(b"2")
    (source / "l").symlink_to("a/file")
    os.mkfifo(source / "fifo")
    left_out: list[str] = []
    data = b"".join(pack_tree(source, "d", PackOptions(left_out=left_out.append)))
    receive(data, target)
    assert snapshot(target / "out") == snapshot(source) - {"fifo"}
    assert left_out == [f"{source}/fifo"]
    contents = b"".join(pack_tree(source, "", PackOptions()))
    with tarfile.open(fileobj=io.BytesIO(contents)) as archive:
        assert archive.getnames()[0] == "a"


def test_a_deep_tree_is_refused(target: Path) -> None:
    deep = "d/" + "x/" * copying._LIMITS.depth + "y"
    with pytest.raises(FirebuildError):
        receive(make_tar(D, (deep, "0", b"")), target)
