"""remove_tree: all of a folder goes, whatever vanishes by itself meanwhile."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from firebuild.errors import HostError
from firebuild.host.files import remove_tree


def _fill(folder: Path) -> Path:
    (folder / "m").mkdir(parents=True)
    for name in ("c.sock", "v.sock", "base0.drive", "m/a", "m/b"):
        (folder / name).write_text(name)
    return folder


def test_a_file_that_vanishes_meanwhile_does_not_keep_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _fill(tmp_path / "run")
    unlink = os.unlink
    first: list[Any] = []

    def beaten_to_it(path: Any, **how: Any) -> None:
        if not first:
            first.append(path)
            unlink(path, **how)
        unlink(path, **how)

    monkeypatch.setattr(os, "unlink", beaten_to_it)
    remove_tree(folder)
    assert first
    assert not folder.exists()


def test_a_folder_that_vanishes_meanwhile_does_not_keep_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _fill(tmp_path / "run")
    rmdir = os.rmdir
    gone: list[Any] = []

    def beaten_to_it(path: Any, **how: Any) -> None:
        if path == "m":
            gone.append(path)
            rmdir(path, **how)
        rmdir(path, **how)

    monkeypatch.setattr(os, "rmdir", beaten_to_it)
    remove_tree(folder)
    assert gone
    assert not folder.exists()


def test_what_cannot_be_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _fill(tmp_path / "run")

    def refused(path: Any, **_how: Any) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(os, "unlink", refused)
    with pytest.raises(HostError, match=f"removing `{folder}`"):
        remove_tree(folder)


def test_an_absent_folder_is_fine(tmp_path: Path) -> None:
    remove_tree(tmp_path / "none")
    assert not (tmp_path / "none").exists()
