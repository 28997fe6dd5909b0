"""The context: nothing outside it is read, nothing hidden is seen, nothing that changes goes unnoticed."""

from __future__ import annotations

import io
import os
import socket
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from firebuild.build.context import BuildContext
from firebuild.build.copy import InlineContent, Selection, select_sources
from firebuild.build.copytar import open_tar
from firebuild.build.glob import match_component
from firebuild.build.tree import ContextTree, Entry
from firebuild.dockerfile.ignore import parse_ignore
from firebuild.errors import BuildError, ContextError
from firebuild.guest.items import CopyItem


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "context"
    (root / "app" / "deep").mkdir(parents=True)
    (root / "app" / "main.py").write_text("print(1)")
    (root / "app" / "run.sh").write_text("#!/bin/sh")
    (root / "app" / "run.sh").chmod(0o755)
    (root / "app" / "deep" / "x").write_text("x")
    (root / "app" / "link").symlink_to("../../../etc/passwd")
    (root / "a.txt").write_text("a")
    (root / "b.txt").write_text("bb")
    (tmp_path / "outside").write_text("secret")
    return root


@pytest.fixture
def context(folder: Path) -> Iterator[BuildContext]:
    with BuildContext(folder) as opened:
        yield opened


def open_with(folder: Path, ignore: str) -> BuildContext:
    return BuildContext(folder, parse_ignore(ignore.encode()))


def list_tar(context: BuildContext, selection: Selection) -> list[tuple[str, str]]:
    """Names and what they hold: a mode for a folder, a target for a link, content for a file."""
    data = b"".join(open_tar(context, selection, inline_mtime_s=7))
    found = []
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for info in archive:
            assert (info.uid, info.gid) == (0, 0) and info.mtime == int(info.mtime)
            if info.isfile():
                file = archive.extractfile(info)
                assert file is not None
                found.append((info.name, f"{info.mode:o} {file.read().decode()}"))
            else:
                found.append((info.name, info.linkname or f"{info.mode:o}"))
    return found


def test_hard_links_stay_one_file_within_a_source(folder: Path) -> None:
    (folder / "app" / "again").hardlink_to(folder / "app" / "main.py")
    (folder / "c.txt").hardlink_to(folder / "a.txt")
    with BuildContext(folder) as context:
        chosen = select_sources(context, ["app", "a.txt", "c.txt"])
        names = dict(list_tar(context, chosen))
        assert names["0/main.py"] == "0/again" and names["0/again"] == "644 print(1)"
        # Sources are copied one by one: a file of two of them becomes two files.
        assert names["1"] == names["2"] == "644 a"
    (folder / "app" / "again").unlink()
    (folder / "app" / "again").write_text("print(1)")
    with BuildContext(folder) as context:
        assert select_sources(context, ["app", "a.txt", "c.txt"]).digest != chosen.digest


def test_wildcards_follow_links_above_and_at_the_end_only(folder: Path) -> None:
    (folder / "to-app").symlink_to("app")
    (folder / "app" / "to-deep").symlink_to("deep")
    (folder / "nowhere").symlink_to("gone")

    def names(source: str) -> list[str]:
        with BuildContext(folder) as context:
            return [item.name or item.kind for item in select_sources(context, [source]).items]

    assert names("to-app/*.py") == ["main.py"]
    assert names("to-a*") == ["directory"]
    assert names("to-a*/*.py") == [] and names("app/to-d*/x") == []
    with pytest.raises(ContextError, match=r"no\*` is not in the build context"):
        names("no*")


def test_files_and_folders_become_items(context: BuildContext) -> None:
    selection = select_sources(context, ["a.txt", "app/", "*.txt"])
    assert selection.items == (
        CopyItem("a.txt", "file"), CopyItem("", "directory"), CopyItem("a.txt", "file"), CopyItem("b.txt", "file"),
    )  # fmt: skip
    assert list_tar(context, selection) == [
        ("0", "644 a"),
        ("1", "755"),
        ("1/deep", "755"),
        ("1/deep/x", "644 x"),
        ("1/link", "../../../etc/passwd"),
        ("1/main.py", "644 print(1)"),
        ("1/run.sh", "755 #!/bin/sh"),
        ("2", "644 a"),
        ("3", "644 bb"),
    ]


@pytest.mark.parametrize("source", [".", "/", "./", "app/.."])
def test_the_whole_context(context: BuildContext, source: str) -> None:
    names = [name for name, _ in list_tar(context, select_sources(context, [source]))]
    assert names == [
        "0",
        "0/a.txt",
        "0/app",
        "0/app/deep",
        "0/app/deep/x",
        "0/app/link",
        "0/app/main.py",
        "0/app/run.sh",
        "0/b.txt",
    ]


def test_heredocs_follow(context: BuildContext) -> None:
    selection = select_sources(context, ["a.txt"], [InlineContent("motd", b"hello")])
    assert selection.items[1] == CopyItem("motd", "file")
    assert list_tar(context, selection) == [("0", "644 a"), ("1", "644 hello")]


@pytest.mark.parametrize("source", ["../outside", "app/../../outside", "app/link", "way/outside", "loop", "abs"])
def test_no_way_leads_out(context: BuildContext, folder: Path, source: str) -> None:
    (folder / "way").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    (folder / "abs").symlink_to(folder.parent / "outside")
    with pytest.raises(ContextError):
        select_sources(context, [source])


def test_links_within_the_context_are_followed_at_the_source_only(context: BuildContext, folder: Path) -> None:
    (folder / "current").symlink_to("app")
    (folder / "rooted").symlink_to("/app/main.py")
    (folder / "up").symlink_to("../../app/main.py")  # a file system's root is its own parent
    selection = select_sources(context, ["current", "rooted", "up"])
    assert [item.kind for item in selection.items] == ["directory", "file", "file"]
    assert selection.items[1].name == "rooted"
    assert ("1", "644 print(1)") in list_tar(context, selection)


def test_ignored_files_are_not_there(folder: Path) -> None:
    (folder / "keep").mkdir()
    (folder / "keep" / "yes.md").write_text("1")
    (folder / "keep" / "no.md").write_text("1")
    with open_with(folder, "app\n*.txt\n!b.txt\nkeep\n!keep/yes.md\n") as context:
        names = [name for name, _ in list_tar(context, select_sources(context, ["."]))]
        assert names == ["0", "0/b.txt", "0/keep", "0/keep/yes.md"]
        for source in ("a.txt", "app/main.py", "keep/no.md"):
            with pytest.raises(ContextError, match="dockerignore"):
                select_sources(context, [source])


def test_missing_sources_and_empty_wildcards(context: BuildContext) -> None:
    with pytest.raises(ContextError, match=r"`app/main\.pi` is not in the build context") as caught:
        select_sources(context, ["app/main.pi"])
    assert caught.value.hint == "did you mean `app/main.py`?"
    selection = select_sources(context, ["*.none", "a.txt"])
    assert selection.unmatched == ("*.none",) and len(selection.items) == 1


def test_what_is_no_file_is_refused_by_name(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "sock"))
        for name, kind in (("pipe", "a FIFO"), ("sock", "a socket"), (".", "a FIFO")):
            with BuildContext(folder) as context, pytest.raises(ContextError, match=kind):
                select_sources(context, [name])
        with open_with(folder, "pipe\nsock\n") as context:
            assert select_sources(context, ["."]).items


def test_the_digest_covers_what_counts_and_nothing_else(folder: Path) -> None:
    def digest() -> str:
        with BuildContext(folder) as context:
            return select_sources(context, ["app"]).digest

    first = digest()
    os.utime(folder / "app" / "main.py", (1, 1))
    (folder / "other").write_text("not copied")
    assert digest() == first
    seen = {first}
    (folder / "app" / "main.py").write_text("print(2)")
    seen.add(digest())
    (folder / "app" / "main.py").chmod(0o600)
    seen.add(digest())
    (folder / "app" / "link").unlink()
    (folder / "app" / "link").symlink_to("elsewhere")
    seen.add(digest())
    (folder / "app" / "deep" / "x").rename(folder / "app" / "deep" / "y")
    seen.add(digest())
    (folder / "app" / "empty").mkdir()
    seen.add(digest())
    assert len(seen) == 6


def test_a_file_that_changes_between_hashing_and_sending(context: BuildContext, folder: Path) -> None:
    selection = select_sources(context, ["a.txt"])
    status = (folder / "a.txt").stat()
    (folder / "a.txt").write_text("b")
    os.utime(folder / "a.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ContextError, match="changed while"):
        list_tar(context, selection)


@pytest.mark.parametrize("change", ["longer", "shorter", "gone", "link", "pipe"])
def test_a_file_that_changes_after_it_was_listed(context: BuildContext, folder: Path, change: str) -> None:
    path = folder / "b.txt"
    context.list_folder("")
    if change in ("longer", "shorter"):
        path.write_text("b" if change == "shorter" else "bbb")
    else:
        path.unlink()
        if change == "link":
            path.symlink_to("a.txt")
        if change == "pipe":
            os.mkfifo(path)
    with pytest.raises(ContextError, match="changed while"):
        select_sources(context, ["b.txt"])


def test_odd_names(context: BuildContext, folder: Path) -> None:
    (folder / "new\nline").write_text("1")
    (folder / os.fsdecode(b"latin\xe9")).write_text("2")
    (folder / ("long" * 40)).write_text("3")
    (folder / "star*").write_text("4")
    selection = select_sources(context, [r"star\*", "new*", "latin*", "long*"])
    data = b"".join(open_tar(context, selection, inline_mtime_s=0))
    assert b"latin\xe9" in os.fsencode(selection.items[2].name) and len(data) % 512 == 0
    assert [item.name[:4] for item in selection.items] == ["star", "new\n", "lati", "long"]
    whole = b"".join(open_tar(context, select_sources(context, ["."]), inline_mtime_s=0))
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        assert os.fsencode(f"0/{selection.items[2].name}") in {os.fsencode(info.name) for info in archive}


class ManyFiles(ContextTree):
    """A hundred folders of a thousand files each, which no disk holds."""

    def root_entry(self) -> Entry:
        return Entry("", "directory", 0o755, 0, 0, "", ())

    def _read_folder(self, path: str) -> Iterator[Entry]:
        if not path:
            yield from (Entry(f"d{number:02}", "directory", 0o755, 0, 0, "", ()) for number in range(100))
        else:
            yield from (Entry(f"{path}/f{number:03}", "file", 0o644, 1, 0, "", ()) for number in range(1000))

    def read_chunks(self, entry: Entry) -> Iterator[bytes]:
        yield b"x"


def test_a_hundred_thousand_files_are_never_in_memory_together() -> None:
    tree = ManyFiles()
    selection = select_sources(tree, ["."])
    assert len(selection.entries) == 100_101
    archive = open_tar(tree, selection, inline_mtime_s=7)
    sent = 0
    tracemalloc.start()
    try:
        while sent < 4 << 20:
            sent += len(next(archive))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20, f"{peak} bytes are held after {sent} were sent"
    # A header and a block of content for each file.
    assert sent + sum(len(chunk) for chunk in archive) >= 100_000 * 1024


def test_a_context_with_too_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firebuild.build.tree.MAX_ENTRIES", 5000)
    with pytest.raises(ContextError, match="more than 5000 files"):
        select_sources(ManyFiles(), ["."])


def test_a_tree_that_is_nested_without_end(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    with BuildContext(tmp_path) as context, pytest.raises(ContextError, match="nested too deep"):
        select_sources(context, ["."])


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*", "a.b", True),
        ("*", ".hidden", True),
        ("a*b*c", "axxbyyc", True),
        ("a*b*c", "axxbyy", False),
        ("?", "é", True),
        ("?", "ab", False),
        ("[a-c]x", "bx", True),
        ("[^a-c]x", "bx", False),
        ("[^a-c]x", "dx", True),
        ("[!a]", "!", True),
        (r"\*", "*", True),
        (r"\*", "a", False),
        (r"[\]]", "]", True),
        ("[a-", "a", None),
        ("[]a]", "a", None),
        ("a\\", "a", None),
        ("*" * 50 + "b", "a" * 200, False),
    ],
)
def test_wildcards_are_go_s(pattern: str, name: str, matches: bool | None) -> None:
    if matches is None:
        with pytest.raises(BuildError, match="not a valid pattern"):
            match_component(pattern, name)
    else:
        assert match_component(pattern, name) is matches
