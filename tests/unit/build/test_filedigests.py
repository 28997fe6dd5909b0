"""Digests of context files that are kept between builds: used only for what surely is what it was."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from firebuild.build import filedigests
from firebuild.build.context import BuildContext
from firebuild.build.digest import sha256_hex
from firebuild.build.filedigests import FileDigests
from firebuild.errors import ContextError


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # As if what a test writes had been there for long.
    monkeypatch.setattr(filedigests, "_SETTLED_NS", -(10**12))
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "a").write_bytes(b"one")
    (folder / os.fsdecode(b"\xff")).write_bytes(b"odd")
    return folder


def read(context: Path, name: str = "a") -> tuple[str, bool]:
    """The digest of a file as a build finds it, and whether its bytes were read for it."""
    opened: list[str] = []

    class Watched(BuildContext):
        def read_chunks(self, entry):  # type: ignore[no-untyped-def]
            opened.append(entry.path)
            return super().read_chunks(entry)

    with Watched(context, digests=FileDigests(context.parent / "kept", context)) as tree:
        entry = tree.find_entry(name)
        assert entry is not None
        return tree.compute_content_digest(entry), bool(opened)


@pytest.mark.parametrize("name", ["a", os.fsdecode(b"\xff")])
def test_an_unchanged_file_is_read_once(context: Path, name: str) -> None:
    first = read(context, name)
    assert first == (sha256_hex((context / name).read_bytes()), True)
    assert read(context, name) == (first[0], False)


def test_a_file_with_its_old_size_and_time_is_read(context: Path) -> None:
    read(context)
    before = (context / "a").stat()
    (context / "a").write_bytes(b"two")
    os.utime(context / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (context / "a").stat().st_size == before.st_size
    assert read(context) == (sha256_hex(b"two"), True)


def test_a_file_in_the_place_of_another_is_read(context: Path) -> None:
    read(context)
    (context / "new").write_bytes(b"two")
    os.rename(context / "new", context / "a")
    assert read(context) == (sha256_hex(b"two"), True)


def test_what_has_just_changed_is_read_again(context: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filedigests, "_SETTLED_NS", 10**12)
    assert read(context)[1] and read(context)[1]


@pytest.mark.parametrize("damage", [b"", b"\x93", b"\x92\x02\x80", os.urandom(64)])
def test_a_damaged_record_counts_as_none(context: Path, damage: bytes) -> None:
    read(context)
    [kept] = (context.parent / "kept").iterdir()
    kept.write_bytes(damage)
    assert read(context)[1]
    assert not read(context)[1]


def test_bytes_that_differ_without_a_sign_are_refused_once(context: Path) -> None:
    with BuildContext(context) as tree:
        entry = tree.find_entry("a")
        assert entry is not None
    digests = FileDigests(context.parent / "kept", context)
    digests.note("a", entry.identity, sha256_hex(b"not one"), read_at_ns=time.time_ns())
    digests.save()
    with (
        BuildContext(context, digests=FileDigests(context.parent / "kept", context)) as tree,
        pytest.raises(ContextError),
    ):
        list(tree.read_verified(entry))
    assert read(context) == (sha256_hex(b"one"), True)


def test_contexts_do_not_pile_up(context: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filedigests, "_MAX_CONTEXTS", 3)
    with BuildContext(context) as tree:
        entry = tree.find_entry("a")
        assert entry is not None
    for number in range(5):
        digests = FileDigests(context.parent / "kept", Path(f"/{number}"))
        digests.note("a", entry.identity, sha256_hex(b"one"), read_at_ns=time.time_ns())
        digests.save()
    assert len(list((context.parent / "kept").iterdir())) == 3
    assert FileDigests(context.parent / "kept", Path("/4")).find("a", entry.identity) == sha256_hex(b"one")
