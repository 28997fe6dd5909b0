"""Archives as contexts and as what ADD unpacks: what any tar means, or its error; nothing is written anywhere."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firebuild.build.sources.archive import convert_archive, is_archive, is_packed
from firebuild.build.sources.scratch import Scratch
from firebuild.build.sources.tarread import TarEntry, TarLimits, TarReader
from firebuild.build.sources.tartree import TarTree, spool_plain
from firebuild.dockerfile.ignore import parse_ignore
from firebuild.errors import ContextError
from firebuild.images.compression import ExpansionLimits, load_zstd

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress,
    "zstd": lambda data: bytes(load_zstd().compress(data)),
}  # fmt: skip


def info(name: str, kind: bytes = tarfile.REGTYPE, **values: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for key, value in values.items():
        setattr(made, key, value)
    return made


Member = tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]


def pack(*members: Member, format_: int = tarfile.PAX_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=format_) as archive:
        for member in members:
            head, data = member if isinstance(member, tuple) else (member, b"")
            head.size = len(data)
            archive.addfile(head, io.BytesIO(data))
    return target.getvalue()


def read(data: bytes, limits: TarLimits | None = None) -> list[tuple[TarEntry, bytes]]:
    reader = TarReader(io.BytesIO(data).read, "`x.tar`", limits)
    return [(entry, b"".join(reader.read_content())) for entry in reader]


def convert(data: bytes, number: int = 3) -> dict[str, tarfile.TarInfo]:
    out = b"".join(convert_archive(iter([data]), number, "`x.tar`"))
    with tarfile.open(fileobj=io.BytesIO(out + bytes(1024))) as archive:
        return {member.name: member for member in archive}


RICH: list[Member] = [
    info("./", tarfile.DIRTYPE, mode=0o700), info("./d", tarfile.DIRTYPE, mode=0o1777, uid=5, gid=6, mtime=1500000000),
    (info("d/f", mode=0o4755, uid=3_000_000_000, mtime=-5, pax_headers={"SCHILY.xattr.user.k": "v\udcff"}), b"data" * 300),
    info("d/h", tarfile.LNKTYPE, linkname="./d/f"), info("/abs/s", tarfile.SYMTYPE, linkname="../../../etc"),
    info("n", tarfile.CHRTYPE, devmajor=1, devminor=3), info("b", tarfile.BLKTYPE, devmajor=8, devminor=1),
    info("p", tarfile.FIFOTYPE), (info("x" * 150 + "/" + "y" * 200), b"long"), (info("byte\udcff"), b"1"),
]  # fmt: skip


@pytest.mark.parametrize("packer", sorted(PACKERS))
def test_what_add_unpacks_keeps_everything_but_its_way_out(packer: str) -> None:
    data = PACKERS[packer](pack(*RICH))
    assert is_archive(iter([data])) and is_packed(iter([data]))
    found = convert(data)
    assert list(found) == [
        "3/d", "3/d/f", "3/d/h", "3/abs/s", "3/n", "3/b", "3/p", "3/" + "x" * 150 + "/" + "y" * 200, "3/byte\udcff",
    ]  # fmt: skip
    assert (found["3/d"].mode, found["3/d"].uid, found["3/d"].gid, found["3/d"].mtime) == (0o1777, 5, 6, 1500000000)
    file = found["3/d/f"]
    assert (file.mode, file.uid, file.mtime, file.size) == (0o4755, 3_000_000_000, -5, 1200)
    assert file.pax_headers["SCHILY.xattr.user.k"] == "v\udcff"
    assert found["3/d/h"].islnk() and found["3/d/h"].linkname == "3/d/f"
    assert found["3/abs/s"].linkname == "../../../etc"
    assert (found["3/n"].devmajor, found["3/n"].devminor) == (1, 3) and found["3/b"].isblk() and found["3/p"].isfifo()


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_formats(format_: int) -> None:
    long = "d" * 90 + "/" + "f" * 90
    members: list[Member] = [(info(long, uid=1), b"1"), info("l", tarfile.SYMTYPE, linkname="t" * 90)]
    found = read(pack(*members, format_=format_))
    assert [(entry.path, content) for entry, content in found] == [(long, b"1"), ("l", b"")]
    assert found[1][0].target == "t" * 90


@pytest.mark.parametrize(
    "data", [b"", b"x", b"x" * 600, bytes(512), bytes(10240), gzip.compress(b"text"), lzma.compress(b""), b"\x1f\x8bxxxxxxxx",
             b"BZh", b"FROM scratch\n" * 100],
)  # fmt: skip
def test_what_is_no_archive(data: bytes) -> None:
    assert not is_archive(iter([data] if data else []))


def refused(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> str:
    with pytest.raises(ContextError) as caught:
        read(pack(*members))
    assert caught.value.message.startswith("`x.tar` is not an archive that firebuild can take: ")
    return caught.value.message


@pytest.mark.parametrize("name", ["..", "../x", "a/..", "a/../../x", "/../x", "a/./../x"])
def test_names_that_lead_out(name: str) -> None:
    assert "leads out" in refused(info(name))
    assert "leads out" in refused(info("x", tarfile.LNKTYPE, linkname=name))


def test_entries_that_nobody_can_make() -> None:
    for member in (
        info("n" * 256), info("/".join("d" * 201)), info("s", tarfile.SYMTYPE), info("h", tarfile.LNKTYPE, linkname="."),
        info("s", tarfile.SYMTYPE, linkname="t" * 5000), info("d", tarfile.CHRTYPE), info("d", tarfile.BLKTYPE, devmajor=5000),
        info("u", b"Q"), info("s", tarfile.GNUTYPE_SPARSE), info("v", b"V"), info("m", b"M"),
        info("s", pax_headers={"GNU.sparse.major": "1"}), info("o", pax_headers={"uid": "4294967295"}),
        info("o", pax_headers={"gid": "-1"}), info("t", pax_headers={"mtime": "never"}), info("z", pax_headers={"size": "-1"}),
        info("z", pax_headers={"size": "9" * 30}), info("a\0b", pax_headers={"path": "a\0b"}),
    ):  # fmt: skip
        refused(member)
    assert "\x1b" not in refused(info("\x1b[2J", b"Q"))


def test_limits() -> None:
    data = pack(*[(info(str(number)), b"12345") for number in range(10)])
    for limits, text in ((TarLimits(entries=9), "more than 9 entries"), (TarLimits(bytes=49), "more than 49 bytes")):
        with pytest.raises(ContextError, match=text):
            read(data, limits)
    assert len(read(data, TarLimits(entries=10, bytes=50))) == 10
    with pytest.raises(ContextError, match="extended headers"):
        read(pack(info("x", pax_headers={"comment": "y" * (1 << 20)})))


def test_every_cut_is_seen_or_harmless() -> None:
    data = pack((info("a"), b"1" * 700), (info("b" * 120), b"2"))
    whole = [entry.path for entry, _ in read(data)]
    for cut in range(0, 4000, 37):
        try:
            found = [entry.path for entry, _ in read(data[:cut])]
        except ContextError:
            continue
        assert found == whole[: len(found)]


@settings(max_examples=150)
@given(st.data())
def test_any_damage_is_an_error_or_an_archive(data: st.DataObject) -> None:
    archive = bytearray(pack(*RICH))
    for _ in range(data.draw(st.integers(1, 4))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    try:
        for entry, _ in read(bytes(archive)):
            assert ".." not in entry.path.split("/") and not entry.path.startswith("/") and "\0" not in entry.path
            assert entry.kind != "hardlink" or ".." not in entry.target.split("/")
    except ContextError:
        return


# -- as a context ------------------------------------------------------------------------------------------------------


def tree_of(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> TarTree:
    file = io.BytesIO(pack(*members))
    return TarTree(as_file(file.getvalue()), "`x.tar`")


def as_file(data: bytes) -> io.BufferedRandom:
    import tempfile

    file = tempfile.TemporaryFile()  # noqa: SIM115 - the tree closes it
    file.write(data)
    file.seek(0)
    return file


def shown(tree: TarTree) -> dict[str, str]:
    found = {}
    for entry in tree.walk(tree.root_entry()):
        content = b"".join(tree.read_chunks(entry)).decode() if entry.kind == "file" else entry.target
        found[entry.path] = f"{entry.kind} {entry.mode:o} {content}".strip()
    return found


def test_a_tree_of_an_archive() -> None:
    with tree_of(
        (info("b/deep/f", mode=0o600), b"1"), info("a", tarfile.SYMTYPE, linkname="b/deep"), (info("b/deep/f"), b"22"),
        info("h", tarfile.LNKTYPE, linkname="b/deep/f"), info("gone", tarfile.DIRTYPE), (info("gone/x"), b"x"),
        (info("gone"), b"file"), info("p", tarfile.FIFOTYPE),
    ) as tree:  # fmt: skip
        assert shown(tree) == {
            "": "directory 755", "a": "symlink 644 b/deep", "b": "directory 755", "b/deep": "directory 755",
            "b/deep/f": "file 644 22", "gone": "file 644 file", "h": "file 644 22", "p": "a FIFO 644",
        }  # fmt: skip
        found = tree.find_resolved("a/f")
        assert found is not None and found.path == "b/deep/f"
        assert tree.find_resolved("gone/x") is None
        tree.hide(parse_ignore(b"b\n"))
        assert "b" not in shown(tree) and tree.find_resolved("a/f") is None and tree.is_excluded("b/deep/f")


def test_a_tree_that_cannot_be() -> None:
    for members in (
        [info("l", tarfile.SYMTYPE, linkname="/etc"), info("l/x")], [info("f"), info("f/x")],
        [info("h", tarfile.LNKTYPE, linkname="later"), info("later")],
        [info("d", tarfile.DIRTYPE), info("h", tarfile.LNKTYPE, linkname="d")],
        [info("../x")],
    ):  # fmt: skip
        with pytest.raises(ContextError):
            tree_of(*members)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "a/b", "a/c", "b/a", "a/b/c"]), st.sampled_from("fdl"), st.binary(max_size=5)
        )
    )
)
def test_a_tree_is_what_unpacking_one_by_one_makes(members: list[tuple[str, str, bytes]]) -> None:
    model: dict[str, str] = {}
    kinds = {"f": tarfile.REGTYPE, "d": tarfile.DIRTYPE, "l": tarfile.SYMTYPE}
    fails = False
    for path, kind, _ in members:
        parents = [path.rsplit("/", count)[0] for count in range(path.count("/"), 0, -1)]
        if any(model.get(parent, "d") != "d" for parent in parents):
            fails = True
            break
        model.update(dict.fromkeys(parents, "d"))
        if kind != "d":
            model = {known: value for known, value in model.items() if not known.startswith(path + "/")}
        model[path] = kind
    packed = [
        (info(path, kinds[kind], linkname="x" if kind == "l" else ""), data if kind == "f" else b"")
        for path, kind, data in members
    ]
    try:
        with tree_of(*packed) as tree:
            names = {"file": "f", "directory": "d", "symlink": "l"}
            found = {entry.path: names[entry.kind] for entry in tree.walk(tree.root_entry()) if entry.path}
            assert found == model and not fails
    except ContextError:
        assert fails


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Scratch]:
    with Scratch(tmp_path / "scratch") as made:
        yield made
    assert not list((tmp_path / "scratch").glob("*"))


@pytest.mark.parametrize("packer", ["gzip", "bzip2", "xz", "zstd"])
def test_bombs(scratch: Scratch, packer: str) -> None:
    data = PACKERS[packer](pack((info("zeros"), bytes(30 << 20))))
    limits = ExpansionLimits(bytes=4 << 20, ratio=10**6)
    with pytest.raises(ContextError, match="expands to more than"):
        spool_plain(io.BytesIO(data), "`x`", scratch, limits)
    limits = ExpansionLimits(bytes=1 << 40, ratio=100, ratio_from_bytes=1 << 20)
    with pytest.raises(ContextError, match="bomb"):
        spool_plain(io.BytesIO(data), "`x`", scratch, limits)
    with pytest.raises(ContextError, match="bomb"):
        list(convert_archive(iter([data]), 0, "`x`", expansion=limits))


def test_scratch_is_private_and_goes(tmp_path: Path) -> None:
    with Scratch(tmp_path / "s") as scratch:
        assert not (tmp_path / "s").exists(), "nothing is made before it is needed"
        folder = scratch.make_folder("x")
        assert folder.stat().st_mode & 0o777 == 0o700
        with scratch.open_file() as file:
            file.write(b"x")
        assert len(list((tmp_path / "s").iterdir())) == 2
    assert not list((tmp_path / "s").iterdir())
