"""Disks of cache mounts with the real mke2fs and e2fsck: one machine at a time, sound before each, gone when damaged."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from firebuild.errors import BusyError, StoreError
from firebuild.store.caches import CacheStore, CacheWish, derive_key, wait_until_free

KEY, OTHER = "a" * 64, "b" * 64
SIZE = 64 << 20
DEADLINE_S = 60


@pytest.fixture
def caches(tmp_path: Path) -> CacheStore:
    (tmp_path / "locks").mkdir()
    return CacheStore(tmp_path / "caches", tmp_path / "locks", SIZE)


def debugfs(disk: Path, command: str, *, write: bool = False) -> str:
    argv = ["debugfs", *(["-w"] if write else []), "-R", command, str(disk)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_a_cache_is_made_kept_and_listed(caches: CacheStore) -> None:
    wishes = [CacheWish(OTHER, "/two"), CacheWish(KEY, "/one")]
    with caches.attach(wishes) as disks:
        assert [disk.parent.name for disk in disks] == [OTHER, KEY]
        assert {info.key: info.clean for info in caches.list_caches()} == {KEY: False, OTHER: False}
        debugfs(disks[1], "mkdir content", write=True)
    with caches.attach(wishes[1:]) as disks:
        assert "content" in debugfs(disks[0], "ls /")
    listed = {info.key: info for info in caches.list_caches()}
    assert listed[KEY].name == "/one" and listed[KEY].clean and 0 < listed[KEY].size_bytes < 16 << 20
    assert [info.key for info in caches.list_caches()] == [OTHER, KEY], "the least recently used first"
    caches.remove_cache(OTHER)
    caches.remove_cache(OTHER)
    assert [info.key for info in caches.list_caches()] == [KEY]


def test_another_build_waits_and_a_private_cache_does_not(caches: CacheStore) -> None:
    order: list[str] = []
    waited = threading.Event()

    def second() -> None:
        def waiting(name: str) -> None:
            order.append(f"waits for {name}")
            waited.set()

        with caches.attach([CacheWish(KEY, "/one")], waiting=waiting):
            order.append("second")

    thread = threading.Thread(target=second)
    with caches.attach([CacheWish(KEY, "/one")]):
        with caches.attach([CacheWish(KEY, "/one", private=True)]) as [private]:
            assert private.parent.name == derive_key(KEY, 1)
        with pytest.raises(BusyError):
            caches.remove_cache(KEY)
        thread.start()
        assert waited.wait(DEADLINE_S)
        order.append("first")
    thread.join(DEADLINE_S)
    assert order == ["waits for /one", "first", "second"]


def test_a_build_that_was_killed_leaves_a_cache_that_is_made_sound(caches: CacheStore) -> None:
    with pytest.raises(KeyboardInterrupt), caches.attach([CacheWish(KEY, "/one")]) as [disk]:
        debugfs(disk, "mkdir content", write=True)
        # As after a machine's sudden end: not unmounted, and a count that is wrong.
        debugfs(disk, "set_super_value state 0", write=True)
        debugfs(disk, "set_super_value free_blocks_count 1", write=True)
        raise KeyboardInterrupt
    assert not caches.list_caches()[0].clean
    renewed: list[str] = []
    with caches.attach([CacheWish(KEY, "/one")], renewed=renewed.append) as [disk]:
        subprocess.run(["e2fsck", "-fn", disk], check=True, capture_output=True)
        assert "content" in debugfs(disk, "ls /")
        assert (disk.stat().st_uid, disk.stat().st_mode & 0o777) == (os.getuid(), 0o600)
    assert renewed == []


@pytest.mark.parametrize("damage", ["superblock", "record", "half made"])
def test_what_cannot_be_mended_begins_anew(caches: CacheStore, damage: str) -> None:
    with caches.attach([CacheWish(KEY, "/one")]) as [disk]:
        debugfs(disk, "mkdir content", write=True)
    if damage == "superblock":
        with open(disk, "r+b") as file:
            for block in range(SIZE // (1 << 20)):
                file.seek(block << 20)
                file.write(os.urandom(1 << 20))
    elif damage == "record":
        (disk.parent / "cache.json").write_text("{")
    else:
        (disk.parent / "cache.json").unlink()
    renewed: list[str] = []
    with caches.attach([CacheWish(KEY, "/one")], renewed=renewed.append) as [disk]:
        assert "content" not in debugfs(disk, "ls /")
    assert renewed == (["/one"] if damage == "superblock" else [])
    assert caches.sweep() == [], "nothing doomed is left"


def test_a_disk_that_somebody_has_open_is_waited_for(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"x")
    script = "import sys; file = open(sys.argv[1], 'r+b'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, disk], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdout.readline()
        done = threading.Event()

        def wait() -> None:
            wait_until_free(disk, "/one")
            done.set()

        thread = threading.Thread(target=wait)
        thread.start()
        assert not done.wait(0.3)
        holder.stdin.close()
        assert done.wait(DEADLINE_S)
        thread.join()


def test_keys_are_checked(caches: CacheStore) -> None:
    for key in ("", "../x", "A" * 64):
        with pytest.raises(StoreError):
            caches.remove_cache(key)
