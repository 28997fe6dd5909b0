"""Derived disks with the real mke2fs: blank, sparse, clean, the same bytes each time, published whole."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from firebuild.errors import DiskFullError, HostError, StoreError
from firebuild.store.disks import DiskMetadata, DiskStore, make_blank

SIZE = 64 << 20
PARAMETERS = {"size_mib": "64"}
KEY = DiskStore.disk_key("sha256:chain", PARAMETERS)


@pytest.fixture
def disks(tmp_path: Path) -> DiskStore:
    root = tmp_path / "disks"
    root.mkdir()
    return DiskStore(root)


@pytest.mark.parametrize("journal", [False, True])
def test_a_blank_disk_is_clean_sparse_and_reproducible(tmp_path: Path, journal: bool) -> None:
    for name in ("one", "two"):
        make_blank(tmp_path / name, 2 << 30, journal=journal, label="upper")
    one = tmp_path / "one"
    assert one.stat().st_size == 2 << 30
    assert one.stat().st_blocks * 512 < 8 << 20, "it occupies next to nothing"
    subprocess.run(["cmp", one, tmp_path / "two"], check=True)
    subprocess.run(["e2fsck", "-fn", one], check=True, capture_output=True)
    shown = subprocess.run(["dumpe2fs", one], check=True, capture_output=True, text=True).stdout
    assert ("has_journal" in shown) is journal
    assert "Filesystem volume name:   upper" in shown
    # The kernel has nothing left to zero in the background, so the file stays sparse while it is mounted.
    assert "ITABLE_ZEROED" in shown and shown.count("ITABLE_ZEROED") == len(
        re.findall(r"^Group \d+:", shown, re.MULTILINE)
    )


def test_labels_make_different_file_systems(tmp_path: Path) -> None:
    make_blank(tmp_path / "one", SIZE, label="one")
    make_blank(tmp_path / "two", SIZE, label="two")
    identities = {
        subprocess.run(["blkid", "-o", "value", "-s", "UUID", tmp_path / name], check=True, capture_output=True).stdout
        for name in ("one", "two")
    }
    assert len(identities) == 2


def test_an_existing_file_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"mine")
    with pytest.raises(HostError):
        make_blank(tmp_path / "disk", SIZE, label="x")
    assert (tmp_path / "disk").read_bytes() == b"mine"


def test_stage_publish_find_remove(disks: DiskStore) -> None:
    with disks.stage(SIZE) as staged:
        with open(staged.path, "r+b") as file:
            file.seek(SIZE - 1)
            file.write(b"x")
        made = staged.publish(KEY, {"chain_id": "sha256:chain", "parameters": PARAMETERS})
    assert disks.find_disk(KEY) == made
    assert (made.size_bytes, made.chain_id, made.parameters) == (SIZE, "sha256:chain", PARAMETERS)
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o444
    assert os.listdir(disks.root) == [KEY]
    disks.remove(KEY)
    assert disks.find_disk(KEY) is None and os.listdir(disks.root) == []


def test_without_publish_nothing_remains(disks: DiskStore) -> None:
    with pytest.raises(KeyError), disks.stage(SIZE):
        raise KeyError
    assert os.listdir(disks.root) == []


def test_the_first_of_two_makers_wins(disks: DiskStore) -> None:
    metadata = DiskMetadata(chain_id="sha256:chain")
    with disks.stage(SIZE) as one, disks.stage(SIZE) as two:
        assert disks.sweep() == [], "both live"
        first = one.publish(KEY, metadata)
        inode = first.path.stat().st_ino
        assert two.publish(KEY, metadata) == first
    assert disks.get_disk(KEY).path.stat().st_ino == inode
    assert os.listdir(disks.root) == [KEY]


def test_wrong_metadata_or_size_publishes_nothing(disks: DiskStore) -> None:
    with disks.stage(SIZE) as staged:
        with pytest.raises(StoreError, match="metadata"):
            staged.publish(KEY, {"chain": "typo"})
        os.truncate(staged.path, SIZE * 2)
        with pytest.raises(StoreError, match="bytes, not the"):
            staged.publish(KEY, {"chain_id": "sha256:chain"})
    assert os.listdir(disks.root) == []


def test_leftovers_are_swept(disks: DiskStore) -> None:
    (disks.root / ".stage-dead").mkdir()
    make_blank(disks.root / ".stage-dead" / "disk.ext4", SIZE, label="x")
    assert [path.name for path in disks.sweep()] == [".stage-dead"]
    assert os.listdir(disks.root) == []


def test_a_full_file_system(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=True)
    try:
        with pytest.raises(DiskFullError):
            # The descriptors of so many groups alone need more than there is.
            make_blank(small / "disk", 64 << 30, label="x")
        assert os.listdir(small) == []
        disks = DiskStore(small)
        with pytest.raises(DiskFullError), disks.stage(64 << 30):
            pass
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", small], check=True)
