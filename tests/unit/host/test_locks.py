"""Locks: shared and exclusive, and a lock whose file its holder removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from firebuild.errors import BusyError
from firebuild.host.locks import hold_lock


def test_one_holder_or_many_readers(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with (
        hold_lock(path, "the thing"),
        pytest.raises(BusyError, match="the thing is in use"),
        hold_lock(path, "the thing"),
    ):
        raise AssertionError("two hold the lock")
    with hold_lock(path, "it", shared=True), hold_lock(path, "it", shared=True), pytest.raises(BusyError):
        hold_lock(path, "it").__enter__()


def test_a_lock_whose_file_is_gone_is_a_new_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold_lock(path, "it"):
        path.unlink()
        with hold_lock(path, "it"):
            assert path.exists()
    with hold_lock(path, "it"), pytest.raises(BusyError):
        hold_lock(path, "it").__enter__()
