"""Killed, or out of space, at each system call that changes state: what a name points to is old or new, and nothing is left.

strace(1) injects the fault at the Nth call of the operation's process. After it the next command starts: fsck must be clean, the
folder of half-made things empty, the view in step, and the name's image exactly the one before or the one after.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from firebuild.engine.store import free_space
from firebuild.names import parse_reference
from firebuild.store.fsck import check_store
from tests.support.store_driver import KILLED, OPERATIONS, REFUSED, UNEXPECTED, WELL, make_image, open_engine

ROOT = Path(__file__).parents[2]
RECOVERY = ["recover"]
NAMES = [name for name in OPERATIONS if name not in RECOVERY]
REMOVING = ("?unlink", "?unlinkat", "?rmdir")
WRITING = (
    "write", "pwrite64", "?pwritev", "fsync", "fdatasync", "?rename", "?renameat", "?renameat2", "?link", "?linkat",
    "?symlink", "?symlinkat", "?mkdir", "?mkdirat", "ftruncate", "?fallocate", "?copy_file_range", "?sendfile",
)  # fmt: skip
CHANGING = ("fchmod", "?chmod", "?fchmodat", "?fchown", "?chown", "?fchownat", "?utimensat")
# Enough for the longest operation: a run in which no process is hit ends the sweep.
MOST = 400


def make_step(folder: Path) -> None:
    """What each operation finds: an image with a disk, another one, and for prune what nothing names any more."""
    with open_engine(folder, "base") as engine:
        make_image(engine, "app:1", "old")
        make_image(engine, "other:1", "other")
        gone = make_image(engine, "gone:1", "gone")
        layer = engine.blobs.put(b"step", "application/vnd.oci.image.layer.v1.tar")
        engine.database.execute(
            "INSERT INTO steps (key, layer_digest, diff_id, layer_size, media_type, explain, created_at_ns, used_at_ns)"
            " VALUES ('k', ?, ?, 4, '', '{}', 0, 0)",
            (layer.digest, layer.digest),
        )
        with engine.disks.stage(1 << 20) as staged:
            staged.publish(engine.disks.disk_key(gone.chain_id, {}), {"chain_id": gone.chain_id})
        engine.repair()
        engine.images.untag(parse_reference("gone:1"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crashes")
    make_step(folder)
    with tarfile.open(folder / "tree.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("file"))
    layout = folder / "layout"
    with open_engine(folder, "source") as engine:
        make_image(engine, "pulled:1", "pulled")
        shutil.copytree(
            engine.layout.store, layout, ignore=shutil.ignore_patterns("ingest", "quarantine", "index.lock")
        )
    return folder


def leave_things(folder: Path) -> None:
    """What processes that were killed leave behind: half a blob and its folder, half a disk, a view that is behind."""
    with open_engine(folder, "recover") as engine:
        store, disks, rootfs = engine.layout.store, engine.layout.disks, engine.layout.rootfs
    (store / "ingest" / "0123456789abcdef").write_bytes(b"half")
    for stage in (store / "ingest" / "stage-1", disks / ".stage-1"):
        stage.mkdir()
        (stage / "disk.ext4").write_bytes(b"half")
    for path in rootfs.rglob("metadata.json"):
        path.write_bytes(b"{")


def run_driver(base: Path, folder: Path, tracing: list[str], names: list[str]) -> list[int]:
    """Operations, each on a fresh copy of the store; how each ended."""
    folder.mkdir()
    for name in names:
        shutil.copytree(base / "base", folder / name, symlinks=True)
    if names == RECOVERY:
        leave_things(folder)
    for shared in ("tree.tar", "layout"):
        (folder / shared).symlink_to(base / shared)
    done = subprocess.run(
        [*tracing, sys.executable, "-X", "frozen_modules=on", "-m", "tests.support.store_driver", folder, *names],
        cwd=ROOT, env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != UNEXPECTED and done.returncode >= 0, done.stderr.decode()
    return [done.returncode // 3**place % 3 for place in range(len(names))]


def read_state(folder: Path, name: str) -> tuple[object, ...]:
    """What a user sees of a store: names and their authors, disks, cached steps; after the next command has repaired it."""
    with open_engine(folder, name) as engine:
        engine.repair()
        report = check_store(engine.blobs, engine.disks)
        assert report.clean, report.problems
        assert engine.database.check() == []
        assert os.listdir(engine.layout.store / "ingest") == []
        assert not [entry for entry in os.listdir(engine.layout.disks) if entry.startswith(".")]
        images = engine.images.list_images()
        shown = engine.storage.list_published()
        assert {image.reference: image.manifest_digest for image in images} == {
            reference: stamp.split(" ")[0] for reference, stamp in shown.items()
        }
        left = [path for path in engine.layout.rootfs.rglob("*") if path.name.endswith(".tmp")]
        left += engine.layout.store.glob(".*.tmp")
        assert left == []
        if name == "prune":
            # What was cut short is finished by the next one, and takes nothing that is named.
            free_space(engine, drop_cache=True, dry_run=False)
            needed = {digest for image in images for digest in (image.manifest_digest, image.config_digest)}
            needed |= {layer.digest for image in images for layer in image.layers}
            assert set(engine.blobs.list_digests()) == needed and engine.disks.list_keys() == []
        # An import's author is nobody; its time differs from run to run.
        return tuple((image.reference, image.config.author) for image in images)


def sweep(
    base: Path, work: Path, fault: str, calls: tuple[str, ...], names: list[str] = NAMES, *, stride: int = 1
) -> int:
    """Every N, or every so many-th, until no process is hit; the number of points. Both states must be seen of each operation."""
    old = dict.fromkeys(names, read_state(base, "base"))
    plain = run_driver(base, work / "plain", [], names)
    assert plain == [WELL] * len(names)
    new = {name: read_state(work / "plain", name) for name in names}
    seen: dict[str, set[object]] = {name: set() for name in names}

    def run_point(number: int) -> int:
        folder = work / str(number)
        inject = f"inject={','.join(calls)}:{fault}:when={number}"
        tracing = ["strace", "-f", "--seccomp-bpf", "-qqq", "-o", "/dev/null", "-e", inject]
        codes = run_driver(base, folder, tracing, names)
        hit = 0
        for name, code in zip(names, codes, strict=True):
            state = read_state(folder, name)
            assert state in (old[name], new[name]), f"{name}, {fault}, call {number}: {state}"
            assert code != WELL or state == new[name], f"{name}, {fault}, call {number}: success, and not done"
            seen[name].add(state)
            hit += code in (KILLED, REFUSED)
        shutil.rmtree(folder)
        return hit

    points = quiet = 0
    with ThreadPoolExecutor(2) as pool:
        for start in range(1, MOST, 8 * stride):
            hits = list(pool.map(run_point, range(start, start + 8 * stride, stride)))
            points += sum(hits)
            # A failure that harms nothing is no error, so that a few calls without one are not the end.
            quiet = 0 if any(hits) else quiet + 1
            if quiet == 2:
                break
    for name in names:
        assert seen[name] == {old[name], new[name]}, name
    return points


@pytest.mark.parametrize(
    ("fault", "calls", "least"),
    [("signal=KILL", WRITING + REMOVING + CHANGING, 300), ("error=ENOSPC", WRITING, 80)],
    ids=["kill", "full"],
)
def test_old_or_new_and_nothing_left(
    base: Path, tmp_path: Path, fault: str, calls: tuple[str, ...], least: int
) -> None:
    points = sweep(base, tmp_path, fault, calls)
    print(f"{points} points")
    assert points >= least, points


@pytest.mark.parametrize(
    ("fault", "calls", "stride"),
    [
        ("error=EIO", ("fsync", "fdatasync"), 2),
        ("error=EIO", WRITING + REMOVING, 7),
        ("error=EROFS", ("?rename", "?link", "?unlink", "?mkdir"), 3),
    ],
    ids=["not durable", "bad disk", "read-only"],
)
def test_a_disk_that_fails_is_no_success(
    base: Path, tmp_path: Path, fault: str, calls: tuple[str, ...], stride: int
) -> None:
    """A call that fails once, as a dying disk or one that the kernel has made read-only lets it: an error, never a lie. A failed
    fsync above all: after it the kernel has forgotten what it could not write."""
    points = sweep(base, tmp_path, fault, calls, stride=stride)
    print(f"{points} points")
    assert points >= 10, points


def test_a_recovery_that_is_killed_is_made_by_the_next(base: Path, tmp_path: Path) -> None:
    """The repair that every command begins with is itself killed at each call; names are as before, and the next finishes."""
    points = sweep(base, tmp_path, "signal=KILL", WRITING + REMOVING + CHANGING, RECOVERY)
    assert points >= 10, points
