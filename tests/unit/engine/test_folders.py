"""Folders copied back: what changed in the machine comes, what changed on the host stays, nothing is removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firebuild.engine.folders import Manifest, _look, _take_back
from firebuild.errors import ConflictError, GuestError
from tests.unit.engine.test_landing import make_tar

T = 1_000_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three files of two bytes and a link."""
    path = tmp_path / "folder"
    (path / "sub").mkdir(parents=True)
    for name in ("a", "b", "sub/c"):
        (path / name).write_text("01")
        (path / name).chmod(0o755)
        os.utime(path / name, (0, 0))
    (path / "l").symlink_to("a")
    return path


def manifest_of(folder: Path) -> Manifest:
    return Manifest(dict(_look(str(folder))))


SAME = (
    ("./", "5", b""),
    ("a", "0", b"01"),
    ("b", "0", b"01"),
    ("l", "2", b"a"),
    ("sub", "5", b""),
    ("sub/c", "0", b"01"),
)


def test_what_is_the_same_is_not_touched(folder: Path) -> None:
    manifest = manifest_of(folder)
    (folder / "a").write_text("host")
    (folder / "b").unlink()
    result = _take_back(iter([make_tar(*SAME)]), folder, manifest, "m")
    assert (result.written, result.conflicts, result.kept) == (0, [], 0)
    assert (folder / "a").read_text() == "host" and not (folder / "b").exists()


def test_changes_come_and_removals_do_not(folder: Path) -> None:
    manifest = manifest_of(folder)
    changed = make_tar(
        ("a", "0", b"guest"), ("new", "5", b""), ("new/n", "0", b"n"), ("new/twin", "1", b"new/n"), ("l", "2", b"b"),
        ("lost+found", "5", b""),
    )  # fmt: skip
    result = _take_back(iter([changed]), folder, manifest, "m")
    assert (result.written, result.conflicts, result.kept) == (4, [], 3)
    assert (folder / "a").read_text() == "guest" and (folder / "l").readlink() == Path("b")
    assert (folder / "new/twin").read_text() == "n" and not (folder / "lost+found").exists()
    assert (folder / "sub/c").exists()
    # Once more, as after a second life: nothing is new.
    again = _take_back(iter([changed]), folder, manifest, "m")
    assert (again.written, again.conflicts) == (0, [])


def test_what_changed_on_both_sides_is_kept_twice(folder: Path) -> None:
    manifest = manifest_of(folder)
    (folder / "a").write_text("host")
    (folder / "sub" / "c").unlink()
    changed = make_tar(("a", "0", b"guest"), ("sub", "5", b""), ("sub/c", "0", b"guest"), ("new", "0", b"guest"))
    result = _take_back(iter([changed]), folder, manifest, "m1")
    assert result.conflicts == ["a", "sub/c"]
    assert (folder / "a").read_text() == "host" and (folder / "a.m1").read_text() == "guest"
    assert (folder / "sub/c.m1").read_text() == "guest" and not (folder / "sub/c").exists()
    again = _take_back(iter([changed]), folder, manifest, "m1")
    assert (again.written, again.conflicts) == (0, [])


def test_the_host_replaced_a_folder(folder: Path, tmp_path: Path) -> None:
    manifest = manifest_of(folder)
    (folder / "sub" / "c").unlink()
    (folder / "sub").rmdir()
    (folder / "sub").symlink_to(tmp_path)
    result = _take_back(iter([make_tar(("sub", "5", b""), ("sub/evil", "0", b"x"))]), folder, manifest, "m")
    assert result.conflicts == ["sub"] and not (tmp_path / "evil").exists()
    # Without the folder's own entry: still nothing goes through the link.
    with pytest.raises(ConflictError):
        _take_back(iter([make_tar(("sub/evil", "0", b"x"))]), folder, manifest, "m")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("name", ["../evil", "sub/../../evil"])
def test_nothing_leads_out(folder: Path, name: str) -> None:
    with pytest.raises(GuestError):
        _take_back(iter([make_tar((name, "0", b"x"))]), folder, manifest_of(folder), "m")
    secret = folder.parent / "secret"
    secret.write_text("secret")
    with pytest.raises((GuestError, ConflictError, OSError)):
        _take_back(
            iter([make_tar(("x", "2", b"../secret"), ("y", "1", b"x"))]), folder, manifest_of(folder), "m"
        )  # fmt: skip
    assert not (folder / "y").exists()
