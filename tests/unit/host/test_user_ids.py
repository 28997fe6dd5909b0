"""Ids of a range: each has one holder, until that gives it up or is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from firebuild.errors import BusyError
from firebuild.host.user_ids import claim_id, free_ids


def test_ids_are_claimed_once_freed_and_taken_over(tmp_path: Path) -> None:
    folder = tmp_path / "ids"
    holders = [tmp_path / name for name in ("one", "two", "three")]
    for holder in holders:
        holder.mkdir()
    assert [claim_id(folder, 1000, 1001, holder) for holder in holders[:2]] == [1000, 1001]
    with pytest.raises(BusyError, match="all 2 user ids for VMMs, 1000 to 1001, are in use"):
        claim_id(folder, 1000, 1001, holders[2])
    free_ids(folder, holders[0])
    assert claim_id(folder, 1000, 1001, holders[2]) == 1000
    # A holder that is gone has nothing.
    holders[1].rmdir()
    assert claim_id(folder, 1000, 1001, holders[0]) == 1001
    free_ids(tmp_path / "none", holders[0])
