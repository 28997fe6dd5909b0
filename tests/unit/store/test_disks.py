"""Disk keys and damaged records; the making of disks is tested in the functional tier."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebuild.errors import NotFoundError, StoreError, UsageError
from firebuild.store.disks import DiskStore, make_blank

TEXT = st.text(max_size=8)


def test_keys_are_stable() -> None:
    assert DiskStore.disk_key("sha256:a", {"size_mib": 512}) == DiskStore.disk_key("sha256:a", {"size_mib": "512"})
    # The keys are on users' disks: a change of the formula is a change of format.
    fields = (b"firebuild-disk-1", b"sha256:a", b"size_mib", b"512")
    expected = hashlib.sha256(b"".join(len(field).to_bytes(8, "big") + field for field in fields)).hexdigest()
    assert DiskStore.disk_key("sha256:a", {"size_mib": 512}) == expected


@given(TEXT, st.dictionaries(TEXT, TEXT, max_size=3), TEXT, st.dictionaries(TEXT, TEXT, max_size=3))
def test_different_inputs_never_share_a_key(
    chain: str, parameters: dict[str, str], other_chain: str, other: dict[str, str]
) -> None:
    same = (chain, parameters) == (other_chain, other)
    assert (DiskStore.disk_key(chain, parameters) == DiskStore.disk_key(other_chain, other)) == same


@pytest.mark.parametrize("key", ["", "..", "../x", "a" * 63, "A" * 64, "a" * 64 + "\n"])
def test_bad_keys_never_become_paths(tmp_path: Path, key: str) -> None:
    with pytest.raises(StoreError, match="not a disk's key"):
        DiskStore(tmp_path).find_disk(key)


def test_absent_disks(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "none")
    assert store.find_disk("a" * 64) is None and store.list_keys() == []
    with pytest.raises(NotFoundError):
        store.get_disk("a" * 64)
    store.remove("a" * 64)


@pytest.mark.parametrize(("size", "label"), [(4096, "x"), (1 << 20, ""), (1 << 20, "x" * 17), (-1, "x")])
def test_impossible_blanks_are_refused_before_anything_exists(tmp_path: Path, size: int, label: str) -> None:
    with pytest.raises(UsageError):
        make_blank(tmp_path / "disk", size, label=label)
    assert list(tmp_path.iterdir()) == []
